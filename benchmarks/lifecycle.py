"""How long starting, stopping and replacing take, and what idleness costs.

How to read it. Each line has the median and the worst of ``count`` tries, and the
target. Both ends of a time are moments that a process wrote down itself, or the kernel
told, so no polling is in it; but a busy machine is, and it shows in the worst of few
tries first. A worker counts as ready when its ``after_fork`` runs, the last thing but
two writes to memory. Ends are those of the master process, Python's own finish included;
that nobody is left is proved after each, and not timed. Servers have the default
settings where nothing else is said, and nobody is connected but to the one that hangs, and
to the one that is reloaded: there 8 clients ask all the time, as in ``load``.
"""

import argparse
import logging
import multiprocessing
import os
import signal
import socket
import socketserver
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import prefork_server
from prefork_server import MasterHandle, PreforkTCPServer

from .load import Load, put_load_on
from .processes import (
    SECOND,
    Event,
    ServerProcess,
    compiled_files,
    cpu_clock_ns,
    tell,
    wait_gone,
)
from .report import machine, print_table

MODULE = "benchmarks.lifecycle"
MS = 1_000_000  # ns
TIMEOUT = 1  # seconds, for the servers of which somebody is silent

TRIES = 10
KILLS = 100
LIFE_NS = 12 * SECOND // 10  # of a worker before it is killed: a shorter one is a false start
IDLE_SECONDS = 10.0
ROUNDS = 5
REQUESTS = 20_000  # of 8 clients: two seconds, or more
RELOADS_EVERY = 0.3  # seconds: about what one takes under this load

# Without site-packages: the .pth files of some machines import half the standard library.
_IMPORT = """\
import site
{}
from time import perf_counter_ns as now
begin = now()
{}
print(now() - begin)
"""


@dataclass(frozen=True)
class Figure:
    name: str
    unit: str
    values: Sequence[float]
    target: str = "-"


class Hang(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        tell("hanging")
        time.sleep(1000)


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(self.request.recv(64))


class Telling(PreforkTCPServer):
    def after_fork(self, master: MasterHandle) -> None:
        tell("worker", str(master.generation))

    def ready(self, addresses: Sequence[str]) -> None:
        tell("ready", addresses[0])


def serve(workers: int, timeout: float, handler: type[socketserver.BaseRequestHandler]) -> None:
    """In the server process."""
    # We kill workers by the hundred, and the log would say so.
    logging.getLogger("prefork_server").addHandler(logging.NullHandler())
    with Telling(("127.0.0.1", 0), handler, workers=workers, timeout=timeout) as server:
        tell("called")
        server.serve_forever()


def start(workers: int, timeout: float = 30, *options: str) -> ServerProcess:
    return ServerProcess(MODULE, "--serve", workers, "--timeout", timeout, *options)


def hear_workers(server: ServerProcess, count: int) -> list[Event]:
    return [server.hear("worker", 60.0) for _ in range(count)]


def importing() -> Iterator[Figure]:
    """In fresh interpreters; what Python itself imports at its start is free."""
    place = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(prefork_server.__file__))}
    first = "from prefork_server import PreforkTCPServer"
    for name, before, statement, target in (
        ("import prefork_server", "", "import prefork_server", "<= 10"),
        ("import of its first name, a server", "", first, "-"),
        ("the same, after socketserver and logging", "import logging, socketserver", first, "-"),
    ):
        command = [sys.executable, "-S", "-c", _IMPORT.format(before, statement)]
        subprocess.check_output(command, env=place)  # compiles
        values = [int(subprocess.check_output(command, env=place)) / MS for _ in range(TRIES)]
        yield Figure(name, "ms", values, target)


def starting_and_stopping(tries: int = TRIES) -> Iterator[Figure]:
    """Python's own start, and the import, are in the first figure."""
    from_start, from_call = [], []
    terms: list[float] = []
    quits: list[float] = []
    for signum, ends in ((signal.SIGTERM, terms), (signal.SIGQUIT, quits)):
        for _ in range(tries):
            with start(workers=4) as server:
                called = server.hear("called").at_ns
                ready = server.hear("ready").at_ns
                from_start.append((ready - server.started_ns) / MS)
                from_call.append((ready - called) / MS)
                _wait_until(ready + SECOND // 4)  # the others are ready, too
                ends.append(server.end(signum) / MS)
    yield Figure("4 workers: from process start to ready", "ms", from_start, "<= 300")
    yield Figure("4 workers: from serve_forever() to ready", "ms", from_call)
    yield Figure("4 workers: from TERM to exit", "ms", terms, "<= 100")
    yield Figure("4 idle workers: from QUIT to exit", "ms", quits, "<= 300")


def replacing(kills: int = KILLS) -> Iterator[Figure]:
    """Workers are killed in turn, each after a life long enough to be no false start."""
    values = []
    with start(workers=8) as server:
        alive = deque(hear_workers(server, 8))
        for _ in range(kills):
            oldest = alive.popleft()
            _wait_until(oldest.at_ns + LIFE_NS)
            begin = time.monotonic_ns()
            os.kill(oldest.pid, signal.SIGKILL)
            alive.append(server.hear("worker"))
            values.append((alive[-1].at_ns - begin) / MS)
    yield Figure("8 workers: from SIGKILL to a replacement", "ms", values, "<= 10, worst <= 100")


def costing() -> Iterator[Figure]:
    """In turns, at rest and while one reload follows the other: the times of 8 clients, and
    how many had no answer. What the forks take of the CPUs is in the times."""
    rest, busy, generations = [], [], []
    with start(4, 30, "--echo") as server:
        load = Load("tcp", server.hear("ready").text, (b"hello\n",), REQUESTS, 8, closes=True)
        for _ in range(ROUNDS):
            rest.append(put_load_on(load))
            hups = multiprocessing.get_context("fork").Process(target=_reload, args=(server.pid,))
            hups.start()
            try:
                busy.append(put_load_on(load))
            finally:
                hups.kill()
                hups.join()
            os.kill(server.pid, signal.SIGHUP)  # the last one: when it is there, all are known
            generations.append(_newest_generation(server, settle_ns=SECOND))
    for when, loads in (("at rest", rest), ("in reloads", busy)):
        for percent in (50, 99):
            values = [load.percentile_ms(percent) for load in loads]
            yield Figure(f"echo {when}: p{percent} of {REQUESTS}", "ms", values)
        lost = [float(load.errors) for load in loads]
        yield Figure(f"echo {when}: lost of {REQUESTS}", "", lost, "0")
    done = [new - old for old, new in zip([1, *generations], generations, strict=False)]
    yield Figure("reloads in each of these rounds", "", [float(each) for each in done])


def _reload(pid: int) -> None:
    while True:
        os.kill(pid, signal.SIGHUP)
        time.sleep(RELOADS_EVERY)


def _newest_generation(server: ServerProcess, settle_ns: int) -> int:
    """Of the workers that were forked until none has come for so long."""
    newest = 0
    while True:
        try:
            newest = max(newest, int(server.hear("worker", settle_ns / SECOND).text))
        except TimeoutError:
            return newest


def reloading(tries: int = TRIES) -> Iterator[Figure]:
    """Each successor is forked when the one before it is ready."""
    values = []
    with start(workers=4) as server:
        hear_workers(server, 4)
        for _ in range(tries):
            before = set(server.pids())
            begin = time.monotonic_ns()
            os.kill(server.pid, signal.SIGHUP)
            values.append((hear_workers(server, 4)[-1].at_ns - begin) / MS)
            while len(before & set(server.pids())) > 1:  # the master stays
                time.sleep(0.001)
    yield Figure("4 workers: from HUP to the last successor", "ms", values)


def upgrading(tries: int = TRIES) -> Iterator[Figure]:
    """To the first worker of the new master; the old one serves on for 2 s, in case."""
    values = []
    for _ in range(tries):
        with start(workers=4) as server:
            server.hear("ready")
            begin = time.monotonic_ns()
            os.kill(server.pid, signal.SIGUSR2)
            successor = server.hear("ready")
            values.append((successor.at_ns - begin) / MS)
            os.kill(successor.pid, signal.SIGTERM)
    yield Figure("4 workers: from USR2 to a new master that serves", "ms", values)


def idling() -> Iterator[Figure]:
    """One value for each process. A wake-up is a voluntary context switch, of which a
    sleep has one. The processor time of ten seconds is exact; what a wake-up costs the
    kernel outside the process is not in it."""
    with start(workers=4) as server:
        hear_workers(server, 4)
        _wait_until(time.monotonic_ns() + SECOND)
        workers = [pid for pid in server.pids() if pid != server.pid]
        before = {pid: (_switches(pid), cpu_clock_ns(pid)) for pid in (server.pid, *workers)}
        begin = time.monotonic_ns()
        time.sleep(IDLE_SECONDS)
        after = {pid: (_switches(pid), cpu_clock_ns(pid)) for pid in before}
        took_ns = time.monotonic_ns() - begin
    for who, pids in (("master", [server.pid]), ("worker", workers)):
        wakes = [(after[pid][0] - before[pid][0]) * SECOND / took_ns for pid in pids]
        busy = [(after[pid][1] - before[pid][1]) * 100 / took_ns for pid in pids]
        yield Figure(f"idle {who}: wake-ups", "/s", wakes, "<= 2")
        yield Figure(f"idle {who}: CPU", "%", busy, "<= 0.1")


def many() -> Iterator[Figure]:
    """All 512 are ready, and not the first only; all are gone when TERM is done."""
    starts, stops = [], []
    for _ in range(3):
        with start(workers=512) as server:
            last = hear_workers(server, 512)[-1]
            starts.append((last.at_ns - server.started_ns) / SECOND)
            stops.append(server.end() / SECOND)
    yield Figure("512 workers: from process start to all ready", "s", starts, "<= 5")
    yield Figure("512 workers: from TERM to exit", "s", stops, "<= 5")


def hanging() -> Iterator[Figure]:
    """Counted from the beginning of the handler that hangs, less the timeout.

    Below 0 means that the worker's last sign of life was before the connection came.
    """
    values = []
    with start(workers=4, timeout=TIMEOUT) as server:
        host, _, port = server.hear("ready").text.rpartition(":")
        for _ in range(5):
            with socket.create_connection((host, int(port))):
                victim = server.hear("hanging")
                pidfd = os.pidfd_open(victim.pid)
                try:
                    gone = wait_gone(pidfd, 30)
                finally:
                    os.close(pidfd)
            values.append((gone - victim.at_ns) / SECOND - TIMEOUT)
    name = f"a hung worker is gone, after its timeout of {TIMEOUT} s"
    yield Figure(name, "s", values, "<= 1")


def sleeping() -> Iterator[Figure]:
    """Stopped for twice the timeout, then watched for as long, which would be enough to
    kill somebody in. The values are workers killed, each a false one."""
    everybody: Callable[[ServerProcess], list[int]] = ServerProcess.pids
    for who, chosen in (("master", lambda server: [server.pid]), ("whole server", everybody)):
        values = []
        for _ in range(3):
            with start(workers=8, timeout=TIMEOUT) as server:
                hear_workers(server, 8)
                _wait_until(time.monotonic_ns() + SECOND // 2)
                before = set(server.pids())
                asleep = chosen(server)
                for pid in asleep:
                    os.kill(pid, signal.SIGSTOP)
                time.sleep(2 * TIMEOUT)
                for pid in asleep:
                    os.kill(pid, signal.SIGCONT)
                time.sleep(2 * TIMEOUT)
                values.append(float(len(before - set(server.pids()))))
        yield Figure(f"{who} stopped for {2 * TIMEOUT} s: false kills", "", values, "0")


def _wait_until(moment_ns: int) -> None:
    time.sleep(max(0, moment_ns - time.monotonic_ns()) / SECOND)


def _switches(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("voluntary_"))


def _row(figure: Figure) -> tuple[str, ...]:
    numbers = [statistics.median(figure.values), max(figure.values)]
    return (
        figure.name,
        *(f"{number:.{0 if not figure.unit else 3 if number < 1 else 1}f}" for number in numbers),
        figure.unit,
        str(len(figure.values)),
        figure.target,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}")
    parser.add_argument("--serve", type=int, metavar="WORKERS", help=argparse.SUPPRESS)
    parser.add_argument("--timeout", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve, asked.timeout, Echo if asked.echo else Hang)
        return
    print(machine())
    rows: list[Sequence[str]] = [("figure", "median", "worst", "unit", "count", "target")]
    measures = (
        importing,
        starting_and_stopping,
        replacing,
        reloading,
        costing,
        upgrading,
        idling,
        many,
        hanging,
        sleeping,
    )
    with compiled_files():
        with start(workers=1) as server:
            server.hear("ready")  # it compiles
        for measure in measures:
            print(f"{measure.__name__} ...", file=sys.stderr)
            rows += map(_row, measure())
    print_table("Life cycle", rows)


if __name__ == "__main__":
    main()
