"""What a constructor calls later is looked at by the constructor."""

import asyncio
import functools
import socketserver
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from prefork_server import ConfigError, Preforker, PreforkTCPServer, PreforkUDPServer
from prefork_server.aio import PreforkAsyncioServer, run_asyncio
from prefork_server.calls import check_handler
from prefork_server.http import HTTPRequestHandler, PreforkHTTPServer, PreforkWSGIServer

ADDRESS = ("127.0.0.1", 0)


class Echo(socketserver.StreamRequestHandler):
    pass


class AsyncEcho(socketserver.StreamRequestHandler):
    async def handle(self) -> None:  # type: ignore[override]
        pass


class Misspelt(socketserver.StreamRequestHandler):
    def handler(self) -> None:
        pass


class SmallPages(HTTPRequestHandler):
    def do_post(self) -> None:
        pass


class Unmakeable(socketserver.StreamRequestHandler):
    def __init__(self) -> None:
        pass


class AsyncPages(HTTPRequestHandler):
    async def do_PUT(self) -> None:
        pass


class AsyncSetup(socketserver.StreamRequestHandler):
    async def setup(self) -> None:  # type: ignore[override]
        pass


class Yields(socketserver.StreamRequestHandler):
    def handle(self) -> Iterator[bytes]:  # type: ignore[override]
        yield b"hello"


class YieldsPages(HTTPRequestHandler):
    def do_HEAD(self) -> Iterator[bytes]:
        yield b""


class PlainAsyncPages(BaseHTTPRequestHandler):
    async def do_GET(self) -> None:
        pass


class OwnWay(BaseHTTPRequestHandler):
    async def do_GET(self) -> None:
        pass

    def handle_one_request(self) -> None:
        asyncio.run(self.do_GET())


class Helped(BaseHTTPRequestHandler):
    dispatch = {"GET": "a table of the program's"}  # noqa: RUF012

    async def do_query(self) -> None:
        pass

    def do_GET(self) -> None:
        asyncio.run(self.do_query())


class Counting(socketserver.StreamRequestHandler):
    handled = 0


class WrittenInC(BaseHTTPRequestHandler):
    handle_one_request = str.upper  # type: ignore[assignment]


class Shy:
    def __repr__(self) -> str:
        raise RuntimeError("it is not there yet")

    def __call__(self, *args: object) -> None:
        pass


class Lines(asyncio.Protocol):
    pass


class Work:
    def __call__(self, master: object) -> None:
        pass


class AsyncWork:
    async def __call__(self, master: object) -> None:
        pass


async def coroutine(one: object) -> None:
    pass


def generator(master: object) -> Iterator[int]:
    yield 1


def no_argument() -> None:
    pass


def one_argument(one: object) -> None:
    pass


def two_arguments(one: object, two: object) -> None:
    pass


@functools.wraps(two_arguments)
def wrapper(*args: Any) -> None:
    pass


def server(kind: Any, thing: Any) -> Callable[[], object]:
    return lambda: kind(ADDRESS, thing)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (server(PreforkTCPServer, one_argument), r"one_argument takes \(one"),
        (server(PreforkTCPServer, lambda: Echo), r"<lambda> takes \(\)"),
        (server(PreforkTCPServer, None), "None cannot be called"),
        (server(PreforkTCPServer, coroutine), "coroutine is async"),
        (server(PreforkTCPServer, Misspelt), r"no handle\(\): did you mean that by handler\(\)"),
        (server(PreforkHTTPServer, SmallPages), "do_post would not be called: write do_POST"),
        (server(PreforkTCPServer, Unmakeable), r"Unmakeable takes \(\)"),
        (server(PreforkTCPServer, AsyncEcho), "AsyncEcho.handle is async"),
        (server(PreforkHTTPServer, two_arguments), "WSGI application is for PreforkWSGIServer"),
        (server(PreforkHTTPServer, AsyncPages), "AsyncPages.do_PUT is async"),
        (server(PreforkTCPServer, AsyncSetup), "AsyncSetup.setup is async"),
        (server(PreforkTCPServer, Yields), "Yields.handle is a generator function"),
        (server(PreforkHTTPServer, YieldsPages), "YieldsPages.do_HEAD is a generator function"),
        (server(PreforkHTTPServer, PlainAsyncPages), "PlainAsyncPages.do_GET is async"),
        (server(PreforkUDPServer, Echo), "PreforkUDPServer has datagrams"),
        (
            server(PreforkTCPServer, socketserver.DatagramRequestHandler),
            "PreforkTCPServer has streams",
        ),
        (server(PreforkWSGIServer, generator), r"generator takes \(master"),
        (server(PreforkWSGIServer, no_argument), r"no_argument takes \(\).*factory"),
        (lambda: Preforker("work"), "'work' cannot be called"),  # type: ignore[arg-type]
        (lambda: Preforker(coroutine), r"coroutine is async.*run_asyncio\(\)"),
        (lambda: Preforker(functools.partial(coroutine)), "is async"),
        (lambda: Preforker(AsyncWork()), "is async"),
        (lambda: Preforker(functools.partial(AsyncWork())), "is async"),
        (lambda: Preforker(generator), "generator is a generator function"),
        (lambda: Preforker(no_argument), "no_argument takes"),  # type: ignore[arg-type]
        (lambda: Preforker(Work(), ready=no_argument), "ready is called"),  # type: ignore[arg-type]
        (lambda: Preforker(Work(), after_fork=coroutine), "after_fork.* async"),
        (lambda: Preforker(Work(), before_fork="b"), "before_fork.*'b'"),  # type: ignore[arg-type]
        (lambda: run_asyncio(3), "main is called"),  # type: ignore[arg-type]
        (lambda: PreforkAsyncioServer(ADDRESS), "one of them"),
        (lambda: PreforkAsyncioServer(ADDRESS, coroutine), "reader, writer"),  # type: ignore[arg-type]
        (lambda: PreforkAsyncioServer(ADDRESS, Lines), "a Protocol class is"),  # type: ignore[arg-type]
        (
            lambda: PreforkAsyncioServer(ADDRESS, protocol_factory=Lines()),  # type: ignore[arg-type]
            "give a Protocol class",
        ),
        (
            lambda: PreforkAsyncioServer(ADDRESS, protocol_factory=one_argument),  # type: ignore[arg-type]
            "protocol_factory is called with",
        ),
        (
            lambda: PreforkAsyncioServer(ADDRESS, two_arguments, ready=coroutine),
            "ready is called.* is async",
        ),
    ],
)
def test_what_could_never_work_is_refused_by_the_constructor(
    make: Callable[[], object], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_what_can_be_called_so_is_taken() -> None:
    for handler in (Echo, functools.partial(Echo), lambda *args: Echo(*args), OwnWay, str):  # noqa: PLW0108
        check_handler(PreforkTCPServer, handler)
    for handler in (Helped, Counting, WrittenInC):
        check_handler(PreforkHTTPServer, handler)
    for work in (Work(), Shy(), wrapper, functools.partial(two_arguments, "settings"), print):
        Preforker(work, pid_path=None)


def test_a_server_that_calls_its_handlers_itself_may_have_any() -> None:
    class Own(PreforkTCPServer):
        def finish_request(self, request: Any, client_address: Any) -> None:
            pass

    check_handler(Own, one_argument)
