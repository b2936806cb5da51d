"""WSGI over real connections: what PEP 3333 asks of a server, and what frameworks live with."""

import gzip
import io
import logging
import os
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from prefork_server import ConfigError, PreforkWSGIServer, Settings
from prefork_server.http import WSGIRequestHandler, serve
from prefork_server.http.environ import key_of
from prefork_server.testing import serving
from tests.certificates import make_certificate
from tests.conftest import PATIENCE, read_all

GET = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"
OK = "200 OK"
TEXT = ("Content-Type", "text/plain")

App = Callable[[dict[str, Any], Any], Any]


@contextmanager
def served(app: App, **keywords: Any) -> Iterator[Any]:
    """An address where it answers, in this process."""
    with serving(PreforkWSGIServer(("127.0.0.1", 0), app, inline=True, **keywords)) as address:
        yield address


def connected(address: Any) -> socket.socket:
    return socket.create_connection(address, PATIENCE)


def asked(address: Any, request: bytes = GET) -> bytes:
    """The whole answer to one request."""
    with connected(address) as client:
        client.sendall(request)
        return read_all(client)


def ask(app: App, request: bytes = GET, **keywords: Any) -> bytes:
    with served(app, **keywords) as address:
        return asked(address, request)


Asking = Callable[..., bytes]


@pytest.fixture(params=["plain", "tls"])
def ask_by(request: pytest.FixtureRequest, tmp_path: Path) -> Asking:
    """``ask``, by both ways: over TLS, too, the end of the answer has to be said, or it raises."""
    if request.param == "plain":
        return ask
    trusting = make_certificate(tmp_path)

    def ask_over_tls(app: App, asks: bytes = GET) -> bytes:
        with (
            served(app, certfile=tmp_path / "server.pem") as address,
            connected(address) as plain,
            trusting.wrap_socket(
                plain, server_hostname="localhost", suppress_ragged_eofs=False
            ) as client,
        ):
            client.sendall(asks)
            return read_all(client)

    return ask_over_tls


def parts(answer: bytes) -> tuple[bytes, list[bytes], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *fields = head.split(b"\r\n")
    return first, [f for f in fields if not f.startswith((b"Server", b"Date"))], body


def environ_of(request: bytes, **keywords: Any) -> dict[str, Any]:
    """What an application is told of it."""
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        start_response(OK, [TEXT])
        return [b""]

    assert ask(app, request, **keywords).startswith(b"HTTP/1.1 200 OK\r\n")
    return seen


def answering(result: Any, *fields: tuple[str, str], status: str = OK) -> App:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response(status, list(fields))
        return result

    return app


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    caplog.set_level(logging.INFO, "prefork_server")
    return lambda: caplog.text


# What wsgiref.validate sees


@pytest.mark.parametrize(
    "request_",
    [
        GET,
        OLD,
        b"HEAD /%E4/b?c=d HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Type: a/b\r\nContent-Length: 3\r\nConnection: close"
        b"\r\n\r\nabc",
        b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        b"3\r\nabc\r\n0\r\n\r\n",
    ],
)
def test_the_validator_finds_nothing(
    ask_by: Asking, request_: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        body = environ["wsgi.input"].read(100) + b"".join(environ["wsgi.input"])
        environ["wsgi.errors"].write("heard\n")
        write = start_response(OK, [TEXT])
        write(b"wrote ")
        yield b""
        yield body or b"nothing"

    first, _, body = parts(ask_by(validator(app), request_))
    assert first == b"HTTP/1.1 200 OK"
    assert (b"wrote" in body) == (not request_.startswith(b"HEAD"))
    assert capfd.readouterr().err == "heard\n"  # and nothing of the validator's


def test_a_tunnel_is_refused_and_no_application_hears_of_it() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise AssertionError("it was called")

    answer = ask(app, b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n" + GET)
    assert answer.startswith(b"HTTP/1.1 501 ") and answer.count(b"HTTP/1.1") == 1


# The environ


def test_what_an_application_writes_into_its_environ_no_other_request_sees() -> None:
    seen: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        told = ("wsgi.input", "wsgi.errors", "SERVER_PORT", "REMOTE_PORT")
        seen.append({name: value for name, value in environ.items() if name not in told})
        environ.update(dict.fromkeys(environ, "poison"), HTTP_POISON="poison")
        start_response(OK, [TEXT])
        return [b""]

    kept, last = GET.replace(b"Connection: close", b"X-A: b"), GET
    for _ in range(2):
        ask(app, kept + kept + last)
    assert seen[0] == seen[1] == seen[3] == seen[4] and seen[2] == seen[5]


def test_the_environ_says_what_was_asked() -> None:
    environ = environ_of(
        b"POST /a%20b/%C3%A9%2f?c=%20d&e HTTP/1.1\r\nHost: h:81\r\nContent-Type: x/y\r\n"
        b"Content-Length: 2\r\nUser-Agent:  me \t\r\nX-Two: 1\r\nCookie: a=b\r\nX-two: 2\r\n"
        b"Cookie: c=d\r\nEmpty:\r\nConnection: close\r\n\r\nhi"
    )
    said = {k: v for k, v in environ.items() if "." not in k}
    assert int(said.pop("REMOTE_PORT")) > 0
    assert int(said.pop("SERVER_PORT")) > 0
    assert said == {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a b/\xc3\xa9/",
        "QUERY_STRING": "c=%20d&e",
        "REQUEST_URI": "/a%20b/%C3%A9%2f?c=%20d&e",
        "RAW_URI": "/a%20b/%C3%A9%2f?c=%20d&e",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_SOFTWARE": "prefork_server",
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_TYPE": "x/y",
        "CONTENT_LENGTH": "2",
        "HTTP_HOST": "h:81",
        "HTTP_USER_AGENT": "me",
        "HTTP_X_TWO": "1,2",
        "HTTP_COOKIE": "a=b; c=d",
        "HTTP_EMPTY": "",
        "HTTP_CONNECTION": "close",
    }
    assert type(environ) is dict
    assert environ["wsgi.version"] == (1, 0)
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["wsgi.input_terminated"] is True
    assert environ["wsgi.multithread"] is environ["wsgi.run_once"] is False
    assert environ["wsgi.multiprocess"] is False  # inline


def test_a_field_that_could_be_taken_for_another_is_dropped() -> None:
    environ = environ_of(
        b"GET / HTTP/1.1\r\nHost: h\r\nX_Forwarded_For: evil\r\nX-Forwarded-For: good\r\n"
        b"Proxy: evil\r\npROXY: evil\r\nContent_Length: 5\r\nConnection: close\r\n\r\n"
    )
    assert "evil" not in environ.values() and "" not in environ
    assert environ["HTTP_X_FORWARDED_FOR"] == "good"
    assert not {"HTTP_PROXY", "HTTP_CONTENT_LENGTH", "CONTENT_LENGTH"} & set(environ)


def test_few_of_the_names_that_clients_think_of_are_remembered() -> None:
    for n in range(1000):
        key_of(f"X-{n}")
    assert key_of.cache_info().currsize <= 256
    assert key_of("x-y") == "HTTP_X_Y" and key_of("content-TYPE") == "CONTENT_TYPE"


def test_a_target_with_a_host_and_one_with_two_slashes_are_paths_of_this_server() -> None:
    last = b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    environ = environ_of(b"GET http://h/x?y" + last)
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/x", "y")
    environ = environ_of(b"GET //evil.example/x" + last)
    assert environ["PATH_INFO"] == "/evil.example/x"
    assert environ["REQUEST_URI"] == "//evil.example/x"


def test_each_request_of_a_connection_has_an_environ_of_its_own() -> None:
    seen: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert "HTTP_X" not in environ or environ["PATH_INFO"] == "/1"
        seen.append(environ)
        start_response(OK, [])
        return [environ.pop("HTTP_X", "none").encode()]

    first = b"GET /1 HTTP/1.1\r\nHost: h\r\nX: only here\r\n\r\n"
    answer = ask(app, first + GET)
    assert answer.count(b"HTTP/1.1 200 OK") == 2 and answer.endswith(b"none")
    assert seen[0] is not seen[1] and seen[0]["REMOTE_PORT"] == seen[1]["REMOTE_PORT"]


def test_what_is_added_to_the_base_environ_is_in_each() -> None:
    server = PreforkWSGIServer(("127.0.0.1", 0), answering([]), inline=True)
    server.base_environ["x.y"] = "z"
    server.set_app(lambda environ, start: start(OK, []) and [environ["x.y"].encode()])
    assert server.get_app() is server.application
    with serving(server) as address:
        assert asked(address).endswith(b"z")


def test_a_stderr_that_was_closed_is_no_error_of_the_application(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        errors = environ["wsgi.errors"]
        errors.write("nobody hears it")
        errors.writelines(["nor this"])
        errors.flush()
        start_response(OK, [])
        return [b"fine"]

    with served(app) as address, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        patch.setattr(sys, "__stderr__", None)
        answer = asked(address)
    assert answer.endswith(b"fine")


# The body of the request


def test_the_input_ends_where_the_body_ends() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        file = environ["wsgi.input"]
        start_response(OK, [])
        return [repr((file.readline(), file.readlines(), file.read(), file.read(5))).encode()]

    post = b"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
    said = repr((b"one\n", [b"two\n", b"three"], b"", b"")).encode()
    assert ask(app, post + b"Content-Length: 13\r\n\r\none\ntwo\nthreeGET /").endswith(said)
    chunks = b"Transfer-Encoding: chunked\r\n\r\n6\r\none\ntw\r\n7\r\no\nthree\r\n0\r\n\r\n"
    assert ask(app, post + chunks).endswith(said)
    assert ask(app).endswith(repr((b"", [], b"", b"")).encode())


def test_a_client_that_waits_for_a_100_is_told_when_the_application_reads() -> None:
    app_reads = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert app_reads.wait(PATIENCE)
        body = environ["wsgi.input"].read()
        start_response(OK, [])
        return [body]

    post = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    with served(app) as address, connected(address) as client:
        client.sendall(post)
        app_reads.set()
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hi")
        assert client.recv(1000).endswith(b"\r\n\r\nhi")


@pytest.mark.parametrize("catches", [True, False])
def test_a_body_that_is_malformed_is_the_clients_fault_whatever_the_application_makes_of_it(
    catches: bool, log: Callable[[], str]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except Exception:
            if not catches:
                raise RuntimeError("of the framework") from None
        start_response("500 Internal Server Error", [])
        return [b"of the framework"]

    post = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd"
    answer = ask(app, post)
    assert answer.startswith(b"HTTP/1.1 400 ") and b"framework" not in answer
    assert "ERROR" not in log()


# The answer


def test_of_a_list_the_length_is_known() -> None:
    for result in ([b"hello"], (b"hel", b"lo"), [b"", b"hello", b""]):
        _, fields, body = parts(ask(answering(result, TEXT)))
        assert fields == [b"Content-Type: text/plain", b"Content-Length: 5", b"Connection: close"]
        assert body == b"hello"
    for result in ([], (), [b""], iter([]), iter([b"", b""])):
        assert b"Content-Length: 0" in parts(ask(answering(result)))[1]


def test_of_anything_else_it_is_not_and_it_goes_in_chunks() -> None:
    class Slow:
        def __iter__(self) -> Iterator[bytes]:
            return iter((b"", b"hel", b"", b"lo"))

    _, fields, body = parts(ask(answering(Slow())))
    assert fields == [b"Connection: close", b"Transfer-Encoding: chunked"]
    assert body == b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
    assert parts(ask(answering(Slow()), OLD))[1:] == ([b"Connection: close"], b"hello")
    _, fields, body = parts(ask(answering(Slow(), ("Content-Length", "5"))))
    assert b"Content-Length: 5" in fields and body == b"hello"


def test_each_piece_leaves_before_the_next_is_asked_for() -> None:
    go_on = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response(OK, [])
        yield b"one"
        assert go_on.wait(PATIENCE)
        yield b"two"

    with served(app) as address, connected(address) as client:
        client.sendall(GET)
        data = b""
        while not data.endswith(b"3\r\none\r\n"):
            data += client.recv(1000)
        go_on.set()
        assert read_all(client) == b"3\r\ntwo\r\n0\r\n\r\n"


def test_a_date_or_a_server_of_the_application_takes_the_place_of_ours() -> None:
    answer = ask(answering([], ("Server", "mine"), ("Date", "then")))
    assert answer.count(b"Server: ") == answer.count(b"Date: ") == 1
    assert b"Server: mine\r\n" in answer and b"Date: then\r\n" in answer
    answer = ask(answering([], ("date", "then")))
    assert answer.count(b"Server: prefork_server\r\n") == 1 and answer.count(b"ate: ") == 1


@pytest.mark.parametrize(
    ("status", "first"),
    [("200 OK", b"200 OK"), ("404", b"404 "), ("299 Mine, and \xe9", b"299 Mine, and \xe9")],
)
def test_the_status_is_as_the_application_says_it(status: str, first: bytes) -> None:
    for _ in range(2):
        assert parts(ask(answering([], status=status)))[0] == b"HTTP/1.1 " + first


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_where_there_can_be_no_body_there_is_none(status: str, log: Callable[[], str]) -> None:
    first, fields, body = parts(ask(answering([b"dropped"], status=status)))
    assert first.endswith(status.encode()) and body == b"" and fields == [b"Connection: close"]
    assert "was dropped" in log() and '"GET / HTTP/1.1" of 127.0.0.1:' in log()
    assert parts(ask(answering([b""], status=status)))[1] == [b"Connection: close"]


def test_to_head_the_head_is_that_of_get_and_nothing_of_the_body(log: Callable[[], str]) -> None:
    asked_for: list[int] = []

    def pieces(n: int) -> Iterator[bytes]:
        for _ in range(n):
            asked_for.append(1)
            yield b"x"

    head = b"HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    for app, field in (
        (answering([b"hello"]), b"Content-Length: 5"),
        (answering([b""], ("Content-Length", "7")), b"Content-Length: 7"),
        (answering(pieces(1000), ("Content-Length", "1000")), b"Content-Length: 1000"),
    ):
        assert parts(ask(app, head))[1:] == ([field, b"Connection: close"], b"")
    assert parts(ask(answering([b""]), head))[1] == [b"Connection: close"]  # it may not know
    assert len(asked_for) == 1  # the rest was not made for nobody
    assert "ERROR" not in log()


def test_what_write_is_given_comes_before_what_is_returned() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response(OK, [TEXT])
        write(b"")
        write(b"one")
        write(b"two")
        return [b"three", b"four"]

    assert parts(ask(app, OLD))[2] == b"onetwothreefour"
    assert b"3\r\ntwo\r\n5\r\nthree\r\n4\r\nfour\r\n0" in ask(app)


def test_connections_are_kept_whatever_kind_of_answer_there_is() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("204 No Content" if "none" in environ["PATH_INFO"] else OK, [])
        return iter([b"x", b"y"]) if "iter" in environ["PATH_INFO"] else [b""]

    paths = (b"iter", b"none", b"list", b"iter", b"none")
    ask_all = b"".join(b"GET /%b HTTP/1.1\r\nHost: h\r\n\r\n" % path for path in paths)
    assert ask(app, ask_all + GET).count(b"HTTP/1.1 20") == 6


def test_limits_are_those_of_a_handler_class() -> None:
    class Small(WSGIRequestHandler):
        max_requests = 2

    app = answering([b"x"])
    assert (
        ask(app, GET.replace(b"Connection: close\r\n", b"") * 3, handler_class=Small).count(
            b"HTTP/1.1 200"
        )
        == 2
    )


# start_response


def test_it_may_be_called_again_with_an_error_until_the_head_has_left() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            start_response(OK, [("X", "dropped")])
            raise KeyError("of my own")
        except KeyError:
            start_response("503 Sorry", [("Y", "kept")], sys.exc_info())
            return [b"sorry"]

    first, fields, body = parts(ask(app))
    assert (first, body) == (b"HTTP/1.1 503 Sorry", b"sorry")
    assert b"Y: kept" in fields and b"X: dropped" not in fields


def test_when_the_head_has_left_the_error_is_raised_again_and_the_answer_is_cut(
    log: Callable[[], str],
) -> None:
    raised: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response(OK, [])
        yield b"begun"
        try:
            raise KeyError("of my own")
        except KeyError:
            try:
                start_response("500 Sorry", [], sys.exc_info())
            except KeyError as error:
                raised.append(error)
                raise

    assert ask(app).endswith(b"5\r\nbegun\r\n")  # and no last chunk
    assert raised and "KeyError: 'of my own'" in log()


def twice(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response(OK, [])
    start_response(OK, [])
    return [b"never"]


def never(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    return [b"never"]


WRONG = {
    "called twice": (twice, "called twice"),
    "not called": (never, "did not call start_response"),
    "text": (answering(["never"]), "pieces of bytes, not 'never'"),
    "a text": (answering("never"), "pieces of bytes, not 'n'"),
    "bytes": (answering(b"never"), "pieces of bytes, not 110"),
    "None": (answering(None), "NoneType"),
    "injected": (answering([], ("X", "a\r\nSet-Cookie: never")), "control characters"),
    "NUL": (answering([], ("X", "\0")), "control characters"),
    "name": (answering([], ("X y", "z")), "is a token"),
    "number": (answering([], ("Content-Length", 5)), "a pair of texts"),  # type: ignore[arg-type]
    "length": (answering([], ("Content-Length", "-5")), "a number of bytes"),
    "lengths": (answering([], ("Content-Length", "0"), ("content-length", "0")), "said twice"),
    "snow": (answering([], ("X", "\u2603")), "Latin-1"),
    "hop": (answering([], ("Connection", "keep-alive")), "for the server to say"),
    "chunked": (answering([], ("Transfer-Encoding", "chunked")), "for the server to say"),
    "status": (answering([], status="200 OK\r\nX: never"), "the reason phrase"),
    "number status": (answering([], status=200), "a status is a text"),  # type: ignore[arg-type]
    "interim": (answering([], status="100 Continue"), "200 or more"),
    "no number": (answering([], status="OK"), "200 or more"),
    "short": (answering([], ("Content-Length", "5")), "5 bytes shorter"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_an_application_may_not_say_is_a_500_and_an_error_in_the_log(
    case: str, log: Callable[[], str]
) -> None:
    app, sentence = WRONG[case]
    answer = ask(app)
    assert answer.startswith(b"HTTP/1.1 500 ") and b"never" not in answer
    assert re.search(rf"Traceback[^¶]*Error: .*{sentence}", log())
    assert re.search(r'the application failed: "GET / HTTP/1.1" of 127.0.0.1:\d+', log())


def test_an_answer_to_an_upload_arrives_though_the_application_failed(
    log: Callable[[], str],
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise KeyError("of my own")

    post = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000
    for _ in range(20):
        assert ask(app, post).startswith(b"HTTP/1.1 500 ")
    assert "KeyError" in log()


@pytest.mark.parametrize("length", [None, "100"])
def test_who_fails_in_the_middle_has_his_answer_cut(
    length: str | None, log: Callable[[], str]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response(OK, [("Content-Length", length)] if length else [])
        yield b"begun"
        raise KeyError("of my own")

    answer = ask(app)
    assert answer.endswith(b"begun\r\n" if length is None else b"\r\n\r\nbegun")
    assert "KeyError: 'of my own'" in log()
    if length is None:  # whose only sign of an end is that of the connection
        with served(app) as address, connected(address) as client:
            client.sendall(OLD)
            with pytest.raises(ConnectionResetError):
                read_all(client)


def test_what_is_more_than_was_promised_is_dropped_and_so_is_the_connection(
    log: Callable[[], str],
) -> None:
    made: list[int] = []

    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            made.append(1)
            yield b"four"

    answer = ask(answering(pieces(), ("Content-Length", "6")), GET * 2)
    assert parts(answer)[2] == b"fourfo"
    assert len(made) == 2 and "was dropped" in log()


@pytest.mark.parametrize("status", ["204 No Content", "205 Reset Content", "304 Not Modified"])
def test_a_status_without_a_body_has_no_length_of_one_and_ends_the_connection_with_one(
    status: str, log: Callable[[], str]
) -> None:
    keep = b"DELETE /x HTTP/1.1\r\nHost: h\r\n\r\n"
    length = ("Content-Length", "7")
    empty = answering(iter([]), length, status=status)
    answer = ask(empty, keep + GET)
    assert (b"Content-Length: 7" in answer) == status.startswith("304")
    assert answer.count(b"HTTP/1.1 ") == 2 and "ERROR" not in log()
    for pieces in ([b"dropped"], iter([b"dro", b"pped"])):
        answer = ask(answering(pieces, length, status=status), keep + GET)
        assert answer.count(b"HTTP/1.1 ") == 1 and answer.endswith(b"\r\n\r\n")
        assert '"DELETE /x HTTP/1.1" of 127.0.0.1:' in log()
        assert f"a {status[:3]} has no body" in log()


def test_what_is_written_after_the_end_of_an_answer_is_dropped_and_ends_the_connection(
    log: Callable[[], str],
) -> None:
    writers: list[Callable[[bytes], None]] = []

    class Late(list[bytes]):
        def close(self) -> None:
            writers[-1](b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        writers.append(start_response(OK, [TEXT]))
        return Late([b"first"])

    answer = ask(app, GET.replace(b"close", b"keep-alive") + GET)
    assert answer.count(b"HTTP/1.1 200 OK") == 1 and answer.endswith(b"\r\nfirst\r\n0\r\n\r\n")
    assert '"GET / HTTP/1.1" of 127.0.0.1:' in log() and "ERROR" in log()


@pytest.mark.parametrize("ends", [SystemExit, KeyError, None])
def test_half_an_answer_to_http_1_0_ends_in_a_reset_and_a_whole_one_does_not(
    ends: type[BaseException] | None,
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response(OK, [])
        yield b"half, "
        if ends and environ["PATH_INFO"] == "/half":
            raise ends
        yield b"and half"

    with served(app) as address:
        assert parts(asked(address, OLD))[2] == b"half, and half"
        if ends:
            with pytest.raises(ConnectionResetError):
                asked(address, OLD.replace(b"/", b"/half", 1))


# close()


class Closing:
    """An answer that knows whether it was closed."""

    def __init__(self, *pieces: Any) -> None:
        self.pieces = iter(pieces)
        self.closed = threading.Event()
        self.times = 0

    def __iter__(self) -> "Closing":
        return self

    def __next__(self) -> Any:
        piece = next(self.pieces)
        if isinstance(piece, BaseException):
            raise piece
        return piece

    def close(self) -> None:
        self.times += 1
        self.closed.set()


@pytest.mark.parametrize(
    ("pieces", "request_"),
    [
        ((b"a", b"b"), GET),
        ((), GET),
        ((b"a", b"b"), b"HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"),
        ((KeyError(),), GET),
        ((b"a", KeyError()), GET),
        ((b"a", "no bytes"), GET),
    ],
)
def test_an_answer_is_closed_once_however_it_ends(pieces: tuple[Any, ...], request_: bytes) -> None:
    result = Closing(*pieces)
    ask(answering(result), request_)
    assert result.times == 1


def test_an_answer_is_closed_when_its_client_is_gone(log: Callable[[], str]) -> None:
    result = Closing(*[b"x" * 1_000_000] * 1000)
    with served(answering(result)) as address:
        with connected(address) as client:
            client.sendall(GET)
            client.recv(1000)
        assert result.closed.wait(PATIENCE)
        assert result.times == 1 and next(result.pieces)  # and not all of it was made
    assert "ERROR" not in log()


def test_a_close_that_fails_is_told_of_and_costs_the_client_nothing(log: Callable[[], str]) -> None:
    class Failing(Closing):
        def close(self) -> None:
            raise KeyError("of close")

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response(OK, [])
        return Failing(b"whole")

    kept = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    answer = ask(app, kept + GET)
    assert answer.count(b"5\r\nwhole\r\n0\r\n\r\n") == 2
    assert log().count("KeyError: 'of close'") == 2


def test_the_client_has_the_end_before_close_is_called() -> None:
    go_on = threading.Event()

    class Waiting(Closing):
        def close(self) -> None:
            assert go_on.wait(PATIENCE)

    with served(answering(Waiting(b"all"))) as address, connected(address) as client:
        client.sendall(GET)
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += client.recv(1000)
        go_on.set()


# Files


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(3_000_000))
    return path


def wrapped(make: Callable[[], Any], *fields: tuple[str, str], status: str = OK) -> App:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response(status, list(fields))
        return environ["wsgi.file_wrapper"](make(), 10_000)

    return app


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much the kernel was asked to send of files."""
    counts: list[int] = []
    real = os.sendfile

    def sendfile(*args: Any) -> int:
        counts.append(args[3])
        return real(*args)

    # connection.py looks it up when it is called.
    monkeypatch.setattr(os, "sendfile", sendfile)
    return counts


def test_a_real_file_is_sent_by_the_kernel_from_where_it_is(big: Path, sent: list[int]) -> None:
    content = big.read_bytes()
    files: list[Any] = []

    def at(offset: int, buffering: int = -1) -> Callable[[], Any]:
        def make() -> Any:
            file = big.open("rb", buffering=buffering)
            file.read(1)  # a buffer of it is further than it says
            file.seek(offset)
            files.append(file)
            return file

        return make

    for make, offset in ((at(0), 0), (at(1000), 1000), (at(7, 0), 7), (at(9_000_000), 9_000_000)):
        first, fields, body = parts(ask(wrapped(make)))
        assert first == b"HTTP/1.1 200 OK" and body == content[offset:]
        assert b"Content-Length: %d" % len(content[offset:]) in fields
    assert sent and all(file.closed for file in files)


def test_of_a_file_no_more_is_sent_than_the_length_says(
    ask_by: Asking, big: Path, sent: list[int]
) -> None:
    content = big.read_bytes()
    length = ("Content-Length", "100000")
    for make in (lambda: big.open("rb"), lambda: io.BytesIO(content)):
        for request in (GET, OLD):
            _, fields, body = parts(ask_by(wrapped(make, length), request))
            assert body == content[:100_000]
            assert fields.count(b"Content-Length: 100000") == 1
    assert sum(sent) == (200_000 if ask_by is ask else 0)  # of TLS the kernel knows nothing


def test_a_file_that_is_shorter_than_the_length_says_is_seen_to_be(
    ask_by: Asking, big: Path, log: Callable[[], str]
) -> None:
    app = wrapped(lambda: big.open("rb"), ("Content-Length", "3000001"))
    assert len(parts(ask_by(app))[2]) == 3_000_000
    assert "1 bytes shorter than the Content-Length" in log()


def test_what_only_looks_like_a_file_is_read(big: Path, sent: list[int], tmp_path: Path) -> None:
    content = big.read_bytes()
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(content))

    class Reader:
        def __init__(self) -> None:
            self.read = io.BytesIO(content).read

    def temporary() -> Any:
        file = tempfile.NamedTemporaryFile()  # noqa: SIM115
        file.write(content)
        file.seek(0)
        return file

    reader, writer = os.pipe()
    os.write(writer, b"x" * 1000)
    os.close(writer)
    makes: list[tuple[Callable[[], Any], bytes]] = [
        (Reader, content),
        (lambda: gzip.open(packed), content),  # noqa: SIM115
        (lambda: io.BufferedReader(gzip.open(packed)), content),  # type: ignore[arg-type]  # noqa: SIM115
        (temporary, content),
        (lambda: os.fdopen(reader, "rb"), b"x" * 1000),
    ]
    for make, said in makes:
        assert parts(ask(wrapped(make), OLD))[2] == said
    assert sent == []


def test_of_a_file_nothing_is_sent_to_head_or_with_a_304(big: Path, sent: list[int]) -> None:
    app = wrapped(lambda: big.open("rb"))
    head = GET.replace(b"GET", b"HEAD")
    assert parts(ask(app, head))[1:] == (
        [b"Content-Length: 3000000", b"Connection: close"],
        b"",
    )
    app = wrapped(lambda: big.open("rb"), status="304 Not Modified")
    assert parts(ask(app))[1:] == ([b"Connection: close"], b"")
    assert sent == []


def test_a_wrapper_that_is_not_what_is_returned_is_an_iterable(big: Path) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response(OK, [])
        wrapper = environ["wsgi.file_wrapper"](big.open("rb"))
        yield from wrapper
        wrapper.close()

    assert parts(ask(app, OLD))[2] == big.read_bytes()


# What is refused before anything is bound


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


def looks_like_asgi(scope: Any, receive: Any, send: Any) -> Any: ...


class ASGI:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class OldASGI:
    def __init__(self, scope: Any) -> None: ...


@pytest.mark.parametrize("app", [asgi, looks_like_asgi, ASGI(), ASGI, OldASGI])
def test_an_asgi_application_is_refused_in_a_sentence(app: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="looks like an ASGI application, and WSGI is"):
            serve(app, where)


@pytest.mark.parametrize("app", [None, "module:app", 5])
def test_what_cannot_be_called_is_refused(app: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be called"):
        PreforkWSGIServer(("127.0.0.1", 0), app)


class Classy:
    """PEP 3333's own example of a class as an application."""

    def __init__(self, environ: Any, start_response: Any) -> None:
        self.start = start_response

    def __iter__(self) -> Iterator[bytes]:
        self.start(OK, [])
        yield b"classy"


def test_a_class_can_be_a_wsgi_application() -> None:
    assert b"6\r\nclassy\r\n" in ask(Classy)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("handler_class", object),
        ("access_log", "yes"),
        ("forwarded_from", "10.0.0.1"),
        ("forwarded_from", ["10.0.0.1/8"]),
        ("wrokers", 4),
    ],
)
def test_a_wrong_keyword_is_refused_before_anything_is_bound(keyword: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=keyword):
        serve(never, "127.0.0.1:1", **{keyword: value})


def test_settings_can_be_shared() -> None:
    server = PreforkWSGIServer(("127.0.0.1", 0), never, settings=Settings(workers=3), timeout=9)
    with server:
        assert (server.settings.workers, server.settings.timeout) == (3, 9)
