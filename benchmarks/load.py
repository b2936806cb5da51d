"""Clients: so many connections, each used once, so many of them at a time.

Each connects, sends 64 bytes, reads until as many came back, and closes. The loop
is closed: a connection that ends begins the next. So ``p50`` and ``p99`` contain the
queueing that the load itself makes, and with as many connections for all servers
they say little more than throughput does. The generator costs about as much CPU as
a fast server: where it is full, throughput is its own and only the server's CPU
time ranks servers. It has one process for every second CPU. With more, processes
crowd each other out, a client often loses its CPU between connecting and sending,
and every server pays for a wait more: four workers half as much again.

It talks to 127.0.0.1 and to UNIX sockets, and to nobody else.
"""

import multiprocessing
import os
import select
import socket
import time
from dataclasses import dataclass

MESSAGE = bytes(range(64))
PATIENCE = 10.0  # seconds that one operation on a socket may take, then it is an error

PROCESSES = max(1, (os.cpu_count() or 1) // 2)

_START = 0.1  # seconds from asking for the generators to their common beginning
_LONGEST = 120.0  # seconds that one load may take: a limit for accidents


@dataclass(frozen=True)
class Load:
    """What came of it. ``latencies_ns`` is sorted, and of the answered ones only."""

    seconds: float
    errors: int
    latencies_ns: tuple[int, ...]

    @property
    def per_second(self) -> float:
        return len(self.latencies_ns) / self.seconds

    def percentile_ms(self, percent: int) -> float:
        """The latency that so many of a hundred did not exceed; NaN if none was answered."""
        if not self.latencies_ns:
            return float("nan")
        return self.latencies_ns[(len(self.latencies_ns) - 1) * percent // 100] / 1e6


@dataclass(frozen=True)
class _Share:
    """What one generator process is to do, or, with its latencies, has done."""

    address: str
    requests: int
    connections: int
    begin_ns: int


@dataclass(frozen=True)
class _Done:
    end_ns: int
    errors: int
    latencies_ns: list[int]


def put_load_on(address: str, requests: int, connections: int, processes: int = PROCESSES) -> Load:
    """``requests`` in all, ``connections`` at a time, from so many generator processes.

    ``address`` is ``127.0.0.1:port`` or ``unix:/path``. Raises ValueError for another
    one, ``multiprocessing.TimeoutError`` if it takes too long altogether.
    """
    if not address.startswith(("127.0.0.1:", "unix:")):
        raise ValueError(f"loopback and UNIX sockets only, not {address}")
    processes = min(processes, connections)
    begin_ns = time.monotonic_ns() + int(_START * 1e9)
    shares = [
        _Share(
            address,
            requests // processes + (number < requests % processes),
            connections // processes + (number < connections % processes),
            begin_ns,
        )
        for number in range(processes)
    ]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        done = pool.map_async(_generate, shares, chunksize=1).get(_LONGEST)
    return Load(
        (max(share.end_ns for share in done) - begin_ns) / 1e9,
        sum(share.errors for share in done),
        tuple(sorted(latency for share in done for latency in share.latencies_ns)),
    )


def _generate(share: _Share) -> _Done:
    """In a generator process: one thread, and an epoll over the open connections."""
    latencies: list[int] = []
    errors = begun = 0
    epoll = select.epoll()
    waiting: dict[int, tuple[socket.socket, int, int]] = {}  # connection, begun at, bytes to come
    time.sleep(max(0, share.begin_ns - time.monotonic_ns()) / 1e9)
    while True:
        while begun < share.requests and len(waiting) < share.connections:
            begun += 1
            now = time.monotonic_ns()
            try:
                connection = _ask(share.address)
            except OSError:
                errors += 1
            else:
                waiting[connection.fileno()] = connection, now, len(MESSAGE)
                epoll.register(connection.fileno(), select.EPOLLIN)
        if not waiting:
            break
        ready = epoll.poll(PATIENCE)
        # Nobody was answered for so long: all of them have failed.
        for fd in [fd for fd, _ in ready] or list(waiting):
            connection, since, missing = waiting.pop(fd)
            try:
                came = len(connection.recv(missing)) if ready else 0
            except OSError:
                came = 0
            if 0 < came < missing:
                waiting[fd] = connection, since, missing - came
                continue
            connection.close()
            if came:
                latencies.append(time.monotonic_ns() - since)
            else:
                errors += 1
    return _Done(time.monotonic_ns(), errors, latencies)


def _ask(address: str) -> socket.socket:
    """Connect and send. On loopback neither waits, unless the server's queue is full."""
    connection = connect(address)
    try:
        connection.sendall(MESSAGE)
    except OSError:
        connection.close()
        raise
    return connection


def connect(address: str, patience: float = PATIENCE) -> socket.socket:
    """``patience``: seconds for this and each later operation on the socket."""
    host, _, port = address.rpartition(":")
    is_unix = address.startswith("unix:")
    connection = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET)
    connection.settimeout(patience)
    try:
        connection.connect(address.removeprefix("unix:") if is_unix else (host, int(port)))
    except OSError:
        connection.close()
        raise
    return connection
