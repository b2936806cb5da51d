"""PreforkTCPServer against the standard library's own servers, in one alternated run.

How to read it. The CPU time is that of the whole server, all its processes, user and
system; the clients' is not in it. Other things that run on the machine slow all servers
down, by up to a half in some minutes, so each round measures every server in turn, and
the ratios are those of a round to ThreadingTCPServer in the same round; their median
is shown. Differences below a fifth are noise. On the echo workload the load generator
is the limit for the fast servers: there the CPU time tells them apart, and not req/s.
On the CPU-bound one req/s is what counts; it cannot exceed 1000 for each CPU, and
clients and other programs take their part of those.
"""

import argparse
import logging
import os
import socketserver
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefork_server import PreforkTCPServer

from .load import Load, put_load_on
from .processes import ServerProcess, tell
from .report import machine, print_table

REFERENCE = "ThreadingTCPServer"
FORKING = "ForkingTCPServer"
FAIR = {"request_queue_size": 2048, "allow_reuse_address": True}

NOTES = f"""
Every connection carries one request of 64 bytes and its answer, over 127.0.0.1. The
standard library's servers have {", ".join(f"{k}={v}" for k, v in FAIR.items())}, as
PreforkTCPServer has by itself: with their own queue of 5 they would drop connections.
{FORKING} gets a tenth of the requests, as it takes so much longer. One warm-up of a
tenth of the requests before each measurement is not counted. Figures are medians over the
rounds, with (min-max). Ratios compare with {REFERENCE} in the same round, more is better."""


@dataclass(frozen=True)
class Contestant:
    kind: str  # the name of a class
    workers: int = 0  # of PreforkTCPServer
    share: float = 1.0  # of the requests

    def __str__(self) -> str:
        return f"{self.kind}, {self.workers} workers" if self.workers else self.kind


@dataclass(frozen=True)
class Workload:
    name: str
    requests: int
    connections: int
    loops: int = 0  # of spin() for each request


@dataclass(frozen=True)
class Sample:
    """One server in one round."""

    cpu_us: float  # of the server, a request
    load: Load


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(self.request.recv(1024))


class Compute(Echo):
    loops = 0

    def handle(self) -> None:
        spin(self.loops)
        super().handle()


class Ours(PreforkTCPServer):
    def ready(self, addresses: Sequence[str]) -> None:
        tell("ready", addresses[0])


def spin(loops: int) -> int:
    """Pure Python, which holds the GIL all the time."""
    total = 0
    for number in range(loops):
        total += number * number % 7
    return total


def loops_in_a_millisecond() -> int:
    """The best of many tries, alone on the machine: others can only slow it down."""
    loops = 10_000
    best_ns = 1 << 62
    for _ in range(50):
        begin = time.perf_counter_ns()
        spin(loops)
        best_ns = min(best_ns, time.perf_counter_ns() - begin)
    return loops * 1_000_000 // best_ns


def contestants() -> list[Contestant]:
    return [
        *(Contestant("PreforkTCPServer", n) for n in sorted({os.cpu_count() or 1, 4})),
        Contestant("TCPServer"),
        Contestant(REFERENCE),
        Contestant(FORKING, share=0.1),
    ]


def serve(kind: str, workers: int, loops: int) -> None:
    """In the server process."""
    logging.basicConfig()  # warnings and errors are to be seen
    Compute.loops = loops
    handler = Compute if loops else Echo
    if kind == "PreforkTCPServer":
        with Ours(("127.0.0.1", 0), handler, workers=workers) as ours:
            ours.serve_forever()
    else:
        server_class = type(kind, (getattr(socketserver, kind),), FAIR)
        with server_class(("127.0.0.1", 0), handler) as theirs:
            tell("ready", "{}:{}".format(*theirs.server_address))
            theirs.serve_forever()


def measure(contestant: Contestant, workload: Workload) -> Sample:
    arguments = ("--serve", contestant.kind, "--workers", contestant.workers)
    with ServerProcess("benchmarks.threads", *arguments, "--loops", workload.loops) as server:
        address = server.hear("ready").text
        requests = int(workload.requests * contestant.share)
        put_load_on(address, max(50, requests // 10), workload.connections)
        before_ns = server.cpu_ns()
        load = put_load_on(address, requests, workload.connections)
        cpu_us = (server.cpu_ns() - before_ns) / 1000 / requests
        return Sample(cpu_us, load)


def compare(workload: Workload, rounds: int) -> dict[Contestant, list[Sample]]:
    """Print one table; return what it was made of."""
    samples: dict[Contestant, list[Sample]] = {contestant: [] for contestant in contestants()}
    for number in range(rounds):
        print(f"{workload.name}: round {number + 1} of {rounds}", file=sys.stderr)
        for contestant, its in samples.items():
            its.append(measure(contestant, workload))
    header = "server", "CPU us/request", "cheaper", "req/s", "faster", "p50 ms", "p99 ms", "errors"
    rows = [(str(c), *_cells(its, samples[Contestant(REFERENCE)])) for c, its in samples.items()]
    print_table(
        f"{workload.name}: {workload.connections} connections at a time, "
        f"{workload.requests} requests a round, {rounds} rounds",
        [header, *rows],
    )
    return samples


def _cells(its: list[Sample], reference: list[Sample]) -> tuple[str, ...]:
    return (
        _spread([sample.cpu_us for sample in its], 1),
        f"{times_cheaper(its, reference):.2f}x",
        _spread([sample.load.per_second for sample in its], 0),
        f"{times_faster(its, reference):.2f}x",
        _spread([sample.load.percentile_ms(50) for sample in its], 2),
        _spread([sample.load.percentile_ms(99) for sample in its], 2),
        str(sum(sample.load.errors for sample in its)),
    )


def _spread(values: list[float], digits: int) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def times_cheaper(its: list[Sample], reference: list[Sample]) -> float:
    pairs = zip(its, reference, strict=True)
    return statistics.median(theirs.cpu_us / ours.cpu_us for ours, theirs in pairs)


def times_faster(its: list[Sample], reference: list[Sample]) -> float:
    pairs = zip(its, reference, strict=True)
    return statistics.median(
        ours.load.per_second / theirs.load.per_second for ours, theirs in pairs
    )


def _of_ours(
    samples: dict[Contestant, list[Sample]],
    ratio: Callable[[list[Sample], list[Sample]], float],
) -> str:
    """``5.9 (2 workers) and 5.7 (4 workers)``."""
    reference = samples[Contestant(REFERENCE)]
    return " and ".join(
        f"{ratio(its, reference):.1f} ({contestant.workers} workers)"
        for contestant, its in samples.items()
        if contestant.workers
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.threads")
    parser.add_argument("--requests", type=int, help="of the echo workload, a server and round")
    parser.add_argument("--rounds", type=int, help="how often each server is measured")
    parser.add_argument("--quick", action="store_true", help="half a minute, rough figures")
    parser.add_argument("--serve", metavar="KIND", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--loops", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve, asked.workers, asked.loops)
        return
    requests = asked.requests or (2_500 if asked.quick else 12_000)
    rounds = asked.rounds or (2 if asked.quick else 5)
    loops = loops_in_a_millisecond()
    print(machine())
    print(NOTES)
    echo = compare(Workload("echo", requests, 16), rounds)
    name = f"1 ms of Python ({loops} loops)"
    compute = compare(Workload(name, max(100, requests // 10), 8, loops), rounds)
    print(
        f"\nOn echo, a connection costs PreforkTCPServer {_of_ours(echo, times_cheaper)} times "
        f"less CPU than {REFERENCE}."
        f"\nOn the CPU-bound handler, PreforkTCPServer has {_of_ours(compute, times_faster)} "
        f"times the throughput of {REFERENCE}."
    )


if __name__ == "__main__":
    main()
