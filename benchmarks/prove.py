"""The five promises, shown live in about 30 seconds: ``make prove``.

A real server on the loopback, hammering clients, real kills. One line for each
promise, with what was counted. The exit code is 0 if all of them were kept, 1 if not.
"""

import contextlib
import logging
import os
import random
import signal
import socket
import socketserver
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from prefork_server import Death, PreforkTCPServer, PreforkUnixStreamServer, Settings

from .load import connect
from .processes import ServerProcess, tell

_WORKERS = 4
_PATIENCE = 20.0  # seconds for anything that should take next to none


# The server


class Handler(socketserver.BaseRequestHandler):
    """Echoes one message; one word is fatal."""

    def handle(self) -> None:
        data = self.request.recv(100)
        if data == b"hang":
            tell("hanging")
            time.sleep(1000)
        self.request.sendall(data)


class Telling:
    def ready(self, addresses: Sequence[str]) -> None:
        tell("ready", addresses[0])

    def after_worker_exit(self, death: Death) -> None:
        named = "time.sleep" if "in handle" in death.report else ""
        tell("gone", f"{death.slot} {'killed' if death.killed else 'died'} {named}")


class Tcp(Telling, PreforkTCPServer):
    pass


class Unix(Telling, PreforkUnixStreamServer):
    pass


def serve(kind: str, timeout: str, client_timeout: str, graceful_timeout: str) -> None:
    """In the server process."""
    logging.getLogger("prefork_server").addHandler(logging.NullHandler())
    settings = Settings(
        workers=_WORKERS,
        timeout=float(timeout),
        client_timeout=float(client_timeout),
        graceful_timeout=float(graceful_timeout),
    )
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/socket"
        server = (
            Unix(path, Handler, settings=settings)
            if kind == "unix"
            else Tcp("127.0.0.1:0", Handler, settings=settings)
        )
        with server:
            server.serve_forever()


class Prover(ServerProcess):
    """A server, ready, with all its workers."""

    def __init__(
        self,
        kind: str = "tcp",
        timeout: float = 30,
        client_timeout: float = 30,
        graceful_timeout: float = 30,
    ) -> None:
        limits = (timeout, client_timeout, graceful_timeout)
        super().__init__("benchmarks.prove", "--serve", kind, *limits)
        self.address = self.hear("ready").text
        until(lambda: len(self.workers()) == _WORKERS)

    def workers(self) -> list[int]:
        return [pid for pid in self.pids() if pid != self.pid]

    def connect(self) -> socket.socket:
        return connect(self.address, _PATIENCE)


# Its clients


class Hammer:
    """Clients that knock without pause. ``lost``: connected, and then no full answer."""

    def __init__(self, address: str, clients: int) -> None:
        self.counts: Counter[str] = Counter()
        self._address = address
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._knock) for _ in range(clients)]

    def __enter__(self) -> "Hammer":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def wait(self, outcome: str, count: int) -> None:
        until(lambda: self.counts[outcome] >= count)

    def _knock(self) -> None:
        outcome = ""
        while not self._done.is_set() and outcome != "refused":
            outcome = ask(self._address)
            with self._lock:
                self.counts[outcome] += 1


def ask(address: str) -> str:
    try:
        client = connect(address, _PATIENCE)
    except (ConnectionRefusedError, FileNotFoundError):
        return "refused"
    with client:
        try:
            client.sendall(b"hello")
            return "served" if client.recv(100, socket.MSG_WAITALL) == b"hello" else "lost"
        except OSError:
            return "lost"


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it never came true")
        time.sleep(0.002)


# The promises: each returns what it counted, and whether it was kept


def a_failure_costs_one_connection() -> tuple[str, bool]:
    kills, hangs = 25, 3
    with Prover(timeout=1) as server, Hammer(server.address, 8) as hammer:
        hammer.wait("served", 200)
        clients = [server.connect() for _ in range(hangs)]
        for client in clients:
            client.sendall(b"hang")
        for client in clients:
            client.recv(1)  # the end, when the timeout is over
            client.close()
        # Heard before the next kill, or that might strike one that is going already.
        named = sum(server.hear("gone").text.endswith("time.sleep") for _ in range(hangs))
        for _ in range(kills):
            os.kill(random.choice(server.workers()), signal.SIGKILL)
            time.sleep(0.1)
        until(lambda: len(server.workers()) == _WORKERS)
        for _ in range(kills):
            server.hear("gone")
        counts = hammer.counts
    lost = counts["lost"]
    return (
        f"{kills} kills, {hangs} hangs ({named} named with their line), {counts['served']} "
        f"served, {lost} lost, {_WORKERS} workers again",
        named == hangs and lost <= kills and counts["served"] > 1000,
    )


def a_graceful_stop_loses_nobody() -> tuple[str, bool]:
    stops, total = 12, Counter[str]()
    for number in range(stops):
        with Prover("unix" if number % 2 else "tcp") as server:
            with Hammer(server.address, 24) as hammer:
                hammer.wait("served", 300)
                server.end(signal.SIGQUIT)
                hammer.wait("refused", 24)
            total += hammer.counts
    return (
        f"{stops} stops (TCP and UNIX) under 24 hammering clients: {total['served']} served, "
        f"{total['lost']} lost, {total['refused']} who came later refused",
        total["lost"] == 0,
    )


def no_worker_outlives_its_master() -> tuple[str, bool]:
    allowed = 1.0
    idle: list[float] = []
    hung: list[float] = []
    for hang in (False, True, False, True):
        with Prover(graceful_timeout=allowed) as server, contextlib.ExitStack() as stack:
            if hang:
                stack.enter_context(server.connect()).sendall(b"hang")
                server.hear("hanging")
            began = time.monotonic()
            server.end(signal.SIGKILL)  # of the master; returns when all of them are gone
            (hung if hang else idle).append(time.monotonic() - began)
    return (
        f"master killed: {_WORKERS} workers gone after {statistics.mean(idle):.2f}s, with one "
        f"that hangs after {statistics.mean(hung):.2f}s (graceful_timeout {allowed:g}s)",
        max(idle + hung) < allowed + 1.0,
    )


def a_slow_client_kills_no_worker() -> tuple[str, bool]:
    timeout, patience = 0.5, 2.0
    with Prover(timeout=timeout, client_timeout=patience) as server:
        before = server.workers()
        silent = [server.connect() for _ in range(_WORKERS - 1)]
        began = time.monotonic()
        with Hammer(server.address, 2) as hammer:
            for client in silent:
                client.recv(1)  # it is we who are silent; this is the end that the server makes
                client.close()
        took = time.monotonic() - began
        same = before == server.workers()
    return (
        f"{len(silent)} silent clients held {len(silent)} of {_WORKERS} workers for {took:.1f}s "
        f"(client_timeout {patience:g}s, timeout {timeout:g}s): {'none' if same else 'SOME'} "
        f"killed, {hammer.counts['served']} others served",
        same and patience <= took < patience + 1.5 and hammer.counts["served"] > 100,
    )


def the_master_only_watches() -> tuple[str, bool]:
    looks, most_sockets, most_threads = 0, 0, 0
    with Prover() as server, Hammer(server.address, 8) as hammer:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            looks += 1
            most_sockets = max(most_sockets, sockets_of(server.pid))
            most_threads = max(most_threads, len(os.listdir(f"/proc/{server.pid}/task")))
    return (
        f"{hammer.counts['served']} connections went by: in {looks} looks the master had "
        f"{most_sockets} socket (the listener) and {most_threads} thread",
        (most_sockets, most_threads) == (1, 1),
    )


def sockets_of(pid: int) -> int:
    count = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            count += os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
        except FileNotFoundError:
            continue  # closed since the listing
    return count


PROMISES = (
    ("A hung or crashed worker costs only its own connection", a_failure_costs_one_connection),
    ("A graceful stop loses nobody who is queued or served", a_graceful_stop_loses_nobody),
    ("No worker outlives its master for long", no_worker_outlives_its_master),
    ("A slow or silent client never kills a worker", a_slow_client_kills_no_worker),
    ("The master accepts nothing and starts no thread", the_master_only_watches),
)


def main() -> int:
    kept_all = True
    for number, (promise, show) in enumerate(PROMISES, 1):
        began = time.monotonic()
        counted, kept = show()
        kept_all = kept_all and kept
        verdict = "kept" if kept else "BROKEN"
        print(f"{number}. {promise}: {verdict}\n   {counted}; {time.monotonic() - began:.1f}s")
        sys.stdout.flush()
    return 0 if kept_all else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        sys.exit(main())
