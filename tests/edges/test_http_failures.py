"""An exception of any class in a handler or an application is answered with a 500."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.client import HTTPConnection
from typing import Any

import pytest

from prefork_server import HTTPRequestHandler, PreforkHTTPServer, PreforkWSGIServer
from prefork_server.testing import serving
from tests.conftest import PATIENCE


class Timeout(BaseException):
    """As gevent's and eventlet's: no Exception."""


RAISED: list[BaseException] = [
    asyncio.CancelledError(),
    Timeout("1 second"),
    BaseExceptionGroup("two", [ValueError("one"), Timeout("the other")]),
    GeneratorExit(),
]


def handler_that(raises: Callable[[], object]) -> Any:
    class Handler(HTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/late":
                self.send_response(200)
                self.send_header("Content-Length", "9")
            if self.path == "/fine":
                self.send_response(204)
                self.end_headers()
            else:
                raises()

        do_POST = do_GET  # noqa: N815 - http.server's name

    return PreforkHTTPServer(("127.0.0.1", 0), Handler, inline=True)


def application_that(raises: Callable[[], object]) -> Any:
    def pieces() -> Iterator[bytes]:
        raises()
        yield b"never"

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        fine = environ["PATH_INFO"] == "/fine"
        if fine or environ["PATH_INFO"] == "/late":
            start_response("204 No Content" if fine else "200 OK", [])
            return [] if fine else pieces()
        return raises()

    return PreforkWSGIServer(("127.0.0.1", 0), application, inline=True)


KINDS = {"handler": handler_that, "application": application_that}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("raised", RAISED, ids=lambda each: type(each).__name__)
def test_what_is_no_exception_is_answered_and_logged_as_one_is(
    kind: str, raised: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def raises() -> None:
        raise raised

    with serving(KINDS[kind](raises)) as address:
        for ask in (("GET", "/"), ("GET", "/late"), ("POST", "/", b"x" * 1_000_000)):
            client = HTTPConnection(*address, timeout=PATIENCE)
            client.request(*ask)
            answer = client.getresponse()
            assert answer.status == 500 and answer.getheader("Connection") == "close", ask
            answer.read()
            client.close()
        fine = HTTPConnection(*address, timeout=PATIENCE)
        fine.request("GET", "/fine")
        assert fine.getresponse().status == 204
        fine.close()
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.exc_info and record.exc_info[1] for record in errors] == [raised] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_ctrl_c_of_a_program_that_is_debugged_is_answered_and_ends_it(kind: str) -> None:
    def raises() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), serving(KINDS[kind](raises)) as address:
        client = HTTPConnection(*address, timeout=PATIENCE)
        client.request("GET", "/")
        assert client.getresponse().status == 500
        client.close()


def test_the_date_is_that_of_the_clock_when_it_is_set_back_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.time()
    with serving(handler_that(lambda: None)) as address:
        client = HTTPConnection(*address, timeout=PATIENCE)
        for second in (now, now - 1, now - 86400, 0.5, now + 3600, now + 3600.5):
            monkeypatch.setattr(time, "time", lambda second=second: second)
            client.request("GET", "/fine")
            answer = client.getresponse()
            assert answer.getheader("Date") == formatdate(int(second), usegmt=True)
            answer.read()
        client.close()
