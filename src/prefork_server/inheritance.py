"""What this process has from a predecessor: its sockets, and the locks of its pid file.

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
from typing import Any, Final, NamedTuple

from .errors import BootError
from .forks import drop, keep_from_forks
from .origin import VARIABLE as VARIABLE

HEARS: Final = b"hears\n"  # to the old master: signals reach me
READY: Final = b"ready\n"  # to the old master: a worker of mine has been of use
WORDS: Final = 1000  # bytes at most of what the new one says besides
YOURS: Final = b"yours\n"  # to the new one: all is yours


class Legacy(NamedTuple):
    """One socket: what it is known by, its descriptor, and the path that it was bound to; ``file``
    is who that was, its device and inode, and so not the path of whoever is there by now."""

    key: str
    fd: int
    path: str
    file: tuple[int, int] | None

    def unlink(self) -> None:
        with suppress(OSError):
            there = os.lstat(self.path)
            if (there.st_dev, there.st_ino) == self.file:
                os.unlink(self.path)


class Inheritance:
    """The new master's half: what it has from a predecessor, if there is one."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._sockets: list[Legacy] = []
        self._left: list[Legacy] = []  # of the predecessor's paths, those that nobody took over
        self._locks: dict[str, int] = {}  # descriptors, by the path of the file
        self._talk: int = -1  # the descriptor
        self._is_successor = self._said_ready = False
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
        # By its number: if it is never settled, it ends with us, and no object is to complain.
        self._talk, self._is_successor = keep_from_forks(talk.detach()), True
        # What this program does not take must not live on in its workers: a socket would
        # accept clients that are never served, a file would stay locked.
        for key, fd, path, file in will["sockets"]:
            os.set_inheritable(keep_from_forks(fd), False)
            self._sockets.append(Legacy(key, fd, path, file and tuple(file)))
        for path, fd in will.get("locks", ()):
            os.set_inheritable(keep_from_forks(fd), False)
            self._locks[path] = fd

    def take(self, key: str) -> Legacy | None:
        """The socket that the predecessor had under this key, once. Raises BootError."""
        self._check()
        for one in self._sockets:
            if one.key == key:
                self._sockets.remove(one)
                return one
        return None

    def keys(self, beginning: str) -> list[str]:
        """Of the sockets that nobody has taken yet, those that begin so."""
        return [one.key for one in self._sockets if one.key.startswith(beginning)]

    def take_lock(self, path: str) -> int | None:
        """The descriptor that holds the lock of this file. Raises BootError."""
        self._check()
        return self._locks.pop(path, None)

    def _check(self) -> None:
        """The predecessor knows the process that it started, and no fork of it."""
        if self._is_successor and self._pid != os.getpid():
            raise BootError(
                "an upgrade of a program that has gone into the background by itself: its old "
                "master would not know it (use start(), or stay in the foreground)"
            )

    def is_successor(self) -> bool:
        """Whether a predecessor started this process, be it gone or not."""
        return self._is_successor

    def is_awaited(self) -> bool:
        """Whether a predecessor waits for us to be ready."""
        return self._is_successor and not self._said_ready

    def settled(self) -> bool:
        """Whether nobody but us needs the paths and the sockets any more."""
        if self._talk < 0 or self._pid != os.getpid():
            return True
        try:
            with self._talking() as talk:
                word = talk.recv(len(YOURS))
        except BlockingIOError:
            return False
        except OSError:
            word = b""  # it is gone, and so it is ours as well
        if word not in (YOURS, b""):
            return False
        drop(self._talk)
        self._talk = -1
        for one in self._left:
            one.unlink()
        return True

    def hears(self) -> None:
        """Tell the predecessor that we hear signals, and a graceful stop as what it is."""
        self._say(HEARS)

    def fail(self, reason: str) -> None:
        """Tell the predecessor why not."""
        self._say(reason.encode("utf-8", "replace")[:WORDS])

    def _say(self, word: bytes) -> None:
        if self._talk >= 0 and self._pid == os.getpid():
            with suppress(OSError), self._talking() as talk:  # it is gone
                talk.send(word, socket.MSG_NOSIGNAL)

    @contextmanager
    def _talking(self) -> Iterator[socket.socket]:
        talk = socket.socket(fileno=self._talk)
        talk.setblocking(False)  # whatever socket.setdefaulttimeout() says
        try:
            yield talk
        finally:
            talk.detach()

    def be_ready(self) -> None:
        """Tell the predecessor that a worker of ours has been of use. What was not taken over
        nobody wants any more, but for him, if he is to serve on: its paths go when he does."""
        self._said_ready = True
        self._say(READY)
        self._left = self._sockets
        for path, fd in self._locks.items():
            there = os.fstat(fd)
            self._left.append(Legacy("", fd, path, (there.st_dev, there.st_ino)))
        for one in self._left:
            drop(one.fd)
        self._sockets, self._locks = [], {}
        if self._talk < 0:  # he is gone already
            for one in self._left:
                one.unlink()


@cache
def inheritance() -> Inheritance:
    """What this process has from a predecessor. The environment is read once, and cleared."""
    return Inheritance()


inheritance()  # now: what the program starts before its server would have all of it, too


def take_over(sock: socket.socket, key: str) -> Legacy | None:
    """What a predecessor left for this key: then ``sock`` is that one."""
    legacy = inheritance().take(key)
    if legacy:
        os.dup2(legacy.fd, sock.fileno(), inheritable=False)
        drop(legacy.fd)
    return legacy


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
