"""The access log: one line for each answer, of what was really sent, and whole."""

import logging
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from prefork_server import HTTPRequestHandler, PreforkHTTPServer, PreforkWSGIServer
from prefork_server.http import Limits
from prefork_server.testing import serving
from tests.certificates import make_certificate
from tests.conftest import PATIENCE, eventually, read_all

COMBINED = re.compile(
    r"(?P<host>\S+) - - \[(?P<time>\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "
    r'"(?P<line>[ -~]*)" (?P<status>\d{3}|-) (?P<size>\d+|-) '
    r'"(?P<referer>[ -~]*)" "(?P<agent>[ -~]*)"'
)
LAST = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
HELLO = b"GET /hello?a HTTP/1.1\r\nHost: h\r\nReferer: http://r/ \r\nuser-agent: me\r\n\r\n"

Lines = Callable[[], list[dict[str, str]]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """What was logged, each line taken apart."""
    caplog.set_level(logging.INFO, "prefork_server.access")

    def found() -> list[dict[str, str]]:
        records = [r for r in caplog.records if r.name == "prefork_server.access"]
        matches = [COMBINED.fullmatch(r.getMessage()) for r in records]
        assert all(matches), caplog.text
        assert {r.levelname for r in records} <= {"INFO"}
        return [match.groupdict() for match in matches if match]

    return found


class Handler(HTTPRequestHandler):
    access_log = True
    head_timeout = 0.3
    write_timeout = 0.5
    limits = Limits(body=1000)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:  # in chunks
        self.send_response(201)
        self.end_headers()
        self.wfile.write(self.rfile.read())
        self.wfile.write(b"more")

    def do_DELETE(self) -> None:
        raise KeyError("of the handler")

    def do_PUT(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "20000000")
        self.end_headers()
        self.wfile.write(b"x" * 20_000_000)

    def log_error(self, *_: Any) -> None:
        pass


def asked(request: bytes, handler: type = Handler) -> bytes:
    server = PreforkHTTPServer(("127.0.0.1", 0), handler, inline=True)
    with serving(server) as address, socket.create_connection(address, PATIENCE) as client:
        client.sendall(request)
        return read_all(client)


def test_it_is_off_by_default(lines: Lines) -> None:
    asked(LAST, type("Quiet", (Handler,), {"access_log": False}))
    assert lines() == []


def test_a_line_says_who_asked_what_and_how_much_he_got(lines: Lines) -> None:
    before = int(time.time())
    post = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab"
    head = b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"
    asked(HELLO + post + head + b"GET / HTTP/1.0\r\n\r\n")
    first, *others = lines()
    when = time.mktime(time.strptime(first.pop("time")[:20], "%d/%b/%Y:%H:%M:%S"))
    assert before <= when <= time.time()
    assert first == {
        "host": "127.0.0.1",
        "line": "GET /hello?a HTTP/1.1",
        "status": "200",
        "size": "5",
        "referer": "http://r/",
        "agent": "me",
    }
    assert [(each["line"], each["status"], each["size"], each["agent"]) for each in others] == [
        ("POST /x HTTP/1.1", "201", "6", "-"),
        ("HEAD / HTTP/1.1", "200", "-", "-"),
        ("GET / HTTP/1.0", "200", "5", "-"),
    ]


@pytest.mark.parametrize(
    ("request_", "status", "line"),
    [
        (b"GET /\r\n\r\n", "400", "GET /"),
        (b"GET /x", "408", "GET /x"),
        (b'GET /"\x00\xe9\\ HTTP/1.1\r\n\r\n', "400", r"GET /\"\x00\xe9\\ HTTP/1.1"),
        (b"\x16\x03\x01", "400", r"\x16\x03\x01"),
        (b"BREW / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "501", "BREW / HTTP/1.1"),
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n",
            "413",
            "POST / HTTP/1.1",
        ),
        (b"DELETE / HTTP/1.1\r\nHost: h\r\n\r\n", "500", "DELETE / HTTP/1.1"),
    ],
)
def test_what_was_refused_or_failed_has_a_line_too(
    lines: Lines, request_: bytes, status: str, line: str
) -> None:
    asked(request_)
    (found,) = lines()
    assert (found["status"], found["line"]) == (status, line)
    assert int(found["size"]) > 100  # the page that says why


def test_after_an_answer_what_is_no_request_is_refused_and_logged_as_itself(lines: Lines) -> None:
    kept = b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"
    answer = asked(kept + b"\x16\x03")
    assert b"HTTP/1.1 400 " in answer and answer.endswith(b"</html>\n")
    assert [each["line"] for each in lines()] == ["HEAD / HTTP/1.1", r"\x16\x03"]


def test_who_says_nothing_has_no_line(lines: Lines) -> None:
    class Hasty(PreforkHTTPServer):
        defer_accept = 0

    server = Hasty(("127.0.0.1", 0), Handler, inline=True)
    with serving(server) as address:
        for said in (b"", b"\r\n"):
            with socket.create_connection(address, PATIENCE) as client:
                client.sendall(said)
                client.shutdown(socket.SHUT_WR)
                read_all(client)
    assert lines() == []


@pytest.mark.parametrize("over", ["tcp", "tls"])
def test_of_a_client_that_left_only_what_was_sent_is_counted(
    lines: Lines, tmp_path: Path, over: str
) -> None:
    trusting = make_certificate(tmp_path)
    ours: dict[str, Any] = {"inline": True}
    if over == "tls":
        ours["certfile"] = tmp_path / "server.pem"
    (tmp_path / "file").write_bytes(b"x" * 20_000_000)

    def files(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"]((tmp_path / "file").open("rb"))

    def chunks(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return (b"x" * 1_000_000 for _ in range(20))

    put = b"PUT / HTTP/1.1\r\nHost: h\r\n\r\n"
    servers: list[tuple[Any, bytes]] = [(PreforkHTTPServer(("127.0.0.1", 0), Handler, **ours), put)]
    for app in (files, chunks):
        server = PreforkWSGIServer(("127.0.0.1", 0), app, access_log=True, **ours)
        servers.append((server, LAST))
    for n, (server, request) in enumerate(servers, start=1):
        with serving(server) as address:
            with ExitStack() as stack:
                client = stack.enter_context(socket.create_connection(address, PATIENCE))
                if over == "tls":
                    client = stack.enter_context(
                        trusting.wrap_socket(client, server_hostname="localhost")
                    )
                client.sendall(request)
                got = 0
                while got < 1_000_000:  # over TLS it is counted by the piece: more than one
                    got += len(client.recv(100_000))
            eventually(lambda n=n: len(lines()) == n)  # type: ignore[misc]
        assert lines()[-1]["status"] == "200"
        assert 1000 < int(lines()[-1]["size"]) < 19_000_000


def test_who_leaves_before_anything_was_answered_has_status_499(lines: Lines) -> None:
    class Leaving(Handler):
        def do_GET(self) -> None:
            error = ConnectionResetError()
            error.by_client = True  # type: ignore[attr-defined]
            raise error

    server = PreforkHTTPServer(("127.0.0.1", 0), Leaving, inline=True)
    with serving(server) as address, socket.create_connection(address, PATIENCE) as client:
        client.sendall(LAST)
        assert read_all(client) == b""
    assert [(each["status"], each["size"]) for each in lines()] == [("499", "-")]


def test_a_proxy_is_not_the_client(lines: Lines) -> None:
    class Behind(Handler):
        forwarded_from = ("127.0.0.1",)

    kept = HELLO[:-2] + b"X-Forwarded-For: 203.0.113.9\r\n\r\n"
    asked(kept + b"GET /\r\n\r\n", Behind)
    assert [each["host"] for each in lines()] == ["203.0.113.9", "127.0.0.1"]


def test_every_value_is_bounded_and_a_line_fits_into_a_pipe_in_one_piece(lines: Lines) -> None:
    long = b"\xe9" * 8000
    asked(b"GET /%b HTTP/1.1\r\nReferer: %b\r\nUser-Agent: %b\r\n\r\n" % (long, long, long))
    (found,) = lines()
    assert sum(map(len, found.values())) < 4000
    assert found["referer"].startswith(r"\xe9\xe9") and len(found["referer"]) <= 1024


@pytest.mark.parametrize("name", ["", "client"])
def test_a_unix_client_has_a_word_for_an_address(lines: Lines, tmp_path: Path, name: str) -> None:
    path = str(tmp_path / "s")
    server = PreforkHTTPServer(f"unix:{path}", Handler, inline=True)
    with serving(server), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        if name:
            client.bind(str(tmp_path / name))
        client.connect(path)
        client.sendall(LAST)
        read_all(client)
    assert [each["host"] for each in lines()] == ["unix:"]
