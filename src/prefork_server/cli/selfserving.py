"""Targets that start a server of their own when they are imported: refused, with file and line.

Such an import never ends. Known are ``serve_forever()`` and ``handle_request()`` of
``socketserver``, what serves in this package, a server that binds in a running event loop, and an
``accept()`` without a time limit. Refused is a call in the thread that imports: a server in
another thread does not keep the import from its end.
"""

import os
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from ..launch import Launch

_Test = Callable[[Any], bool]


def _always(_: Any) -> bool:
    return True


def _waits_for_ever(sock: socket.socket) -> bool:
    return sock.gettimeout() is None


def _is_in_loop(sock: socket.socket) -> bool:
    if "asyncio" in sys.modules and sock.type == socket.SOCK_STREAM:
        from asyncio import get_running_loop

        with suppress(RuntimeError):
            return bool(get_running_loop())
    return False


_CALLS: Final[tuple[tuple[type, str, _Test], ...]] = (
    (socketserver.BaseServer, "serve_forever", _always),
    (socketserver.BaseServer, "handle_request", _always),
    (Launch, "run", _always),
    (Launch, "start", _always),
    (socket.socket, "accept", _waits_for_ever),
    (socket.socket, "bind", _is_in_loop),
)


@contextmanager
def refused(importer: str) -> Iterator[list[str]]:
    """Within, a call that would serve raises RuntimeError in this thread. Yields the places of
    such calls. ``importer`` is the file of the function that imports."""
    places: list[str] = []
    here: tuple[int, int] | None = os.getpid(), threading.get_ident()

    def guarded(call: Callable[..., Any], serves: _Test) -> Callable[..., Any]:
        def guard(self: Any, *args: Any, **keywords: Any) -> Any:
            if here and here == (os.getpid(), threading.get_ident()) and serves(self):
                places.append(_place(importer))
                raise RuntimeError(f"a server is started by an import, at {places[-1]}")
            return call(self, *args, **keywords)

        return guard

    put = []
    for owner, name, serves in _CALLS:
        own, guard = vars(owner).get(name), guarded(getattr(owner, name), serves)
        setattr(owner, name, guard)
        put.append((owner, name, own, guard))
    try:
        yield places
    finally:
        here = None  # what was imported may have kept a guard, as an attribute of a class
        for owner, name, own, guard in put:
            if vars(owner).get(name) is guard:  # and not a patch of what was imported
                setattr(owner, name, own) if own else delattr(owner, name)


def _place(importer: str) -> str:
    """The line of the module that is being imported; or, where a function is called that was
    imported before, the line of that."""
    frame, place = sys._getframe(2), ""
    while frame.f_back and frame.f_code.co_filename != importer:
        place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        if frame.f_code.co_name == "<module>":
            break
        frame = frame.f_back
    return place
