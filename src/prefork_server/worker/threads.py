"""The thread pool of a worker with ``threads``: several connections at a time.

The main thread waits, accepts and parks as it does alone, but only while a thread is free: else
new connections are for siblings, or wait in the kernel. It never runs a handler. So it can look
after the others: each has a deadline of its own, and when one is past it the log says where
all are, and the worker retires. What the scoreboard has is the deadline of the main thread.
"""

import os
import select
import socket
import socketserver
import threading
import time
from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import Any

from ..clock import Clock
from ..errors import ConfigError
from ..job import Job, nothing
from ..listeners import address_text
from ..patches import patched
from ..reports import in_debugger, innermost_first
from ..scoreboard import DEADLINE, NEVER, SECOND
from ..settings import Settings
from ..signals import Bell, Relay
from ..text import one_record
from .accept_loop import QUIET, AcceptLoop, Guest
from .heartbeat import Heartbeat, Shared, announced_ns

_BLINK = 0.02  # seconds for a thread to be free, even where nothing is to be waited for
_OVERSLEPT_NS = SECOND // 4  # beyond this the main thread was asleep against its will

_Work = tuple[Any, Callable[..., object], tuple[Any, ...]]  # for whom, and what to call
_NOTHING: _Work = (None, nothing, ())

WORKS = "a work function does by itself what it does"


def check_threads(server: Any, settings: Settings) -> None:
    """Raises ConfigError where we cannot serve in threads: ``server`` is a class that has a way
    of its own, or in words something whose handlers are not ours to call; and where threads, and
    more, are not Python's own."""
    if patched():
        raise ConfigError(patched())
    why = server
    if isinstance(server, type):
        way = getattr(server, "process_request", None)
        if way is socketserver.BaseServer.process_request:
            return
        why = (
            f"{server.__name__} has a process_request() of its own, as ThreadingMixIn and "
            "ForkingMixIn have"
        )
    if settings.threads > 1:
        raise ConfigError(
            f"threads={settings.threads} is for servers that serve one connection at a time "
            f"otherwise, and {why}"
        )


class ThreadPool:
    """The threads of one worker.

    What they share is guarded by one lock, which nobody waits with. A deadline is written
    by its own thread, and read by the main one, without it.
    """

    def __init__(self, heartbeat: "ThreadsHeartbeat", count: int) -> None:
        self.lock: threading.Lock = threading.Lock()
        self.free: deque[int] = deque(range(count))
        self.wake: Callable[[], None] = heartbeat.bell.ring  # the main thread
        self.awaited: bool = False  # whether that has to be told of one that is free
        self.leaving: bool = False  # and of all of them
        self.wakes_ns: int = 0  # when it looks again, at the latest
        # Readable when the worker is to go, and from then on. The bell is for the main thread
        # alone: a thread that hushes it would take the ringing from the others.
        self.over: int = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._heartbeat = heartbeat
        self._count = count
        self._deadlines = [NEVER] * count
        self._since = [0] * count
        self._work = [_NOTHING] * count
        self._calls = [threading.Lock() for _ in range(count)]  # released: there is work
        self._numbers: dict[int, int] = {}  # by the idents of the threads
        self._lost: set[int] = set()  # those that were silent for too long
        self._fallen: BaseException | None = None  # what was raised where nothing should be
        self._main = get_ident()
        self.announced_ns: int = 0  # the last deadline that one has asked for by ``within``
        self._spent_ns = time.process_time_ns()
        self._rung = select.poll()
        self._rung.register(heartbeat.bell.fileno(), select.POLLIN)

    def start(self, next_work: Callable[[], _Work | None]) -> None:
        """``next_work()`` is for a thread that is free again."""
        self._next_work = next_work
        for number, call in enumerate(self._calls):
            call.acquire()
            name = f"worker {self._heartbeat.slot} thread {number + 1}"
            threading.Thread(target=self._live, args=(number,), name=name, daemon=True).start()

    # In the main thread

    def hand(self, peer: Any, serve: Callable[..., object], *args: Any) -> None:
        """Have a free thread call it. What that raises ends the worker."""
        now_ns = Clock.monotonic_ns()
        with self.lock:
            number = self.free.pop()  # the last that was busy: it is warm
            self._tell()
        self._deadlines[number] = now_ns + self._heartbeat.timeout_ns
        self._since[number] = now_ns
        self._work[number] = (peer, serve, args)
        self._forget_announced(now_ns)
        self._calls[number].release()

    def turn(self, seconds: float) -> float:
        """At each turn of the main thread: say that it lives, and look whether the others do.
        Return for how long it may sleep, at most ``seconds``."""
        if self._fallen:
            raise self._fallen
        now_ns = Clock.monotonic_ns()
        spent_ns = time.process_time_ns()
        late_ns = now_ns - self.wakes_ns
        if late_ns > _OVERSLEPT_NS and self.wakes_ns and spent_ns - self._spent_ns < late_ns // 2:
            # Nobody worked meanwhile: the machine was asleep, or had no time for us. For C
            # code that keeps Python from all others there is no such excuse.
            for number, ns in enumerate(self._deadlines):
                self._deadlines[number] = min(NEVER, ns + late_ns)
        self._spent_ns = spent_ns
        self._forget_announced(now_ns)
        if min(self._deadlines) <= now_ns:
            self._miss(now_ns)
        self._heartbeat.beat()
        nap_ns = max(0, min(int(seconds * SECOND), min(self._deadlines) - now_ns))
        self.wakes_ns = now_ns + nap_ns
        return nap_ns / SECOND

    def _forget_announced(self, now_ns: int) -> None:
        """Unless the thread that did so has said nothing since."""
        if self.announced_ns > now_ns:
            self.announced_ns = max((ns for ns in self._deadlines if ns < NEVER), default=0)

    def wait_for_free(self, seconds: float) -> None:
        """Until a hand is free, or something happened that the main thread should look at."""
        self.awaited = True
        if not (self.free or self._fallen) and self._rung.poll(seconds * 1000):
            self._heartbeat.bell.hush()
        self.awaited = False

    def count_busy(self) -> int:
        return self._count - len(self.free)

    def is_busy(self) -> bool:
        """Whether somebody is being served. Those who hang do not count."""
        return self.count_busy() > len(self._lost)

    def be_over(self) -> None:
        """The worker is to go: tell those who wait for their clients."""
        self.leaving = True
        os.eventfd_write(self.over, 1)

    def _miss(self, now_ns: int) -> None:
        with self.lock:
            late = [number for number, ns in enumerate(self._deadlines) if ns <= now_ns]
            self._lost.update(late)
            for number in late:
                self._deadlines[number] = NEVER
        idents = {number: ident for ident, number in self._numbers.items()}
        for number in late:
            self._complain(number, idents[number], now_ns)
        if late:
            self._heartbeat.retire()

    def _complain(self, number: int, ident: int, now_ns: int) -> None:
        heartbeat, peer = self._heartbeat, self._work[number][0]
        place, stacks = innermost_first(ident)
        limit_ns = heartbeat.timeout_ns
        heartbeat.logger.error(
            "worker=%d pid=%d thread %d silent for %s at %s, retiring; %.1fs with %s%s%s",
            heartbeat.slot,
            os.getpid(),
            number + 1,
            f"more than {limit_ns / SECOND:g}s" if limit_ns < NEVER else "longer than it announced",
            place,
            (now_ns - self._since[number]) / SECOND,
            address_text(peer) if peer else "a client",
            in_debugger(stacks),
            one_record(f"\n{stacks}"),
            extra={
                "event": "thread_silent",
                "worker": heartbeat.slot,
                "pid": os.getpid(),
                "generation": heartbeat.generation,
            },
        )

    # In all of them

    def beat(self, deadline_ns: int, announced: bool = False) -> int:
        """The thread that calls this is alive, and need not say so again before then. Returns
        the deadline of the worker; 0: it stays as it is. A thread of the program says nothing."""
        ident = get_ident()
        number = self._numbers.get(ident)
        if number is not None:
            self._deadlines[number] = deadline_ns
            if not announced:
                return 0
            # It may be in C code from here on, which lets no other thread say anything.
            self.announced_ns = max(self.announced_ns, deadline_ns)
            if deadline_ns < self.wakes_ns:
                self.wake()
        elif ident != self._main:
            return 0
        return max(deadline_ns, self.announced_ns)

    def _tell(self) -> None:
        """With the lock: how many are served here, and in an adaptive pool whether one more
        could be."""
        free = len(self.free)
        self._heartbeat.hold(self._count - free)
        if free < 2:
            self._heartbeat.tell_room(free == 1)

    def meets(self, peer: Any) -> None:
        """For which client this thread works, if it was handed over as another."""
        number = self._numbers.get(get_ident())
        if number is not None and self._work[number][0] is not peer:
            self._work[number] = peer, *self._work[number][1:]

    # In each of its own

    def _live(self, number: int) -> None:
        self._numbers[get_ident()] = number
        call, heartbeat = self._calls[number], self._heartbeat
        while True:
            call.acquire()
            work: _Work | None = self._work[number]
            while work:
                try:
                    work[1](*work[2])
                except BaseException as error:  # what would end a worker that serves alone
                    self._fallen = error
                if heartbeat.foreign:
                    os._exit(0)  # a handler forked, and its child came back
                work = self._next(number)
            with self.lock:
                self._deadlines[number] = NEVER
                self._work[number] = _NOTHING
                self._lost.discard(number)
                self.free.append(number)
                self._tell()
            if self.awaited or self.leaving or self._fallen:
                self.wake()

    def _next(self, number: int) -> _Work | None:
        """A parked connection that waits for a thread, which the main one has found ready."""
        if number in self._lost or self._fallen:
            return None
        work = self._next_work()
        if work:
            self._since[number] = now_ns = Clock.monotonic_ns()
            self._deadlines[number] = now_ns + self._heartbeat.timeout_ns
            self._work[number] = work
        return work


class ThreadsHeartbeat(Heartbeat):
    """The heartbeat of a worker with threads: what each of them says is about that one. The
    worker is busy while any of them is, and idle, for an adaptive pool, while one is free."""

    wake_fd: int
    hush: Callable[[], None]

    def __init__(self, slot: int, job: Job, shared: Shared, bell: Bell) -> None:
        super().__init__(slot, job, shared, bell)
        self.pool: ThreadPool = ThreadPool(self, job.settings.threads)
        self.wake_fd, self.hush = self.pool.over, nothing
        self._serving = 0

    def beat(self) -> None:
        self._beat_until(Clock.monotonic_ns() + self.timeout_ns, False)

    def announce(self, within: float | None) -> None:
        allowed_ns = self.timeout_ns if within is None else announced_ns(within)
        self._beat_until(Clock.monotonic_ns() + allowed_ns, within is not None)

    def _beat_until(self, deadline_ns: int, announced: bool) -> None:
        deadline_ns = self.pool.beat(deadline_ns, announced)
        if deadline_ns:
            self._row[DEADLINE] = deadline_ns

    def begin(self, peer: Any) -> None:
        row = self._row
        with self.pool.lock:
            if self._serving:
                super().end()
            self._serving += 1
            super().begin(peer)
            row[DEADLINE] = max(row[DEADLINE], self.pool.announced_ns)  # which holds
        self.beat()

    def end(self) -> None:
        with self.pool.lock:  # by a time from before the lock a request would end too early
            self._serving -= 1
            if not self._serving:
                super().end()

    def meet(self, peer: Any) -> None:
        super().meet(peer)
        self.pool.meets(peer)

    def tell_busy(self) -> None:
        pass  # see tell_room

    def tell_free(self) -> None:
        pass

    def tell_room(self, room: bool) -> None:
        """Whether a thread is free."""
        super().tell_free() if room else super().tell_busy()

    def disown(self) -> None:
        super().disown()
        self.pool.lock = threading.Lock()  # in a fork, whose threads may have held it


class _Turns(deque[Any]):
    """Whose turn it is. Two may look at once, of which one finds none left."""

    def popleft(self) -> Any:
        try:
            return super().popleft()
        except IndexError:
            return None


class ThreadedLoop(AcceptLoop):
    """The accept loop of a worker with threads. It looks at no connection while none is free.
    Parked connections are parked again by the threads."""

    _blind = False  # when it waited last it looked at nothing, since no thread was free

    def __init__(self, job: Job, relay: Relay, heartbeat: ThreadsHeartbeat) -> None:
        super().__init__(job, relay, heartbeat)
        self._pool = heartbeat.pool
        self._poll = self._poll_if_free
        self._turns, self._next_turns = _Turns(), _Turns()

    def run(self, *args: Any) -> None:
        self._pool.start(self._next_work)
        super().run(*args)

    def _next_work(self) -> _Work | None:
        guest = self._turns.popleft()
        return (guest.peer, super()._resume, (guest,)) if guest else None

    def keep(
        self, guest: Guest, until_ns: int, ready: bool = False, event: int = select.EPOLLIN
    ) -> None:
        pool, fd = self._pool, socket.socket.fileno(guest.request)
        # Told once: else it would be told of again while a thread reads it.
        event |= select.EPOLLONESHOT
        with pool.lock:
            known = not ready and self._watched.get(fd) is guest
            super().keep(guest, until_ns, ready, event)
            if known:
                self.epoll.modify(fd, event)
        if ready or until_ns < pool.wakes_ns:
            pool.wake()

    def let_go(self, guest: Guest) -> None:
        with self._pool.lock:
            super().let_go(guest)

    def _serve(self, request: Any, peer: Any) -> None:
        self._pool.hand(peer, super()._serve, request, peer)
        if not isinstance(request, socket.socket):  # a datagram, which leaves nothing open
            self._make_way()

    def _begin(self, request: Any, peer: Any) -> None:
        self._pool.hand(peer, super()._begin, request, peer)

    def _resume(self, guest: Guest | None) -> None:
        if guest and self._pool.free:
            self._pool.hand(guest.peer, super()._resume, guest)
        elif guest:
            self._turns.appendleft(guest)
            self._look()

    def _poll_if_free(self, seconds: float, most: int) -> list[tuple[int, int]]:
        seconds = self._pool.turn(seconds)
        self._blind = not self._pool.free
        if self._blind:
            self._pool.wait_for_free(max(seconds, _BLINK))
            return []
        return self.epoll.poll(seconds, most)

    def _find_silent(self, now_ns: int) -> None:
        with self._pool.lock:
            super()._find_silent(now_ns)

    def _make_way(self) -> None:
        """To the end of the line, and its siblings run first. It does not step aside as one that
        holds a single connection does: whom it took may be gone in a moment."""
        os.sched_yield()
        self.acceptor.enlist()

    @property
    def resting(self) -> bool:
        return self._blind or super().resting

    @property
    def has_guests(self) -> bool:
        return self._pool.is_busy() or super().has_guests

    # The end

    def _leave(self) -> float | None:
        self._pool.be_over()
        return super()._leave()

    def _finish(self) -> float | None:
        super()._finish()
        self._end = Clock.monotonic() + QUIET
        self._phase = self._end_threads
        return self._end_threads()

    def _end_threads(self) -> float | None:
        """A connection that is with a thread may be parked again, and then has a moment to ask."""
        now = Clock.monotonic()
        if self._pool.is_busy():
            self._end = now + QUIET
        elif not (super().has_guests and now < self._end):
            return None
        return min(self.heartbeat.pause, QUIET)
