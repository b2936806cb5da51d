"""No write to stdout, stderr or a log waits for a reader, and what was lost is counted."""

import contextlib
import io
import logging
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from prefork_server import daemon, output
from prefork_server.logfiles import speaking
from prefork_server.output import Output, cover, flush_streams, unhindered
from tests.conftest import PATIENCE, ROOT, children, eventually, read_all


def fill(fd: int) -> int:
    """Write until there is no room for one byte more; how many it took."""
    count = 0
    os.set_blocking(fd, False)
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                count += os.write(fd, b"x" * size)
    os.set_blocking(fd, True)
    return count


def drained(fd: int) -> bytes:
    """All that can be read now."""
    found = []
    while select.select([fd], [], [], 0)[0]:
        found.append(os.read(fd, 65536))
    return b"".join(found)


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """A pipe: where it is read, and where it is written."""
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        with suppress(OSError):
            os.close(fd)


# One descriptor


def refused(*_: object, **__: object) -> int:
    raise PermissionError(13, "Permission denied")


WAYS = {
    "by a flag of the call": {},
    "opened anew": {"_NOWAIT": 0},
    "through a pipe of its own": {"_NOWAIT": 0, "os.open": refused},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["pipe", "stream", "datagrams", "terminal"])
def test_a_reader_that_has_stopped_is_waited_for_once_and_told_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch, kind: str, way: str
) -> None:
    if kind == "pipe":
        reader, writer = os.pipe()
    elif kind == "terminal":
        reader, writer = pty.openpty()
        mode = termios.tcgetattr(writer)
        mode[1] &= ~termios.OPOST
        termios.tcsetattr(writer, termios.TCSANOW, mode)
        os.write(reader, b"\x13")  # Ctrl-S
        eventually(lambda: not select.select([], [writer], [], 0)[1])
    else:
        kinds = {"stream": socket.SOCK_STREAM, "datagrams": socket.SOCK_DGRAM}
        pair = socket.socketpair(socket.AF_UNIX, kinds[kind])
        reader, writer = (each.detach() for each in pair)
    if kind != "terminal":
        fill(writer)
    for name, value in WAYS[way].items():
        monkeypatch.setattr(f"prefork_server.output.{name}", value)
    waits: list[float] = []
    room = output._has_room
    monkeypatch.setattr(output, "_has_room", lambda fd, s: waits.append(s) or room(fd, s))
    out = Output(writer)
    for number in range(50):
        assert out.write(f"line {number}\n".encode()) == len(f"line {number}\n")
    assert sorted(waits)[-2:] == [0, 0.1]
    if kind == "terminal":
        os.write(reader, b"\x11")
        eventually(lambda: select.select([], [writer], [], 0)[1])
    before = drained(reader)
    assert out.write(b"there again\n") == 12
    assert drained(reader) == b"(50 lines were lost)\nthere again\n"
    out.write(b"and again\n")
    assert drained(reader) == b"and again\n" and b"line" not in before
    os.close(reader)
    assert out.write(b"nobody reads\n") == 13
    os.close(writer)
    assert out.write(b"closed\n") == 7


def test_a_file_that_takes_the_place_of_a_pipe_is_appended_to(
    ends: tuple[int, int], tmp_path: Path
) -> None:
    reader, writer = ends
    out = Output(writer)
    out.write(b"to the pipe\n")
    log = tmp_path / "log"
    log.write_bytes(b"of yesterday, and long enough\n")
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, writer)
    os.close(file)
    for number in range(3):
        out.write(b"line %d\n" % number)
    assert log.read_bytes() == b"of yesterday, and long enough\nline 0\nline 1\nline 2\n"
    assert os.read(reader, 99) == b"to the pipe\n"


@pytest.mark.parametrize("way", ["by a flag of the call", "opened anew"])
def test_a_default_timeout_of_the_program_changes_no_output_on_a_socket(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    for name, value in WAYS[way].items():
        monkeypatch.setattr(f"prefork_server.output.{name}", value)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        out = Output(theirs.fileno())
        socket.setdefaulttimeout(PATIENCE)
        try:
            out.write(b"a line\n")
            assert os.get_blocking(theirs.fileno())  # the description is shared with others
            fill(theirs.fileno())
            begun = time.monotonic()
            out.write(b"lost\n")
            assert time.monotonic() - begun < PATIENCE / 2
        finally:
            socket.setdefaulttimeout(None)
        assert ours.recv(7) == b"a line\n"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("controlling", [True, False])
def test_a_terminal_of_another_user_is_written_to_and_not_waited_for(controlling: bool) -> None:
    ours, terminal = pty.openpty()
    ended, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            os.setsid()
            os.setresuid(65534, 65534, 65534) if not controlling else os.login_tty(terminal)
            fd = 1 if controlling else terminal
            os.setresuid(65534, 65534, 65534)
            output._NOWAIT = 0
            out = Output(fd)
            out.write(b"a line\n")
            for _ in range(2000):
                out.write(b"x" * 100 + b"\n")
            os.write(end, b"written")
        os._exit(0)
    os.close(end)
    os.close(terminal)
    try:
        assert select.select([ended], [], [], PATIENCE)[0], "it waits for the reader"
        assert os.read(ended, 9) == b"written"
        assert os.read(ours, 8) == b"a line\r\n"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ended)
        os.close(ours)


def test_others_who_write_there_still_wait(ends: tuple[int, int]) -> None:
    _, writer = ends
    fill(writer)
    Output(writer).write(b"lost\n")
    assert os.get_blocking(writer)


def test_a_record_of_many_lines_is_cut_between_two_of_them(ends: tuple[int, int]) -> None:
    reader, writer = ends
    taken = fill(writer)
    os.read(reader, 3 * 4096)
    lines = [b"%04d %s\n" % (number, b"y" * 90) for number in range(1000)]
    out = Output(writer)
    out.write(b"".join(lines))
    said = drained(reader)[taken - 3 * 4096 :].splitlines(keepends=True)
    assert 0 < len(said) < 1000 and said == lines[: len(said)]
    out.write(b"there again\n")
    assert drained(reader) == b"(%d lines were lost)\nthere again\n" % (1000 - len(said))


def test_a_line_that_was_torn_is_ended_before_the_next(ends: tuple[int, int]) -> None:
    reader, writer = ends
    out = Output(writer)
    out.write(b"half a li")
    taken = fill(writer)
    out.write(b"ne\n")
    drained(reader)
    out.write(b"next\n")
    assert taken and drained(reader) == b"\n(1 lines were lost)\nnext\n"
    fill(writer)
    for part in (b"in", b" ", b"parts", b"\n", b"of two"):
        out.write(part)
    drained(reader)
    out.write(b" lines\n")
    assert drained(reader) == b"(2 lines were lost)\n lines\n"


def test_a_file_is_written_as_ever_and_a_full_disk_loses_a_line(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full, open(tmp_path / "log", "wb") as file:
        out = Output(full.fileno())
        out.write(b"lost\n")
        out.fd = file.fileno()
        out.write(b"written\n" * 1000)
        os.dup2(full.fileno(), file.fileno())
        out.write(b"lost\n")
    said = (tmp_path / "log").read_bytes()
    assert said == b"(1 lines were lost)\n" + b"written\n" * 1000


def test_what_is_put_in_the_place_of_a_descriptor_is_written_to(
    ends: tuple[int, int], tmp_path: Path
) -> None:
    reader, writer = ends
    spare = os.dup(writer)
    out = Output(spare)
    out.write(b"to the pipe\n")
    with open(tmp_path / "file", "wb") as file:
        os.dup2(file.fileno(), spare)
    out.write(b"to the file\n")
    os.dup2(writer, spare)
    out.write(b"to the pipe\n")
    os.close(spare)
    assert drained(reader) == b"to the pipe\n" * 2
    assert (tmp_path / "file").read_text() == "to the file\n"


def test_a_fork_does_not_tell_again_of_what_was_lost_before(ends: tuple[int, int]) -> None:
    reader, writer = ends
    out = Output(writer)
    fill(writer)
    out.write(b"lost\n")
    drained(reader)
    child = os.fork()
    if child == 0:
        out.write(b"of the child\n")
        os._exit(0)
    os.waitpid(child, 0)
    out.write(b"of the parent\n")
    assert drained(reader) == b"of the child\n(1 lines were lost)\nof the parent\n"


def test_room_that_is_never_enough_is_not_looked_at_for_ever(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[int, int]
) -> None:
    def never(*_: object) -> int:
        raise BlockingIOError

    out = Output(ends[1])
    with monkeypatch.context() as patch:
        patch.setattr(output, "_write_now", never)
        out.write(b"one\n")
        out.write(b"two\n")
    out.write(b"three\n")
    assert drained(ends[0]) == b"(2 lines were lost)\nthree\n"


BACKGROUND = """
import fcntl, os, signal, sys, termios
from prefork_server.output import Output
fcntl.ioctl(1, termios.TIOCSCTTY, 0)
mode = termios.tcgetattr(1)
mode[3] |= termios.TOSTOP
termios.tcsetattr(1, termios.TCSANOW, mode)
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, lambda *_: None)
    Output(1).write(b"from behind\\n")
    os._exit(0)
os.waitpid(pid, 0)
"""


@pytest.mark.processes
def test_a_terminal_that_stops_its_background_is_written_to_all_the_same() -> None:
    reader, writer = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", BACKGROUND],
        stdout=writer,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    try:
        assert process.wait(PATIENCE) == 0
        assert drained(reader) == b"from behind\r\n"
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


# The streams of a program


def streams(fd: int) -> dict[str, Callable[[], io.TextIOBase]]:
    def text(buffering: int = -1, **options: bool) -> io.TextIOWrapper:
        raw: io.RawIOBase = io.FileIO(fd, "w", closefd=False)
        buffer = io.BufferedWriter(raw) if buffering else raw
        return io.TextIOWrapper(buffer, encoding="utf-16-le", **options)  # type: ignore[arg-type]

    class Tee(io.TextIOBase):
        inner = text(line_buffering=True)

        def write(self, words: str) -> int:
            return self.inner.write(words.upper())

        def flush(self) -> None:
            self.inner.flush()

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

    return {
        "in blocks": text,
        "by line": lambda: text(line_buffering=True),
        "unbuffered": lambda: text(0, write_through=True),
        "behind a class of the program": Tee,
    }


@pytest.mark.parametrize("kind", ["in blocks", "by line", "unbuffered"])
def test_what_was_buffered_before_comes_once_and_in_order(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[int, int], kind: str
) -> None:
    reader, writer = ends
    stream = streams(writer)[kind]()
    kept = stream.write
    monkeypatch.setattr(sys, "stdout", stream)
    print("before", end=" ")
    with unhindered(), unhindered():
        print("within", "wörds", end=" ")
        kept("kept ")
        sys.stdout.flush()
        sys.stdout.buffer.write("bytes\n".encode("utf-16-le"))
    print("after")
    stream.flush()
    assert drained(reader).decode("utf-16-le") == "before within wörds kept bytes\nafter\n"
    assert "write" not in vars(output._bottom(stream))


@pytest.mark.parametrize("kind", ["in blocks", "by line", "unbuffered"])
def test_no_print_waits_whatever_the_stream_and_the_rest_is_not_left_in_it(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[int, int], kind: str
) -> None:
    reader, writer = ends
    stream = streams(writer)[kind]()
    monkeypatch.setattr(sys, "stderr", stream)
    print("before", file=sys.stderr)
    fill(writer)
    handler = logging.StreamHandler(stream)
    with unhindered():
        for number in range(100):
            print("print", number, file=sys.stderr, flush=True)
            handler.emit(logging.makeLogRecord({"msg": "a line"}))
        flush_streams()
    stream.flush()  # which would wait for ever
    assert b"r\0i\0n\0t" not in drained(reader)


def test_what_a_program_has_put_around_its_stream_stays_in_use(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[int, int]
) -> None:
    reader, writer = ends
    stream = streams(writer)["behind a class of the program"]()
    monkeypatch.setattr(sys, "stdout", stream)
    with unhindered():
        print("loud")
        assert sys.stdout is stream and drained(reader).decode("utf-16-le") == "LOUD\n"
        fill(writer)
        print("lost")


@pytest.mark.parametrize("stream", ["none", "closed", "detached", "text", "a word"])
def test_what_is_no_stream_of_a_file_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stream: str
) -> None:
    text = open(tmp_path / "file", "w")  # noqa: SIM115
    buffer = text.buffer
    wrong = {"none": None, "text": io.StringIO(), "a word": "stdout"}.get(stream, text)
    if stream == "closed":
        text.close()
    if stream == "detached":
        text.detach()
    monkeypatch.setattr(sys, "stdout", wrong)
    with unhindered(), contextlib.redirect_stderr(io.StringIO()) as said:
        print("said", file=sys.stderr)
    flush_streams()
    assert said.getvalue() == "said\n"
    buffer.close()


def test_a_handler_that_was_made_meanwhile_is_covered_too(ends: tuple[int, int]) -> None:
    _, writer = ends
    with open(writer, "w", closefd=False) as stream:
        handler = logging.StreamHandler(stream)
        fill(writer)
        files = cover()
        handler.emit(logging.makeLogRecord({"msg": "lost"}))
        output._uncover(files)
        assert "write" not in vars(output._bottom(stream))


def test_the_log_of_a_user_without_rights_to_the_pipe_does_not_wait(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[int, int]
) -> None:
    reader, writer = ends
    monkeypatch.setattr(output, "_NOWAIT", 0)
    monkeypatch.setattr("prefork_server.output.os.open", refused)
    logger = logging.getLogger("test_output_1")
    logger.propagate = False
    with speaking(logger, f"/dev/fd/{writer}"):
        fill(writer)
        for number in range(50):
            logger.info("line %d", number)
        drained(reader)
        logger.info("there again")
    said = drained(reader)
    assert re.fullmatch(rb"\(50 lines of the log were lost\)\n.* there again\n", said)


def test_a_launcher_that_was_stopped_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        daemon._say(theirs, "died", "a report " * 1_000_000)
        daemon._say(theirs, "died", "a report " * 1_000_000)
        daemon._say(theirs, "died", "a report " * 1_000_000)
        daemon._say(theirs, "died", "a report " * 1_000_000)
        assert ours.recv(13) == b"died\0a report"


# The whole life of a server whose output nobody reads

COMMON = """
import asyncio, logging, os, socketserver, sys, warnings
from pathlib import Path
from prefork_server import *
from prefork_server import serve, PreforkAsyncioServer, HTTPRequestHandler, PreforkHTTPServer

def told(word):
    for stream in (sys.stdout, sys.stderr):
        for number in range(100):
            print("a handler prints", word, "x" * 90, file=stream)
    warnings.warn("a warning " + word)
    logging.getLogger("of.the.program").error("a record %s", word)
    if word == "raise":
        raise ValueError("of the handler")
    return b"%d" % os.getpid()

class Hooks:
    def ready(self, addresses):
        print("ready", file=sys.stderr)
        Path("address").write_text(addresses[0])
    def before_fork(self):
        print("a hook prints before a fork")
    def after_fork(self, master):
        print("a hook prints in a worker", flush=True)
    def after_worker_exit(self, death):
        print("a hook prints", death)
        print("a hook prints", death, file=sys.stderr)

class Stream(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(told(self.rfile.readline().decode().strip()))

class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        self.request[1].sendto(told(self.request[0].decode().strip()), self.client_address)

class Http(HTTPRequestHandler):
    access_log = True
    def do_GET(self):
        body = told(self.path[1:])
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

class Old(__import__("http.server").server.BaseHTTPRequestHandler):
    do_GET = Http.do_GET

def app(environ, start_response):
    body = told(environ["PATH_INFO"][1:])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

async def talk(reader, writer):
    writer.write(told((await reader.readline()).decode().strip()))
    await writer.drain()
    writer.close()

def work(master):
    for connection, _ in master.connections():
        with connection:
            connection.sendall(told(connection.recv(100).decode().strip()))

settings = dict(workers=2, pid_path="x.pid")
"""

HOOKED = """
class Server(Hooks, {base}): pass
with Server({address}, {handler}, **settings{more}) as server:
    server.serve_forever()
"""


def hooked(base: str, handler: str, address: str = '("127.0.0.1", 0)', more: str = "") -> str:
    return HOOKED.format(base=base, handler=handler, address=address, more=more)


LIVES = {
    "TCP": hooked("PreforkTCPServer", "Stream"),
    "TCP with basicConfig": "logging.basicConfig()\n" + hooked("PreforkTCPServer", "Stream"),
    "UDP": hooked("PreforkUDPServer", "Datagram"),
    "UNIX": hooked("PreforkUnixStreamServer", "Stream", '"s.sock"'),
    "HTTP": hooked("PreforkHTTPServer", "Http", more=', status="unix:status.sock"'),
    "the standard library's handler": hooked("PreforkHTTPServer", "Old"),
    "threads": hooked("PreforkTCPServer", "Stream", more=", threads=3"),
    "WSGI": 'serve(app, "unix:s.sock", access_log=True, **settings)',
    "asyncio": hooked("PreforkAsyncioServer", "talk"),
    "Preforker": """
hooks = Hooks()
names = ("before_fork", "after_fork", "ready", "after_worker_exit")
named = {name: getattr(hooks, name) for name in names}
Preforker(work, listen="127.0.0.1:0", **settings, **named).run()
""",
    "the command": "",
}


class Life:
    """A server whose stdout and stderr are full pipes, asked until it answers."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory, self.kind = directory, kind
        (directory / "things.py").write_text(COMMON)
        program = directory / "program.py"
        program.write_text(f"from things import *\n{LIVES[kind]}")
        words = [str(program)]
        if kind == "the command":
            words = ["-m", "prefork_server", "serve", "things:app", "-b", "unix:s.sock", "-w", "2"]
            words += ["--access-log", "--pid-path", "x.pid"]
        self.outputs, theirs = zip(*(os.pipe(), os.pipe()), strict=True)
        self.gone, writer = os.pipe()
        for fd in theirs:
            fill(fd)
        self.process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=theirs[0],
            stderr=theirs[1],
            pass_fds=[writer],
            start_new_session=True,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{directory}"},
        )
        for fd in (*theirs, writer):
            os.close(fd)

    def address(self) -> str | tuple[str, int]:
        if self.kind in ("UNIX", "WSGI", "the command"):
            return "s.sock"
        host, _, port = (self.directory / "address").read_text().rpartition(":")
        return host, int(port)

    def ask(self, word: str, within: float = 5) -> bytes:
        """What is answered; nothing where the handler raised, or nothing answers yet."""
        request = f"{word}\n"
        if self.kind in ("HTTP", "the standard library's handler", "WSGI", "the command"):
            request = f"GET /{word} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        with suppress(OSError, ValueError):
            address = self.address()
            family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
            if self.kind == "UDP":
                with socket.socket(family, socket.SOCK_DGRAM) as client:
                    client.settimeout(0.5)
                    client.sendto(request.encode(), address)
                    return client.recv(100)
            with socket.socket(family) as client:
                client.settimeout(within)
                client.connect(address)
                client.sendall(request.encode())
                return read_all(client).rpartition(b"\n")[2]
        return b""

    def answered_by_another_than(self, pids: Iterable[int]) -> int:
        """The pid of a worker that answers, and is none of these."""
        found = []

        def answers() -> bool:
            answer = self.ask("print")
            if answer.isdigit() and int(answer) not in pids:
                found.append(int(answer))
            return bool(found)

        eventually(answers)
        return found[0]

    def master(self) -> int:
        with suppress(OSError, ValueError):
            return int((self.directory / "x.pid").read_text())
        return 0

    def close(self) -> None:
        for pid in {self.process.pid, self.master()} - {0}:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self.process.wait()
        for fd in (*self.outputs, self.gone):
            os.close(fd)


@pytest.mark.processes
@pytest.mark.parametrize("kind", LIVES)
def test_a_server_whose_output_is_not_read_lives_its_whole_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)  # a path of a UNIX socket is short
    life = Life(tmp_path, kind)
    try:
        worker = life.answered_by_another_than(())
        begun = time.monotonic()
        for _ in range(30):
            life.answered_by_another_than(())
        assert time.monotonic() - begun < 10  # if each waited, it would be 30 minutes
        life.ask("raise")
        os.kill(worker, signal.SIGKILL)
        life.answered_by_another_than([worker])
        master = life.process.pid
        for signum in (signal.SIGUSR1, signal.SIGHUP):
            os.kill(master, signum)
        worker = life.answered_by_another_than(children(master))
        os.kill(master, signal.SIGUSR2)
        eventually(lambda: life.master() not in (0, master))
        successor = life.master()
        assert life.process.wait(PATIENCE) == 0
        life.answered_by_another_than([worker])
        # The readers are back.
        outputs = [b"", b""]
        reading = [threading.Thread(target=read_to, args=(outputs, n, life)) for n in (0, 1)]
        for thread in reading:
            thread.start()
        for _ in range(4):
            life.answered_by_another_than(())
        os.kill(successor, signal.SIGQUIT)
        for thread in reading:
            thread.join(PATIENCE)
        assert select.select([life.gone], [], [], PATIENCE)[0], "a process is left"
        for said in outputs:
            assert re.search(rb"\((\d+) lines were lost\)\n", said), said[-2000:]
    finally:
        life.close()


def read_to(outputs: list[bytes], number: int, life: Life) -> None:
    """Read to the end, when the last process that may write there is gone."""
    while data := os.read(life.outputs[number], 65536):
        outputs[number] += data


@pytest.mark.processes
@pytest.mark.parametrize("target", ["nothing:app", "fails:app"])
def test_a_command_whose_output_is_not_read_ends_with_its_code(tmp_path: Path, target: str) -> None:
    (tmp_path / "fails.py").write_text("raise ValueError('no application')\n")
    ends = [os.pipe(), os.pipe()]
    for _, writer in ends:
        fill(writer)
    command = subprocess.Popen(
        [sys.executable, "-m", "prefork_server", "serve", target, "-b", "unix:s.sock"],
        stdout=ends[0][1],
        stderr=ends[1][1],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    try:
        assert command.wait(PATIENCE) == 3
    finally:
        command.kill()
        command.wait()
        for reader, writer in ends:
            os.close(reader)
            os.close(writer)


@pytest.mark.processes
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give up being root")
@pytest.mark.parametrize("flag", ["os.RWF_NOWAIT", "0"])
def test_workers_of_another_user_do_not_wait_for_the_reader_of_roots_pipe(
    tmp_path: Path, flag: str
) -> None:
    program = f"""
import os, socketserver, sys
sys.path.insert(0, {str(ROOT / "src")!r})
from prefork_server import PreforkTCPServer, output
output._NOWAIT = {flag}
class H(socketserver.StreamRequestHandler):
    def handle(self):
        for number in range(1000):
            print("x" * 90, flush=True)
        self.wfile.write(b"%d" % os.getuid())
class Server(PreforkTCPServer):
    def ready(self, addresses):
        os.write({{ready}}, addresses[0].encode() + b"\\n")
with Server(("127.0.0.1", 0), H, workers=2, user="nobody") as server:
    server.serve_forever()
"""
    (reader, writer), (told, ready) = os.pipe(), os.pipe()
    fill(writer)
    command = [sys.executable, "-c", program.replace("{ready}", str(ready))]
    server = subprocess.Popen(command, stdout=writer, pass_fds=[ready], cwd="/")
    try:
        host, _, port = os.read(told, 100).decode().strip().rpartition(":")
        for _ in range(10):
            with socket.create_connection((host, int(port)), PATIENCE) as client:
                assert read_all(client).isdigit()
        server.send_signal(signal.SIGQUIT)
        assert server.wait(PATIENCE) == 0
    finally:
        server.kill()
        server.wait()
        for fd in (reader, writer, told, ready):
            os.close(fd)
