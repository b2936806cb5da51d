"""Handler classes written for ``http.server``: ``HTTPRequestHandler`` serves for them.

By the order of its bases the class that is made stands for theirs, with the methods of
``HTTPRequestHandler`` in the place of those of ``BaseHTTPRequestHandler``. Nothing here is
looked at for a request.
"""

import functools
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from types import FunctionType
from typing import Any, Final

from .connection import Parked, Service
from .handler import HTTPRequestHandler

# A class that has one of these reads its requests by itself.
_OWN_WAY: Final = ("handle", "handle_one_request", "parse_request")

# Methods of ours that http.server's have not. A class that has one by such a name means
# something else by it, and ours would call it; respond() is for user code alone.
_OURS: Final = frozenset(
    name
    for name, value in vars(HTTPRequestHandler).items()
    if type(value) is FunctionType and not hasattr(SimpleHTTPRequestHandler, name)
) - {"respond"}


class _Lines:
    """In the place of http.server's ``_headers_buffer``, to which its own ``send_header()`` and
    ``end_headers()`` append: many classes call these by their full names."""

    def __init__(self, handler: HTTPRequestHandler) -> None:
        self._handler = handler

    def append(self, line: bytes) -> None:
        handler, text = self._handler, line.decode("latin-1").removesuffix("\r\n")
        if not text:
            HTTPRequestHandler.end_headers(handler)
        elif text.startswith("HTTP/"):
            _, code, *message = text.split(" ", 2)
            HTTPRequestHandler.send_response_only(handler, int(code), *message)
        else:
            name, _, value = text.partition(": ")
            HTTPRequestHandler.send_header(handler, name, value)

    def __iter__(self) -> Iterator[bytes]:
        return iter(())  # nothing is left to send


class _Standard(HTTPRequestHandler):
    """What a class for ``http.server`` expects besides."""

    logs_requests = True

    @property
    def _headers_buffer(self) -> _Lines:
        return _Lines(self)

    @_headers_buffer.setter
    def _headers_buffer(self, empty: list[bytes]) -> None:
        pass


def handler_class(handler: Any) -> Any:
    """The class that serves for this one, or for the one in this ``functools.partial``; the
    same, if it is no class for ``http.server``, is one of ours already, reads its requests by
    itself, or from a file without a buffer, as for a subprocess, or allows no derived class."""
    kind = handler.func if type(handler) is functools.partial else handler
    if (
        not (isinstance(kind, type) and issubclass(kind, BaseHTTPRequestHandler))
        or issubclass(kind, HTTPRequestHandler)
        or any(
            getattr(kind, name) is not getattr(BaseHTTPRequestHandler, name) for name in _OWN_WAY
        )
        or kind.rbufsize != BaseHTTPRequestHandler.rbufsize
        or not _OURS.isdisjoint(dir(kind))
    ):
        return handler
    names = {"__module__": kind.__module__, "__doc__": kind.__doc__, "_theirs": kind}
    try:
        made = type(kind.__name__, (kind, _Standard), names)
    except Exception:  # of its own __init_subclass__, or it is BaseHTTPRequestHandler itself
        return handler
    return _replaced(handler, made)


def _replaced(handler: Any, kind: type) -> Callable[..., Any]:
    if type(handler) is functools.partial:
        return functools.partial(kind, *handler.args, **handler.keywords)
    return kind


def parked(handler: Any) -> Service | None:
    """How the connections of this handler class, or of the one in this ``functools.partial``, are
    served, and parked meanwhile. None: it is not ours, or has its own way of handling them."""
    kind, args, keywords = handler, (), {}
    if type(handler) is functools.partial:
        kind, args, keywords = handler.func, handler.args, handler.keywords
    if not (
        isinstance(kind, type)
        and issubclass(kind, HTTPRequestHandler)
        and kind.handle is HTTPRequestHandler.handle
        and kind.handle_one_request is HTTPRequestHandler.handle_one_request
    ):
        return None
    parked = type(kind.__name__, (Parked, kind), {"__module__": kind.__module__})
    service = Service(parked, args, keywords)
    service.simple = service.simple and kind.__new__ is HTTPRequestHandler.__new__
    service.finishes = kind.finish is not HTTPRequestHandler.finish
    return service
