"""What the servers run: one echo and one web application, in the manner of each server.

An echo message is answered with itself. Its first byte says how many milliseconds of pure
Python come before the answer, its second whether the connection ends after it. The web
application answers ``/`` and a POST with 13 bytes, ``/file`` with 1 MiB from a file,
``/compute/MS`` and ``/sleep/MS`` with the 13 bytes after so many milliseconds, and, over
WSGI, ``/flask`` by Flask.
"""

import asyncio
import os
import shutil
import socketserver
import time
from collections.abc import Awaitable, Callable, Iterable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, cast

from prefork_server.http import HTTPRequestHandler

BODY = b"Hello, World!"
FILE = Path(os.environ.get("BENCH_FILE", "/dev/null"))  # of FILE_SIZE, made by the runner
FILE_SIZE = 1 << 20
LOOPS = int(os.environ.get("BENCH_LOOPS", "0"))  # of spin() in a millisecond, on this machine
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (
    13,
    BODY,
)  # of the bare protocols, which compute nothing
PIECE = 1 << 16


def spin(loops: int) -> int:
    """Pure Python, which holds the GIL all the time."""
    total = 0
    for number in range(loops):
        total += number * number % 7
    return total


def loops_in_a_millisecond() -> int:
    """The best of many tries: other programs can only slow it down."""
    loops, best_ns = 10_000, 1 << 62
    for _ in range(50):
        begin = time.perf_counter_ns()
        spin(loops)
        best_ns = min(best_ns, time.perf_counter_ns() - begin)
    return loops * 1_000_000 // best_ns


def toil(path: str) -> None:
    """The work that a path asks for before the answer."""
    _, kind, *rest = path.split("/")
    if rest and kind == "compute":
        spin(LOOPS * int(rest[0]))
    elif rest:
        time.sleep(int(rest[0]) / 1000)


# For socketserver, ours and the standard library's.


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while message := self.request.recv(1024):
            if message[0]:
                spin(message[0] * LOOPS)
            self.request.sendall(message)
            if message[1]:
                return


class EchoDatagram(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        message, sock = self.request
        sock.sendto(message, self.client_address)


class _Web:
    """``do_GET`` and ``do_POST`` in the manner of http.server."""

    copyfile: Callable[[Any, Any], None]

    def do_GET(self: Any) -> None:
        if self.path == "/file":
            with FILE.open("rb") as file:
                self._begin(FILE_SIZE)
                self.copyfile(file, self.wfile)
            return
        if self.path != "/":
            toil(self.path)
        self._begin(len(BODY))
        self.wfile.write(BODY)

    def do_POST(self: Any) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._begin(len(BODY))
        self.wfile.write(BODY)

    def _begin(self: Any, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(length))
        self.end_headers()


class Web(_Web, HTTPRequestHandler):
    copyfile = HTTPRequestHandler.copyfile


class PlainWeb(_Web, BaseHTTPRequestHandler):
    """The standard library's, as it is but for HTTP/1.1 and its log."""

    protocol_version = "HTTP/1.1"
    copyfile = staticmethod(shutil.copyfileobj)

    def log_message(self, *_: Any) -> None:
        pass


class BufferedWeb(PlainWeb):
    """Its head and body leave in one piece, so the body waits for no acknowledgement."""

    wbufsize = -1


# For servers of WSGI and ASGI.


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/flask":
        return _flask()(environ, start_response)
    if path == "/file":
        start_response("200 OK", [*_FIELDS, ("Content-Length", str(FILE_SIZE))])
        wrap = environ.get("wsgi.file_wrapper", _pieces)
        return cast(Iterable[bytes], wrap(FILE.open("rb"), PIECE))
    if environ["REQUEST_METHOD"] == "POST":
        environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    elif path != "/":
        toil(path)
    start_response("200 OK", [*_FIELDS, ("Content-Length", str(len(BODY)))])
    return [BODY]


_FIELDS = [("Content-Type", "text/plain")]
_made: list[Callable[..., Iterable[bytes]]] = []


def _flask() -> Callable[..., Iterable[bytes]]:
    if not _made:
        import flask  # of those who asked for it, once a process

        app = flask.Flask("benchmarks")

        @app.get("/flask")
        def hello() -> flask.Response:
            return flask.Response(BODY, content_type="text/plain")

        _made.append(app)
    return _made[0]


def _pieces(file: Any, size: int) -> Iterable[bytes]:
    with file:
        yield from iter(lambda: file.read(size), b"")


Send = Callable[[dict[str, Any]], Awaitable[None]]


async def asgi(scope: Any, receive: Callable[[], Awaitable[dict[str, Any]]], send: Send) -> None:
    path = scope["path"]
    size = FILE_SIZE if path == "/file" else len(BODY)
    if scope["method"] == "POST":
        while (await receive()).get("more_body"):
            pass
    if path.startswith("/sleep/"):
        await asyncio.sleep(int(path.removeprefix("/sleep/")) / 1000)
    elif path.startswith("/compute/"):
        toil(path)
    fields = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % size)]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    if path == "/file":
        for piece in _pieces(FILE.open("rb"), PIECE):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    else:
        await send({"type": "http.response.body", "body": BODY})


# For event loops: the least that answers at all.


class EchoProtocol(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data[0]:
            spin(data[0] * LOOPS)
        self.transport.write(data)
        if data[1]:
            self.transport.close()


class WebProtocol(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(HEAD)
        if b"\r\nConnection: close" in data:
            self.transport.close()


class EchoDatagramProtocol(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)
