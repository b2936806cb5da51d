"""The load: so many requests, over so many connections, and how long each was waited for.

Clients are processes, each with one thread, raw sockets and an epoll over all its
connections, whose events it takes in batches. A fixed count of requests is the work, so
that servers are compared by what the same work cost them. Closed loop: an answer begins the
next request, so latencies contain the queueing that the load itself makes. Open loop
(``rate``): requests begin when they are due, whatever became of the others, and are waited
for from then on. Each result says what the generator itself cost and how busy it was: where
it is full, throughput is its own, and only the server's CPU time ranks servers.

It talks to 127.0.0.1 and to UNIX sockets, and to nobody else.
"""

import gc
import multiprocessing
import os
import re
import select
import socket
import time
import warnings
from _socket import socket as raw_socket  # without the calls in Python of socket.socket
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

PATIENCE = 10.0  # seconds that one operation on a socket may take, then it is an error
SILENCE = 2.0  # seconds in which nobody was answered: what is under way has failed

_START = 0.05  # seconds from asking for the generators to their common beginning
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: *(\d+)")
_CLOSE = re.compile(rb"\r\n[Cc]onnection: *close", re.IGNORECASE)
_PIECE = 1 << 18


@dataclass(frozen=True)
class Load:
    """What is asked of a server; ``family`` and ``address`` as in ``servers.Place``."""

    family: str
    address: str
    asks: tuple[bytes, ...]  # what is sent, in turn; latencies are those of the first
    requests: int
    connections: int  # open at a time
    window: int = 0  # requests under way at a time, fewer than connections; 0: as many
    closes: bool = False  # each request has a connection of its own
    rate: float = 0  # requests a second, in an open loop
    seconds: float = 60.0  # what is not answered by then has failed
    begin_ns: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of it. ``latencies_ns`` is sorted, and of the answered ones only."""

    seconds: float
    answered: int
    errors: int
    latencies_ns: Sequence[int]
    cpu_us: float  # of the generator, a request
    busy: float  # the part of the time in which the generators computed

    @property
    def per_second(self) -> float:
        return self.answered / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """The latency that so many of a hundred did not exceed; NaN if none was answered."""
        if not self.latencies_ns:
            return float("nan")
        return self.latencies_ns[int((len(self.latencies_ns) - 1) * percent / 100)] / 1e6


@dataclass(frozen=True)
class _Done:
    end_ns: int
    answered: int
    latencies_ns: "array[int]"
    cpu_ns: int


def put_load_on(load: Load, processes: int = 1, cpus: frozenset[int] = frozenset()) -> Outcome:
    """From so many generator processes, which run on these CPUs, if they are said.

    Raises ValueError for an address that is elsewhere.
    """
    if load.family != "unix" and not load.address.startswith("127.0.0.1:"):
        raise ValueError(f"loopback and UNIX sockets only, not {load.address}")
    processes = min(processes, load.connections)
    begin_ns = time.monotonic_ns() + int(_START * 1e9)
    shares = [
        replace(
            load,
            requests=_share(load.requests, processes, number),
            connections=_share(load.connections, processes, number),
            window=_share(load.window, processes, number),
            rate=load.rate / processes,
            begin_ns=begin_ns,
        )
        for number in range(processes)
    ]
    with warnings.catch_warnings():  # of the threads of a test, whose locks none of them takes
        warnings.simplefilter("ignore", DeprecationWarning)
        generators = multiprocessing.get_context("fork").Pool(processes, _pin, (cpus,))
    with generators as pool:
        done = pool.map_async(_generate, shares, chunksize=1).get(load.seconds + PATIENCE)
    answered = sum(each.answered for each in done)
    seconds = (max(each.end_ns for each in done) - begin_ns) / 1e9
    cpu_ns = sum(each.cpu_ns for each in done)
    return Outcome(
        seconds,
        answered,
        load.requests - answered,
        array("q", sorted(latency for each in done for latency in each.latencies_ns)),
        cpu_ns / 1000 / max(1, answered),
        cpu_ns / 1e9 / seconds / processes,
    )


def _share(whole: int, parts: int, number: int) -> int:
    return whole // parts + (number < whole % parts)


def _pin(cpus: frozenset[int]) -> None:
    gc.disable()
    if cpus:
        os.sched_setaffinity(0, cpus)


def _generate(load: Load) -> _Done:
    generator = _Generator(load)
    time.sleep(max(0, load.begin_ns - time.monotonic_ns()) / 1e9)
    begin_ns = time.process_time_ns()
    generator.run()
    cpu_ns = time.process_time_ns() - begin_ns
    return _Done(time.monotonic_ns(), generator.answered, generator.latencies, cpu_ns)


class _Link:
    """A connection, and the request that is under way on it."""

    __slots__ = ("ask", "is_last", "is_open", "missing", "since", "sock", "unsent")

    def __init__(self, sock: raw_socket) -> None:
        self.sock = sock
        self.ask = b""
        self.since = 0
        self.missing = -1  # bytes of the answer; -1: its head has not come
        self.unsent: bytes | memoryview = b""
        self.is_open = False
        self.is_last = False  # the server said that it closes after this answer


class _Generator:
    def __init__(self, load: Load) -> None:
        self.load = load
        self.latencies = array("q")
        self.answered = 0
        self._begun = self._failed = 0
        self._epoll = select.epoll()
        self._busy: dict[int, _Link] = {}
        self._idle: deque[_Link] = deque()
        self._most = load.window or load.connections
        self._is_http = load.family == "http"
        self._address: str | tuple[str, int] = load.address
        if load.family != "unix":
            self._address = ("127.0.0.1", int(load.address.rpartition(":")[2]))
        self._usual = b""  # the answer that came last, when it was one short whole
        if load.window:  # the others are open all the time, and have their turn
            self._idle.extend(filter(None, (self._open() for _ in range(load.connections))))

    def run(self) -> None:
        load = self.load
        deadline_ns = load.begin_ns + int(load.seconds * 1e9)
        heard_ns = time.monotonic_ns()
        while self.answered + self._failed < load.requests:
            self._begin()
            events = self._epoll.poll(self._nap())
            now = time.monotonic_ns()
            if events:
                heard_ns = now
            elif now - heard_ns > SILENCE * 1e9:
                heard_ns = now
                for silent in list(self._busy.values()):
                    self._fail(silent)
            if now > deadline_ns:
                break
            for fd, mask in events:
                link = self._busy.get(fd)
                if not link:
                    self._drop_idle(fd)
                elif mask & select.EPOLLOUT:
                    self._send(link)
                else:
                    self._receive(link)

    def _due_ns(self) -> int:
        return self.load.begin_ns + int(self._begun / self.load.rate * 1e9)

    def _nap(self) -> float:
        if not self.load.rate or self._begun == self.load.requests:
            return 0.1
        return max(0.0, (self._due_ns() - time.monotonic_ns()) / 1e9)

    def _begin(self) -> None:
        load = self.load
        while self._begun < load.requests and len(self._busy) < self._most:
            now = time.monotonic_ns()
            since = self._due_ns() if load.rate else now
            if since > now:
                return
            ask = load.asks[self._begun % len(load.asks)]
            self._begun += 1
            link = self._idle.popleft() if self._idle else self._open()
            if link is None:
                self._failed += 1
                continue
            link.since, link.ask, link.unsent, link.missing = since, ask, ask, -1
            self._busy[link.sock.fileno()] = link
            if link.is_open:
                self._send(link)

    def _open(self) -> _Link | None:
        load = self.load
        kind = socket.SOCK_DGRAM if load.family == "udp" else socket.SOCK_STREAM
        sock = raw_socket(socket.AF_UNIX if load.family == "unix" else socket.AF_INET, kind)
        sock.setblocking(False)
        link = _Link(sock)
        try:
            sock.connect(self._address)
        except OSError as error:
            if load.family == "unix" or not isinstance(error, BlockingIOError):
                sock.close()  # on a UNIX socket, EAGAIN says that the queue is full
                return None
        else:
            link.is_open = True
        self._epoll.register(sock.fileno(), select.EPOLLIN if link.is_open else select.EPOLLOUT)
        return link

    def _send(self, link: _Link) -> None:
        try:
            sent = link.sock.send(link.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._fail(link)
            return
        left = len(link.unsent) - sent
        if left:
            link.unsent = memoryview(link.unsent)[sent:]
            self._epoll.modify(link.sock.fileno(), select.EPOLLOUT)
        elif not link.is_open or type(link.unsent) is memoryview:
            self._epoll.modify(link.sock.fileno(), select.EPOLLIN)
        link.is_open = True

    def _receive(self, link: _Link) -> None:
        try:
            came = link.sock.recv(_PIECE)
        except OSError:
            came = b""
        if not came:
            self._fail(link)
        elif came == self._usual:
            self._finish(link)
        elif self._is_http:
            self._receive_http(link, came)
        elif came == link.ask:
            self._finish(link)
        else:
            self._fail(link)

    def _receive_http(self, link: _Link, came: bytes) -> None:
        if link.missing < 0:
            end = came.find(b"\r\n\r\n")
            length = _LENGTH.search(came, 0, end)
            if end < 0 or not length or came[8:13] != b" 200 ":
                self._fail(link)
                return
            link.missing = int(length[1]) + end + 4
            if _CLOSE.search(came, 0, end):
                link.is_last = True
            elif link.missing == len(came):
                self._usual = came
        link.missing -= len(came)
        if link.missing < 0:
            self._fail(link)
        elif not link.missing:
            self._finish(link)

    def _finish(self, link: _Link) -> None:
        self.answered += 1
        if link.ask is self.load.asks[0]:
            self.latencies.append(time.monotonic_ns() - link.since)
        del self._busy[link.sock.fileno()]
        if link.is_last or self.load.closes:
            link.sock.close()
        else:
            self._idle.append(link)

    def _fail(self, link: _Link) -> None:
        self._failed += 1
        del self._busy[link.sock.fileno()]
        link.sock.close()

    def _drop_idle(self, fd: int) -> None:
        """The server has closed a connection between two requests, as it may."""
        for link in list(self._idle):
            if link.sock.fileno() == fd:
                self._idle.remove(link)
                link.sock.close()


def connect(address: str, patience: float = PATIENCE) -> socket.socket:
    """``127.0.0.1:port``, ``unix:/path`` or a path. ``patience``: seconds for this and each
    later operation."""
    path = address.removeprefix("unix:")
    is_path = path.startswith("/")
    host, _, port = address.rpartition(":")
    connection = socket.socket(socket.AF_UNIX if is_path else socket.AF_INET)
    connection.settimeout(patience)
    try:
        connection.connect(path if is_path else (host, int(port)))
        if not is_path and connection.getsockname() == connection.getpeername():
            # A port that nobody listens on may have been chosen as our own.
            raise ConnectionRefusedError(f"nobody but ourselves is at {address}")
    except OSError:
        connection.close()
        raise
    return connection
