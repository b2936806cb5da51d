"""Clients that knock without pause, each time with a new connection, or on a kept one."""

import socket
import ssl
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

Address = tuple[str, int] | str


@dataclass
class Hammer:
    """``clients`` threads; ``counts`` says how each connection ended.

    ``served``: the whole reply. ``refused``: never connected. ``lost``: connected, and
    then no full reply: what a graceful stop must not do to anybody.
    """

    address: Address
    clients: int
    word: bytes = b"hammer"
    pause: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __enter__(self) -> "Hammer":
        self._threads = [threading.Thread(target=self._run) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def ended(self, how: str, count: int, patience: float = 30) -> None:
        """Wait until so many have ended so."""
        with self._changed:
            done = self._changed.wait_for(lambda: self.counts[how] >= count, patience)
        assert done, self.counts

    def _run(self) -> None:
        while not self._stop.wait(self.pause) if self.pause else not self._stop.is_set():
            outcome = ask_once(self.address, self.word)
            self._count(outcome)
            if outcome == "refused":
                return

    def _count(self, outcome: str) -> None:
        with self._changed:
            self.counts[outcome] += 1
            self._changed.notify_all()


@dataclass
class HTTPHammer(Hammer):
    """Clients that ask for ``/``, with a new connection for each request or, ``keeping``, for
    as long as the server keeps it.

    ``closed``: a kept connection that ended, unannounced, before the first byte of an answer.
    A client may ask again then, and a server should not make it.
    """

    keeping: bool = False
    longest: float = 0.0  # seconds that one of them waited for an answer
    trusting: ssl.SSLContext | None = None  # over TLS

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                client = connected(self.address)
            except OSError:
                self._count("refused")
                return
            if self.trusting:
                try:
                    client = self.trusting.wrap_socket(client, server_hostname="localhost")
                except OSError:
                    client.close()
                    self._count("lost")
                    continue
            with client:
                self._stay(client)

    def _stay(self, client: socket.socket) -> None:
        option = b"" if self.keeping else b"Connection: close\r\n"
        request = b"GET / HTTP/1.1\r\nHost: a\r\n" + option + b"\r\n"
        asked, kept = 0, True
        while kept and not self._stop.wait(self.pause):
            began = time.monotonic()
            outcome, kept = ask_http(client, request)
            self.longest = max(self.longest, time.monotonic() - began)
            self._count("lost" if outcome == "closed" and not asked else outcome)
            asked += 1
            kept = kept and self.keeping


def ask_http(client: socket.socket, request: bytes) -> tuple[str, bool]:
    """How it ended, and whether the connection is kept."""
    answer = b""
    try:
        client.sendall(request)
        while b"\r\n\r\n" not in answer:
            if not (more := client.recv(65536)):
                return "lost" if answer else "closed", False
            answer += more
        head, _, body = answer.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        while len(body) < int(fields[b"content-length"]):
            if not (more := client.recv(65536)):
                return "lost", False
            body += more
    except OSError:
        return "lost" if answer else "closed", False
    good = head.startswith(b"HTTP/1.1 200 ") and len(body) == int(fields[b"content-length"])
    return "served" if good else "lost", fields.get(b"connection") != b"close"


def connected(address: Address) -> socket.socket:
    client = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    client.settimeout(30)
    try:
        client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


def ask_once(address: Address, word: bytes) -> str:
    try:
        client = connected(address)
    except (ConnectionRefusedError, ConnectionResetError, FileNotFoundError):
        return "refused"
    with client:
        try:
            client.sendall(word)
            client.shutdown(socket.SHUT_WR)
            answer = b""
            while data := client.recv(65536):
                answer += data
        except OSError:
            return "lost"
        return "served" if answer == word else "lost"
