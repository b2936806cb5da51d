"""Many clients that mean no good, or nothing, at a real server: nobody else notices them."""

import os
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE, Server, Starter, read_all, soak
from tests.edges.test_wire_h11 import SEED, mutated
from tests.processes.test_http import GET, HTTP, LAST, Client
from tests.wire_reader import ways

REQUESTS = int(os.environ.get("MUTATIONS", soak(1000, 100_000)))


@pytest.fixture
def two_workers(start: Starter, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server with two workers, which are there at the end as they were at the beginning."""
    monkeypatch.setenv("WORKERS", "2")
    servers: dict[Server, list[int]] = {}

    def one(program: str = "serve_http()") -> Server:
        server = start(HTTP + f"\n    {program}\n").all_ready(2)
        servers[server] = server.workers()
        return server

    yield one
    for server, workers in servers.items():
        for _ in range(4):
            ask(server)
        assert server.workers() == workers
        assert "Traceback" not in server.log


def ask(server: Server) -> None:
    """A good request is answered. Whoever is in its way here is so for ten minutes."""
    with server.connect() as client:
        client.sendall(LAST)
        assert read_all(client).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.soak
def test_thousands_of_mutated_requests_hurt_no_worker_and_are_all_answered_or_closed(
    two_workers: Any,
) -> None:
    server = two_workers()
    wrong: list[tuple[bytes, bytes]] = []
    statuses: set[int] = set()

    def send(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(REQUESTS // 4):
            raw = mutated(chance)
            parts = [raw] if chance.random() < 0.9 else list(ways(raw, seed))[chance.randrange(4)]
            answer = b""
            with server.connect() as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    for part in parts:
                        client.sendall(part)
                    client.shutdown(socket.SHUT_WR)
                    answer = read_all(client)
                except ConnectionError:
                    pass  # it was closed in the middle of what is no request
                except TimeoutError:
                    answer = b"it hangs"
            begun = re.findall(rb"^HTTP/1\.1 ([1-5][0-9]{2}) ", answer, re.MULTILINE)
            statuses.update(map(int, begun))
            if b"Traceback" in answer or (answer and not answer.startswith(b"HTTP/1.1 ")):
                wrong.append((raw, answer))

    threads = [threading.Thread(target=send, args=(SEED + number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(REQUESTS, "mutated requests, statuses", sorted(statuses))
    assert not wrong, wrong[:3]
    assert {200, 400, 501} <= statuses  # it was no monologue
    assert 500 not in statuses


@pytest.mark.parametrize("handler", ["Hello", "Plain"])
@pytest.mark.parametrize("deferred", [True, False])
@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHos"])
def test_five_hundred_who_say_nothing_or_half_of_it_keep_nobody_out(
    two_workers: Any, said: bytes, deferred: bool, handler: str
) -> None:
    program = "" if deferred else "PreforkHTTPServer.defer_accept = 0; "
    server = two_workers(program + HOLDING.replace("()", f"({handler})"))
    with ExitStack() as stack:
        silent = [stack.enter_context(server.connect()) for _ in range(500)]
        for client in silent:
            client.sendall(said)
        for _ in range(20):
            ask(server)
        for client in silent:  # and may say the rest when they like
            client.sendall(GET[len(said) :])
            assert client.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


HOLDING = (
    "Hello.head_timeout = Hello.keep_alive_timeout = HTTPRequestHandler.head_timeout = 600\n"
    "    serve_http()"
)


def test_five_hundred_who_are_kept_leave_a_place_for_the_next_one(two_workers: Any) -> None:
    server = two_workers(HOLDING)
    kept = [Client(server) for _ in range(500)]
    try:
        for client in kept:
            client.get()
        ask(server)
        for client in kept:
            client.get()
    finally:
        for client in kept:
            client.close()


# One client, who is slow, gone, or too much


def test_a_body_that_trickles_in_is_not_waited_for(two_workers: Any) -> None:
    server = two_workers("Hello.body_timeout = 0.5; serve_http()")
    client = Client(server)
    client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 999999\r\n\r\n")
    begun = time.monotonic()
    client.socket.settimeout(0.02)
    answer = b""
    while not answer:
        client.send(b"x")  # of 500 a second buy one
        try:
            answer = client.socket.recv(65536)
        except TimeoutError:
            continue
    client.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - begun < PATIENCE / 2


def test_who_says_that_this_was_all_is_answered_and_nothing_after_it(two_workers: Any) -> None:
    server = two_workers()
    for asks, answers in ((GET, 1), (GET + LAST, 2), (LAST + GET, 1), (LAST + b"\0" * 9999, 1)):
        client = Client(server)
        client.send(asks).socket.shutdown(socket.SHUT_WR)
        assert client.rest().count(b"HTTP/1.1 200 OK\r\n") == answers
        client.close()


def test_who_is_gone_before_his_turn_is_nobodys_error(start: Starter, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    server = start(
        HTTP
        + """
    def do_GET(self):
        print("in the handler")
        if self.path == "/hold":
            with open("gate") as gate:
                gate.read()
        self.answer(b"x" * 1_000_000)  # too much for a buffer that nobody reads
    Hello.do_GET = do_GET
    serve_http()
"""
    ).ready()
    held = Client(server).send(GET.replace(b"/ ", b"/hold "))
    server.saw("in the handler")
    for _ in range(100):
        with server.connect() as client:
            client.sendall(GET)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    (tmp_path / "gate").write_text("go")
    assert held.answer()[0] == 200
    held.close()
    ask(server)
    assert "handler failed" not in server.log


def test_a_refused_upload_of_any_length_has_its_answer(two_workers: Any) -> None:
    server = two_workers("Hello.limits = Limits(body=1000); serve_http()")
    body = b"x" * 20_000_000
    for _ in range(20):
        with server.connect() as client:
            with suppress(ConnectionError):
                client.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 20000000\r\n\r\n")
                client.sendall(body)
            assert client.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_what_goes_in_and_out_is_never_all_in_memory(two_workers: Any, tmp_path: Path) -> None:
    size = 1 << 28
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(size)
    server = two_workers("""
    class Files(HTTPRequestHandler, SimpleHTTPRequestHandler):
        def do_POST(self):
            count = 0
            while piece := self.rfile.read(65536):
                count += len(piece)
            Hello.answer(self, b"%d" % count)
    serve_http(Files)
""")

    def most() -> int:
        status = [Path(f"/proc/{pid}/status").read_text() for pid in server.workers()]
        return max(int(found[1]) for s in status if (found := re.search(r"VmHWM:\s+(\d+)", s)))

    before = most()  # KiB
    piece = b"x" * (1 << 20)
    for framing in (b"Content-Length: %d" % size, b"Transfer-Encoding: chunked"):
        client = Client(server).send(b"POST / HTTP/1.1\r\nHost: h\r\n%b\r\n\r\n" % framing)
        head, end = (b"100000\r\n", b"\r\n") if b"chunked" in framing else (b"", b"")
        for _ in range(size >> 20):
            client.send(head + piece + end)
        client.send(b"0\r\n\r\n" if end else b"")
        assert client.answer()[2] == b"%d" % size
        client.close()
    with server.connect() as reader:
        reader.sendall(LAST.replace(b"/ ", b"/sparse "))
        got, buffer = 0, bytearray(1 << 20)
        while count := reader.recv_into(buffer):
            got += count
    assert got > size
    assert most() - before < 8192
