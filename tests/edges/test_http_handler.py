"""What a handler says, and what its client gets; parked by our server, and held by another's."""

import array
import http.client
import http.server
import io
import logging
import os
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefork_server.http import HTTPRequestHandler, Limits, PreforkHTTPServer
from prefork_server.testing import serving
from tests.conftest import PATIENCE, read_all, soak

SERVERS = ["ours", "theirs"]
LAST = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


@contextmanager
def served(which: str, handler: Any) -> Iterator[Any]:
    """An address where the handler answers, in this process."""
    if which == "ours":
        server: Any = PreforkHTTPServer(("127.0.0.1", 0), handler, inline=True)
        with serving(server) as address:
            yield address
        return
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address
        finally:
            server.shutdown()
            thread.join()


def connected(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, PATIENCE)


Ask = Callable[..., bytes]


@pytest.fixture(params=SERVERS)
def ask(request: pytest.FixtureRequest) -> Ask:
    """The whole answer to one request, whose handler has these methods."""

    def one(
        *methods: Callable[[Any], object],
        asks: bytes = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        base: type = HTTPRequestHandler,
        **others: Any,
    ) -> bytes:
        named = {method.__name__: method for method in methods}
        quiet = {"log_error": lambda *_: None}
        handler = type("Handler", (base,), {**quiet, **named, **others})
        with served(request.param, handler) as address, connected(address) as client:
            client.sendall(asks)
            return read_all(client)

    return one


@pytest.mark.parametrize("which", SERVERS)
def test_a_body_that_nobody_reads_is_skipped_or_ends_the_connection(which: str) -> None:
    class Handler(HTTPRequestHandler):
        head_timeout = body_timeout = 0.3

        def do_POST(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_error(self, *_: Any) -> None:
            pytest.fail("there was no error")

    ask, rest = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n", bytes(10)
    with served(which, Handler) as address, connected(address) as client:
        for _ in range(2):
            client.sendall(ask)
            assert client.recv(1000).startswith(b"HTTP/1.1 204")
            client.sendall(rest)
        client.sendall(ask)
        assert read_all(client).startswith(b"HTTP/1.1 204")


def parts(answer: bytes) -> tuple[bytes, list[bytes], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *fields = head.split(b"\r\n")
    return first, [f for f in fields if not f.startswith((b"Server", b"Date"))], body


KEPT = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"


def test_an_answer_is_a_status_line_a_server_a_date_and_what_was_said(ask: Ask) -> None:
    def do_GET(self: Any) -> None:
        self.send_response(201)
        self.send_header("X", "y")
        self.send_header("Content-Length", 5)
        self.end_headers()
        self.wfile.write(b"hello")

    answer = ask(do_GET)
    assert b"\r\nServer: prefork_server\r\nDate: " in answer
    assert parts(answer) == (
        b"HTTP/1.1 201 Created",
        [b"X: y", b"Content-Length: 5", b"Connection: close"],
        b"hello",
    )


def test_without_a_length_the_body_goes_in_chunks(ask: Ask) -> None:
    def do_GET(self: Any) -> None:
        self.send_response(200, "Fine")
        self.end_headers()
        self.wfile.writelines([b"hello", b"", memoryview(b"wor"), b"ld"])

    first, fields, body = parts(ask(do_GET))
    assert first == b"HTTP/1.1 200 Fine"
    assert b"Transfer-Encoding: chunked" in fields
    assert body == b"5\r\nhello\r\n3\r\nwor\r\n2\r\nld\r\n0\r\n\r\n"


def test_to_a_client_of_http_1_0_it_goes_until_the_end(ask: Ask) -> None:
    def do_GET(self: Any) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")
        self.wfile.write(b"world")

    assert parts(ask(do_GET, asks=OLD))[1:] == ([b"Connection: close"], b"helloworld")
    answer = ask(do_GET, asks=KEPT, protocol_version="HTTP/1.0")
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
    assert parts(answer)[1:] == ([b"Connection: close"], b"helloworld")


def test_an_answer_without_a_body_says_so(ask: Ask) -> None:
    def do_GET(self: Any) -> None:
        self.send_response(404)
        self.end_headers()

    assert b"Content-Length: 0" in parts(ask(do_GET))[1]


@pytest.mark.parametrize("status", [204, 304, 205])
def test_where_there_can_be_no_body_none_is_sent(ask: Ask, status: int) -> None:
    def do_GET(self: Any) -> None:
        self.send_response(status)
        self.end_headers()

    _, fields, body = parts(ask(do_GET))
    assert body == b"" and not [f for f in fields if f.startswith(b"Content-Length")]
    # Where the connection goes on, a 205 has to say so: it could have a body.
    answer = ask(do_GET, asks=KEPT + LAST)
    assert answer.count(b"HTTP/1.1 %d" % status) == 2 and answer.endswith(b"close\r\n\r\n")
    assert answer.count(b"Content-Length: 0") == (status == 205)


def test_an_answer_to_head_has_the_fields_and_no_body(ask: Ask) -> None:
    def do_HEAD(self: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(b"dropped")

    errors: list[Any] = []
    asks = (KEPT + LAST).replace(b"GET", b"HEAD")
    answer = ask(do_HEAD, asks=asks, log_error=lambda *words: errors.append(words))
    assert not errors
    assert answer.count(b"Content-Length: 7\r\n") == 2
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b"dropped" not in answer


@pytest.mark.parametrize("written", [b"hello world", b"hell"])
def test_a_body_that_is_not_as_long_as_it_says_ends_the_connection(
    ask: Ask, written: bytes
) -> None:
    def do_GET(self: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        for at in range(0, len(written), 4):
            self.wfile.write(written[at : at + 4])

    assert parts(ask(do_GET, asks=KEPT + KEPT))[2] == written[:5]


def test_a_handler_may_make_its_chunks_itself(ask: Ask) -> None:
    def do_GET(self: Any) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"1\r\nx\r\n0\r\n\r\n")

    assert parts(ask(do_GET))[2] == b"1\r\nx\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X", "a\r\nSet-Cookie: b"),
        ("X y", "z"),
        ("X", "a\0"),
        ("X", "snow\u2603"),
        ("Content-Length", "-5"),
        ("Transfer-Encoding", "chunked"),  # the second of the two
    ],
)
def test_what_cannot_stand_in_a_head_is_an_error_of_the_handler(
    ask: Ask, name: str, value: str
) -> None:
    raised: list[BaseException] = []

    def do_GET(self: Any) -> None:
        self.send_response(200)
        try:
            if name == "Transfer-Encoding":
                self.send_header("Content-Length", "5")
            self.send_header(name, value)
        except ValueError as error:
            raised.append(error)
            self.close_connection = True
            self._reply.reset()
            self.send_error(500, explain="of ours")

    answer = ask(do_GET)
    assert raised and answer.startswith(b"HTTP/1.1 500 ")
    assert b"Set-Cookie" not in answer and b"of ours" in answer


def test_a_reason_that_would_be_two_lines_is_refused(ask: Ask) -> None:
    def do_GET(self: Any) -> None:
        try:
            self.send_response(200, "OK\r\nX: y")
        except ValueError:
            self.send_error(500)

    assert ask(do_GET).startswith(b"HTTP/1.1 500 ")


def test_an_interim_answer_leaves_before_the_final_one(ask: Ask) -> None:
    def do_GET(self: Any) -> None:
        self.send_response_only(103)
        self.send_header("Link", "</x>")
        self.end_headers()
        self.send_response(200)
        self.end_headers()

    assert ask(do_GET).startswith(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK")


def test_after_a_101_the_connection_is_the_handlers(ask: Ask) -> None:
    def do_GET(self: Any) -> None:
        self.send_response(101)
        self.send_header("Upgrade", "echo")
        self.send_header("Connection", "Upgrade")
        self.end_headers()
        self.wfile.flush()
        self.connection.sendall(self.connection.recv(5))

    asks = KEPT[:-2] + b"Connection: upgrade\r\nUpgrade: echo\r\n\r\n"
    handler = type("Handler", (HTTPRequestHandler,), {"do_GET": do_GET})
    for which in SERVERS:
        with served(which, handler) as address, connected(address) as client:
            client.sendall(asks)
            answer = client.recv(1000)
            assert parts(answer)[1:] == ([b"Upgrade: echo", b"Connection: Upgrade"], b"")
            client.sendall(b"hello")
            assert read_all(client) == b"hello"


def test_what_came_with_an_upgrade_is_the_first_that_is_read(ask: Ask) -> None:
    def do_GET(self: Any) -> None:
        self.send_response(101)
        self.send_header("Upgrade", "echo")
        self.send_header("Connection", "Upgrade")
        self.end_headers()
        self.wfile.write(self.rfile.readline() + self.rfile.read(5) + self.rfile.read())

    asks = KEPT[:-2] + b"Connection: upgrade\r\nUpgrade: echo\r\n\r\n" + b"with it\nGET /"
    handler = type("Handler", (HTTPRequestHandler,), {"do_GET": do_GET})
    for which in SERVERS:
        with served(which, handler) as address, connected(address) as client:
            client.sendall(asks)
            client.shutdown(socket.SHUT_WR)
            assert parts(read_all(client))[2] == b"with it\nGET /"


@pytest.mark.parametrize("wrong", [b"GET / HTTP/1.1\r\n folded", b"GET / FTP", b"GET /\r\n\r\n"])
def test_who_was_answered_once_is_told_all_the_same_what_is_wrong(ask: Ask, wrong: bytes) -> None:
    def do_GET(self: Any) -> None:
        self.send_response(204)
        self.end_headers()

    answer = ask(do_GET, asks=KEPT + wrong)
    assert answer.startswith(b"HTTP/1.1 204 ") and answer.count(b"HTTP/1.1 400 ") == 1


TUNNEL = b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"


def test_a_tunnel_is_the_handlers_from_the_head_of_its_answer_on(ask: Ask) -> None:
    def do_CONNECT(self: Any) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode() + self.rfile.read(len(KEPT)))

    first, fields, body = parts(ask(do_CONNECT, asks=TUNNEL + KEPT))
    assert (first, fields, body) == (b"HTTP/1.1 200 OK", [], b"a:1" + KEPT)


def test_what_follows_a_connect_is_never_a_request(ask: Ask) -> None:
    def do_CONNECT(self: Any) -> None:
        self.send_error(403)

    def do_GET(self: Any) -> None:
        raise AssertionError("this was no request")

    for methods, status in (((do_CONNECT, do_GET), b"403"), ((do_GET,), b"501")):
        answer = ask(*methods, asks=TUNNEL + KEPT)
        assert answer.startswith(b"HTTP/1.1 " + status) and answer.count(b"HTTP/1.1") == 1
        assert b"Connection: close" in answer


def test_a_head_can_be_sent_before_the_body_is_known(ask: Ask) -> None:
    def do_GET(self: Any) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
        with io.TextIOWrapper(self.wfile, write_through=True) as text:
            text.write("h\u00e4llo")

    assert parts(ask(do_GET))[2] == b"6\r\nh\xc3\xa4llo\r\n0\r\n\r\n"


def test_who_answers_nothing_is_answered_for(ask: Ask) -> None:
    assert ask(lambda self: None, asks=KEPT, do_GET=lambda self: None).startswith(b"HTTP/1.1 500 ")


def test_who_forgets_the_end_of_the_head_is_helped(ask: Ask) -> None:
    def do_GET(self: Any) -> None:
        self.send_response(204)

    assert ask(do_GET).startswith(b"HTTP/1.1 204 No Content\r\n")


def test_a_method_that_the_handler_does_not_have_is_not_implemented(ask: Ask) -> None:
    answer = ask(asks=b"BREW / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 501 ") and b"BREW" not in answer


def test_what_was_asked_is_there_as_http_server_has_it(ask: Ask) -> None:
    seen: dict[str, Any] = {}

    def do_POST(self: Any) -> None:
        names = "command path target request_version requestline client_address"
        seen.update({name: getattr(self, name) for name in names.split()})
        seen["headers"] = self.headers.items()
        seen["agent"] = self.headers["user-AGENT"], self.headers.get_content_type()
        seen["body"] = self.rfile.readline(), self.rfile.read(), self.rfile.read()
        self.send_response(204)
        self.end_headers()

    ask(
        do_POST,
        asks=b"POST //x?y HTTP/1.1\r\nHost: h\r\nUser-Agent:  me \r\nContent-Type: a/b; c=d\r\n"
        b"Content-Length: 8\r\nConnection: close\r\n\r\nab\ncdefg",
    )
    assert seen.pop("client_address")[0] == "127.0.0.1"
    assert seen.pop("headers")[:2] == [("Host", "h"), ("User-Agent", "me")]
    assert seen == {
        "command": "POST",
        "path": "/x?y",
        "target": "//x?y",
        "request_version": "HTTP/1.1",
        "requestline": "POST //x?y HTTP/1.1",
        "agent": ("me", "a/b"),
        "body": (b"ab\n", b"cdefg", b""),
    }


def test_of_a_target_with_a_host_the_path_is_seen(ask: Ask) -> None:
    def do_GET(self: Any) -> None:
        self.send_error(418, explain=self.path)

    asks = b"GET http://h/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    assert b"418 - /x." in ask(do_GET, asks=asks)


def test_a_class_may_refuse_a_body_before_it_is_sent(ask: Ask) -> None:
    def handle_expect_100(self: Any) -> bool:
        self.send_error(417)
        return False

    asks = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    answer = ask(handle_expect_100, asks=asks)
    assert answer.startswith(b"HTTP/1.1 417 ") and b"100 Continue" not in answer


def test_requests_are_logged_if_that_is_wanted(ask: Ask) -> None:
    lines: list[str] = []

    def do_GET(self: Any) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self: Any, words: str, *args: object) -> None:
        lines.append(words % args)

    ask(do_GET, log_message)
    assert lines == []
    ask(do_GET, log_message, logs_requests=True)
    assert lines == ['"GET / HTTP/1.1" 204 -']


def test_what_is_no_request_is_logged_without_one(ask: Ask) -> None:
    lines: list[str] = []

    def do_GET(self: Any) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self: Any, words: str, *args: object) -> None:
        lines.append(words % args)

    own = {"logs_requests": True, "log_error": HTTPRequestHandler.log_error}
    ask(do_GET, log_message, asks=b"GET / HTTP/1.1\r\n\r\n", **own)
    ask(do_GET, log_message, asks=KEPT + b"GET / HTTP/1.1\r\n\r\n", **own)
    refused = ["code 400, message Bad Request", '"" 400 -']
    assert lines == [*refused, '"GET / HTTP/1.1" 204 -', *refused]


@pytest.mark.parametrize("sent", [b"GET / HTTP/9.9\r\n\r\n", b"\x1b[2J\r\n\r\n", LAST])
def test_what_a_client_did_wrong_is_a_debug_line_and_none_on_stderr(
    ask: Ask, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], sent: bytes
) -> None:
    caplog.set_level(logging.DEBUG, "prefork_server")

    def do_GET(self: Any) -> None:
        self.send_error(404)

    capfd.readouterr()
    ask(do_GET, asks=sent, log_error=HTTPRequestHandler.log_error)
    said = [record for record in caplog.records if "code " in record.getMessage()]
    assert [record.levelname for record in said] == ["DEBUG"]
    assert said[0].getMessage().isprintable()
    assert "code 4" not in capfd.readouterr().err


def test_what_a_handler_says_of_itself_is_an_error_and_one_line(
    ask: Ask, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def do_GET(self: Any) -> None:
        self.log_error("no %s", "table\r\n12:00:00.000 INFO    master pid=1 stopped")
        self.log_message("of %s", "me\u2028\x9b\\x1b")
        self.send_response(204)
        self.end_headers()

    capfd.readouterr()
    ask(do_GET, log_error=HTTPRequestHandler.log_error)
    (said,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert said.getMessage().startswith("no table\\r\\n12:00")
    assert said.getMessage().isprintable()
    assert r"of me\u2028\x9b\\x1b" in capfd.readouterr().err


def test_there_are_limits_for_a_class_that_says_nothing_of_them() -> None:
    kind = HTTPRequestHandler
    assert kind.limits == Limits(8190, 8190, 100, 65536, 1 << 30, 4096)
    assert (kind.head_timeout, kind.body_timeout, kind.minimum_rate) == (10, 30, 500)
    assert (kind.write_timeout, kind.keep_alive_timeout, kind.max_requests) == (30, 5, 1000)


def test_an_overridden_log_request_is_called(ask: Ask) -> None:
    codes: list[int] = []

    def do_GET(self: Any) -> None:
        self.send_response(204)
        self.end_headers()

    def log_request(self: Any, code: int = 0, size: int = 0) -> None:
        codes.append(code)

    ask(do_GET, log_request)
    assert codes == [204]


def test_a_body_in_pieces_is_read_as_it_comes(ask: Ask) -> None:
    def do_POST(self: Any) -> None:
        body = self.rfile.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    body = os.urandom(300_000)
    head = b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
    asks = head + b"Content-Length: 300000\r\n\r\n" + body
    assert parts(ask(do_POST, asks=asks))[2] == body
    chunks = b"".join(b"2710\r\n%b\r\n" % body[at : at + 10000] for at in range(0, 300000, 10000))
    asks = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    assert parts(ask(do_POST, asks=asks))[2] == body
    small = type("Limits", (), {"limits": Limits(body=100_000)})
    answer = ask(do_POST, asks=asks, limits=small.limits)  # type: ignore[attr-defined]
    assert answer.startswith(b"HTTP/1.1 413 ")


# Files


class Files(HTTPRequestHandler, http.server.SimpleHTTPRequestHandler):
    pass


def test_files_are_sent_as_they_are(ask: Ask, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "big").write_bytes(content)
    (tmp_path / "dir").mkdir()

    def get(path: str, method: str = "GET") -> tuple[bytes, list[bytes], bytes]:
        asks = f"{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode()
        init = http.server.SimpleHTTPRequestHandler.__init__

        def __init__(self: Any, *args: Any) -> None:  # noqa: N807
            init(self, *args, directory=str(tmp_path))

        return parts(ask(__init__, asks=asks, base=Files))

    assert get("/big")[2] == content
    assert get("/big", "HEAD")[1:][1] == b""
    assert get("/none")[0].startswith(b"HTTP/1.1 404 ")
    assert b"big" in get("/")[2]
    assert b"Location: /dir/" in get("//dir")[1]  # and no other host's


def test_a_file_goes_out_by_other_ways_where_it_must(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")

    def do_GET(self: Any) -> None:
        self.send_response(200)
        self.end_headers()
        with (tmp_path / "file").open("rb") as file:
            self.wfile.sendfile(file, 2, 100)

    assert parts(ask(do_GET))[2] == b"8\r\n23456789\r\n0\r\n\r\n"

    def do_PUT(self: Any) -> None:
        copy = io.BytesIO()
        with (tmp_path / "file").open("rb") as file:
            self.copyfile(file, copy)  # which is not the answer
        self.send_error(418, explain=copy.getvalue().decode())

    asks = LAST.replace(b"GET", b"PUT")
    assert b"418 - 0123456789." in ask(do_PUT, asks=asks, base=Files)


def test_whoever_brings_files_of_his_own_has_the_standard_librarys_handler() -> None:
    class Quiet(HTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("X", "y")
            self.end_headers()
            self.wfile.write(b"body")

        def log_message(self, *_: Any) -> None:
            pass

    class Socketless(Quiet):
        def __init__(self) -> None:
            self.request, other = socket.socketpair()
            with self.request, other:
                self.setup()

    handler = Socketless()
    handler.rfile, handler.wfile = io.BytesIO(b"GET / HTTP/1.1\n\n"), io.BytesIO()
    handler.handle_one_request()
    answer = handler.wfile.getvalue()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b"X: y\r\n\r\nbody")
    handler.rfile = io.BytesIO(b"POST / HTTP/1.1\nExpect: 100-continue\n\n")
    handler.wfile = io.BytesIO()
    handler.handle_one_request()
    assert handler.wfile.getvalue().startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 501 ")
    handler.finish()


def test_what_is_no_socket_is_served_by_the_standard_librarys_handler(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")

    class Fake:  # as many a program's tests have it
        said = b""

        def makefile(self, *_: Any) -> io.BytesIO:
            return io.BytesIO(b"GET /file HTTP/1.0\r\n\r\n")

        def sendall(self, answer: bytes) -> None:
            self.said += answer

    class Logged(Files):
        def log_message(self, words: str, *args: object) -> None:
            lines.append(words % args)

    for fake in (Fake(), type("Closed", (Fake,), {"fileno": lambda self: -1})()):
        lines: list[str] = []
        request: Any = fake
        Logged(request, ("::1", 1), None, directory=str(tmp_path))  # type: ignore[arg-type]
        assert fake.said.startswith(b"HTTP/1.1 200 OK\r\n")
        assert fake.said.endswith(b"\r\n\r\ncontent")
        assert lines == ['"GET /file HTTP/1.0" 200 -']


# Who takes it slowly


def test_who_takes_a_file_slowly_gets_all_of_it(tmp_path: Path) -> None:
    size = 2 << 20
    (tmp_path / "file").write_bytes(bytes(size))

    class Sends(HTTPRequestHandler):
        write_timeout = 1.0  # at 0.8 MB a second a mebibyte takes longer

        def do_GET(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            with open(tmp_path / "file", "rb") as file:
                self.copyfile(file, self.wfile)

    taken = 0
    with served("ours", Sends) as address, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.settimeout(PATIENCE)
        client.connect(address)
        client.sendall(LAST)
        while piece := client.recv(32768):
            taken += len(piece)
            time.sleep(0.04)  # time itself is what is tested
    assert taken > size


def test_what_has_items_longer_than_a_byte_arrives_whole(ask: Ask) -> None:
    numbers = array.array("I", range(1 << 20))

    def do_GET(self: Any) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)  # so in parts
        self.send_response(200)
        self.send_header("Content-Length", str(4 * len(numbers)))
        self.end_headers()
        assert self.wfile.write(numbers) == 4 * len(numbers)

    first, _, body = parts(ask(do_GET))
    assert first == b"HTTP/1.1 200 OK" and body == numbers.tobytes()


# What a handler does wrong


def answers(data: bytes, method: str = "GET") -> list[Any]:
    """What a client reads on a kept connection: status and body of each answer. In the place of
    one that is cut or malformed stands the name of the error."""

    class Kept(io.BytesIO):
        def close(self) -> None:
            pass

    file = Kept(data)
    connection: Any = SimpleNamespace(makefile=lambda *_: file)
    found: list[Any] = []
    while file.tell() < len(data):
        answer = http.client.HTTPResponse(connection, method=method)
        try:
            answer.begin()
            found.append((answer.status, answer.read()))
        except http.client.HTTPException as error:
            return [*found, type(error).__name__]
    return found


def say(handler: Any, body: bytes, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def begin(handler: Any, *fields: tuple[str, str], status: int = 200) -> None:
    handler.send_response(status)
    for field in fields:
        handler.send_header(*field)
    handler.end_headers()


CHUNKS = ("Transfer-Encoding", "Chunked")


def makes_chunks(*pieces: bytes) -> Callable[[Any], None]:
    def do_GET(handler: Any) -> None:
        begin(handler, CHUNKS)
        handler.wfile.writelines(pieces)

    return do_GET


def writes(handler: Any, *pieces: bytes) -> None:
    for piece in pieces:
        handler.wfile.write(piece)


CUT = "IncompleteRead"
FAILED = (500, ...)
# What it does, what its client reads of that, and what the log says.
MISTAKES: dict[str, tuple[Callable[[Any], object], Any, str]] = {
    "an answer after an answer": (
        lambda h: (say(h, b"first"), say(h, b"more", 404)),
        (200, b"first"),
        "a 404 was begun after a 200, and was dropped",
    ),
    "an answer after the head of a 304": (
        lambda h: (begin(h, status=304), say(h, b"more")),
        FAILED,
        "a 200 was begun after a 304",
    ),
    "an answer in a chunked body": (
        lambda h: (begin(h), writes(h, b"half"), say(h, b"more", 201)),
        CUT,
        "a 201 was begun after a 200",
    ),
    "two status lines": (
        lambda h: (h.send_response(200), say(h, b"more", 404)),
        FAILED,
        "a 404 was begun after a 200",
    ),
    "an error page after an answer": (
        lambda h: (say(h, b"first"), h.send_error(503)),
        (200, b"first"),
        "a 503 was begun after a 200",
    ),
    "an error page in a body": (
        lambda h: (begin(h, ("Content-Length", "9")), writes(h, b"half"), h.send_error(500)),
        CUT,
        "a 500 was begun after a 200",
    ),
    "an interim answer in a body": (
        lambda h: (
            begin(h, ("Content-Length", "8")),
            writes(h, b"half"),
            h.send_response_only(102),
            h.end_headers(),
        ),
        CUT,
        "a 102 was begun after a 200",
    ),
    "a body of a 204": (
        lambda h: (begin(h, ("Content-Length", "3"), status=204), writes(h, b"abc")),
        (204, b""),
        "a 204 has no body",
    ),
    "a body of a 304": (
        lambda h: (begin(h, ("Content-Length", "3"), status=304), writes(h, b"abc")),
        (304, b""),
        "a 304 has no body",
    ),
    "a body before the status line": (
        lambda h: (writes(h, b"<html>"), say(h, b"more")),
        FAILED,
        "a body was written before end_headers()",
    ),
    "a body before the end of the head": (
        lambda h: (h.send_response(200), writes(h, b"more")),
        FAILED,
        "a body was written before end_headers()",
    ),
    "a head of its own": (
        lambda h: writes(h, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef"),
        FAILED,
        "a body was written before end_headers()",
    ),
    "a field before the status line": (
        lambda h: (h.send_header("X", "y"), say(h, b"more")),
        FAILED,
        "the field 'X' came before send_response()",
    ),
    "an end of a head that was not begun": (
        lambda h: h.end_headers(),
        FAILED,
        "end_headers() came before send_response()",
    ),
    "a field after a body": (
        lambda h: (say(h, b"first"), h.send_header("X", "y"), h.end_headers()),
        (200, b"first"),
        "the field 'X' came after the end of the head, and was dropped",
    ),
    "a field between chunks": (
        lambda h: (begin(h), writes(h, b"a"), h.send_header("X", "y"), writes(h, b"b")),
        (200, b"ab"),
        "the field 'X' came after the end of the head",
    ),
    "a length after the head": (
        lambda h: (begin(h), h.send_header("Content-Length", "1"), writes(h, b"ab")),
        (200, b"ab"),
        "the field 'Content-Length' came after the end of the head",
    ),
    "two ends of a head": (
        lambda h: (begin(h), h.end_headers(), writes(h, b"ab")),
        (200, b"ab"),
        "end_headers() came after the end of the head",
    ),
    "a body longer than it says": (
        lambda h: (begin(h, ("Content-Length", "3")), writes(h, b"ab", b"cd", b"HTTP/1.1 200")),
        (200, b"abc"),
        "a body is longer than its Content-Length",
    ),
    "a body after none": (
        lambda h: (begin(h, ("Content-Length", "0")), writes(h, b"HTTP/1.1 200 OK\r\n\r\n")),
        (200, b""),
        "a body is longer than its Content-Length",
    ),
    "a body shorter than it says": (
        lambda h: (begin(h, ("Content-Length", "3")), writes(h, b"ab")),
        CUT,
        "the body is 1 bytes shorter than its Content-Length",
    ),
    "no body where it says one": (
        lambda h: begin(h, ("Content-Length", "3")),
        FAILED,
        "the body is 3 bytes shorter than its Content-Length",
    ),
    "chunks without an end": (makes_chunks(b"2\r\nab\r\n"), CUT, "have no last chunk"),
    "no chunks": (makes_chunks(), FAILED, "have no last chunk"),
    "half a chunk": (makes_chunks(b"9\r\nab"), CUT, "have no last chunk"),
    "chunks that are none": (makes_chunks(b"plain text"), FAILED, "chunks are malformed"),
    "a chunk longer than it says": (
        makes_chunks(b"2\r\nab\r\n", b"1\r\ncd\r\n0\r\n\r\n"),
        CUT,
        "chunks are malformed: A chunk is not as long as it says.",
    ),
    "more after the last chunk": (
        makes_chunks(b"2\r\nab\r\n0\r\n", b"\r\nHTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1"),
        (200, b"ab"),
        "a body goes on after its last chunk",
    ),
    "nothing": (lambda h: None, FAILED, "nothing was answered"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_after_a_mistake_of_a_handler_no_byte_is_taken_for_the_next_answer(
    mistake: str, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    does, read, sentence = MISTAKES[mistake]

    def do_GET(self: Any) -> None:
        assert self.path == "/wrong", "the connection was kept"
        does(self)

    asks = KEPT.replace(b"/", b"/wrong", 1) + KEPT.replace(b"/", b"/next", 1)
    found = answers(ask(do_GET, asks=asks))
    assert len(found) == 1
    assert found[0] == read or (read is FAILED and found[0][0] == 500)
    lines = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert len(lines) == 1 and sentence in lines[0]
    assert '"GET /wrong HTTP/1.1" of 127.0.0.1:' in lines[0]


@pytest.mark.parametrize(
    "fields",
    [
        [("Content-Length", "5"), ("content-length", "5")],
        [("Content-Length", "5"), CHUNKS],
        [CHUNKS, ("Content-Length", "5")],
        [CHUNKS, CHUNKS],
        [("Transfer-Encoding", "identity")],
        [("Transfer-Encoding", "gzip, chunked")],
    ],
)
def test_a_second_way_to_frame_a_body_is_an_error_that_names_the_request(
    fields: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    class Handler(HTTPRequestHandler):
        def do_PUT(self) -> None:
            begin(self, *fields)
            self.wfile.write(b"hello")

        def log_error(self, *_: Any) -> None:
            pass

    asks = KEPT.replace(b"GET /", b"PUT /framed")
    with served("ours", Handler) as address, connected(address) as client:
        client.sendall(asks + asks)
        found = answers(read_all(client))
    assert [status for status, _ in found] == [500]
    first, second = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert "the answer is wrong" in first and '"PUT /framed HTTP/1.1" of 127.0.0.1:' in first
    assert "handler failed" in second and 'the request: "PUT /framed HTTP/1.1"' in caplog.text


def test_the_traceback_of_a_handler_names_the_request_also_of_an_error_that_is_raised_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = KeyError("of my own")
    error.add_note("and a note")

    class Handler(HTTPRequestHandler):
        def do_GET(self) -> None:
            raise error

        def log_error(self, *_: Any) -> None:
            pass

    with served("ours", Handler) as address:
        for path in (b"/first", b"/second"):
            with connected(address) as client:
                client.sendall(KEPT.replace(b"/", path, 1))
                assert answers(read_all(client))[0][0] == 500
    assert error.__notes__ == ["and a note", 'the request: "GET /second HTTP/1.1"']
    assert 'the request: "GET /first HTTP/1.1"' in caplog.text


class Random(HTTPRequestHandler):
    """Does anything, in any order; to /next it answers properly."""

    todo: list[tuple[str, Any]]

    def do_GET(self) -> None:
        if self.path == "/next":
            say(self, b"next")
            return
        for name, args in self.todo:
            getattr(self if hasattr(self, name) else self.wfile, name)(*args)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def log_error(self, *_: Any) -> None:
        pass


def random_deeds(draw: random.Random) -> list[tuple[str, Any]]:
    statuses: list[Any] = [200, 200, 200, 201, 204, 205, 304, 404, 500, 100, 103, "204", 99]
    fields = [
        *(("Content-Length", str(size)) for size in (0, 3, 5, 9)),
        *(("Transfer-Encoding", coding) for coding in ("chunked", "CHUNKED", "gzip")),
        ("X", "y"),
        ("Connection", "keep-alive"),
        ("X", "a\r\nY: z"),
    ]
    other = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad"
    pieces = [b"", b"abc", b"hello", b"5\r\nhel", b"lo\r\n", b"0\r\n\r\n", b"\r\n", b"x" * 70000]
    pieces += [other, b"3\r\nabc\r\n0\r\n\r\n" + other]
    deeds: dict[str, Callable[[], Any]] = {
        "send_response": lambda: (draw.choice(statuses),),
        "send_response_only": lambda: (draw.choice(statuses),),
        "send_header": lambda: draw.choice(fields),
        "end_headers": lambda: (),
        "write": lambda: (draw.choice(pieces),),
        "writelines": lambda: ([draw.choice(pieces), draw.choice(pieces)],),
        "flush": lambda: (),
        "send_error": lambda: (draw.choice((404, 204, 103)),),
    }
    names = ["send_response", *["send_header"] * draw.randrange(3), "end_headers"]
    names += ["write"] * draw.randrange(3)
    if draw.random() < 0.7:
        names.insert(draw.randrange(len(names)), draw.choice([*deeds]))
        names.insert(draw.randrange(len(names)), draw.choice([*deeds]))
    return [(name, deeds[name]()) for name in names]


@pytest.mark.soak
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_whatever_a_handler_does_the_second_answer_is_that_to_the_second_request(
    version: str,
) -> None:
    draw = random.Random(version)
    kept = 0
    with served("ours", Random) as address:
        for _ in range(soak(300, 10_000)):
            Random.todo = random_deeds(draw)
            method = draw.choice(["GET", "GET", "HEAD", "POST"])
            start = f"{method} / HTTP/{version}\r\nHost: h\r\nConnection: keep-alive\r\n\r\n"
            with connected(address) as client:
                client.sendall(start.encode() + LAST.replace(b"/", b"/next", 1))
                answer = b""
                try:
                    while data := client.recv(65536):
                        answer += data
                except ConnectionResetError:
                    assert version == "1.0", Random.todo
            heads = re.split(rb"\r\n(?=HTTP/1.1 [1-5])", answer)
            interim = b"".join(head + b"\r\n" for head in heads if head.startswith(b"HTTP/1.1 1"))
            assert version == "1.1" or not interim
            final = answer.removeprefix(interim) if answer.startswith(interim) else answer
            _, *rest = answers(final, method) or [(0, b"")]
            if method == "HEAD" and rest:  # of the second one the body is there
                rest = answers(final.partition(b"\r\n\r\n")[2])
            assert rest in ([], [(200, b"next")]), (Random.todo, answer)
            kept += bool(rest)
    print(version, kept, "kept")
    assert kept > 15


def test_no_interim_answer_is_sent_to_http_1_0_and_none_has_a_length(ask: Ask) -> None:
    def do_GET(self: Any) -> None:
        self.send_response_only(103)
        self.send_header("Content-Length", "5")
        self.send_header("Link", "</x>")
        self.end_headers()
        say(self, b"final")

    answer = ask(do_GET)
    assert answer.startswith(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n")
    answer = ask(do_GET, asks=OLD)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answers(answer) == [(200, b"final")]


def test_to_http_1_0_no_protocol_is_switched(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    answer = ask(lambda self: None, asks=OLD, do_GET=lambda self: begin(self, status=101))
    assert answer.startswith(b"HTTP/1.1 500 ") and "a 101 is not for HTTP/1.0" in caplog.text


@pytest.mark.parametrize("status", [204, 205, 304])
def test_without_a_body_there_is_no_framing_of_one(ask: Ask, status: int) -> None:
    def do_GET(self: Any) -> None:
        begin(self, CHUNKS, status=status)

    assert b"transfer-encoding" not in ask(do_GET).lower()

    def do_PUT(self: Any) -> None:
        begin(self, ("content-Length", "3"), status=status)

    answer = ask(do_PUT, asks=LAST.replace(b"GET", b"PUT"))
    assert (b"content-length: 3" in answer.lower()) == (status == 304)  # what a GET would have


def test_chunks_of_a_handler_are_decoded_for_http_1_0(ask: Ask) -> None:
    def do_GET(self: Any) -> None:
        begin(self, CHUNKS)
        writes(self, b"5;a=b\r\nhel", b"lo\r\n6\r\n", b" world\r\n0\r\nT: v\r\n\r\n")

    assert parts(ask(do_GET, asks=OLD))[1:] == ([b"Connection: close"], b"hello world")
    assert answers(ask(do_GET)) == [(200, b"hello world")]


def test_a_write_of_nothing_is_nothing(ask: Ask) -> None:
    def do_GET(self: Any) -> None:
        begin(self)
        writes(self, b"", b"hello")

    assert answers(ask(do_GET, asks=KEPT + LAST)) == [(200, b"hello")] * 2


@pytest.mark.parametrize("status", ["204", 99, 1000, 2.5])
def test_a_status_is_a_number_of_three_digits(ask: Ask, status: Any) -> None:
    def do_GET(self: Any) -> None:
        try:
            self.send_response(status)
        except ValueError:
            say(self, b"refused")

    assert answers(ask(do_GET)) == [(200, b"refused")]


def test_a_client_that_is_gone_is_no_mistake_of_a_handler_that_does_not_mind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed = threading.Event()

    class Handler(HTTPRequestHandler):
        def do_GET(self) -> None:
            begin(self, ("Content-Length", "1000000000"))
            try:
                for _ in range(1000):
                    self.wfile.write(bytes(1_000_000))
            except OSError:
                failed.set()

    with served("ours", Handler) as address, connected(address) as client:
        client.sendall(KEPT)
        client.recv(1000)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert failed.wait(PATIENCE)
        with connected(address) as other:  # answered after the end of the first one
            other.sendall(KEPT)
            assert other.recv(12) == b"HTTP/1.1 200"
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


@pytest.mark.parametrize("which", SERVERS)
def test_half_an_answer_whose_end_is_that_of_the_connection_ends_in_a_reset(which: str) -> None:
    class Handler(HTTPRequestHandler):
        def do_GET(self) -> None:
            begin(self)
            writes(self, b"one", b"two")
            if self.path == "/half":
                raise ConnectionResetError("of another connection")

    for old in (OLD.replace(b"/", b"/half", 1), LAST.replace(b"/", b"/half", 1)):
        Handler.protocol_version = (
            "HTTP/1.1" if old.startswith(b"GET /half HTTP/1.0") else "HTTP/1.0"
        )
        with served(which, Handler) as address:
            with connected(address) as client:
                client.sendall(old)
                with pytest.raises(ConnectionResetError):
                    read_all(client)
            with connected(address) as client:
                client.sendall(OLD)
                assert read_all(client).endswith(b"\r\n\r\nonetwo")
