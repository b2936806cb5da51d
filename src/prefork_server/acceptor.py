"""Listening sockets of one worker: accept, and be woken for connections fairly among workers.

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
import math
import os
import select
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from .clock import Clock
from .scoreboard import SECOND
from .signals import Relay
from .sockets.connection import SLICE, Connection, Watch, has_slice

COURTESY_NS: Final = SECOND // 1000  # time enough for a sibling to wake up
_CROWD = 16  # connections in a queue: enough for all who are awake, and who are waking up
_PAUSES = (0.1, 1.0)  # seconds without descriptors: the first pause, and the longest
_COMPLAINTS_NS = 5 * SECOND  # a log line about them at most so often

ENTRANCE = 9.75
"""Seconds of a client's silence that a ``get_request`` of the class's own is left to, since
nobody else is accepted meanwhile. No round number: it must not be mistaken for the class's."""

_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_BROKEN = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}


def _accept_publicly(listener: socket.socket) -> tuple[int, Any]:
    connection, peer = listener.accept()
    return connection.detach(), peer


# socket.accept() without building an object of the wrong class first: 1.5 microseconds.
_accept: Callable[[socket.socket], tuple[int, Any]] = getattr(
    socket.socket, "_accept", _accept_publicly
)


def queue_at(listener: socket.socket) -> int | None:
    """How many connections wait to be accepted there. Only TCP tells."""
    if listener.family == socket.AF_UNIX:
        return None
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    except OSError:  # it is for datagrams, or closed
        return None
    return int.from_bytes(info[24:], sys.byteorder)  # tcpi_unacked


class Acceptor:
    """The listening sockets of one worker, in an epoll that is not its own: in whose turn it is
    to accept, it takes part or not."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        relay: Relay,
        epoll: select.epoll,
        watch: Watch,
        client_timeout: float | None,
        logger: logging.Logger,
    ) -> None:
        self.listeners: dict[int, socket.socket] = {s.fileno(): s for s in listeners}
        self.relay: Relay = relay
        self.watch: Watch = watch  # of its connections
        self.wrap: Callable[[socket.socket, Watch], Any] | None = None  # for TLS
        self.taken: socket.socket | None = None  # the last one, for whoever decides on the turns
        self.resting_until_ns: int = 0
        self._sockets = list(listeners)
        # Plain numbers, asked once: as enums they cost 2 microseconds a connection.
        self._kinds = {s.fileno(): (int(s.family), int(s.type), s.proto) for s in listeners}
        self._client_timeout = None if client_timeout is None else float(client_timeout)
        # A short limit is to be kept exactly, and a beat is to come in time.
        limit = math.inf if client_timeout is None else client_timeout / 4
        waits = min(watch.pause, limit) >= SLICE
        self._sliced = {s.fileno() for s in listeners if waits and has_slice(s)}
        self.logger: logging.Logger = logger
        self._answering: dict[int, Connection] = {}
        self._epoll = epoll
        self._enlisted: list[int] = []
        self._pause = 0.0
        self._complained_ns = 0
        self.enlist()

    @property
    def resting(self) -> bool:
        """Whether it takes no part for a while, though a client may wait."""
        return self.resting_until_ns > 0

    def accept(self, listener: socket.socket) -> tuple[Any, Any] | None:
        """Take one connection. None: there is none after all. OSError: the listener is broken."""
        try:
            fd, peer = _accept(listener)
            at = listener.fileno()
            connection: Any = Connection(*self._kinds[at], fd)
            if socket.getdefaulttimeout() is not None:
                connection.settimeout(None)  # it would wait below us, without a beat
            connection.watch, connection.client_timeout = self.watch, self._client_timeout
            if at in self._sliced:
                connection.first_flags = 0
            if self.wrap:
                connection = self.wrap(connection, self.watch)
        except OSError as error:
            self.failed(error)
            return None
        self._pause = 0.0
        self.taken = connection
        return connection, peer

    def lend(self) -> None:
        """Let the ``accept()`` of the listeners themselves return connections of ours, for a
        class that calls it: on theirs it would wait, and on a TLS port speak, without us."""
        take, limit = self.accept, self._client_timeout

        class Lent(socket.socket):
            __slots__ = ()

            def accept(self) -> tuple[Any, Any]:
                taken = take(self)
                if taken is None:
                    raise BlockingIOError(errno.EAGAIN, "there is no client after all")
                taken[0].settimeout(ENTRANCE if limit is None else min(limit, ENTRANCE))
                return taken

        for listener in self._sockets:
            listener.__class__ = Lent

    def let_in(self, connection: socket.socket) -> None:
        """Past the entrance its client may be silent for as long as any other."""
        if connection.gettimeout() == ENTRANCE:
            connection.settimeout(self._client_timeout)

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
        answering = self._answering.get(fd)
        if answering is None or answering.fileno() < 0:  # a handler has closed it
            copy = os.dup(fd)
            self._answering[fd] = answering = Connection(*self._kinds[fd], copy)
            answering.watch = self.watch
            answering.settimeout(self._client_timeout)
        return answering

    def took(self, connection: object) -> None:
        """A connection was taken: by us, or by a ``get_request`` of the server's own."""
        self._pause = 0.0
        self.taken = connection if isinstance(connection, socket.socket) else None

    def failed(self, error: OSError) -> None:
        """An accept failed. Raises the error again if the listener itself is broken.

        Everything that accept(2) names besides is the client's, who is gone already.
        """
        if error.errno in _BROKEN:
            raise error
        if error.errno in _SCARCE:
            self._rest(error)

    def leave_all_but(self, listeners: Sequence[socket.socket]) -> None:
        """The others are left to siblings."""
        self.resign()
        self.listeners = {sock.fileno(): sock for sock in listeners}
        self.rested()

    def close(self) -> None:
        """Take no more, and close the listeners: nobody must find them open and unattended."""
        self.resign()
        self.listeners = {}
        for listener in self._sockets:
            listener.close()

    def hang_up(self) -> None:
        """Nothing more is answered."""
        self.close()
        for connection in self._answering.values():
            connection.close()

    def disown(self) -> None:
        """In a fork: nobody is accepted here. Its clients would wait when the server is gone."""
        self._enlisted = []
        for listener in self._sockets:
            listener.close()

    # Whose turn it is

    def enlist(self) -> None:
        """Take part, at the end of the line: the kernel wakes the worker that enlisted first.
        For short connections that is best: it is warm. But of held ones it would get all."""
        self.resign()
        if self.listeners and not self.resting_until_ns:
            self._enlisted = [*self.listeners, self.relay.fd]
            for fd in self._enlisted:
                self._epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def resign(self) -> None:
        enlisted, self._enlisted = self._enlisted, []
        for fd in enlisted:
            self._epoll.unregister(fd)

    def make_way(self) -> None:
        """Step aside for a moment: being awake, this worker would be faster than the sibling that
        is only being woken. Where a crowd waits there is enough for all: then it lets them run."""
        if any((queue_at(one) or 0) > _CROWD for one in self.listeners.values()):
            os.sched_yield()
            self.enlist()
        else:
            self.step_aside(COURTESY_NS)

    def step_aside(self, for_ns: int) -> None:
        self.resting_until_ns = Clock.monotonic_ns() + for_ns
        self.resign()

    def rested(self) -> None:
        self.resting_until_ns = 0
        self.enlist()

    def _rest(self, error: OSError) -> None:
        """Out of descriptors or memory: leave the connection to a sibling, and try again later."""
        self._pause = min(_PAUSES[1], self._pause * 2 or _PAUSES[0])
        self.step_aside(int(self._pause * SECOND))
        self.relay.wake_one()
        now = Clock.monotonic_ns()
        if not self._complained_ns or now - self._complained_ns > _COMPLAINTS_NS:
            self._complained_ns = now
            self.logger.warning(
                "accept: %s, trying again in %.1fs",
                error.strerror,
                self._pause,
                extra={"event": "accept_paused"},
            )
