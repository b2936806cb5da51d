"""Starts the servers, puts the loads on them in alternated rounds, and keeps what was seen.

All servers of a family run at the same time, and one at a time is asked. Each round begins
with another of them, so that none always comes after the same. Servers have the first half
of the CPUs, generators the second; workloads that are about CPUs have all for both.
"""

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from . import apps, servers
from .load import Outcome, connect, put_load_on
from .processes import ServerProcess
from .servers import CONTESTANTS, Contestant
from .serving import LIMIT_PROGRAM, Place, program
from .workloads import ECHO, LAST, Workload, get

PATIENCE = 1.0  # seconds in which idle connections are answered, or count as unanswered
BOOT = 60.0  # seconds in which a server must take its first connection
WARM_UP = 0.1  # of the requests are sent before, and not counted
WORKER_COUNTS = (1, 2, 4, 8, 16, 64)
CONNECTION_COUNTS = (1, 10, 100, 1000, 5000)
WINDOW = 16  # requests under way, over so many connections

_LOOPS = (
    servers.PREFORK, servers.PREFORK_UVLOOP, servers.NGINX,
    servers.BUFFERED, servers.GTHREAD, servers.UVICORN,
)  # fmt: skip
_POOLS = (
    servers.PREFORK, servers.PREFORK_ASYNCIO, servers.C_BLOCK,
    servers.POOL,
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One server under one workload in one round. ``x`` is what a scaling varies."""

    workload: str
    server: str
    round: int
    cpu_us: float  # of the server, a request; NaN if none was answered
    per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    errors: int
    pss_mb: float
    load_us: float  # CPU time of the generator, a request
    load_busy: float  # the part of the time in which it computed
    idle_answered: int = -1
    x: int = 0


@dataclass(frozen=True)
class Terms:
    """How much is measured."""

    rounds: int = 5
    scale: float = 1.0  # of the counts of requests
    workers: int = 4
    names: tuple[str, ...] = ()  # of the servers; nobody: all


@dataclass(frozen=True)
class Cpus:
    servers: frozenset[int]
    clients: frozenset[int]

    @classmethod
    def halves(cls, cpus: Sequence[int]) -> "Cpus":
        middle = len(cpus) // 2
        return cls(frozenset(cpus[:middle] or cpus), frozenset(cpus[middle:]))

    @property
    def all(self) -> frozenset[int]:
        return self.servers | self.clients


@dataclass(frozen=True)
class Running:
    contestant: Contestant
    place: Place
    process: ServerProcess


class Runner:
    """``step`` is called with the name of each measurement, before it."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.cpus = Cpus.halves(sorted(os.sched_getaffinity(0)))
        self.samples: list[Sample] = []
        self.wrk: list[dict[str, object]] = []
        self.step: Callable[[str], object] = print

    def taking_part(self, workload: Workload) -> list[Contestant]:
        return [each for each in self._here() if workload.suits(each, self.terms.workers)]

    def _here(self) -> list[Contestant]:
        names = self.terms.names
        return [c for c in CONTESTANTS if not c.absent() and (not names or c.name in names)]

    def compare(self, family: str, workloads: Sequence[Workload]) -> None:
        """The workloads of one family, on the same servers."""
        wanted = {each.name for workload in workloads for each in self.taking_part(workload)}
        with ExitStack() as stack:
            running = {
                contestant.name: stack.enter_context(
                    self.start(contestant, family, self.terms.workers)
                )
                for contestant in self._here()
                if contestant.name in wanted
            }
            for workload in workloads:
                its = [running[each.name] for each in self.taking_part(workload)]
                self._alternate(workload, its)
                if workload.key == "H1" and shutil.which("wrk"):
                    self._ask_wrk(its)

    def _alternate(self, workload: Workload, its: Sequence[Running]) -> None:
        for each in its:
            each.process.pin(self.cpus.all if workload.everywhere else self.cpus.servers)
            self._put(each, workload, WARM_UP)
        for number in range(self.terms.rounds):
            first = number % max(1, len(its))
            for each in (*its[first:], *its[:first]):
                self.step(f"{workload.key} {each.contestant.name}")
                self.samples.append(self.measure(each, workload, number))

    def measure(self, running: Running, workload: Workload, number: int, x: int = 0) -> Sample:
        process = running.process
        with ExitStack() as stack:
            idle = [
                stack.enter_context(connect(running.place.address, PATIENCE))
                for _ in range(workload.idle)
            ]
            answered(idle)
            before_ns = process.cpu_ns()
            came = self._put(running, workload, 1.0)
            cpu_ns = process.cpu_ns() - before_ns
            return Sample(
                workload.key,
                running.contestant.name,
                number,
                cpu_us=cpu_ns / 1000 / came.answered if came.answered else float("nan"),
                per_second=came.per_second,
                p50_ms=came.percentile_ms(50),
                p99_ms=came.percentile_ms(99),
                p999_ms=came.percentile_ms(99.9),
                errors=came.errors,
                pss_mb=process.pss_bytes() / 1e6,
                load_us=came.cpu_us,
                load_busy=came.busy,
                idle_answered=answered(idle) if workload.idle else -1,
                x=x,
            )

    def _put(self, running: Running, workload: Workload, part: float) -> Outcome:
        """``part``: of the requests, and at least one for each connection."""
        share = 1.0 if workload.rate else running.contestant.share
        load = workload.load(running.place.address, self.terms.scale * share * part)
        clients = self.cpus.all if workload.everywhere else self.cpus.clients
        return put_load_on(load, 1 if workload.rate else len(self.cpus.clients), clients)

    def _ask_wrk(self, its: Sequence[Running]) -> None:
        """The same as H1 by another generator, for as long: is ours to be believed?"""
        asked = (servers.C_BLOCK, servers.NGINX, servers.PREFORK)
        for each in its:
            if each.contestant.name not in asked:
                continue
            command = ["wrk", "-t1", "-c4", "-d1s", f"http://{each.place.address}/"]
            before_ns = each.process.cpu_ns()
            text = subprocess.check_output(
                command, text=True, preexec_fn=lambda: os.sched_setaffinity(0, self.cpus.clients)
            )
            cpu_ns = each.process.cpu_ns() - before_ns
            requests = re.search(r"(\d+) requests in", text)
            per_second = re.search(r"Requests/sec: +([\d.]+)", text)
            if requests and per_second and int(requests[1]):
                cpu_us = cpu_ns / 1000 / int(requests[1])
                its_figures = {"cpu_us": cpu_us, "per_second": float(per_second[1])}
                self.wrk.append({"server": each.contestant.name, **its_figures})

    # Scaling: one figure against another.

    def by_workers(self, rounds: int) -> None:
        workload = Workload("workers", "E1 on all CPUs", "tcp", (LAST,), 4_000, 16, closes=True,
                            everywhere=True)  # fmt: skip
        for number, workers in product(range(rounds), WORKER_COUNTS):
            for contestant in self._named(_POOLS):
                self.step(f"{workers} workers {contestant.name}")
                with self.start(contestant, "tcp", workers) as running:
                    running.process.pin(self.cpus.all)
                    self._put(running, workload, WARM_UP)
                    self.samples.append(self.measure(running, workload, number, workers))

    def by_connections(self, rounds: int) -> None:
        """All but a few of the connections are idle at any time, and each has its turn."""
        with ExitStack() as stack:
            its = [
                stack.enter_context(self.start(contestant, "http", self.terms.workers))
                for contestant in self._named(_LOOPS)
            ]
            for each in its:
                each.process.pin(self.cpus.servers)
            for number, connections in product(range(rounds), CONNECTION_COUNTS):
                window = min(WINDOW, connections)
                workload = Workload("connections", "", "http", (get("/"),), 6_000, connections,
                                    window=window, seconds=12)  # fmt: skip
                for each in its:
                    self.step(f"{connections} connections {each.contestant.name}")
                    self.samples.append(self.measure(each, workload, number, connections))

    def _named(self, names: Sequence[str]) -> list[Contestant]:
        return [each for each in self._here() if each.name in names]

    @property
    def scaling_steps(self) -> int:
        """The measurements in one round of both scalings."""
        return len(WORKER_COUNTS) * len(self._named(_POOLS)) + len(CONNECTION_COUNTS) * len(
            self._named(_LOOPS)
        )

    @contextmanager
    def start(self, contestant: Contestant, family: str, workers: int) -> Iterator[Running]:
        """Raises RuntimeError if it takes no connection in time."""
        with tempfile.TemporaryDirectory() as directory:
            address = f"{directory}/socket" if family == "unix" else _free_address(family)
            place = Place(family, address, directory, workers)
            with ServerProcess(servers.MODULE, contestant.name, *place) as process:
                _wait_until_it_serves(contestant.name, place, process)
                yield Running(contestant, place, process)


def _free_address(family: str) -> str:
    with socket.socket(type=socket.SOCK_DGRAM if family == "udp" else socket.SOCK_STREAM) as found:
        found.bind(("127.0.0.1", 0))
        return "{}:{}".format(*found.getsockname())


def _wait_until_it_serves(name: str, place: Place, process: ServerProcess) -> None:
    deadline = time.monotonic() + BOOT
    while True:
        with suppress(OSError):
            _knock(place)
            return
        if time.monotonic() > deadline or not process.pids():
            raise RuntimeError(f"{name} does not serve {place.family}")
        time.sleep(0.001)


def _knock(place: Place) -> None:
    if place.family != "udp":
        connect(place.address).close()
        return
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(0.2)
        client.connect(("127.0.0.1", place.port))
        client.send(ECHO)
        client.recv(100)


def answered(connections: Sequence[socket.socket]) -> int:
    """Ask on each; how many were answered in time. All have the same time, together."""
    asked = []
    for connection in connections:
        with suppress(OSError):  # it was closed
            connection.sendall(get("/"))
            asked.append(connection)
    deadline, count = time.monotonic() + PATIENCE, 0
    for connection in asked:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        with suppress(OSError):  # silent, or gone
            answer = connection.recv(65536)
            while answer and not answer.endswith(apps.BODY):
                answer += connection.recv(65536) or b"gone" + apps.BODY
            count += answer.startswith(b"HTTP/1.1 200 ") and b"gone" not in answer
    return count


@contextmanager
def surroundings() -> Iterator[None]:
    """What the servers find in their environment: the file, the limit, how long 1 ms is."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "file")
        file.write_bytes(b"x" * apps.FILE_SIZE)
        limit = Path(directory, "limit")
        if compiler := program("cc"):
            subprocess.check_call([compiler, "-O2", "-o", limit, servers.LIMIT_SOURCE])
        Path(directory).chmod(0o755)  # nginx, started by root, reads as somebody else
        os.environ |= {
            "BENCH_FILE": str(file),
            "BENCH_LOOPS": str(apps.loops_in_a_millisecond()),
            LIMIT_PROGRAM: str(limit),
        }
        yield
