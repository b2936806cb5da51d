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
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from prefork_server import daemon, output
from prefork_server.forks import fork
from prefork_server.logfiles import speaking
from prefork_server.output import Output, cover, flush_streams, unhindered
from tests.conftest import PATIENCE, eventually


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
        socket.setdefaulttimeout(1000)
        try:
            out.write(b"a line\n")
            assert os.get_blocking(theirs.fileno())  # the description is shared with others
            fill(theirs.fileno())
            out.write(b"lost\n")
        finally:
            socket.setdefaulttimeout(None)
        assert ours.recv(7) == b"a line\n"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("controlling", [True, False])
def test_a_terminal_of_another_user_is_written_to_and_not_waited_for(controlling: bool) -> None:
    ours, terminal = pty.openpty()
    ended, end = os.pipe()
    pid = fork()
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
    child = fork()
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
