"""The heartbeat of a worker: its row on the scoreboard, which no other code of it writes.

A request begins and ends here once, whatever serves it: a handler, a thread, an event loop, a
work function. Recycling is here, too: when a worker has served enough requests, holds too much
memory or found none, its row says that it is due, and the worker goes on. When it is to go is
the master's decision.
"""

import logging
import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .. import titles
from ..clock import Clock
from ..job import Job
from ..logfiles import reopen
from ..reports import Reports
from ..scoreboard import (
    ASKS_STOP,
    BUSY,
    DEADLINE,
    DUE,
    ERRORS,
    GROWS,
    HELD,
    IN_HAND,
    LEAVING,
    MEMORY,
    NEVER,
    OUT_OF_MEMORY,
    PORT,
    READY,
    REQUESTS,
    ROTATION,
    SECOND,
    SINCE,
    TOO_LARGE,
    WISH,
    WORN,
    Scoreboard,
    in_ns,
)
from ..signals import Bell, Relay, end_within
from ..terminal import Prints
from ..text import printable, users_part
from ..titles import Title

if TYPE_CHECKING:
    from ..stats import Stats

ANSWER: Final = 0.5  # seconds for the master to say what it wants of a worker that goes by itself
_WEIGH_NS = 5 * SECOND  # from one look at the memory to the next
_SLOW_NS = SECOND // 1000  # a request that takes longer lets others wait
_UNNAMED: Final = ("", 0)  # the client of a UNIX socket


@dataclass(frozen=True)
class Shared:
    """What the master made before the fork, for both of them."""

    board: Scoreboard
    reports: Reports
    relay: Relay
    bell: Bell  # wakes the master
    title: Title
    life: int  # the read end of a pipe that ends when the master does
    master_pid: int
    generation: int = 1
    prints: Prints | None = None  # where the worker prints, if that is not its own terminal


class Heartbeat:
    """One worker's row. ``bell`` wakes the worker where it sleeps.

    In a fork of the worker, which is ``foreign``, it goes on, on a copy that nothing reads.
    """

    def __init__(self, slot: int, job: Job, shared: Shared, bell: Bell) -> None:
        settings = job.settings
        self.slot = slot
        self.generation: int = shared.generation
        self.board: Scoreboard = shared.board
        self.logger: logging.Logger = job.logger
        self.bell: Bell = bell
        self.foreign: bool = False
        self.adaptive: bool = settings.max_workers is not None  # then it tells whether it is idle
        self._weighs: bool = settings.max_worker_memory is not None or settings.status is not None
        self.timeout_ns: int = NEVER if settings.timeout is None else in_ns(settings.timeout)
        # Often enough that one late beat is no silence, and no oftener than once a second.
        self.pause: float = min(1.0, (settings.timeout or 3.0) / 3)
        self.wake_fd: int = bell.fileno()
        self.hush: Callable[[], None] = bell.hush
        self._shared = shared
        self._title = shared.title
        self.graceful: float = settings.graceful_timeout
        self._row = shared.board.row(slot)
        self._whole = shared.board.row(0)
        self._rotation = self._row[ROTATION]  # the one that was followed
        self._requests = 0
        self._enough = _about(settings.max_requests) or NEVER
        self._limit = settings.max_worker_memory
        # Not at once: one that is too large from its first day on is replaced by its like.
        self._weigh_ns = Clock.monotonic_ns() + _WEIGH_NS if self._limit else 0
        self.called: bool = False  # whether something happened that is to be looked at
        self.began_ns: int = 0
        self._spent_ns = 0
        self._mean_ns = 2 * _SLOW_NS  # of the last requests; slow until they were quick
        self._host: object = None  # whose name is on the board
        self._failing = threading.Lock()

    # Signs of life

    def beat(self) -> None:
        """The worker is alive, and need not say so again for ``timeout`` seconds."""
        self._row[DEADLINE] = Clock.monotonic_ns() + self.timeout_ns

    def announce(self, within: float | None) -> None:
        """The same, and the next beat may be so many seconds away. Raises ValueError."""
        allowed_ns = self.timeout_ns if within is None else announced_ns(within)
        self._row[DEADLINE] = Clock.monotonic_ns() + allowed_ns

    def be_ready(self) -> None:
        """What comes before the work is done."""
        self.beat()
        if self.adaptive:
            self.board.set_idle(self.slot, True)
        self._row[READY] = Clock.monotonic_ns()
        self.ring_master()

    def look(self) -> None:
        """What is seldom true: when ``called``, and between requests from time to time."""
        self.called = False
        if self.foreign:
            os._exit(0)  # a handler forked, and its child came back into our loop
        self.beat()
        self.follow_rotation()
        self.weigh()

    # Requests

    def begin(self, peer: Any) -> None:
        """A request begins, of this client: its handler has all of ``timeout``."""
        row = self._row
        self.began_ns = now_ns = Clock.monotonic_ns()
        row[DEADLINE] = now_ns + self.timeout_ns
        row[SINCE] = now_ns
        row[BUSY] = self._spent_ns - now_ns
        self._requests = count = self._requests + 1
        row[REQUESTS] = count
        if count == self._enough:
            self._be_due(WORN)
        self._title.state[0] = titles.BUSY
        if not count & 15 or count < 16:
            self._title.show_count(count)
        named = peer or _UNNAMED
        try:
            if named[0] == self._host:
                row[PORT] = named[1]
            else:
                self.meet(peer)
        except (IndexError, KeyError, TypeError, ValueError):  # in a form of a class's own
            self.meet(None)
        if self.adaptive:
            self.tell_busy()

    def end(self) -> None:
        """It is over."""
        row = self._row
        now_ns = Clock.monotonic_ns()
        took_ns = now_ns - self.began_ns
        self._mean_ns += (took_ns - self._mean_ns) >> 5
        row[SINCE] = 0
        row[BUSY] = self._spent_ns = self._spent_ns + took_ns
        self._title.state[0] = titles.IDLE
        if self.adaptive:
            self.tell_free()

    def begin_held(self, held: int) -> None:
        """The same in an event loop, which holds so many connections now."""
        began_ns, spent_ns = self.began_ns, self._spent_ns
        self.begin(None)
        self._row[SINCE] = 0
        if held > 1:
            self.began_ns, self._row[BUSY] = began_ns, spent_ns - began_ns
        self._row[IN_HAND] = held

    def end_held(self, held: int) -> None:
        self._row[IN_HAND] = held
        if not held:
            self.end()

    def meet(self, peer: Any) -> None:
        """The client is this one, for which a proxy may speak. The host stays where it is the
        last one's: text costs."""
        host, port = peer[:2] if type(peer) is tuple and len(peer) > 1 else _UNNAMED
        if host != self._host and not self.foreign:
            self._host = host
            self.board.set_host(self.slot, host)
        self._row[PORT] = port if type(port) is int and 0 <= port <= NEVER else 0

    def fail(self, error: object) -> None:
        """A handler has raised, in whichever thread. Of its traceback the user's part is left."""
        if isinstance(error, BaseException):
            users_part(error)
        if not self.foreign:
            if isinstance(error, MemoryError):
                # What it leaves half done, and what else it may have failed for, is unknown.
                self._be_due(OUT_OF_MEMORY)
            with self._failing:
                self._row[ERRORS] += 1

    def exited(self, error: SystemExit) -> None:
        """A handler has called ``sys.exit()``, which asks for a new worker."""
        code = error.code
        self.logger.log(
            logging.INFO if code in (None, 0) else logging.WARNING,
            "worker=%d pid=%d a handler called sys.exit(%s), retiring",
            self.slot,
            os.getpid(),
            "" if code is None else printable(f"{code!r:.1000}"),
            extra={"event": "exited", "worker": self.slot, "pid": os.getpid()},
        )
        self.retire()

    def hold(self, count: int) -> None:
        """So many connections are served besides the accept loop."""
        self._row[IN_HAND] = count

    def park(self, count: int) -> None:
        """So many connections are held, and cost no worker."""
        self._row[HELD] = count

    def has_its_share(self, cpus: int) -> bool:
        """Whether siblings are to be first for the next connection that is kept: this worker has
        more than its share, or its requests took long lately.

        One share is as large as if there were no more workers than CPUs. Where they share one,
        to spread connections would cost a process switch for each request, and win nothing while
        requests are quick; a slow one would let others wait beside idle workers.
        """
        if self._mean_ns > _SLOW_NS:
            return True
        held = self.board.held()
        return self._row[HELD] * min(cpus, len(held)) > sum(held)

    def note(self, text: str) -> None:
        """What is being done, in words."""
        if not self.foreign:
            self.board.set_note(self.slot, text)

    def tell_busy(self) -> None:
        """In an adaptive pool. The last one that was idle has the master get more."""
        if self.adaptive and not self.foreign:
            self.board.set_idle(self.slot, False)
            if self._whole[GROWS] and self.board.nobody_idle():
                self.ring_master()

    def tell_free(self) -> None:
        if self.adaptive and not self.foreign:
            self.board.set_idle(self.slot, True)

    def take_no_more(self) -> None:
        """It is about to go, and never idle again."""
        if self.adaptive:
            self.adaptive = False
            self.board.set_idle(self.slot, False)

    def stats(self) -> "Stats":
        """What the whole server is doing, and has done."""
        from ..stats import current

        return current(self.board)

    # The wish to go

    @property
    def wish(self) -> int:
        """What the master wants of this worker."""
        return self._row[WISH]

    def is_over(self) -> bool:
        """Whether the worker is to go."""
        return bool(self._row[WISH] or self._row[LEAVING])

    def retire(self) -> None:
        """By its own wish: the master replaces it at once."""
        self.go()
        self.ring_master()

    def call(self, *_: object) -> None:
        """As a handler of signals: look before anything else is begun."""
        self.called = True

    def go(self, *_: object) -> None:
        """As a handler of QUIT, and by its own wish."""
        self._row[LEAVING] = 1
        self.called = True
        self.bell.ring()  # an event loop has a wake-up descriptor of its own

    def be_orphaned(self, *_: object) -> None:
        """The master is gone: finish, and be gone too before long.

        There is nobody to kill this process any more if this is where it hangs. So the kernel
        does: the default action of SIGALRM needs no Python to run.
        """
        self.go()
        self.end_in_time()

    def end_in_time(self) -> None:
        """Be gone after ``graceful_timeout``, wherever it hangs; until then silence is no fault."""
        deadline = Clock.monotonic_ns() + in_ns(self.graceful) + SECOND
        self._row[DEADLINE] = max(deadline, self._row[DEADLINE])
        end_within(self.graceful)

    def ask_wish(self) -> int:
        """The master's wish of a worker that goes by itself: a QUIT to the whole group may reach
        it first, and then the queue is to be served. Without a master: 0."""
        answer = select.poll()
        answer.register(self.bell.fileno(), select.POLLIN)
        end = Clock.monotonic() + ANSWER
        while self.awaits_wish() and Clock.monotonic() < end:  # it is stopped, or busy with a hook
            answer.poll(ANSWER * 100)
            self.bell.hush()
        return self.wish

    def awaits_wish(self) -> bool:
        """Whether the master has not said its wish, and may: it is asked again."""
        if self.wish or os.getppid() != self._shared.master_pid:
            return False
        self.ring_master()
        return True

    def ask_stop(self) -> None:
        """Ask the master to stop the whole server. Returns at once."""
        self.board.set(self.slot, ASKS_STOP, 1)  # from a fork of the worker, too
        self.ring_master()

    def ring_master(self) -> None:
        self._shared.bell.ring()

    def disown(self) -> None:
        """In a fork of the worker."""
        self.foreign = self.called = True
        self._failing = threading.Lock()  # a thread may have held it
        self._row = memoryview(bytearray(self._row)).cast("q")

    def close(self) -> None:
        """Of a worker that outlives its scoreboard."""
        self._row.release()
        self._whole.release()

    # Logs and memory

    def follow_rotation(self) -> None:
        """Open the logs anew, if the master has done so."""
        if self._rotation == self._whole[ROTATION]:
            return
        self._rotation = self._whole[ROTATION]
        failures = reopen()
        for failure in failures:
            extra = {"event": "reopen_failed", "worker": self.slot, "pid": os.getpid()}
            message = "worker=%d pid=%d keeps the old file: %s"
            self.logger.error(message, self.slot, os.getpid(), printable(failure), extra=extra)
        self._row[ROTATION] = -self._rotation if failures else self._rotation
        self.ring_master()

    def weigh(self) -> None:
        """Between two requests: look at the memory, if it is time to."""
        if not self._weighs or (now_ns := Clock.monotonic_ns()) < self._weigh_ns:
            return
        self._weigh_ns = now_ns + _WEIGH_NS
        try:
            held = private_bytes()
        except OSError as error:
            limited, self._weighs, self._limit = self._limit is not None, False, None
            self.logger.log(
                logging.WARNING if limited else logging.DEBUG,
                "a worker cannot tell its memory, which has no limit now: %s",
                error.strerror,
                extra={"event": "not_weighed", "pid": os.getpid()},
            )
            return
        self._row[MEMORY] = held
        if self._limit is not None and held > self._limit:
            self._be_due(TOO_LARGE)

    def _be_due(self, why: int) -> None:
        self._row[DUE] = why
        self.ring_master()


def announced_ns(within: float) -> int:
    """How long a silence may be that was announced. Raises ValueError."""
    if not within > 0:
        raise ValueError(f"within is a number of seconds above 0, not {within!r}")
    return min(in_ns(min(within, 1e9)), NEVER)


def _about(count: int) -> int:
    """Give or take a tenth, so that not all are worn out at once. Not from ``random``, whose
    state may be the program's."""
    tenth = count // 10
    return count - tenth + int.from_bytes(os.urandom(8)) % (2 * tenth + 1)


def private_bytes() -> int:
    """What would be free again if this process ended (USS): neither what it shares since the
    fork, nor libraries. Raises OSError where the kernel does not tell."""
    with open("/proc/self/smaps_rollup", "rb") as lines:
        pages = [line.split() for line in lines if line.startswith(b"Private_")]
    return sum(int(words[1]) for words in pages) * 1024
