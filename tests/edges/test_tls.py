"""TLS: the same promises, for a program that wraps its listener or each connection."""

import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import trustme

from prefork_server.tls import Terms, TLSConnection, adopt
from tests.edges.test_connection import PAUSE, Worker, each_waits_and_beats, later


@pytest.fixture(scope="module")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


def drop(client: ssl.SSLSocket) -> None:
    """End without a goodbye, and without a reset either."""
    socket.socket.shutdown(client, socket.SHUT_WR)


# Without a process


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.bell.close()


Pair = Callable[..., tuple[TLSConnection, ssl.SSLSocket]]


@pytest.fixture
def pair(
    worker: Worker, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> Iterator[Pair]:
    with ExitStack() as stack:

        def make(
            patience: float | None = 5.0, ragged: bool = True
        ) -> tuple[TLSConnection, ssl.SSLSocket]:
            plain, other = worker.connect(patience)
            ours = Terms(server_context, True, ragged).wrap(plain, worker)
            assert isinstance(ours, TLSConnection) and plain.fileno() == -1
            made: list[ssl.SSLSocket] = []
            client = threading.Thread(
                target=lambda: made.append(
                    client_context.wrap_socket(other, server_hostname="localhost")
                )
            )
            client.start()
            ours.do_handshake()
            client.join()
            worker.beats = 0
            return stack.enter_context(ours), stack.enter_context(made[0])

        yield make


def test_every_way_to_read_waits_and_beats(worker: Worker, pair: Pair) -> None:
    ours, theirs = pair()
    buffer = bytearray(10)
    ways = [
        lambda: ours.recv(10),
        lambda: bytes(buffer[: ours.recv_into(buffer)]),
        lambda: ours.read(10),
        lambda: ours.makefile("rb", 0).read(10),
    ]
    each_waits_and_beats(worker, theirs, ways)


def test_a_silent_client_is_a_timeout_by_the_client(worker: Worker, pair: Pair) -> None:
    ours, _ = pair(patience=5 * PAUSE)
    for read in (lambda: ours.recv(1), lambda: ours.sendall(bytes(10_000_000))):
        with pytest.raises(TimeoutError, match="timed out") as error:
            read()
        assert error.value.by_client  # type: ignore[attr-defined]
    assert worker.beats >= 8


def test_its_timeout_is_its_own_and_0_does_not_wait(pair: Pair) -> None:
    ours, theirs = pair(patience=None)
    assert ours.gettimeout() is None and ours.timeout is None and ours.getblocking()
    ours.settimeout(2 * PAUSE)
    with pytest.raises(TimeoutError):
        ours.recv(1)
    ours.settimeout(0)
    assert not ours.getblocking()
    with pytest.raises(ssl.SSLWantReadError) as error:
        ours.recv(1)
    assert not hasattr(error.value, "by_client")
    with pytest.raises(ValueError, match="0 or more"):
        ours.settimeout(-1)
    with pytest.raises(TypeError, match="cannot pickle"):
        ours.__getstate__()
    ours.setblocking(True)
    theirs.sendall(b"x")
    assert ours.recv(1) == b"x"


def test_all_is_sent_to_a_slow_reader(pair: Pair, tmp_path: Path) -> None:
    ours, theirs = pair()
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    received = bytearray()
    reader = threading.Thread(
        target=lambda: [received.extend(c) for c in iter(lambda: theirs.recv(65536), b"")]
    )
    reader.start()
    ours.sendall(data)
    with open(tmp_path / "file", "rb") as file:
        assert ours.sendfile(file, 5, 2_000_000) == 2_000_000
    with ours.makefile("wb") as writer:
        writer.write(data)
    assert ours.write(b"end") == 3
    ours.shutdown(socket.SHUT_WR)
    reader.join()
    assert received == data + data[5:2_000_005] + data + b"end"


def test_what_can_be_done_now_is_done_and_nothing_is_waited_for(worker: Worker, pair: Pair) -> None:
    ours, theirs = pair()
    assert ours.recv_now(10) is None
    theirs.sendall(b"words")
    assert ours.recv_now(3) == b"wor" and ours.pending() == 2
    assert ours.recv_now(10) == b"ds" and ours.recv_now(10) is None
    with ours.without_waiting(), pytest.raises(BlockingIOError):
        ours.recv(10)
    assert ours.send_now(b"answer") == 6 and theirs.recv(10) == b"answer"
    sent = 0
    while count := ours.send_now(bytes(1 << 20)):
        sent += count
    got = 0
    while got < sent:
        got += len(theirs.recv(sent - got))
    assert ours.send_now(bytes(1 << 20)) == 1 << 16  # what was begun goes on with the same
    socket.socket.shutdown(theirs, socket.SHUT_RDWR)
    with pytest.raises(OSError) as error:
        while True:
            ours.send_now(b"x")
    assert error.value.by_client and worker.beats == 0  # type: ignore[attr-defined]


def test_who_changes_its_keys_and_takes_no_answer_is_not_waited_for(pair: Pair) -> None:
    ours, _ = pair()

    def wants(*_: object) -> None:
        raise ssl.SSLWantWriteError

    vars(ours)["_attempt"] = wants
    with pytest.raises(ConnectionAbortedError) as error:
        ours.recv_now(10)
    assert error.value.by_client  # type: ignore[attr-defined]


def test_after_its_goodbye_what_still_comes_is_read_from_below(pair: Pair) -> None:
    ours, theirs = pair()
    ours.shutdown(socket.SHUT_WR)
    theirs.sendall(b"nobody can read this")
    assert ours.recv_now(65536) and ours.recv_now(65536) is None and ours.pending() == 0
    drop(theirs)
    assert ours.recv_now(10) == b""


def test_lines_are_read_through_makefile(pair: Pair) -> None:
    ours, theirs = pair()
    with ours.makefile("rb") as file:
        later(lambda: theirs.sendall(b"one\ntw"))
        assert file.readline() == b"one\n"
        later(lambda: theirs.sendall(b"o\n"))
        assert file.readline() == b"two\n"


def test_who_has_asked_for_nothing_reads_as_the_end_when_the_worker_is_to_go(
    worker: Worker, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefork_server.sockets.connection.FAREWELL", 4 * PAUSE)
    ours, theirs = pair()
    later(worker.retire)
    assert ours.recv(10) == ours.recv(10) == b""
    assert ours.recv_into(bytearray(10)) == 0
    theirs.sendall(b"late, and yet in time")
    assert ours.recv(100) == b"late, and yet in time"
    later(lambda: theirs.sendall(b"ing"), after=8 * PAUSE)
    assert ours.recv(10) == b"ing"  # it had begun to ask


def test_who_has_only_connected_is_let_go_in_the_handshake(
    worker: Worker, server_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefork_server.sockets.connection.FAREWELL", 2 * PAUSE)
    worker.retire()
    plain, other = worker.connect(None)
    with other, Terms(server_context, True, True).wrap(plain, worker) as ours:
        with pytest.raises(ConnectionAbortedError) as error:
            ours.do_handshake()
        assert error.value.by_client  # type: ignore[attr-defined]


def test_a_handshake_that_trickles_in_is_given_up(
    worker: Worker, server_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefork_server.tls.HANDSHAKE", 10 * PAUSE)
    plain, other = worker.connect(None)
    hello = b"\x16\x03\x01\x02\x00" + bytes(512)

    def trickle() -> None:
        with suppress(OSError):
            for at in range(len(hello)):
                other.send(hello[at : at + 1])
                select.select([], [], [], PAUSE)

    client = threading.Thread(target=trickle)
    client.start()
    with other:
        with Terms(server_context, True, True).wrap(plain, worker) as ours:
            with pytest.raises(TimeoutError) as error:
                ours.do_handshake()
            assert error.value.by_client and ours.gettimeout() is None  # type: ignore[attr-defined]
        client.join()
    assert worker.beats >= 8


def test_nonsense_is_by_the_client(
    worker: Worker, pair: Pair, server_context: ssl.SSLContext
) -> None:
    plain, other = worker.connect()
    with other, Terms(server_context, True, True).wrap(plain, worker) as ours:
        other.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(ssl.SSLError) as error:
            ours.do_handshake()
        assert error.value.by_client  # type: ignore[attr-defined]
    ours, theirs = pair()
    with socket.socket(fileno=os.dup(theirs.fileno())) as below:
        below.sendall(b"in the middle of it, too")
    with pytest.raises(ssl.SSLError) as error:
        ours.recv(10)
    assert error.value.by_client  # type: ignore[attr-defined]


def test_an_end_without_goodbye_is_the_end_or_an_error_as_was_asked_for(pair: Pair) -> None:
    for ragged in (True, False):
        ours, theirs = pair(ragged=ragged)
        drop(theirs)
        if ragged:
            assert ours.recv(10) == b"" and ours.recv_into(bytearray(10)) == 0
        else:
            with pytest.raises(ssl.SSLEOFError) as error:
                ours.recv(10)
            assert error.value.by_client  # type: ignore[attr-defined]


def test_after_unwrap_it_speaks_and_waits_in_plain(worker: Worker, pair: Pair) -> None:
    ours, theirs = pair()
    plain: list[socket.socket] = []
    client = threading.Thread(target=lambda: plain.append(theirs.unwrap()))
    client.start()
    assert ours.unwrap() is ours
    client.join()
    worker.beats = 0
    for read in (lambda: ours.recv(10), lambda: ours.recv_into(bytearray(10))):
        later(lambda: plain[0].sendall(b"plain"))
        assert read() in (b"plain", 5)
    assert worker.beats > 3
    ours.sendall(b"too")
    assert plain[0].recv(10) == b"too"


def test_who_answers_no_goodbye_is_not_waited_for_for_ever(worker: Worker, pair: Pair) -> None:
    ours, _ = pair(patience=5 * PAUSE)
    with pytest.raises(TimeoutError) as error:
        ours.unwrap()
    assert error.value.by_client and worker.beats >= 4  # type: ignore[attr-defined]


def test_flags_are_refused_as_ssl_refuses_them(pair: Pair) -> None:
    ours, _ = pair()
    for operation in (
        lambda: ours.recv(1, socket.MSG_PEEK),
        lambda: ours.recv_into(bytearray(1), 1, socket.MSG_PEEK),
        lambda: ours.send(b"x", socket.MSG_OOB),
    ):
        with pytest.raises(ValueError, match="non-zero flags not allowed"):
            operation()


def test_a_class_of_the_programs_own_stays_what_it_is(worker: Worker) -> None:
    class Theirs(ssl.SSLSocket):
        pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslsocket_class = Theirs
    plain, other = worker.connect()
    with other, context.wrap_socket(plain, True, False) as sock:
        assert adopt(sock, worker, 1) is sock and type(sock) is Theirs
