"""Real servers in their own sessions, asked from outside.

Nothing sleeps here: one waits for a log line, a byte, an end-of-file. Every
server ends with the proof that nobody is left of it, and an ERROR line that
the test did not expect fails it.
"""

import gc
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
from hypothesis import settings as properties

from tests.zygote import FLAGS, Program, fork_program

ROOT = Path(__file__).parent.parent
# Whoever runs the tests under nohup would have every server ignore the end of its terminal.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# And in the background of a script, they would not hear Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# The same code is asked the same things each time. `make fuzz` looks for new ones.
properties.register_profile("same", derandomize=True)
properties.load_profile("same")

PATIENCE = 20.0  # seconds after which a test gives up; far more than anything should take
SOAK = float(os.environ.get("SOAK", "0"))  # 1 in `make soak`


def soak(short: int, long: int) -> int:
    """How many requests, stops or seconds a test has: ``long`` in `make soak`."""
    return max(short, round(SOAK * long))


def pytest_collection_finish() -> None:
    """Thousands of tests are no concern of the collector's, here and in the forks of this."""
    gc.collect()
    gc.freeze()


PRELUDE = """\
import os, signal, socket, socketserver, sys, time, threading
from prefork_server import *

def print(*words, **_):  # in one piece, however many processes write there
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)

def put(name, value):  # in the place of a constant or a class of the package
    module, _, attribute = ("prefork_server." + name).rpartition(".")
    __import__(module)
    vars(sys.modules[module])[attribute]  # it is there: a KeyError otherwise
    setattr(sys.modules[module], attribute, value)

def serve(handler, server_class=PreforkTCPServer, address=("127.0.0.1", 0), **settings):
    with server_class(address, handler, **settings) as server:
        server.serve_forever()
"""

FATES = """
    import ctypes, faulthandler

    class Fate(socketserver.BaseRequestHandler):
        def handle(self):
            word = self.request.recv(100).strip()
            if word == b"hang":
                time.sleep(1000)
            elif word == b"spin":
                while True: pass
            elif word == b"deaf":
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
                time.sleep(1000)
            elif word == b"die":
                os._exit(3)
            elif word == b"zero":
                os._exit(0)
            elif word == b"abort":
                os.abort()
            elif word == b"segfault":
                ctypes.string_at(0)
            elif word == b"leave":
                sys.exit(0)
            elif word.startswith(b"raise "):
                raise getattr(__import__("builtins"), word[6:].decode())("of my own")
            self.request.sendall(b"%d" % os.getpid())
"""

HELLO = """
        from http.server import BaseHTTPRequestHandler, HTTPServer

        class Hello(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"%d" % os.getpid())
            def log_message(self, *args):
                pass
"""


class Server:
    """A program that serves, from its start to the proof that nothing of it remains."""

    def __init__(
        self,
        script: Path,
        *args: str,
        stdin: int = subprocess.DEVNULL,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
        executed: bool = False,
    ) -> None:
        """``executed``: by an interpreter of its own, for tests of the start itself."""
        self.gone, writer = os.pipe()  # end-of-file here: every descendant is gone
        self.expected_errors: list[str] = []
        self.lines: list[str] = []
        self._news = threading.Condition()
        words, fds = [str(script), *args], [writer, *pass_fds]
        environ = {**(os.environ if env is None else env), "PYTHONPATH": str(ROOT / "src")}
        self.process: subprocess.Popen[bytes] | Program
        if executed:
            self.process = subprocess.Popen(
                [sys.executable, *FLAGS, *words],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=fds,
                start_new_session=True,
                cwd=cwd,
                env=environ,
            )
        else:
            self.process = fork_program(words, env=environ, cwd=cwd, stdin=stdin, pass_fds=fds)
        os.close(writer)
        self.pid = self.process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    # What it says

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def saw(self, pattern: str, times: int = 1) -> list[re.Match[str]]:
        """Wait until so many lines match, and return the matches."""
        deadline = time.monotonic() + PATIENCE
        with self._news:
            while True:
                found = [m for line in self.lines if (m := re.search(pattern, line))]
                if len(found) >= times:
                    return found
                left = deadline - time.monotonic()
                alive = self._reader.is_alive()
                assert left > 0 and alive, f"never saw {times} x {pattern!r} in:\n{self.log}"
                self._news.wait(left)

    def count(self, pattern: str) -> int:
        return sum(1 for line in self.lines if re.search(pattern, line))

    def ready(self) -> "Server":
        self.saw(r"master pid=\d+ ready")
        return self

    def all_ready(self, workers: int) -> "Server":
        """Wait until so many workers answer: each has a title by then."""
        eventually(lambda: len(self.workers()) >= workers)
        eventually(lambda: all("worker" in title(pid) for pid in self.workers()))
        return self.ready()

    @property
    def address(self) -> tuple[str, int] | str:
        where = self.saw(r"ready, listening on ([^,\s]+)")[0][1]
        if where.startswith("unix:"):
            return where.removeprefix("unix:").replace("@", "\0")
        host, _, port = where.rpartition(":")
        return host.strip("[]"), int(port)

    # What it does

    def connect(self, timeout: float = PATIENCE) -> socket.socket:
        address = self.address
        if isinstance(address, str):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(timeout)
            try:
                client.connect(address)
            except OSError:
                client.close()
                raise
            return client
        return socket.create_connection(address, timeout)

    def ask(self, data: bytes = b"hello", timeout: float = PATIENCE) -> bytes:
        """Send, say that this was all, and return the whole answer."""
        with self.connect(timeout) as client:
            client.sendall(data)
            with suppress(OSError):  # it has reset the connection: reading says so
                client.shutdown(socket.SHUT_WR)
            return read_all(client)

    def workers(self) -> list[int]:
        return [pid for pid in children(self.pid) if alive(pid)]

    def signal(self, signum: int, pid: int | None = None) -> None:
        os.kill(pid or self.pid, signum)

    def quit(self) -> int:
        """Stop gracefully, and return the exit code."""
        with suppress(ProcessLookupError):  # it has ended, and its zygote has reaped it
            self.signal(signal.SIGQUIT)
        return self.wait()

    def wait(self) -> int:
        """The exit code of the master, when it is gone and its last words were read."""
        code = self.process.wait(PATIENCE)
        self._reader.join(5)  # a worker that outlives it may keep the pipe open
        return code

    def anyone_left(self, within: float = 5) -> bool:
        """Whether a descendant is there after so many seconds, however it may have hidden."""
        readable, _, _ = select.select([self.gone], [], [], within)
        return not readable

    def expect_error(self, *patterns: str) -> None:
        self.expected_errors += patterns

    def finish(self) -> None:
        """Stop it if the test did not; nobody may be left, and nothing unexpected in the log."""
        try:
            if self.process.poll() is None:
                with suppress(ProcessLookupError):
                    self.signal(signal.SIGQUIT)
                try:
                    self.process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    pytest.fail(f"did not stop:\n{self.log}")
            left = self.anyone_left()
            self._reader.join(5)
            assert not left, f"somebody is left:\n{self.log}"
            # A traceback below a line of the log is indented.
            for line in map(str.strip, self.lines):
                if " ERROR " in line or line.startswith("Traceback"):
                    expected = any(re.search(p, line) for p in self.expected_errors)
                    assert expected, f"unexpected {line!r} in:\n{self.log}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()
            os.close(self.gone)
            if self.process.stdout:
                self.process.stdout.close()


class Starter:
    """Starts programs; the text of one is all that a test shows of it."""

    def __init__(self, directory: Path, executed: bool = False) -> None:
        self.directory = directory
        self.executed = executed
        self.servers: list[Server] = []

    def __call__(self, program: str, *args: str, **options: Any) -> Server:
        """``options`` are those of ``Server``."""
        script = self.directory / f"app{len(self.servers)}.py"
        script.write_text(PRELUDE + textwrap.dedent(program))
        return self.script(script, *args, **options)

    def script(self, script: Path, *args: str, **options: Any) -> Server:
        server = Server(
            script, *args, **{"cwd": self.directory, "executed": self.executed, **options}
        )
        self.servers.append(server)
        return server


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Starter]:
    executed = request.node.get_closest_marker("executed") is not None
    starter = Starter(tmp_path, executed)
    yield starter
    for server in starter.servers:
        server.finish()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """It issues certificates that only what is made by ``client_context`` trusts."""
    return trustme.CA()


@pytest.fixture(scope="module")
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that another user can reach, unlike ``tmp_path``, and not write to."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    eventually(lambda: not children(os.getpid()) or not _zombies_or_strays())
    after = set(os.listdir("/proc/self/fd"))
    assert len(after) <= len(before) + 2, f"descriptors leaked: {sorted(after - before)}"


def _zombies_or_strays() -> list[int]:
    return [pid for pid in children(os.getpid()) if "prefork" in title(pid)]


def unmeasured() -> dict[str, str]:
    """The environment without coverage.

    A handler that raises leaves its lock taken, it loads modules of its own, and each process
    takes a quarter of a second to write down what it has seen, when it ends.
    """
    return {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}


def eventually(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """For what nobody announces: a state of the kernel's, looked at until it is so."""
    deadline = time.monotonic() + patience
    pause = 0.001
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(pause)
        pause = min(1.3 * pause, 0.02)


def read_all(client: socket.socket) -> bytes:
    chunks = []
    while data := client.recv(65536):
        chunks.append(data)
    return b"".join(chunks)


def children(pid: int) -> list[int]:
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sorted(int(c) for t in tasks for c in (t / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        return []


def open_files(pid: int) -> set[int]:
    """The descriptors of a process that sleeps: who writes a line holds its pipe once more."""
    eventually(lambda: b") S " in Path(f"/proc/{pid}/stat").read_bytes())
    return {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}


def title(pid: int) -> str:
    """What ps shows, with the spaces for NULs."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return raw.rstrip(b"\0").replace(b"\0", b" ").decode()


def alive(pid: int) -> bool:
    """Whether it runs: not gone, and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class PipeEnd(NamedTuple):
    fd: int
    flags: int  # of its file description, as open(2) has them


def pipes_of(pid: int) -> list[PipeEnd]:
    """The ends of pipes that a process holds."""
    found = []
    for fd in sorted(open_files(pid)):
        if os.readlink(f"/proc/{pid}/fd/{fd}").startswith("pipe:"):
            text = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
            found.append(PipeEnd(fd, int(text.partition("flags:\t")[2].split()[0], 8)))
    return found
