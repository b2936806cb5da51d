"""The accept loop of a worker: wait, accept, serve or park; at a stop, drain the queue.

A listener that is ready comes before parked connections, since the kernel has told no sibling of
it. All that one look has found is served before the next one, so parked connections cannot
starve new ones, and each has its turn before any has another.
"""

import os
import select
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

from ..acceptor import Acceptor
from ..clock import Clock
from ..handshakes import handshakes
from ..job import Job, nothing
from ..listeners import Listener
from ..scoreboard import DRAIN, DRAIN_ONCE, NEVER, SECOND
from ..signals import Relay
from ..sockets.connection import FAREWELL, Waiting
from .heartbeat import Heartbeat

QUIET: Final = 0.1  # seconds without a connection in the queue: then it is empty
HANDSHAKES: Final = 1.0  # seconds at most for the TCP handshakes that were under way
DRAINS: Final = (DRAIN, DRAIN_ONCE)
_LOOK_NS = SECOND // 20  # what is seldom true is looked at so often; after a signal at once
_LONG_NS = SECOND // 200  # after so long with one client, queue up behind the idle workers
_SILENT_NS = SECOND // 20  # parked connections that were silent too long are looked for so often
_MOST = 64  # events of one look
_fileno = socket.socket.fileno  # whatever a class makes of it

Taken = tuple[Any, Any]  # request and peer, as get_request() returns them


class Guest:
    """A parked connection: its client thinks, and it costs no worker meanwhile."""

    request: Any
    peer: Any
    until_ns: int = NEVER  # when its client has been silent for too long
    awaited: bool = False  # whether a stop waits a little for what its client has begun

    def resume(self) -> None:
        """Its client spoke, or was silent for too long: take what is there, wait for nothing,
        and park it again, or close it."""
        raise NotImplementedError

    def dismiss(self) -> None:
        """The worker goes, and its client has said nothing: close it."""
        raise NotImplementedError


class Drain:
    """Decides when a worker of a server that stops has accepted its last connection.

    It is told what was seen, and when, in seconds of a monotonic clock. It asks nothing and
    waits for nothing.

    A client is connected, as far as it knows, when the SYN-ACK reaches it; the connection is
    in the accept queue a round trip after its SYN came. To close the listening socket before
    that resets the client. So the queue is drained when ``quiet`` seconds have passed without a
    connection, and no handshake is under way. Handshakes are waited for ``HANDSHAKES`` seconds
    at most, since some are of clients that are gone, or that do not speak. ``quiet`` 0: new
    clients cannot be kept out, so the queue is drained when it was empty once.

    A parked connection that is ``awaited`` has ``FAREWELL`` seconds from the beginning, or
    from the last word of any of them, but twice that time at most: over TLS, a client speaks
    two or three times before its request is there.
    """

    def __init__(self, now: float, quiet: float) -> None:
        self.look_at: float = now + quiet  # when to look again, if nothing happens before
        self.asks: bool = quiet > 0  # whether handshakes are to be looked for
        self._quiet = quiet
        self._begun = now
        self._farewell = now + FAREWELL

    def came(self, now: float, parked: bool = False) -> None:
        """A connection was accepted, or could not be yet; or a parked one has spoken."""
        self.look_at = now + self._quiet
        if parked and self._quiet:
            self._farewell = min(now, self._begun + FAREWELL) + FAREWELL

    def is_over(self, now: float, handshake: bool, awaited: bool) -> bool:
        """At ``look_at``, with nothing in the queue. Bare SYNs are dropped, so when there was
        no handshake once, none is looked for again."""
        if self.asks:
            self.asks = handshake and now < self._begun + HANDSHAKES
            # One that has just ended is in the queue: look there once more.
            self.look_at = now + QUIET if self.asks else now
            return False
        self.look_at = now + QUIET
        return not awaited or now >= self._farewell


class AcceptLoop:
    """Of one worker; ``run`` serves, or ``connections`` gives them out.

    At each look it is in one phase, a method that says how long to wait: serving; and, when the
    worker is to go, those that others cannot serve, parked connections, the queue.
    """

    def __init__(self, job: Job, relay: Relay, heartbeat: Heartbeat) -> None:
        settings = job.settings
        self.heartbeat = heartbeat
        self.epoll: select.epoll = select.epoll()
        self.epoll.register(heartbeat.bell.fileno(), select.EPOLLIN)
        self._poll: Callable[[float, int], list[tuple[int, int]]] = self.epoll.poll
        sockets = [listener.socket for listener in job.listeners]
        self.acceptor: Acceptor = Acceptor(
            sockets, relay, self.epoll, heartbeat, settings.client_timeout, job.logger
        )
        self.accept: Callable[[socket.socket], Taken | None] = self.acceptor.accept
        self.listeners: Sequence[Listener] = job.listeners
        self._process: Callable[[Any, Any], object] = nothing
        self._park: Callable[[Any, Any], object] | None = None
        self._failed: Callable[[Any, Any, BaseException], object] = nothing
        self._each_time: Callable[[], object] = nothing
        self._guests: dict[int, Guest] = {}
        self._watched: dict[int, Guest] = {}
        self._turns: deque[Guest] = deque()
        self._next_turns: deque[Guest] = deque()
        self._soonest_ns = NEVER  # before this no parked connection has been silent for too long
        self._knocked: socket.socket | None = None
        self._turn = 0  # so that one busy listener cannot starve another
        self._cpus = os.cpu_count() or 1
        with suppress(OSError):  # not permitted in some sandboxes
            self._cpus = len(os.sched_getaffinity(0))
        self._phase: Callable[[], float | None] = self._serve_all
        self._pause_ns = int(heartbeat.pause * SECOND)
        self._look_ns = self._round_ns = 0
        self._found: list[int] = []  # by the last look
        self._spoke = False  # whether a parked connection was among it
        self._leaving = False
        self._end = 0.0
        self._at_hand = False

    # For servers, and for what is parked

    def run(
        self,
        process: Callable[[Any, Any], object],
        park: Callable[[Any, Any], object] | None,
        failed: Callable[[Any, Any, BaseException], object],
        each_time: Callable[[], object] = nothing,
    ) -> None:
        """Serve until the worker is to go. ``process(request, peer)`` serves a connection from
        its first byte to its last; ``park`` has it served as a parked one; what they raise is
        told to ``failed``. ``each_time`` is called before each look."""
        self._process, self._park, self._failed = process, park, failed
        self._each_time = each_time
        while taken := self.take():
            self._serve(*taken)

    def connections(self) -> Iterator[Taken]:
        """One after the other; each is served when the next one is asked for."""
        return iter(self._next, None)

    def _next(self) -> Taken | None:
        if self._at_hand:
            self.heartbeat.end()
        taken = self.take()
        self._at_hand = taken is not None
        if taken:
            self.heartbeat.begin(taken[1])
        return taken

    def keep(
        self, guest: Guest, until_ns: int, ready: bool = False, event: int = select.EPOLLIN
    ) -> None:
        """Have it resumed when its client speaks, or ``until_ns`` is past. ``ready``: when it
        is its turn again, since what its client said next was read already. One that waits for
        another ``event`` than before is let go first."""
        guest.until_ns = until_ns
        if ready:
            self._next_turns.append(guest)
            return
        fd = _fileno(guest.request)
        self._guests[fd] = guest
        if until_ns < self._soonest_ns:
            self._soonest_ns = until_ns
        if self._watched.get(fd) is not guest:
            self._watched[fd] = guest
            self.epoll.register(fd, event)
            self.heartbeat.park(len(self._watched))

    def let_go(self, guest: Guest) -> None:
        """Before it is closed: a fork may hold it, and epoll would tell of it for ever."""
        fd = _fileno(guest.request)
        if self._watched.get(fd) is guest:
            del self._watched[fd]
            self.epoll.unregister(fd)
            self.heartbeat.park(len(self._watched))

    @property
    def parked(self) -> int:
        """How many connections are parked here, or just being served after that."""
        return len(self._watched)

    def disown(self) -> None:
        """In a fork: its clients would wait when the server is gone. If it comes back here, its
        first look ends it. The epoll is the worker's: until then it has one of its own."""
        self.acceptor.disown()
        self.epoll = select.epoll()
        self._watched.clear()

    def close(self) -> None:
        """Nothing more is answered."""
        self.acceptor.hang_up()
        for guest in (*self._turns, *self._next_turns, *self._guests.values()):
            guest.dismiss()
        self.epoll.close()

    # Serve

    def _serve(self, request: Any, peer: Any) -> None:
        """Nothing that happens in a connection ends the worker, or the loop."""
        heartbeat = self.heartbeat
        heartbeat.begin(peer)
        try:
            self._process(request, peer)
        except BaseException as error:  # user code
            self._failed(request, peer, error)
        heartbeat.end()

    def _begin(self, request: Any, peer: Any) -> None:
        self.heartbeat.beat()
        try:
            self._park(request, peer)  # type: ignore[misc]
        except BaseException as error:  # user code
            self._failed(request, peer, error)

    def _resume(self, guest: Guest) -> None:
        try:
            guest.resume()
        except BaseException as error:  # user code
            self._failed(guest.request, guest.peer, error)

    # Wait and accept

    def take(self) -> Taken | None:
        """The next connection that is not to be parked; meanwhile serve those that are. None: the
        worker is to go, and has served what it owes."""
        heartbeat = self.heartbeat
        while True:
            if heartbeat.called:
                heartbeat.look()
                self._look_ns = 0
            if self._knocked:
                listener, self._knocked = self._knocked, None
                taken = self.accept(listener)
                if taken is None:
                    continue
                if self._park is None or not isinstance(taken[0], Waiting):
                    return taken
                self._begin(*taken)
            elif self._turns:
                self._resume(self._turns.popleft())
            elif not self._look():
                return None

    def _look(self) -> bool:
        """Which listeners and parked connections are ready. False: it was the last look."""
        acceptor, heartbeat, guests = self.acceptor, self.heartbeat, self._guests
        now_ns = Clock.monotonic_ns()
        seconds = heartbeat.pause
        if now_ns >= self._look_ns:
            allowed = self._look_around(now_ns)
            if allowed is None:
                return False
            seconds = allowed
        taken, acceptor.taken = acceptor.taken, None
        if taken is not None and _fileno(taken) != -1:
            self._make_way()
        if now_ns - heartbeat.began_ns > _LONG_NS and heartbeat.began_ns > self._round_ns:
            acceptor.enlist()
        self._round_ns = now_ns
        if (
            self._next_turns
            or acceptor.resting_until_ns
            or now_ns + self._pause_ns > self._soonest_ns
        ):
            seconds = self._nap(seconds, now_ns)
        events = self._poll(seconds, _MOST)
        found = []
        for fd, _ in events:
            guest = guests.pop(fd, None)
            if guest:
                self._turns.append(guest)
            elif fd in acceptor.listeners:
                found.append(fd)
            else:
                self._hear(fd)
        if found:
            if len(found) > 1:
                self._turn += 1
                acceptor.relay.wake_one()
            self._knocked = acceptor.listeners[found[self._turn % len(found)]]
        elif not events and not self.resting:
            self._look_ns = 0
            acceptor.enlist()
        self._found, self._spoke = found, bool(self._turns)
        return True

    def _look_around(self, now_ns: int) -> float | None:
        """At what is seldom true; how long to wait now, or None."""
        self.heartbeat.look()
        self._each_time()
        seconds = self._phase()
        often = self._leaving or self._each_time is not nothing
        self._look_ns = 0 if often else now_ns + _LOOK_NS
        return seconds

    def _hear(self, fd: int) -> None:
        """A signal, or a sibling that asks for another look at the listeners."""
        if fd == self.acceptor.relay.fd:
            self.acceptor.relay.woken()
            self.acceptor.enlist()
        else:
            self.heartbeat.bell.hush()
            self.heartbeat.call()

    def _nap(self, seconds: float, now_ns: int) -> float:
        """How long to sleep, ``seconds`` at most."""
        until_ns = self._soonest_ns
        resting_ns = self.acceptor.resting_until_ns
        if resting_ns:
            if resting_ns <= now_ns:
                self.acceptor.rested()
            else:
                until_ns = min(until_ns, resting_ns)
        if now_ns >= self._soonest_ns:
            self._find_silent(now_ns)
        if self._next_turns:
            self._turns, self._next_turns = self._next_turns, self._turns
            return 0.0
        return max(0.0, min(seconds, (until_ns - now_ns) / SECOND))

    def _find_silent(self, now_ns: int) -> None:
        silent = [fd for fd, guest in self._guests.items() if guest.until_ns <= now_ns]
        self._next_turns.extend(self._guests.pop(fd) for fd in silent)
        # Not at once for the next one: there may be thousands.
        soonest_ns = min((guest.until_ns for guest in self._guests.values()), default=NEVER)
        self._soonest_ns = max(soonest_ns, now_ns + _SILENT_NS)

    def _make_way(self) -> None:
        """After a connection that is kept, let siblings be first for the next one, if this worker
        has its share. Of one that is served elsewhere the loop knows nothing: so it does always."""
        if not self._park or self.heartbeat.has_its_share(self._cpus):
            self.acceptor.make_way()

    # The phases

    def _serve_all(self) -> float | None:
        heartbeat = self.heartbeat
        return self._leave() if heartbeat.is_over() else heartbeat.pause

    def _leave(self) -> float | None:
        heartbeat = self.heartbeat
        heartbeat.take_no_more()
        self._leaving = True
        self._end = Clock.monotonic() + self.heartbeat.graceful / 2  # the last has time, too
        wish = heartbeat.wish or heartbeat.ask_wish()
        if wish in DRAINS:
            return self._begin_drain(wish)
        # Those that come after this worker have other sockets where a path was replaced.
        self.acceptor.leave_all_but([one.socket for one in self.listeners if one.deserted])
        self._phase = self._serve_deserted
        return 0.0

    def _serve_deserted(self) -> float | None:
        if self._found and Clock.monotonic() < self._end:
            return 0.0
        self.acceptor.close()
        self._end = Clock.monotonic() + self.heartbeat.graceful / 2
        self._phase = self._see_off
        return self._see_off()

    def _see_off(self) -> float | None:
        """The others take new ones. Parked connections that may be about to ask are served to
        their limit, unless the server stops."""
        wish = self.heartbeat.wish
        if wish in DRAINS:
            return self._begin_drain(wish)
        if self.has_guests and Clock.monotonic() < self._end:
            return self.heartbeat.pause
        return self._finish()

    def _begin_drain(self, wish: int) -> float | None:
        """The server stops: serve all that is in the queue, since no other process will."""
        now = Clock.monotonic()
        self._end = now + self.heartbeat.graceful / 2
        self._drain = Drain(now, QUIET if wish == DRAIN else 0.0)
        self._phase = self._drain_queue
        return max(0.0, self._drain.look_at - now)

    def _drain_queue(self) -> float | None:
        now, drain = Clock.monotonic(), self._drain
        if self._found or self._spoke or self.resting:
            drain.came(now, self._spoke)
        elif now >= drain.look_at:
            sockets = [listener.socket for listener in self.listeners]
            handshake = drain.asks and handshakes(sockets)
            awaited = any(guest.awaited for guest in list(self._guests.values()))
            if drain.is_over(now, handshake, awaited):
                return self._finish()
        if now >= self._end:
            return self._finish()
        return max(0.0, drain.look_at - now)

    def _finish(self) -> float | None:
        """What is left when nothing is accepted any more."""
        self.acceptor.close()
        return None

    @property
    def resting(self) -> bool:
        """Whether it looks at no listener for a while, though a client may wait."""
        return self.acceptor.resting

    @property
    def has_guests(self) -> bool:
        return bool(self._guests or self._turns or self._next_turns)
