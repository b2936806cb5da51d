"""respond(): a whole answer in one call, the same bytes as the calls that it stands for."""

import re
import time
from collections.abc import Iterable
from typing import Any

import pytest

from prefork_server import HTTPRequestHandler
from tests.conftest import read_all
from tests.edges.test_http_handler import SERVERS, Ask, answers, ask, connected, parts, served

__all__ = ["ask"]

KEPT = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
OLD_KEPT = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
TEXT = "text/plain"


def in_five_calls(
    handler: Any, status: int, body: bytes, kind: str, headers: Iterable[tuple[str, str]] = ()
) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    for field in headers:
        handler.send_header(*field)
    handler.end_headers()
    handler.wfile.write(body)


def undated(answer: bytes) -> bytes:
    return re.sub(rb"Date: [^\r]*", b"Date:", answer)


@pytest.mark.parametrize("asks", [KEPT * 3 + LAST, KEPT + OLD_KEPT * 2 + LAST, KEPT * 2 + OLD_KEPT])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (200, b"hello", ()),
        (200, b"", ()),
        (200, b"x" * 70_000, ()),
        (404, b"no", [("X", "y"), ("Set-Cookie", "a=b")]),
        (200, b"bye", [("Connection", "close")]),
        (304, b"", ()),
        (204, b"", ()),
        (205, b"", ()),
    ],
)
def test_it_sends_what_the_calls_send_that_it_stands_for(
    ask: Ask, asks: bytes, method: bytes, status: int, body: bytes, headers: Any
) -> None:
    asks = asks.replace(b"GET", method)

    def do_GET(self: Any) -> None:
        self.respond(status, body, TEXT, headers)

    def do_HEAD(self: Any) -> None:
        self.respond(status, body, TEXT, headers)

    found = undated(ask(do_GET, do_HEAD, asks=asks, max_requests=3))

    def do_GET(self: Any) -> None:  # type: ignore[no-redef]
        in_five_calls(self, status, body, TEXT, headers)

    def do_HEAD(self: Any) -> None:  # type: ignore[no-redef]
        in_five_calls(self, status, body, TEXT, headers)

    assert found == undated(ask(do_GET, do_HEAD, asks=asks, max_requests=3))
    assert found.startswith(b"HTTP/1.1 %d " % status)


def test_each_type_and_length_has_a_head_of_its_own(ask: Ask) -> None:
    said = iter([(b"a", "text/a"), (b"bb", "text/a"), (b"a", "text/b"), (b"a", "text/a")] * 2)

    def do_GET(self: Any) -> None:
        self.respond(200, *next(said))

    found = ask(do_GET, asks=KEPT * 7 + LAST)
    assert re.findall(rb"text/(.)\r\nContent-Length: (.)", found) == [
        (b"a", b"1"), (b"a", b"2"), (b"b", b"1"), (b"a", b"1"),
    ] * 2  # fmt: skip
    assert answers(found) == [(200, b"a"), (200, b"bb"), (200, b"a"), (200, b"a")] * 2


@pytest.mark.parametrize("name", ["send_response", "send_header", "end_headers", "log_request"])
def test_methods_of_a_subclass_are_called_for_each_answer(ask: Ask, name: str) -> None:
    calls = []

    def do_GET(self: Any) -> None:
        self.respond(200, b"hello", TEXT)

    def called(self: Any, *args: Any) -> None:
        calls.append(args)
        getattr(HTTPRequestHandler, name)(self, *args)

    called.__name__ = name
    assert answers(ask(do_GET, called, asks=KEPT * 2 + LAST)) == [(200, b"hello")] * 3
    assert len(calls) == (6 if name == "send_header" else 3)


def test_requests_are_logged_if_the_class_says_so(
    ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    def do_GET(self: Any) -> None:
        self.respond(200, b"hello", TEXT)

    ask(do_GET, asks=KEPT * 2 + LAST, logs_requests=True)
    assert capsys.readouterr().err.count('"GET / HTTP/1.1" 200 -') == 3


def test_the_date_goes_with_the_clock(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    seconds = iter([now, now, now + 3600, now - 3600])
    with monkeypatch.context() as patch:

        def do_GET(self: Any) -> None:
            second = next(seconds)
            patch.setattr(time, "time", lambda: second)
            self.respond(200, b"hello", TEXT)

        dates = re.findall(rb"Date: ([^\r]*)", ask(do_GET, asks=KEPT * 3 + LAST))
    assert dates[0] == dates[1] and len(set(dates)) == 3


@pytest.mark.parametrize(
    ("body", "kind", "headers"),
    [
        ("text", TEXT, ()),
        (None, TEXT, ()),
        (b"", "text/plain\r\nX: y", ()),
        (b"", TEXT, [("X", "y\nz")]),
        (b"", TEXT, [("Content-Length", "1")]),
        (b"", TEXT, 5),
    ],
)
def test_what_cannot_be_an_answer_is_a_500(ask: Ask, body: Any, kind: str, headers: Any) -> None:
    raised = []

    def do_GET(self: Any) -> None:
        try:
            self.respond(200, body, kind, headers)
        except (TypeError, ValueError) as error:
            raised.append(error)
            raise

    first, fields, _ = parts(ask(do_GET, asks=KEPT))
    assert first == b"HTTP/1.1 500 Internal Server Error" and b"Connection: close" in fields
    assert raised


def test_it_is_all_of_an_answer(ask: Ask) -> None:
    def do_GET(self: Any) -> None:
        self.respond(200, b"one", TEXT)
        self.respond(200, b"two", TEXT)
        self.wfile.write(b"three")

    assert answers(ask(do_GET, asks=KEPT * 2)) == [(200, b"one")]


@pytest.mark.parametrize("which", SERVERS)
def test_a_client_that_is_gone_is_no_error_of_the_handler(which: str) -> None:
    class Handler(HTTPRequestHandler):
        def do_GET(self) -> None:
            self.respond(200, b"hello", TEXT)

        def log_error(self, *_: Any) -> None:
            pytest.fail("there was no error")

    with served(which, Handler) as address:
        for _ in range(3):
            with connected(address) as client:
                client.sendall(KEPT)
        with connected(address) as client:
            client.sendall(LAST)
            assert read_all(client).endswith(b"hello")
