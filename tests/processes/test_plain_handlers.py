"""Handlers written for http.server, served by PreforkHTTPServer and by a bare mix-in."""

import functools
import os
import socket
import socketserver
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from prefork_server import PreforkMixIn, Settings
from prefork_server.http import HTTPRequestHandler, PreforkHTTPServer
from prefork_server.testing import serving
from tests.conftest import PATIENCE, Starter, read_all

LAST = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
KEPT = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


class Plain(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.say(b"hello")

    def do_POST(self) -> None:
        self.say(self.rfile.read())

    def say(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def connected(handler: Any, kind: Any = PreforkHTTPServer) -> Iterator[socket.socket]:
    server = kind(("127.0.0.1", 0), handler, settings=Settings(workers=1))
    with serving(server) as address, socket.create_connection(address, PATIENCE) as client:
        yield client


def ask(handler: Any, asks: bytes = LAST, kind: Any = PreforkHTTPServer) -> bytes:
    with connected(handler, kind) as client:
        client.sendall(asks)
        return read_all(client)


@pytest.mark.parametrize(
    "wrong",
    [
        b"GET / HTTP/1.1\n\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        b"GET / HTTP/1.1\r\nHost: h\r\nX : y\r\n\r\n",
    ],
)
def test_only_what_is_a_request_by_the_rfc_arrives_at_a_plain_handler(wrong: bytes) -> None:
    assert ask(Plain, wrong).startswith(b"HTTP/1.1 400 ")


def test_a_plain_handler_reads_to_the_end_of_a_body_and_its_connection_is_kept() -> None:
    post = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    answers = ask(Plain, KEPT + post + LAST)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert answers.endswith(b"\r\n\r\nhello") and b"\r\n\r\nabcHTTP/1.1 " in answers


class ByName(Plain):
    """Calls the base class by its full name."""

    def setup(self) -> None:
        self.seen = ["setup"]
        super().setup()

    def send_response(self, code: int, message: str | None = None) -> None:
        BaseHTTPRequestHandler.send_response(self, code, message)

    def send_response_only(self, code: int, message: str | None = None) -> None:
        BaseHTTPRequestHandler.send_response_only(self, code, message)

    def send_header(self, keyword: str, value: str) -> None:
        self.seen.append(keyword)
        BaseHTTPRequestHandler.send_header(self, keyword, value)

    def end_headers(self) -> None:
        self.send_header("X-Seen", ",".join(self.seen))
        BaseHTTPRequestHandler.end_headers(self)


def test_a_class_that_calls_its_base_by_name_is_served_as_by_http_server() -> None:
    answers = ask(
        ByName, KEPT + b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi" + LAST
    )
    first, second, third = answers.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert b"\r\nX-Seen: setup,Server,Date,Content-Length\r\n\r\nhello" in first
    assert second.endswith(b"\r\n\r\nhi")
    assert b"\r\nConnection: close\r\n" in third and third.endswith(b"\r\n\r\nhello")


def test_what_cannot_stand_in_a_head_is_no_more_sent_by_the_name_of_the_base() -> None:
    class Splits(ByName):
        def do_GET(self) -> None:
            self.send_response(200)
            try:
                self.send_header("X", "y\r\nSet-Cookie: a=b")
            except ValueError:
                self.send_header("Content-Length", "7")
                self.end_headers()
                self.wfile.write(b"refused")

    answer = ask(Splits)
    assert answer.endswith(b"refused") and b"Set-Cookie" not in answer


class Shop(HTTPRequestHandler):
    def __init_subclass__(cls, *, greeting: bytes) -> None:
        cls.greeting = greeting

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.greeting)


class Polite(Shop, greeting=b"welcome"):
    pass


def test_a_class_whose_derived_classes_want_arguments_is_served() -> None:
    assert ask(Polite, KEPT + LAST).count(b"welcome") == 2


def test_a_request_to_a_handler_without_methods_is_a_501() -> None:
    assert ask(BaseHTTPRequestHandler).startswith(b"HTTP/1.0 501 ")


class Reads(Plain):
    def handle_one_request(self) -> None:
        self.wfile.write(self.rfile.readline() + str(isinstance(self, HTTPRequestHandler)).encode())
        self.close_connection = True


class Routes(Plain):
    def dispatch(self, verb: str) -> None:
        self.say(verb.encode())

    def do_GET(self) -> None:
        self.dispatch("routed")


class Unbuffered(Plain):
    rbufsize = 0

    def do_GET(self) -> None:
        self.say(os.read(self.rfile.fileno(), 3))


class OtherFiles(Plain):
    def setup(self) -> None:
        BaseHTTPRequestHandler.setup(self)
        self.wfile = self.connection.makefile("wb")


@pytest.mark.parametrize(
    ("handler", "asks", "answer"),
    [
        (Reads, b"nothing of HTTP\n", b"nothing of HTTP\nFalse"),
        (Routes, b"GET / HTTP/1.0\n\n", b"routed"),
        (Unbuffered, b"GET / HTTP/1.0\r\n\r\nabc", b"abc"),
        (OtherFiles, b"GET / HTTP/1.0\n\n", b"hello"),
    ],
)
def test_a_class_that_has_its_own_way_is_served_as_it_is(
    handler: Any, asks: bytes, answer: bytes
) -> None:
    assert ask(handler, asks).endswith(answer)


def test_under_a_bare_mix_in_a_plain_handler_is_what_it_was() -> None:
    kind = type("Server", (PreforkMixIn, HTTPServer), {})
    assert ask(Plain, b"GET / HTTP/1.0\n\n", kind).endswith(b"\r\n\r\nhello")


def test_files_are_served_from_the_directory_of_a_partial(tmp_path: Path) -> None:
    class Files(SimpleHTTPRequestHandler):
        disable_nagle_algorithm = True

        def end_headers(self) -> None:
            option = socket.IPPROTO_TCP, socket.TCP_NODELAY
            self.send_header("X-No-Delay", str(self.connection.getsockopt(*option) != 0))
            SimpleHTTPRequestHandler.end_headers(self)

        def log_message(self, *_: Any) -> None:
            pass

    (tmp_path / "big").write_bytes(b"x" * 1_000_000)
    handler = functools.partial(Files, directory=str(tmp_path))
    answer = ask(handler, LAST.replace(b"/", b"/big", 1))
    assert b"\r\nX-No-Delay: True\r\n" in answer and answer.endswith(b"\r\n\r\n" + b"x" * 1_000_000)


def test_a_plain_handler_logs_each_request_as_it_did(start: Starter) -> None:
    server = start("""
        from http.server import BaseHTTPRequestHandler
        from prefork_server.http import PreforkHTTPServer

        class Plain(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_error(404)

        serve(Plain, PreforkHTTPServer, workers=1)
    """).ready()
    assert b" 404 " in server.ask(b"GET /a HTTP/1.0\r\n\r\n")
    server.saw(r"127\.0\.0\.1 - - \[.*\] code 404, message ")
    server.saw(r'127\.0\.0\.1 - - \[.*\] "GET /a HTTP/1\.0" 404 -$')


def test_arguments_before_the_request_are_for_the_class_alone() -> None:
    class Greets(Plain):
        def __init__(self, greeting: bytes, *args: Any, mark: bytes) -> None:
            self.greeting, self.mark = greeting, mark
            super().__init__(*args)

        def do_GET(self) -> None:
            self.say(self.greeting + self.mark)

    handler = functools.partial(Greets, b"good day", mark=b"!")
    assert ask(handler, KEPT + LAST).count(b"\r\n\r\ngood day!") == 2
    assert ask(handler, b"GET / HTTP/1.1\n\n").startswith(b"HTTP/1.1 400 ")


def test_in_threads_of_the_class_a_plain_handler_is_served_by_ours() -> None:
    class Server(socketserver.ThreadingMixIn, PreforkHTTPServer):
        pass

    assert ask(Plain, KEPT + KEPT + LAST, Server).count(b"hello") == 3
    assert ask(Plain, b"GET / HTTP/1.1\n\n", Server).startswith(b"HTTP/1.1 400 ")
