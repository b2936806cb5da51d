"""What a handler says, and what its client gets; parked by our server, and held by another's."""

import array
import http.server
import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prefork_server.http import HTTPRequestHandler, Limits, PreforkHTTPServer
from prefork_server.testing import serving

from .conftest import PATIENCE, read_all

SERVERS = ["ours", "theirs"]


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
        self.wfile.write(b"dropped")

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
