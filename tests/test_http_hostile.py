"""Many clients that mean no good, or nothing, at a real server: nobody else notices them."""

import os
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from .conftest import PATIENCE, Server, Starter, read_all
from .test_http import GET, HTTP, LAST, Client
from .test_wire_h11 import SEED, mutated
from .wire_reader import ways

pytestmark = pytest.mark.processes

REQUESTS = int(os.environ.get("MUTATIONS", "5000"))
AT_ONCE = 2.0  # seconds at most; on an idle machine it is a millisecond


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
            assert asked(server) < AT_ONCE
        assert server.workers() == workers
        assert "Traceback" not in server.log


def asked(server: Server) -> float:
    """The seconds that a good request takes, which comes now."""
    begun = time.monotonic()
    with server.connect() as client:
        client.sendall(LAST)
        assert read_all(client).startswith(b"HTTP/1.1 200 OK\r\n")
    return time.monotonic() - begun


@pytest.mark.timeout(3600)
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
    assert not wrong, wrong[:3]
    assert {200, 400, 501} <= statuses  # it was no monologue
    assert 500 not in statuses


@pytest.mark.parametrize("deferred", [True, False])
@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHos"])
def test_five_hundred_who_say_nothing_or_half_of_it_keep_nobody_out(
    two_workers: Any, said: bytes, deferred: bool
) -> None:
    server = two_workers(("" if deferred else "PreforkHTTPServer.defer_accept = 0; ") + HOLDING)
    with ExitStack() as stack:
        silent = [stack.enter_context(server.connect()) for _ in range(500)]
        for client in silent:
            client.sendall(said)
        first = [asked(server) for _ in range(20)]
        assert max(first) < AT_ONCE
        for client in silent:  # and may say the rest when they like
            client.sendall(GET[len(said) :])
            assert client.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


HOLDING = "Hello.head_timeout = Hello.keep_alive_timeout = 600; serve_http()"


def test_five_hundred_who_are_kept_leave_a_place_for_the_next_one(two_workers: Any) -> None:
    server = two_workers(HOLDING)
    kept = [Client(server) for _ in range(500)]
    try:
        for client in kept:
            client.get()
        assert asked(server) < AT_ONCE
        begun = time.monotonic()
        for client in kept:
            client.get()
        assert time.monotonic() - begun < PATIENCE
    finally:
        for client in kept:
            client.close()
