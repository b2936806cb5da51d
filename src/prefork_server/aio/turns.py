"""Whose turn it is to accept, among workers that hold many connections each.

The listeners wait in the loop's own epoll, ``EPOLLEXCLUSIVE``, so the kernel wakes one
worker for each connection. (In an epoll inside another it wakes them all, exclusive or not.)
Whoever has taken one goes to the end of the line, and whoever holds more than his share of
all held connections steps aside for a moment: being awake, he would be faster than the
sibling who is only being woken.
"""

import mmap
import select
import socket
from collections.abc import Iterable
from contextlib import suppress

from ..acceptor import COURTESY_NS, Acceptor
from ..clock import Clock
from ..scoreboard import SECOND
from ..settings import MAX_WORKERS

_FEW = 3  # connections above the mean of all workers are nobody's concern
_LONGEST = 10_000_000  # ns to step aside, in case that the siblings hang


class Shares:
    """How many connections each worker holds, in memory that all of them see.

    One word a slot, written by its worker, and by the master when that is dead: what it
    holds and one more, or 0 where nobody accepts.
    """

    def __init__(self, workers: int) -> None:
        rows = 2 * MAX_WORKERS + 1
        self._seen = min(rows, max(64, 4 * workers))  # slots above are nobody's concern
        self.words: memoryview[int] = memoryview(mmap.mmap(-1, rows * 8)).cast("q")

    def fair(self) -> float:
        """How many a worker may hold, and still be first in line."""
        there = [word for word in self.words[: self._seen].tolist() if word]
        return sum(there) / len(there) - 1 + _FEW if there else 0.0


class LoopAcceptor(Acceptor):
    """An ``Acceptor`` that waits in the epoll of a loop. Its rest ends when it is told so."""

    def __init__(
        self, given: Acceptor, listeners: Iterable[socket.socket], epoll: select.epoll
    ) -> None:
        given.resign()
        super().__init__(list(listeners), given.relay, epoll, given.watch, None, given.logger)

    def go_to_the_end(self, listener: socket.socket) -> None:
        """Of the line in front of this listener."""
        self._epoll.unregister(listener)
        self._epoll.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def make_way_by(self, excess: float) -> None:
        """The longer, the more it holds above its share: on a crowded machine the sibling who
        is woken may have to wait for its CPU."""
        self.step_aside(min(_LONGEST, int(COURTESY_NS * 4 ** min(excess, 5))))

    def rest_left(self) -> float:
        """Seconds; then ``rested``."""
        return max(0, self.resting_until_ns - Clock.monotonic_ns()) / SECOND

    def hang_up(self) -> None:
        super().hang_up()
        self._epoll.close()

    def resign(self) -> None:
        with suppress(OSError):  # a callback has closed one: then it cannot be taken out
            super().resign()
