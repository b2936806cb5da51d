"""What the figures cost in each request: ``python -m benchmarks.overhead``.

In one process, without a socket: a worker's own bookkeeping around a request, with the words
that are for ``stats()`` alone, and without them. The two take turns, round for round, since the
machine is never twice the same; what is printed are medians.
"""

import logging
import os
import statistics
import time
from collections.abc import Callable

from prefork_server import MasterHandle, Settings, SharedCounter
from prefork_server.acceptor import Guest
from prefork_server.handle import Shared
from prefork_server.job import Hooks, Job, nothing
from prefork_server.reports import Reports
from prefork_server.scoreboard import Scoreboard
from prefork_server.signals import Bell, Relay
from prefork_server.titles import Title

ROUNDS, CALLS = 41, 20_000


class Bare(MasterHandle):
    """The same without errors, busy time and notes: as it was before there were any."""

    def _took_again(self, guest: Guest) -> None:
        words = self._own_words
        now_ns = time.monotonic_ns()
        words[self._deadline] = now_ns + self._patience_ns
        words[self._since] = now_ns
        words[self._requests] = count = words[self._requests] + 1
        if count == self._enough:
            self._wear.served_enough()
        self._busy = True
        self._title.show_busy(count)
        if self._last_peer is not guest.peer:
            self._last_peer = guest.peer
            self._board.set_peer(self.slot, guest.peer)

    def _be_idle(self, now_ns: int = 0) -> None:
        if self._busy:
            self._busy = False
            self._own_words[self._since] = 0
            self._title.show_idle()


def main() -> None:
    board, relay, reports, bell = Scoreboard(1), Relay(), Reports(), Bell()
    shared = Shared(board, reports, relay, bell, Title("overhead"), -1, os.getpid())
    job = Job(Settings(), "overhead", logging.getLogger("overhead"), nothing, [], Hooks())
    guest = Guest()
    guest.peer = ("127.0.0.1", 1)
    handles = {kind.__name__: kind(1, job, shared, bell) for kind in (Bare, MasterHandle)}

    def request(master: MasterHandle) -> float:
        took, idle, clock = master._took_again, master._be_idle, time.monotonic_ns
        start = time.perf_counter_ns()
        for _ in range(CALLS):
            took(guest)
            idle(clock())  # which is read anyway, for the deadline
        return (time.perf_counter_ns() - start) / CALLS

    for handle in handles.values():
        request(handle)
    figures = [[request(handle) for handle in handles.values()] for _ in range(ROUNDS)]
    bare, full = (statistics.median(column) for column in zip(*figures, strict=True))
    extra = statistics.median(one[1] - one[0] for one in figures)
    print(f"bookkeeping of a request: {bare:.0f} ns without figures, {full:.0f} ns with them")
    print(f"of a round the difference is {extra:.0f} ns (median of {ROUNDS})")
    counter, master = SharedCounter("overhead"), handles["MasterHandle"]
    print(f"counter.add(): {each(counter.add):.0f} ns")
    print(f'master.note("GET /"): {each(lambda: master.note("GET /")):.0f} ns')
    print(f"master.stats() of one worker: {each(master.stats, 200) / 1000:.0f} us")


def each(call: Callable[[], object], calls: int = CALLS) -> float:
    def timed() -> float:
        start = time.perf_counter_ns()
        for _ in range(calls):
            call()
        return (time.perf_counter_ns() - start) / calls

    return statistics.median(timed() for _ in range(9))


if __name__ == "__main__":
    main()
