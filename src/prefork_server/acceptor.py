"""Wait for connections, fairly among workers, and take them one at a time.

All workers wait for the same sockets. The kernel wakes one of them for each
connection (``EPOLLEXCLUSIVE``), and it wakes it once: whoever is woken tries to
accept before it does anything else. Two things would strand a connection that
its chosen worker does not take, and both are seen to:

* a worker that was killed in between: the others enlist anew at every idle
  beat, which shows them what waits there, and at once when the master, who
  has seen the death, asks one of them to;
* two listeners that wake one worker at the same time: it takes the first, and
  asks a sibling to look after the second.
"""

import errno
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from .connection import Connection, Vigil
from .scoreboard import SECOND

_LONG_NS = SECOND // 200  # after so long with one client, queue up behind the idle workers
_COURTESY_NS = SECOND // 1000  # after one that is kept: time enough for a sibling to wake up
_PAUSES = (0.1, 1.0)  # seconds without descriptors: the first pause, and the longest
_COMPLAINTS_NS = 5 * SECOND  # a log line about them at most so often

ENTRANCE = 9.75
"""Seconds of a client's silence that a ``get_request`` of the class's own is left to, since
nobody else is accepted meanwhile. No round number: it must not be mistaken for the class's."""

_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_BROKEN = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}


class Relay:
    """Wakes one idle worker, whichever, so that it looks at the listeners anew."""

    def __init__(self) -> None:
        self.fd: int = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_SEMAPHORE | os.EFD_CLOEXEC)

    def wake_one(self) -> None:
        os.eventfd_write(self.fd, 1)

    def woken(self) -> None:
        with suppress(BlockingIOError):  # a sibling was faster
            os.eventfd_read(self.fd)

    def close(self) -> None:
        os.close(self.fd)


def _accept_publicly(listener: socket.socket) -> tuple[int, Any]:
    connection, peer = listener.accept()
    return connection.detach(), peer


# socket.accept() without building an object of the wrong class first: 1.5 microseconds.
_accept: Callable[[socket.socket], tuple[int, Any]] = getattr(
    socket.socket, "_accept", _accept_publicly
)


class Acceptor:
    """The accepting side of one worker."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        relay: Relay,
        vigil: Vigil,
        patience: float | None,
        logger: logging.Logger,
    ) -> None:
        # Plain numbers, asked once: as enums they cost 2 microseconds a connection.
        self._listeners = {s.fileno(): s for s in listeners}
        self._kinds = {s.fileno(): (int(s.family), int(s.type), s.proto) for s in listeners}
        self._relay = relay
        self.vigil = vigil
        self.wrap: Callable[[socket.socket, Vigil], Any] | None = None  # for TLS
        self._patience = None if patience is None else float(patience)
        self._logger = logger
        self._answering: dict[int, Connection] = {}
        self._epoll = select.epoll()
        self._epoll.register(vigil.bell, select.EPOLLIN)
        self._enlisted = False
        self._turn = 0  # so that one busy listener cannot starve another
        self._taken: socket.socket | None = None
        self._taken_ns = 0
        self._pause = 0.0
        self._resting_until_ns = 0
        self._complained_ns = 0
        self._enlist()

    @property
    def resting(self) -> bool:
        """Whether it looks at nobody for a while, though somebody may wait."""
        return self._resting_until_ns > 0

    def wait(self, seconds: float) -> socket.socket | None:
        """A listener on which somebody waits; None when the time is over, or something
        happened that the caller should look at."""
        self._settle_last()
        if self._resting_until_ns:
            left = (self._resting_until_ns - time.monotonic_ns()) / SECOND
            if left <= 0:
                self._resting_until_ns = 0
                self._enlist()
            seconds = max(0.0, min(seconds, left))
        events = self._epoll.poll(seconds)
        if not events:
            self._enlist()
            return None
        ready = [fd for fd, _ in events if self._is_listener(fd)]
        if not ready:
            return None
        if len(ready) > 1:
            self._turn += 1
            self._relay.wake_one()
        return self._listeners[ready[self._turn % len(ready)]]

    def _is_listener(self, fd: int) -> bool:
        if fd in self._listeners:
            return True
        if fd == self._relay.fd:
            self._relay.woken()
            self._enlist()
        else:
            self.vigil.hush()
        return False

    def accept(self, listener: socket.socket) -> tuple[Any, Any] | None:
        """Take one connection. None: nobody there after all. OSError: the listener is broken."""
        try:
            taken = self._take(listener, self._patience)
        except OSError as error:
            self.failed(error)
            return None
        self.took(taken[0])
        return taken

    def _take(self, listener: socket.socket, patience: float | None) -> tuple[Any, Any]:
        fd, peer = _accept(listener)
        connection = Connection(*self._kinds[listener.fileno()], fd, self.vigil, patience)
        return (self.wrap(connection, self.vigil) if self.wrap else connection), peer

    def lend(self) -> None:
        """Let the ``accept()`` of the listeners themselves return connections of ours, for a
        class that calls it: on theirs it would wait, and on a TLS port speak, without us."""
        take = self._take
        patience = ENTRANCE if self._patience is None else min(self._patience, ENTRANCE)

        class Lent(socket.socket):
            __slots__ = ()

            def accept(self) -> tuple[Any, Any]:
                return take(self, patience)

        for listener in self._listeners.values():
            listener.__class__ = Lent

    def let_in(self, connection: socket.socket) -> None:
        """Past the entrance its client may be silent for as long as any other."""
        if connection.gettimeout() == ENTRANCE:
            connection.settimeout(self._patience)

    def receive(self, listener: socket.socket, size: int) -> tuple[Any, Any] | None:
        """Take one datagram, as ``socketserver`` has it: ``(data, socket), peer``."""
        try:
            data, peer = listener.recvfrom(size, socket.MSG_DONTWAIT)
        except OSError as error:
            self.failed(error)
            return None
        self.took(None)
        return (data, self.answering(listener)), peer

    def answering(self, listener: socket.socket) -> Connection:
        """What answers are sent from: it waits as a Connection does."""
        fd = listener.fileno()
        if fd not in self._answering:
            copy = os.dup(fd)
            self._answering[fd] = Connection(*self._kinds[fd], copy, self.vigil, self._patience)
        return self._answering[fd]

    def took(self, connection: object) -> None:
        """A connection was taken: by us, or by a ``get_request`` of the server's own."""
        self._pause = 0.0
        self._taken = connection if isinstance(connection, socket.socket) else None
        self._taken_ns = time.monotonic_ns()

    def failed(self, error: OSError) -> None:
        """An accept failed. Raises the error again if the listener itself is broken.

        Everything that accept(2) names besides is the client's, who is gone already.
        """
        if error.errno in _BROKEN:
            raise error
        if error.errno in _SCARCE:
            self._rest(error)

    def close(self) -> None:
        """Take no more, and close the listeners: nobody must find them open and unattended."""
        self._epoll.close()
        for listener in self._listeners.values():
            listener.close()

    def hang_up(self) -> None:
        """Nothing more is answered."""
        for connection in self._answering.values():
            connection.close()

    def _settle_last(self) -> None:
        """Go to the end of the line after a connection that is kept, or that took long.

        The kernel wakes the worker that enlisted first. For short connections that is
        best: it is warm. But of held ones it would get all. And being awake, it would be
        faster than the sibling who is only being woken: so after a kept one it steps
        aside for a moment.
        """
        if self._taken_ns:
            now = time.monotonic_ns()
            if self._taken is not None and self._taken.fileno() != -1:
                self._step_aside(_COURTESY_NS)
            elif now - self._taken_ns > _LONG_NS:
                self._enlist()
            self._taken, self._taken_ns = None, 0

    def _step_aside(self, for_ns: int) -> None:
        self._resting_until_ns = time.monotonic_ns() + for_ns
        self._resign()

    def _enlist(self) -> None:
        self._resign()
        if not self._resting_until_ns:
            for fd in (*self._listeners, self._relay.fd):
                self._epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            self._enlisted = True

    def _resign(self) -> None:
        if self._enlisted:
            for fd in (*self._listeners, self._relay.fd):
                self._epoll.unregister(fd)
            self._enlisted = False

    def _rest(self, error: OSError) -> None:
        """Out of descriptors or memory: leave the connection to a sibling, and try again later."""
        self._pause = min(_PAUSES[1], self._pause * 2 or _PAUSES[0])
        self._step_aside(int(self._pause * SECOND))
        self._relay.wake_one()
        now = time.monotonic_ns()
        if not self._complained_ns or now - self._complained_ns > _COMPLAINTS_NS:
            self._complained_ns = now
            self._logger.warning(
                "accept: %s, trying again in %.1fs",
                error.strerror,
                self._pause,
                extra={"event": "accept_paused"},
            )
