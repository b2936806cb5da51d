"""L1: how long servers take to start, to replace a killed worker, to reload.

Ours by ``lifecycle``, from moments that the server writes down itself; then everybody who
supervises workers, by what is seen from outside, to about 2 ms.
"""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator

from . import lifecycle, servers
from .lifecycle import MS, Figure
from .load import connect
from .processes import SECOND, ServerProcess
from .runner import PATIENCE, Runner, answered

SUPERVISORS = (
    servers.PREFORK, servers.PREFORK_WSGI, servers.NGINX, servers.SYNC, servers.GTHREAD,
    servers.UVICORN, servers.GRANIAN,
)  # fmt: skip
_OURS = (
    lifecycle.starting_and_stopping,
    lambda tries: lifecycle.replacing(4 * tries),
    lifecycle.reloading,
    lambda tries: lifecycle.upgrading(max(1, tries // 3)),
)
STEPS = len(_OURS) + len(SUPERVISORS)
LONGEST = 3 * SECOND  # that a worker may take to be replaced, then it counts as never
LIFE = 1.2  # seconds that a worker has lived before it is killed


def turnover(runner: Runner, tries: int) -> Iterator[Figure]:
    for measure in _OURS:
        runner.step("L1 prefork_server")
        yield from measure(tries)
    for name in SUPERVISORS:
        runner.step(f"L1 {name}")
        if not servers.named(name).absent():
            yield from _seen_from_outside(runner, name, max(1, tries // 3))


def _seen_from_outside(runner: Runner, name: str, tries: int) -> Iterator[Figure]:
    firsts, news, reloads = [], [], []
    for _ in range(tries):
        with runner.start(servers.named(name), "http", runner.terms.workers) as running:
            server = running.process
            while not _answers(running.place.address):
                pass
            firsts.append((time.monotonic_ns() - server.started_ns) / MS)
            time.sleep(LIFE)  # a shorter life would be a false start
            news.append(_until_replaced(server))
            time.sleep(LIFE)
            reloads.append(_until_reloaded(server))
    yield Figure(f"{name}: from process start to an answer", "ms", firsts)
    yield Figure(f"{name}: from SIGKILL of a worker to a new process", "ms", news)
    yield Figure(f"{name}: from HUP to new workers only", "ms", reloads)


def _answers(address: str) -> bool:
    with connect(address, PATIENCE) as client:
        return answered([client]) == 1


def _workers(server: ServerProcess) -> set[int]:
    return set(server.pids()) - {server.pid}


def _until_replaced(server: ServerProcess) -> float:
    before = _workers(server)
    begin = time.monotonic_ns()
    os.kill(max(before), signal.SIGKILL)  # the youngest, which is no process of another kind
    return _wait(
        begin, lambda: bool((now := _workers(server)) - before) and len(now) >= len(before)
    )


def _until_reloaded(server: ServerProcess) -> float:
    before = _workers(server)
    youngest = max(before, default=0)
    begin = time.monotonic_ns()
    if not server.pids():
        return math.nan
    os.kill(server.pid, signal.SIGHUP)
    return _wait(
        begin, lambda: youngest not in (now := _workers(server)) and len(now) >= len(before)
    )


def _wait(begin_ns: int, is_so: Callable[[], bool]) -> float:
    """Milliseconds until it is so; NaN if it never was."""
    while not is_so():
        if time.monotonic_ns() - begin_ns > LONGEST:
            return math.nan
        time.sleep(0.001)
    return (time.monotonic_ns() - begin_ns) / MS
