"""What the figures cost in each request: ``python -m benchmarks.overhead``.

In one process, without a socket: a worker's own bookkeeping around a request. What is printed
are medians.
"""

import logging
import os
import statistics
import time
from collections.abc import Callable

from prefork_server import Settings, SharedCounter
from prefork_server.job import Hooks, Job, nothing
from prefork_server.reports import Reports
from prefork_server.scoreboard import Scoreboard
from prefork_server.signals import Bell, Relay
from prefork_server.titles import Title
from prefork_server.worker.heartbeat import Heartbeat, Shared

CALLS = 20_000


def main() -> None:
    board, relay, reports, bell = Scoreboard(1), Relay(), Reports(), Bell()
    shared = Shared(board, reports, relay, bell, Title("overhead"), -1, os.getpid())
    job = Job(Settings(), "overhead", logging.getLogger("overhead"), nothing, [], Hooks())
    heartbeat = Heartbeat(1, job, shared, bell)

    def request() -> None:
        heartbeat.begin(("127.0.0.1", 1))
        heartbeat.end()

    print(f"bookkeeping of a request: {each(request):.0f} ns")
    counter = SharedCounter("overhead")
    print(f"counter.add(): {each(counter.add):.0f} ns")
    print(f'master.note("GET /"): {each(lambda: heartbeat.note("GET /")):.0f} ns')
    print(f"master.stats() of one worker: {each(heartbeat.stats, 200) / 1000:.0f} us")


def each(call: Callable[[], object], calls: int = CALLS) -> float:
    def timed() -> float:
        start = time.perf_counter_ns()
        for _ in range(calls):
            call()
        return (time.perf_counter_ns() - start) / calls

    return statistics.median(timed() for _ in range(9))


if __name__ == "__main__":
    main()
