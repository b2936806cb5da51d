"""What is asked of the servers: one more workload is one more line.

Counts are those of one measurement of one server; they make a cheap server busy for about
a third of a second. Echo messages and paths are explained in ``apps``.
"""

from dataclasses import dataclass

from . import servers
from .load import Load
from .servers import Contestant

ECHO = bytes(2) + bytes(range(62))
LAST = b"\0\1" + ECHO[2:]
COMPUTE = b"\1\1" + ECHO[2:]
POSTED = 1 << 16


def get(path: str, closes: bool = False) -> bytes:
    close = "Connection: close\r\n" if closes else ""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{close}\r\n".encode()


def post(size: int) -> bytes:
    head = f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + b"x" * size


@dataclass(frozen=True)
class Workload:
    key: str
    title: str
    family: str
    asks: tuple[bytes, ...]
    requests: int
    connections: int
    closes: bool = False
    window: int = 0
    rate: float = 0
    idle: int = 0  # connections that are kept beside the load, each of which must be answered
    everywhere: bool = False  # the servers run on all CPUs, beside the generator
    only: tuple[str, ...] = ()  # the names of those who take part; nobody: all who can
    but: tuple[str, ...] = ()  # who does not speak so much
    wsgi: bool = False  # for WSGI servers only
    seconds: float = 6.0  # what is not answered by then has failed

    def load(self, address: str, scale: float) -> Load:
        requests = max(self.connections, int(self.requests * scale))
        return Load(
            self.family,
            address,
            self.asks,
            requests,
            self.connections,
            window=self.window,
            closes=self.closes,
            rate=self.rate,
            seconds=self.seconds,
        )

    def suits(self, contestant: Contestant, workers: int) -> bool:
        """Whether it takes part. One that cannot hold the connections would answer nobody."""
        if self.family not in contestant.families or contestant.name in self.but:
            return False
        if contestant.tuned and self.key not in TUNED:
            return False
        if self.only or (self.wsgi and not contestant.is_wsgi):
            return contestant.name in self.only
        stays = self.family != "udp" and not self.closes
        held = self.idle + self.connections * stays
        return contestant.can_hold(self.family, held, workers)


_BARE = (servers.ASYNCIO, servers.UVLOOP, servers.PREFORK_ASYNCIO, servers.PREFORK_UVLOOP)
_C = (servers.C_BLOCK, servers.C_EPOLL)

# Which ones the tuned take part in.
TUNED = ("E1", "H1", "H2", "W1")

WORKLOADS = (
    Workload("E1", "echo over TCP, a connection for each request", "tcp",
             (LAST,), 5_000, 16, closes=True),
    Workload("E2", "echo over TCP, connections that stay", "tcp", (ECHO,), 12_000, 4),
    Workload("C1", "1 ms of pure Python, a TCP connection for each request", "tcp",
             (COMPUTE,), 500, 8, closes=True, everywhere=True, but=_C),
    Workload("E3", "echo over a UNIX socket, a connection for each request", "unix",
             (LAST,), 8_000, 16, closes=True),
    Workload("U1", "echo of UDP datagrams", "udp", (ECHO,), 10_000, 16),
    Workload("H1", "GET of 13 bytes, connections that stay", "http", (get("/"),), 10_000, 4),
    Workload("H2", "GET of 13 bytes, Connection: close", "http",
             (get("/", closes=True),), 5_000, 16, closes=True),
    Workload("H3", "POST of 64 KiB", "http", (post(POSTED),), 2_000, 4, but=_BARE),
    Workload("H4", "GET of a file of 1 MiB", "http", (get("/file"),), 300, 4, but=(*_BARE, *_C)),
    Workload("W1", "WSGI, GET of 13 bytes, connections that stay", "http",
             (get("/"),), 6_000, 4, wsgi=True),
    Workload("W2", "the same by a Flask application", "http",
             (get("/flask"),), 2_000, 4, wsgi=True),
    Workload("S1", "GET of 13 bytes over 4 connections, beside 64 idle ones", "http",
             (get("/"),), 10_000, 4, idle=64, seconds=3),
    Workload("S2", "GET at 200 a second: 1 ms of Python; one in 20 computes for 50 ms", "http",
             (get("/compute/1", True),) * 19 + (get("/compute/50", True),), 300, 64,
             closes=True, rate=200, everywhere=True,
             only=(servers.PREFORK, servers.HTTP_THREADS, servers.SYNC, servers.GTHREAD,
                   servers.GRANIAN, servers.BJOERN)),
    Workload("S3", "the same, but they sleep", "http",
             (get("/sleep/1", True),) * 19 + (get("/sleep/50", True),), 300, 64,
             closes=True, rate=200, everywhere=True,
             only=(servers.PREFORK, servers.GTHREAD, servers.GRANIAN, servers.UVICORN)),
)  # fmt: skip
