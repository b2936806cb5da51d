"""The master, as a worker sees it: what user code calls ``master``.

It speaks to the master through the scoreboard and one byte in a pipe, and hears it
through the scoreboard and a signal.
"""

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .acceptor import Acceptor, Guest
from .connection import Connection
from .job import Job, nothing
from .leave import Leave
from .logfiles import reopen
from .reports import Reports
from .scoreboard import (
    ASKS_STOP,
    BUSY,
    DEADLINE,
    GROWS,
    LEAVING,
    NEVER,
    READY,
    REQUESTS,
    ROTATION,
    SINCE,
    WISH,
    Scoreboard,
    in_ns,
)
from .signals import Bell, Relay
from .terminal import Prints
from .text import printable
from .titles import Title
from .vigil import Vigil
from .wear import Wear


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


class MasterHandle(Leave):
    """The master, as a worker sees it.

    ``slot`` is the number of this worker, from 1: nobody else has it while this lives. Who
    replaces it after its death has it again; a successor that is there before that, as in a
    reload, has another. ``generation`` is 1, and one more with each reload. ``pid`` is the
    master's. ``logger`` is where the server logs. ``inline`` says that there is none, and
    the worker is this process.
    """

    inline = False

    def __init__(self, slot: int, job: Job, shared: Shared, bell: Bell) -> None:
        settings = job.settings
        self.slot = slot
        self.generation: int = shared.generation
        self.pid: int = shared.master_pid
        self.logger: logging.Logger = job.logger
        self._board = shared.board
        self._title = shared.title
        self._master_bell = shared.bell
        self._bell = bell
        self._report = -1  # the descriptor of what a worker leaves behind
        self._foreign = False
        self._busy = False
        self._spent_ns = self._base_ns = 0  # with all who were served; less when the last one came
        self._tells = settings.max_workers is not None  # whether it is idle
        self._last_peer: Any = None
        self._graceful = settings.graceful_timeout
        self._patience_ns = NEVER if settings.timeout is None else in_ns(settings.timeout)
        # Often enough that one late beat is no silence, and no oftener than once a second.
        self._pause = min(1.0, (settings.timeout or 3.0) / 3)
        self._words = shared.board.words
        self._own_words = self._words  # what we write to; see _disown
        at = shared.board.at
        self._deadline = at(slot, DEADLINE)
        self._wish = at(slot, WISH)
        self._leaving = at(slot, LEAVING)
        self._ready = at(slot, READY)
        self._requests = at(slot, REQUESTS)
        self._since = at(slot, SINCE)
        self._busy_ns = at(slot, BUSY)
        self._asks_stop = at(slot, ASKS_STOP)
        self._rotation = self._words[at(slot, ROTATION)]  # which one we have followed
        self._newest_rotation = at(0, ROTATION)
        self._grows = at(0, GROWS)
        self._wear = Wear(settings, self.logger, self._mark, shared.bell.ring)
        self._enough = self._wear.served_enough_at
        self._vigil = Vigil(self._beat, self._is_over, bell.fileno(), bell.hush, self._pause)
        self._acceptor: Acceptor | None = None
        self._listeners = job.listeners
        if job.listeners:
            listeners = [listener.socket for listener in job.listeners]
            self._acceptor = Acceptor(
                listeners, shared.relay, self._vigil, settings.client_timeout, self.logger
            )

    def __repr__(self) -> str:
        return f"<MasterHandle pid={self.pid}, in worker={self.slot} pid={os.getpid()}>"

    # For user code

    def wants_me_alive(self, within: float | None = None) -> bool:
        """Tell the master we are alive; return whether it wants us to go on.

        Ask at least once every ``timeout`` seconds, or be killed and replaced.
        ``within`` says that the next time may be so many seconds away, just this once.
        With ``threads`` all this is about the thread that asks.
        Once it has returned False it never returns True again.
        """
        allowed_ns = self._patience_ns if within is None else announced_ns(within)
        words = self._own_words
        words[self._deadline] = time.monotonic_ns() + allowed_ns
        if self._rotation != self._words[self._newest_rotation]:
            self._follow_rotation()
        if self._wear.weighs and not self._acceptor:  # who accepts does it in between
            self._wear.weigh()
        return not self._is_over()

    def wait(self, seconds: float) -> bool:
        """Sleep, at most so long; return whether the master wants us to go on.

        Returns at once, False, when it does not. The sleep counts as life, however long.
        """
        poll = select.poll()
        poll.register(self._vigil.bell, select.POLLIN)
        end = time.monotonic() + seconds
        while self.wants_me_alive():
            left = end - time.monotonic()
            if left <= 0:
                return True
            if poll.poll(min(left, self._pause) * 1000):
                self._vigil.hush()
        return False

    def connections(self) -> Iterator[tuple[Connection, Any]]:
        """Accept, one connection after the other, until the master wants us to go.

        Each step counts as life. Close the connections you get, or keep them and serve
        them in your own way. On a graceful stop the queue is served first. Raises
        ``RuntimeError`` where there is nothing to listen on.
        """
        acceptor = self._accepting()
        for ready in self._waiting():
            if isinstance(ready, Guest):
                ready.resume()
                continue
            taken = acceptor.accept(ready)
            if taken:
                self._took(taken[1])
                yield taken

    def retire(self) -> None:
        """Finish what is at hand, then go: ``wants_me_alive()`` is False from here on.

        The master replaces this worker at once, unless so many are on their way out already (four
        times as many as are wanted, and at least 32), and kills it if it is not gone after
        ``graceful_timeout``.
        """
        self._go()
        self._master_bell.ring()

    # For the front rooms

    def _exited(self, error: SystemExit) -> None:
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

    def _accepting(self) -> Acceptor:
        if self._acceptor is None:
            raise RuntimeError("there is nothing to accept from: give Preforker(..., listen=[...])")
        return self._acceptor

    def _hang_up(self) -> None:
        if self._acceptor:
            self._acceptor.hang_up()

    def _waiting(
        self, each_time: Callable[[], object] = nothing
    ) -> Iterator[socket.socket | Guest]:
        """Each listener on which somebody waits, and each guest to resume, until it is time
        to go."""
        acceptor = self._accepting()
        while True:
            if each_time is not nothing:
                each_time()
            if self._foreign:
                os._exit(0)  # a handler forked, and its child came back into our loop
            if acceptor._turns and acceptor.serial and not self._is_over():
                # Found by the same look as the last one: nobody was idle in between.
                if self._rotation != self._words[self._newest_rotation]:
                    self._follow_rotation()
                yield acceptor._turns.popleft()
                continue
            now_ns = time.monotonic_ns()
            if self._busy:
                self._be_idle(now_ns)
            self._own_words[self._deadline] = now_ns + self._patience_ns
            if self._rotation != self._words[self._newest_rotation]:
                self._follow_rotation()
            if self._is_over():
                break
            if self._wear.weighs:
                self._wear.weigh()
            # Whoever is woken for a connection takes it before it obeys anything: the
            # kernel has told nobody else.
            ready = acceptor.wait(self._pause, now_ns)
            if ready is not None:
                yield ready
        yield from self._take_leave(acceptor)

    def _took(self, peer: Any, asked: bool = True) -> None:
        """``asked`` False: his requests are counted when they come."""
        words = self._own_words
        now_ns = time.monotonic_ns()
        words[self._deadline] = now_ns + self._patience_ns  # the handler has all of it
        words[self._since] = now_ns
        words[self._requests] = count = words[self._requests] + asked
        if asked and count == self._enough:
            self._wear.served_enough()
        if not self._busy:  # with threads others may be being served
            self._busy = True
            words[self._busy_ns] = self._base_ns = self._spent_ns - now_ns
            if self._tells:
                self._tell_busy()
        self._title.show_busy(count)
        self._last_peer = peer
        self._board.set_peer(self.slot, peer)

    def _took_again(self, guest: Guest) -> None:
        """The same for somebody who has been here before; cheaper, since it comes more often."""
        words = self._own_words
        now_ns = time.monotonic_ns()
        words[self._deadline] = now_ns + self._patience_ns
        words[self._since] = now_ns
        words[self._requests] = count = words[self._requests] + 1
        if count == self._enough:
            self._wear.served_enough()
        if not self._busy:  # he may have come just now
            self._busy = True
            words[self._busy_ns] = self._base_ns = self._spent_ns - now_ns
            if self._tells:
                self._tell_busy()
        self._title.show_busy(count)
        if self._last_peer is not guest.peer:
            self._last_peer = guest.peer
            self._board.set_peer(self.slot, guest.peer)

    def _introduced(self, peer: Any) -> None:
        """Whom a proxy has just spoken for, whom we took for the proxy itself."""
        if not self._foreign:
            self._board.set_peer(self.slot, peer)

    def _be_idle(self, now_ns: int = 0) -> None:
        if self._busy:
            self._busy = False
            if self._tells:
                self._tell_idle()
            words = self._own_words
            words[self._since] = 0
            now_ns = now_ns or time.monotonic_ns()
            words[self._busy_ns] = self._spent_ns = self._base_ns + now_ns
            self._title.show_idle()

    def _be_ready(self) -> None:
        self._beat()
        if self._tells:
            self._tell_idle()
        self._own_words[self._ready] = time.monotonic_ns()
        self._master_bell.ring()

    def _ask_stop(self) -> None:
        """Ask the master to stop the whole server. Returns at once."""
        self._words[self._asks_stop] = 1  # from a fork of the worker, too
        self._master_bell.ring()

    # How it works

    def _beat(self) -> None:
        self._own_words[self._deadline] = time.monotonic_ns() + self._patience_ns

    def _follow_rotation(self) -> None:
        """Open the logs anew, as the master has done."""
        self._rotation = self._words[self._newest_rotation]
        failures = reopen()
        for failure in failures:
            extra = {"event": "reopen_failed", "worker": self.slot, "pid": os.getpid()}
            message = "worker=%d pid=%d keeps the old file: %s"
            self.logger.error(message, self.slot, os.getpid(), printable(failure), extra=extra)
        own = self._board.at(self.slot, ROTATION)
        self._own_words[own] = -self._rotation if failures else self._rotation
        self._master_bell.ring()

    def _is_over(self) -> bool:
        return bool(self._words[self._wish] or self._words[self._leaving])

    def _go(self, *_: object) -> None:
        """As a handler of QUIT, and by our own wish."""
        self._own_words[self._leaving] = 1
        self._bell.ring()  # an event loop has a wake-up descriptor of its own

    def _orphaned(self, *_: object) -> None:
        """The master is gone: finish, and be gone too before long.

        There is nobody to kill us any more if this is where we hang. So the kernel does:
        the default action of SIGALRM needs no Python to run.
        """
        self._go()
        self._end_in_time()

    def _end_in_time(self) -> None:
        """Be gone after ``graceful_timeout``, wherever we hang."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, self._graceful)

    def _disown(self) -> None:
        """In a fork of the worker: it may read the scoreboard, but what it writes, nobody sees.
        And where the listeners are open in it, clients would wait when the server is gone."""
        self._foreign = True
        if self._acceptor:
            self._acceptor.disown()
        self._own_words = memoryview(bytearray(self._words)).cast("q")


def announced_ns(within: float) -> int:
    """How long a silence may be that was announced. Raises ValueError."""
    if not within > 0:
        raise ValueError(f"within is a number of seconds above 0, not {within!r}")
    return min(in_ns(min(within, 1e9)), NEVER)
