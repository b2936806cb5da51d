"""Promise 4, at the edge: waiting for a client gives signs of life, and ends."""

import array
import io
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from prefork_server import Connection
from prefork_server.signals import Bell

PAUSE = 0.02


class Worker:
    """What a connection sees of one."""

    def __init__(self) -> None:
        self.beats = 0
        self.over = False
        self.bell = Bell()
        self.wake_fd, self.hush, self.pause = self.bell.fileno(), self.bell.hush, PAUSE

    def is_over(self) -> bool:
        return self.over

    def beat(self) -> None:
        self.beats += 1

    def retire(self) -> None:
        self.over = True
        self.bell.ring()

    def connect(self, patience: float | None = 5.0) -> tuple[Connection, socket.socket]:
        ours, theirs = socket.socketpair()
        family, kind = int(ours.family), int(ours.type)
        return self.attend(Connection(family, kind, 0, ours.detach()), patience), theirs

    def attend(self, ours: Connection, client_timeout: float | None) -> Connection:
        ours.watch = self
        ours.settimeout(client_timeout)
        return ours


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.bell.close()


def later(action: "threading._Timer | object", *, after: float = 3 * PAUSE) -> threading.Timer:
    timer = threading.Timer(after, action)  # type: ignore[arg-type]
    timer.start()
    return timer


def each_waits_and_beats(
    worker: Worker, theirs: socket.socket, ways: Iterable[Callable[[], bytes]]
) -> None:
    for way in ways:
        worker.beats = 0
        timer = later(lambda: theirs.sendall(b"word"))
        assert way() == b"word"
        timer.join()
        assert worker.beats >= 3


def test_every_way_to_read_waits_and_beats(worker: Worker) -> None:
    ours, theirs = worker.connect()
    buffer = bytearray(10)
    ways = [
        lambda: ours.recv(10),
        lambda: bytes(buffer[: ours.recv_into(buffer)]),
        lambda: ours.recvfrom(10)[0],
        lambda: bytes(buffer[: ours.recvfrom_into(buffer)[0]]),
        lambda: ours.recvmsg(10)[0],
        lambda: bytes(buffer[: ours.recvmsg_into([buffer])[0]]),
        lambda: ours.makefile("rb", 0).read(10),
    ]
    with ours, theirs:
        each_waits_and_beats(worker, theirs, ways)


def test_a_silent_client_is_a_timeout_and_the_worker_beats_meanwhile(worker: Worker) -> None:
    ours, theirs = worker.connect(patience=5 * PAUSE)
    with ours, theirs:
        with pytest.raises(TimeoutError, match="timed out") as error:
            ours.recv(1)
        assert error.value.by_client  # type: ignore[attr-defined]
        assert 4 <= worker.beats <= 8


def test_the_limit_is_for_one_silence_and_not_for_all(worker: Worker) -> None:
    ours, theirs = worker.connect(patience=10 * PAUSE)
    with ours, theirs:
        for _ in range(5):
            later(lambda: theirs.sendall(b"."), after=4 * PAUSE)
            assert ours.recv(1) == b"."


def test_settimeout_means_this_connections_own_limit(worker: Worker) -> None:
    ours, theirs = worker.connect(patience=None)
    with ours, theirs:
        assert ours.gettimeout() is None and ours.timeout is None
        ours.settimeout(2 * PAUSE)
        assert ours.gettimeout() == ours.timeout == 2 * PAUSE
        with pytest.raises(TimeoutError):
            ours.recv(1)
        ours.settimeout(5)
        assert repr(ours.gettimeout()) == "5.0"  # as a socket's
        with pytest.raises(ValueError, match="0 or more, or None, not -1"):
            ours.settimeout(-1)
        ours.settimeout(0)
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        assert not os.get_blocking(ours.fileno()) and not ours.getblocking()
        ours.setblocking(True)
        assert ours.gettimeout() is None and os.get_blocking(ours.fileno())
        assert ours.getblocking()


def test_waitall_waits_for_all_of_it_in_slices(worker: Worker) -> None:
    ours, theirs = worker.connect()
    with ours, theirs:
        theirs.sendall(b"half")
        later(lambda: theirs.sendall(b", half"))
        assert ours.recv(10, socket.MSG_WAITALL) == b"half, half"
        theirs.sendall(b"short")
        theirs.close()
        buffer = bytearray(10)
        assert ours.recv_into(buffer, 0, socket.MSG_WAITALL) == 5
    assert worker.beats > 3


def test_a_peek_takes_nothing(worker: Worker) -> None:
    ours, theirs = worker.connect()
    with ours, theirs:
        theirs.sendall(b"word")
        assert ours.recv(10, socket.MSG_PEEK) == ours.recv(10) == b"word"


def test_a_client_that_does_not_read_is_waited_for_and_then_given_up(worker: Worker) -> None:
    ours, theirs = worker.connect(patience=5 * PAUSE)
    with ours, theirs:
        with pytest.raises(TimeoutError):
            ours.sendall(bytes(10_000_000))
        assert worker.beats >= 4


@pytest.mark.parametrize(
    "data", [bytes(range(256)) * 20_000, array.array("L", range(600_000))], ids=["bytes", "array"]
)
def test_sendall_sends_all_to_a_slow_reader(
    worker: Worker, data: "bytes | array.array[int]"
) -> None:
    ours, theirs = worker.connect()
    received = bytearray()

    def read() -> None:
        while chunk := theirs.recv(65536):
            received.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        reader.join()
    assert received == bytes(data)


def test_sendmsg_sends_its_buffers(worker: Worker) -> None:
    ours, theirs = worker.connect()
    with ours, theirs:
        assert ours.sendmsg(iter([b"one ", b"two"])) == 7
        assert theirs.recv(10) == b"one two"


def test_a_file_is_sent_whole_to_a_slow_reader(worker: Worker, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    ours, theirs = worker.connect()
    with ours, theirs, open(tmp_path / "file", "rb") as file:
        received = bytearray()
        reader = threading.Thread(
            target=lambda: [received.extend(c) for c in iter(lambda: theirs.recv(65536), b"")]
        )
        reader.start()
        assert ours.sendfile(file, 5, 2_000_000) == 2_000_000
        assert file.tell() == 2_000_005
        assert ours.sendfile(file, 2_999_990) == 10
        assert ours.sendfile(io.BytesIO(b"not a real one")) == 14
        ours.shutdown(socket.SHUT_WR)
        reader.join()
        assert os.get_blocking(ours.fileno())
        assert received == content[5:2_000_005] + content[-10:] + b"not a real one"
        ours.settimeout(0)
        with pytest.raises(ValueError, match="its timeout is 0"):
            ours.sendfile(file)


def test_a_slow_reader_of_a_file_is_given_up(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10_000_000))
    ours, theirs = worker.connect(patience=5 * PAUSE)
    with ours, theirs, open(tmp_path / "file", "rb") as file:
        with pytest.raises(TimeoutError):
            ours.sendfile(file)
        assert worker.beats >= 4


# When the worker is to go


def test_a_client_that_was_answered_and_is_silent_reads_as_the_end(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefork_server.sockets.connection.FAREWELL", 4 * PAUSE)
    ours, theirs = worker.connect()
    with ours, theirs:
        theirs.sendall(b"ask")
        assert ours.recv(10) == b"ask"
        ours.sendall(b"answer")
        timer = later(worker.retire)
        assert ours.recv(10) == b""  # at the end of its patience this would raise
        timer.join()
        theirs.sendall(b"late, and yet in time")
        assert ours.recv(100) == b"late, and yet in time"


def test_who_has_begun_to_ask_is_waited_for(worker: Worker) -> None:
    ours, theirs = worker.connect()
    with ours, theirs:
        theirs.sendall(b"ask")
        assert ours.recv(10) == b"ask"
        worker.retire()
        later(lambda: theirs.sendall(b"ing"))
        assert ours.recv(10) == b"ing"
        ours.settimeout(2 * PAUSE)
        with pytest.raises(TimeoutError):
            ours.recv(10)


def test_who_has_only_connected_gets_a_second(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefork_server.sockets.connection.FAREWELL", 4 * PAUSE)
    worker.retire()
    ours, theirs = worker.connect()
    with ours, theirs:
        assert ours.recv(10) == b""
        later(lambda: theirs.sendall(b"at last"), after=PAUSE)
        assert ours.recv(10) == b"at last"


def test_who_answers_a_question_of_the_worker_is_heard_even_then(worker: Worker) -> None:
    ours, theirs = worker.connect()
    with ours, theirs:
        theirs.sendall(b"may I?")
        assert ours.recv(10) == b"may I?"
        ours.sendall(b"go on")  # as in 100-continue, or SMTP's 354
        worker.retire()
        later(lambda: theirs.sendall(b"the body"))
        assert ours.recv(10) == b"the body"


def test_a_default_timeout_of_the_program_does_not_hide_below_ours(worker: Worker) -> None:
    socket.setdefaulttimeout(60)
    try:
        ours, theirs = worker.connect(patience=5 * PAUSE)
    finally:
        socket.setdefaulttimeout(None)
    with ours, theirs:
        assert os.get_blocking(ours.fileno())
        with pytest.raises(TimeoutError):
            ours.recv(1)
        assert worker.beats >= 4


def test_a_reply_is_finished_even_then(worker: Worker) -> None:
    ours, theirs = worker.connect()
    worker.retire()
    with ours, theirs:
        timer = later(lambda: theirs.recv(5_000_000, socket.MSG_WAITALL))
        ours.sendall(bytes(5_000_000))
        timer.join()


def test_a_bell_that_rings_for_something_else_changes_nothing(worker: Worker) -> None:
    ours, theirs = worker.connect()
    with ours, theirs:
        worker.bell.ring()
        later(lambda: theirs.sendall(b"word"))
        assert ours.recv(10) == b"word"


# What it still is


def test_it_is_a_socket_for_everybody_else(worker: Worker) -> None:
    ours, theirs = worker.connect(patience=3)
    with ours, theirs:
        assert isinstance(ours, socket.socket)
        copy = ours.dup()
        with copy:
            assert type(copy) is socket.socket and copy.gettimeout() == 3
        readable, writable, _ = select.select([ours], [ours], [], 0)
        assert not readable and writable
        with pytest.raises(TypeError, match="cannot pickle"):
            ours.__getstate__()
        ours.settimeout(None)
        subprocess.run(
            [sys.executable, "-c", "print('from a program')"], stdout=ours, check=True, timeout=20
        )
        assert theirs.recv(100) == b"from a program\n"


def test_it_can_be_wrapped_for_tls(worker: Worker) -> None:
    ours, theirs = worker.connect(patience=0.1)
    with theirs:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with pytest.raises((TimeoutError, ssl.SSLError)), ours:
            context.wrap_socket(ours, server_side=True)


def test_lines_are_read_through_makefile(worker: Worker) -> None:
    ours, theirs = worker.connect()
    with ours, theirs, ours.makefile("rwb") as file:
        later(lambda: theirs.sendall(b"one\ntw"))
        assert file.readline() == b"one\n"
        later(lambda: theirs.sendall(b"o\n"))
        assert file.readline() == b"two\n"


def test_out_of_band_data_does_not_spin(worker: Worker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        ours = worker.attend(Connection(2, 1, 0, accepted.detach()), 10 * PAUSE)
        with ours, theirs:
            theirs.send(b"!", socket.MSG_OOB)
            with pytest.raises(TimeoutError):
                ours.recv(1)
            assert worker.beats < 20


@pytest.fixture
def full_queue(worker: Worker, tmp_path: Path) -> Iterator[tuple[Connection, socket.socket]]:
    """An unconnected UNIX datagram socket, and a client that does not read, whose queue is full."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.bind(str(tmp_path / "client"))
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours = worker.attend(Connection(int(plain.family), int(plain.type), 0, plain.detach()), 0)
        with ours, pytest.raises(BlockingIOError):
            while True:
                ours.sendto(b"x", client.getsockname())
        plain = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with worker.attend(
            Connection(int(plain.family), int(plain.type), 0, plain.detach()), 0.3
        ) as answering:
            yield answering, client


def test_a_datagram_client_that_does_not_read_is_given_up_and_costs_no_cpu(
    worker: Worker, full_queue: tuple[Connection, socket.socket]
) -> None:
    answering, client = full_queue
    before = worker.beats
    with pytest.raises(TimeoutError) as raised:  # though poll says that there is room
        answering.sendto(b"x", client.getsockname())
    assert vars(raised.value)["by_client"]
    assert 3 < worker.beats - before < 50  # and not as often as the CPU can


def test_a_datagram_client_that_reads_late_is_answered(
    full_queue: tuple[Connection, socket.socket],
) -> None:
    answering, client = full_queue
    answering.settimeout(20)
    timer = later(lambda: client.recv(10))
    assert answering.sendto(b"late", client.getsockname()) == 4
    timer.join()


def test_foreign_code_that_sets_o_nonblock_below_is_obeyed(worker: Worker) -> None:
    ours, theirs = worker.connect()
    with ours, theirs:
        os.set_blocking(ours.fileno(), False)
        with pytest.raises(BlockingIOError):
            ours.recv(10)
        with pytest.raises(BlockingIOError):
            while True:
                ours.send(b"x" * 65536)


def test_one_thread_may_read_without_waiting_while_others_wait(worker: Worker) -> None:
    ours, theirs = worker.connect()
    heard: list[bytes] = []
    with ours, theirs:
        with ours.without_waiting():
            with pytest.raises(BlockingIOError):
                ours.recv(10)
            thread = threading.Thread(target=lambda: heard.append(ours.recv(10)))
            thread.start()
            theirs.sendall(b"to it")
            thread.join()
        assert heard == [b"to it"]
