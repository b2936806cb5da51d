"""A test that freezes the time does not keep a server from its deadlines, or its stop."""

import asyncio
import socket
import socketserver
import time
from collections.abc import Callable
from typing import Any

import pytest

from prefork_server import PreforkTCPServer, PreforkWSGIServer
from prefork_server.aio import PreforkAsyncioServer
from prefork_server.testing import serving
from tests.conftest import PATIENCE, read_all


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"%d %d" % (time.time(), time.monotonic()))


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"%d %d" % (time.time(), time.monotonic())]


async def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"%d %d" % (time.time(), time.monotonic()))
    writer.close()


KINDS: dict[str, Callable[[], Any]] = {
    "handler": lambda: PreforkTCPServer("127.0.0.1:0", Handler, workers=2),
    "threads": lambda: PreforkTCPServer("127.0.0.1:0", Handler, workers=1, threads=2),
    "inline": lambda: PreforkTCPServer("127.0.0.1:0", Handler, inline=True),
    "application": lambda: PreforkWSGIServer("127.0.0.1:0", application, workers=1),
    "asyncio": lambda: PreforkAsyncioServer("127.0.0.1:0", callback, workers=1, loop="asyncio"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_ends_though_the_clock_stands_still(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    # The code of the test sees the frozen time, in the workers, too.
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    monkeypatch.setattr(time, "monotonic", lambda: 12345.0)
    monkeypatch.setattr(time, "monotonic_ns", lambda: 12345 * 10**9)
    with (
        serving(KINDS[kind](), timeout=PATIENCE) as address,
        socket.create_connection(address, PATIENCE) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert read_all(client).endswith(b"1000000000 12345")
