"""What this process has from a predecessor: its sockets, and the lock of its pid file.

The other half of the protocol, and the protocol, are in ``upgrade``. Until it was told that
all of it is its own, a successor changes nothing that the old master needs: neither a path,
nor a socket that both of them accept from.
"""

import json
import os
import socket
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Final

from .forks import drop, keep_from_forks

VARIABLE: Final = "PREFORK_SERVER_UPGRADE"
READY: Final = b"ready\n"  # to the old master: my first worker serves
WORDS: Final = 1000  # bytes at most of what the new one says besides
YOURS: Final = b"yours\n"  # to the new one: all is yours


class Inheritance:
    """The new master's half: what it has from a predecessor, if there is one."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._sockets: list[tuple[str, int, str]] = []  # key, descriptor, path
        self._left: list[str] = []  # paths of the predecessor's that nobody has taken over
        self._lock: tuple[str, int] | None = None
        self._talk: socket.socket | None = None
        self._is_successor = False
        self._pid = os.getpid()
        will = environ.pop(VARIABLE, None)
        if will is not None:
            with suppress(OSError, ValueError, TypeError, KeyError):  # not ours, or no will
                self._read(json.loads(will))

    def _read(self, will: dict[str, Any]) -> None:
        talk = socket.socket(fileno=os.dup(will["talk"]))
        # A program that inherited the variable alone has not this descriptor.
        peer = talk.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if int.from_bytes(peer[:4], sys.byteorder) != will["parent"]:
            talk.close()
            return
        os.close(will["talk"])
        talk.setblocking(False)
        keep_from_forks(talk.fileno())
        self._talk, self._is_successor = talk, True
        for key, fd, path in will["sockets"]:
            os.set_inheritable(fd, False)
            self._sockets.append((key, fd, path))
        if will["lock"]:
            path, fd = will["lock"]
            os.set_inheritable(fd, False)
            self._lock = path, fd

    def take(self, key: str) -> int | None:
        """The descriptor of the socket that the predecessor had under this key, once."""
        for one in self._sockets:
            if one[0] == key:
                self._sockets.remove(one)
                return one[1]
        return None

    def keys(self, beginning: str) -> list[str]:
        """Of the sockets that nobody has taken yet, those that begin so."""
        return [key for key, _, _ in self._sockets if key.startswith(beginning)]

    def take_lock(self, path: str) -> int | None:
        """The descriptor that holds the lock of this file."""
        if self._lock and self._lock[0] == path:
            fd, self._lock = self._lock[1], None
            return fd
        return None

    def is_successor(self) -> bool:
        """Whether a predecessor started this process, be it gone or not."""
        return self._is_successor

    def settled(self) -> bool:
        """Whether nobody but us needs the paths and the sockets any more."""
        if self._talk is None or self._pid != os.getpid():
            return True
        try:
            word = self._talk.recv(len(YOURS))
        except BlockingIOError:
            return False
        except OSError:
            word = b""  # it is gone, and so it is ours as well
        if word not in (YOURS, b""):
            return False
        drop(self._talk.detach())
        self._talk = None
        for path in self._left:
            with suppress(OSError):
                os.unlink(path)
        return True

    def fail(self, reason: str) -> None:
        """Tell the predecessor why not."""
        if self._talk:
            with suppress(OSError):
                self._talk.send(reason.encode("utf-8", "replace")[:WORDS], socket.MSG_NOSIGNAL)

    def be_ready(self) -> None:
        """Tell the predecessor. What was not taken over nobody wants any more, but for him, if
        he is to serve on: its paths go when he does."""
        if self._talk:
            with suppress(OSError):
                self._talk.send(READY, socket.MSG_NOSIGNAL)
        self._left = [path for _, _, path in self._sockets if path]
        for _, fd, _ in self._sockets:
            os.close(fd)
        if self._lock:
            self._left.append(self._lock[0])
            os.close(self._lock[1])
        self._sockets, self._lock = [], None


@cache
def inheritance() -> Inheritance:
    """What this process has from a predecessor. The environment is read once, and cleared."""
    return Inheritance()


inheritance()  # now: what the program starts before its server would have all of it, too


def take_over(sock: socket.socket, key: str) -> bool:
    """Whether a predecessor left a socket for this key: then ``sock`` is that one."""
    fd = inheritance().take(key)
    if fd is None:
        return False
    os.dup2(fd, sock.fileno(), inheritable=False)
    os.close(fd)
    return True


@contextmanager
def as_heir(sock: socket.socket, key: str) -> Iterator[None]:
    """Within, to bind it is to take over what a predecessor has left: for classes that bind by
    themselves."""
    if type(sock) is not socket.socket or not inheritance().is_successor():
        yield
        return

    class Heir(socket.socket):
        __slots__ = ()

        def bind(self, address: Any, /) -> None:
            if not take_over(self, key):
                super().bind(address)

    sock.__class__ = Heir
    try:
        yield
    finally:
        sock.__class__ = socket.socket
