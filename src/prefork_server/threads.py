"""Several connections at a time in one worker: a fixed crew of threads, and who hands them over.

The main thread waits, accepts and parks as it does alone, but only while a hand is free: else
who comes is for a sibling, or waits in the kernel. It never serves anybody. So it can look
after the others: each has a deadline of its own, and when one is past it the log says where
all are, and the worker retires. What the scoreboard has is the deadline of the main thread.
"""

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import Any

from .acceptor import Acceptor, Guest
from .handle import MasterHandle
from .job import nothing
from .listeners import address_text
from .reports import in_debugger, innermost_first
from .scoreboard import NEVER, SECOND
from .text import one_record
from .vigil import Vigil

_OVERSLEPT_NS = SECOND // 4  # beyond this the main thread was asleep against its will

_Work = tuple[Any, Callable[..., object], tuple[Any, ...]]  # for whom, and what to call
_NOTHING: _Work = (None, nothing, ())


class Crew:
    """The threads of one worker.

    What they share is guarded by one lock, which nobody waits with. A deadline is written
    by its own thread, and read by the main one, without it.
    """

    def __init__(self, master: MasterHandle, count: int, resume: Callable[[Guest], object]) -> None:
        self.lock: threading.Lock = threading.Lock()
        self.free: deque[int] = deque(range(count))
        self.resume: Callable[[Guest], object] = resume
        self.wake: Callable[[], None] = master._bell.ring  # the main thread
        self.awaited: bool = False  # whether that has to be told of one that is free
        self.leaving: bool = False  # and of all of them
        self.handing: bool = False  # whether it has taken somebody whom no thread has yet
        self.wakes_ns: int = 0  # when it looks again, at the latest
        self.acceptor: Acceptor = master._accepting()
        self._master = master
        self._count = count
        self._deadlines = [NEVER] * count
        self._since = [0] * count
        self._work = [_NOTHING] * count
        self._calls = [threading.Lock() for _ in range(count)]  # released: there is work
        self._numbers: dict[int, int] = {}  # by the idents of the threads
        self._lost: set[int] = set()  # those that were silent for too long
        self._fallen: BaseException | None = None  # what was raised where nothing should be
        self._main = get_ident()
        self._lent_ns = 0  # what the main thread was given for whom it hands over
        self._announced_ns = 0  # the last deadline that somebody has asked for by ``within``
        self._spent_ns = time.process_time_ns()
        self._rung = select.poll()
        self._rung.register(master._bell.fileno(), select.POLLIN)
        # Readable when the worker is to go, and from then on. The bell is for the main thread
        # alone: who hushes it would take the ringing from the others.
        self._over = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.vigil: Vigil = Vigil(self.beat, master._is_over, self._over, nothing, master._pause)

    def start(self) -> None:
        for number, call in enumerate(self._calls):
            call.acquire()
            name = f"worker {self._master.slot} thread {number + 1}"
            threading.Thread(target=self._live, args=(number,), name=name, daemon=True).start()

    # In the main thread

    def hand(self, peer: Any, serve: Callable[..., object], *args: Any) -> None:
        """Have a free thread call it. What that raises ends the worker."""
        now_ns = time.monotonic_ns()
        with self.lock:
            number = self.free.pop()  # the last that was busy: it is warm
            self.handing = False
            self._tell()
        self._deadlines[number] = max(now_ns + self._master._patience_ns, self._lent_ns)
        self._lent_ns = 0
        self._since[number] = now_ns
        self._work[number] = (peer, serve, args)
        self._calls[number].release()

    def turn(self, seconds: float) -> float:
        """At each turn of the main thread: say that it lives, and look whether the others do.
        Return for how long it may sleep, at most ``seconds``."""
        if self._fallen:
            raise self._fallen
        now_ns = time.monotonic_ns()
        spent_ns = time.process_time_ns()
        late_ns = now_ns - self.wakes_ns
        if late_ns > _OVERSLEPT_NS and self.wakes_ns and spent_ns - self._spent_ns < late_ns // 2:
            # Nobody worked meanwhile: the machine was asleep, or had no time for us. For C
            # code that keeps Python from all others there is no such excuse.
            for number, ns in enumerate(self._deadlines):
                self._deadlines[number] = min(NEVER, ns + late_ns)
        self._spent_ns = spent_ns
        if self._announced_ns > now_ns:  # unless whoever did has said something since
            self._announced_ns = max((ns for ns in self._deadlines if ns < NEVER), default=0)
        if min(self._deadlines) <= now_ns:
            self._miss(now_ns)
        self.beat()
        nap_ns = max(0, min(int(seconds * SECOND), min(self._deadlines) - now_ns))
        self.wakes_ns = now_ns + nap_ns
        return nap_ns / SECOND

    def wait_for_free(self, seconds: float) -> None:
        """Until a hand is free, or something happened that the main thread should look at."""
        self.awaited = True
        if not (self.free or self._fallen) and self._rung.poll(seconds * 1000):
            self._master._bell.hush()
        self.awaited = False

    def count_busy(self) -> int:
        return self._count - len(self.free)

    def is_busy(self) -> bool:
        """Whether somebody is being served. Those who hang do not count."""
        return self.count_busy() > len(self._lost)

    def be_over(self) -> None:
        """The worker is to go: tell those who wait for their clients."""
        self.leaving = True
        os.eventfd_write(self._over, 1)

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
            self._master.retire()

    def _complain(self, number: int, ident: int, now_ns: int) -> None:
        master, peer = self._master, self._work[number][0]
        place, stacks = innermost_first(ident)
        never = master._patience_ns >= NEVER
        master.logger.error(
            "worker=%d pid=%d thread %d silent for %s at %s, retiring; %.1fs with %s%s%s",
            master.slot,
            os.getpid(),
            number + 1,
            "longer than it announced" if never else f"more than {master._patience_ns / SECOND:g}s",
            place,
            (now_ns - self._since[number]) / SECOND,
            address_text(peer) if peer else "a client",
            in_debugger(stacks),
            one_record(f"\n{stacks}"),
            extra={
                "event": "thread_silent",
                "worker": master.slot,
                "pid": os.getpid(),
                "generation": master.generation,
            },
        )

    # In all of them

    def beat(self, deadline_ns: int = 0, announced: bool = False) -> None:
        """The thread that calls this is alive, and need not say so again before then. For one
        that is none of ours it says nothing."""
        master = self._master
        deadline_ns = deadline_ns or time.monotonic_ns() + master._patience_ns
        ident = get_ident()
        number = self._numbers.get(ident)
        if number is not None:
            self._deadlines[number] = deadline_ns
            if not announced:
                return
            # It may be in C code from here on, which lets nobody else say anything.
            self._announced_ns = max(self._announced_ns, deadline_ns)
            if deadline_ns < self.wakes_ns:
                self.wake()
        elif ident != self._main:
            return
        elif announced:
            self._lent_ns = deadline_ns
        master._own_words[master._deadline] = max(deadline_ns, self._announced_ns)

    def _tell(self) -> None:
        """With the lock: how many are served here, and in an adaptive pool whether one more
        could be."""
        master, free = self._master, len(self.free)
        master._hold(self._count - free)
        if master._tells and not free:
            MasterHandle._tell_busy(master)
        elif master._tells and free == 1:
            MasterHandle._tell_idle(master)

    def meets(self, peer: Any) -> None:
        """For whom this thread works, if it was handed over as somebody else."""
        number = self._numbers.get(get_ident())
        if number is not None and self._work[number][0] is not peer:
            self._work[number] = peer, *self._work[number][1:]

    def keep_word(self) -> None:
        """What one of them has announced holds, whatever another has said since."""
        words, at = self._master._own_words, self._master._deadline
        words[at] = max(words[at], self._announced_ns)

    def took(self) -> None:
        """With the lock: somebody new, whom no thread has yet."""
        self.handing, self._lent_ns = True, 0  # what came before was for taking it

    def all_free(self) -> bool:
        """With the lock."""
        return len(self.free) == self._count and not self.handing

    # In each of its own

    def _live(self, number: int) -> None:
        self._numbers[get_ident()] = number
        call, master = self._calls[number], self._master
        while True:
            call.acquire()
            work: _Work | None = self._work[number]
            while work:
                try:
                    work[1](*work[2])
                except BaseException as error:  # what would end a worker that serves alone
                    self._fallen = error
                if master._foreign:
                    os._exit(0)  # a handler forked, and its child came back
                work = self._next(number)
            with self.lock:
                self._deadlines[number] = NEVER
                self._work[number] = _NOTHING
                self._lost.discard(number)
                self.free.append(number)
                self._tell()
            if len(self.free) == self._count:
                master._be_idle()
            if self.awaited or self.leaving or self._fallen:
                self.wake()

    def _next(self, number: int) -> _Work | None:
        """A guest who waits for a hand, whom the main thread has found ready before others."""
        if number in self._lost or self._fallen:
            return None
        guest = self.acceptor._turns.popleft()
        if guest is None:
            return None
        self._since[number] = now_ns = time.monotonic_ns()
        self._deadlines[number] = now_ns + self._master._patience_ns
        self._work[number] = work = guest.peer, self.resume, (guest,)
        return work
