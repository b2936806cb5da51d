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
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from .connection import Connection
from .scoreboard import NEVER, SECOND
from .signals import Relay
from .vigil import Vigil

_LONG_NS = SECOND // 200  # after so long with one client, queue up behind the idle workers
_COURTESY_NS = SECOND // 1000  # after one that is kept: time enough for a sibling to wake up
_CROWD = 16  # connections in a queue: enough for all who are awake, and who are waking up
_GLANCE_NS = SECOND // 20  # guests that were silent for too long are looked for so often
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


class Guest:
    """A connection that is kept while its client thinks, and costs no worker meanwhile."""

    request: Any
    peer: Any
    until_ns: int = NEVER  # when its client has been silent for too long
    awaited: bool = False  # whether a stop waits a little for what its client has begun

    def resume(self) -> None:
        """Its client spoke, or was silent for too long: take what is there, wait for nothing,
        and have it kept again, or close it."""
        raise NotImplementedError

    def dismiss(self) -> None:
        """The worker goes, and its client has said nothing: close it."""
        raise NotImplementedError


class Acceptor:
    """The accepting side of one worker, and the guests that it keeps."""

    serial: bool = True  # whether one after the other is served

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
        self.vigil = vigil  # of its connections
        self._hush = vigil.hush
        self.wrap: Callable[[socket.socket, Vigil], Any] | None = None  # for TLS
        self._patience = None if patience is None else float(patience)
        self._logger = logger
        self._answering: dict[int, Connection] = {}
        self._guests: dict[int, Guest] = {}
        self._watched: dict[int, Guest] = {}
        self._turns: deque[Guest] = deque()
        self._next_turns: deque[Guest] = deque()
        self._soonest_ns = NEVER  # before this no guest has been silent for too long
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

    def wait(self, seconds: float, now_ns: int | None = None) -> socket.socket | Guest | None:
        """A listener on which somebody waits, or a guest to resume; None when the time is
        over, or something happened that the caller should look at.

        Everybody who is ready has a turn before anybody has another: who is kept cannot
        starve who comes.
        """
        if now_ns is None:
            now_ns = time.monotonic_ns()
        if self._taken_ns:
            self._settle_last(now_ns)
        if self._turns:
            return self._turns.popleft()
        hurried = self._next_turns or self._resting_until_ns
        if hurried or now_ns + seconds * SECOND > self._soonest_ns:
            seconds = self._nap(seconds, now_ns)
        events = self._epoll.poll(seconds)
        if len(events) == 1 and not self._turns:  # as _first_of() has it, without its calls
            fd = events[0][0]
            alone = self._guests.pop(fd, None) or self._listeners.get(fd)
            if alone:
                return alone
        return self._first_of(events)

    def _first_of(self, events: list[tuple[int, int]]) -> socket.socket | Guest | None:
        ready = self._sort(events)
        if ready:
            if len(ready) > 1:
                self._turn += 1
                self._relay.wake_one()
            # Before any guest: the kernel has told nobody else of who waits there.
            return self._listeners[ready[self._turn % len(ready)]]
        if self._turns:
            return self._turns.popleft()
        if not events:
            self._enlist()
        return None

    def _nap(self, seconds: float, now_ns: int) -> float:
        """How long to sleep, ``seconds`` at most."""
        until_ns = self._soonest_ns
        if not (self._next_turns or self._resting_until_ns) and now_ns < until_ns:
            return min(seconds, (until_ns - now_ns) / SECOND)
        if self._resting_until_ns:
            if self._resting_until_ns <= now_ns:
                self._resting_until_ns = 0
                self._enlist()
            else:
                until_ns = min(until_ns, self._resting_until_ns)
        if now_ns >= self._soonest_ns:
            self._find_silent(now_ns)
        if self._next_turns:
            self._turns, self._next_turns = self._next_turns, self._turns
            return 0.0
        return max(0.0, min(seconds, (until_ns - now_ns) / SECOND))

    def _sort(self, events: list[tuple[int, int]]) -> list[int]:
        """The listeners among them; guests get their turns."""
        ready = []
        for fd, _ in events:
            guest = self._guests.pop(fd, None)
            if guest:
                self._turns.append(guest)
            elif self._is_listener(fd):
                ready.append(fd)
        return ready

    def _is_listener(self, fd: int) -> bool:
        if fd in self._listeners:
            return True
        if fd == self._relay.fd:
            self._relay.woken()
            self._enlist()
        else:
            self._hush()
        return False

    def accept(self, listener: socket.socket) -> tuple[Any, Any] | None:
        """Take one connection. None: nobody there after all. OSError: the listener is broken."""
        try:  # as _take() and took() have it, without their calls for each connection
            fd, peer = _accept(listener)
            connection: Any = Connection(
                *self._kinds[listener.fileno()], fd, self.vigil, self._patience
            )
            if self.wrap:
                connection = self.wrap(connection, self.vigil)
        except OSError as error:
            self.failed(error)
            return None
        self._pause = 0.0
        self._taken = connection
        self._taken_ns = time.monotonic_ns()
        return connection, peer

    def _take(self, listener: socket.socket, patience: float | None) -> tuple[Any, Any]:
        fd, peer = _accept(listener)
        connection = Connection(*self._kinds[listener.fileno()], fd, self.vigil, patience)
        return (self.wrap(connection, self.vigil) if self.wrap else connection), peer

    def keep(
        self, guest: Guest, until_ns: int, ready: bool = False, event: int = select.EPOLLIN
    ) -> None:
        """Have it resumed when its client speaks, or ``until_ns`` is past. ``ready``: when it
        is its turn again, since what its client said next was read already. Who waits for
        another ``event`` than before is let go first."""
        guest.until_ns = until_ns
        if ready:
            self._next_turns.append(guest)
            return
        fd = guest.request.fileno()
        self._guests[fd] = guest
        if until_ns < self._soonest_ns:
            self._soonest_ns = until_ns
        if self._watched.get(fd) is not guest:
            self._watched[fd] = guest
            self._epoll.register(fd, event)

    def let_go(self, guest: Guest) -> None:
        """Before it is closed: a fork may hold it, and epoll would tell of it for ever."""
        fd = guest.request.fileno()
        if self._watched.get(fd) is guest:
            del self._watched[fd]
            self._epoll.unregister(fd)

    def _find_silent(self, now_ns: int) -> None:
        silent = [fd for fd, guest in self._guests.items() if guest.until_ns <= now_ns]
        self._next_turns.extend(self._guests.pop(fd) for fd in silent)
        # Not at once for the next one: there may be thousands.
        soonest_ns = min((guest.until_ns for guest in self._guests.values()), default=NEVER)
        self._soonest_ns = max(soonest_ns, now_ns + _GLANCE_NS)

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
        answering = self._answering.get(fd)
        if answering is None or answering.fileno() < 0:  # a handler has closed it
            copy = os.dup(fd)
            answering = Connection(*self._kinds[fd], copy, self.vigil, self._patience)
            self._answering[fd] = answering
        return answering

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

    @property
    def has_guests(self) -> bool:
        return bool(self._guests or self._turns or self._next_turns)

    @property
    def awaits_somebody(self) -> bool:
        return any(guest.awaited for guest in list(self._guests.values()))

    def close(self) -> None:
        """Take no more, and close the listeners: nobody must find them open and unattended."""
        self._resign()
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()

    def disown(self) -> None:
        """In a fork: the epoll is the worker's, and nobody is accepted here."""
        for listener in self._listeners.values():
            listener.close()

    def hang_up(self) -> None:
        """Nothing more is answered."""
        self.close()
        for guest in (*self._turns, *self._next_turns, *self._guests.values()):
            guest.dismiss()
        self._epoll.close()
        for connection in self._answering.values():
            connection.close()

    def _settle_last(self, now_ns: int) -> None:
        """Go to the end of the line after a connection that is kept, or that took long.

        The kernel wakes the worker that enlisted first. For short connections that is
        best: it is warm. But of held ones it would get all. And being awake, it would be
        faster than the sibling who is only being woken: so after a kept one it steps
        aside for a moment. Where a crowd waits there is enough for all: then it only lets
        them run first.
        """
        if self._taken is not None and self._taken.fileno() != -1:
            if any((queue_at(one) or 0) > _CROWD for one in self._listeners.values()):
                os.sched_yield()
                self._enlist()
            else:
                self._step_aside(_COURTESY_NS)
        elif now_ns - self._taken_ns > _LONG_NS:
            self._enlist()
        self._taken, self._taken_ns = None, 0

    def _step_aside(self, for_ns: int) -> None:
        self._resting_until_ns = time.monotonic_ns() + for_ns
        self._resign()

    def _enlist(self) -> None:
        self._resign()
        if self._listeners and not self._resting_until_ns:
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
