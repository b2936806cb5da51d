"""A status page at the server's own address is refused before anything is bound."""

import socketserver
from collections.abc import Callable
from typing import Any

import pytest

from prefork_server import (
    ConfigError,
    Preforker,
    PreforkTCPServer,
    PreforkUDPServer,
    PreforkUnixStreamServer,
)
from prefork_server.aio import PreforkAsyncioServer
from prefork_server.http import PreforkWSGIServer
from prefork_server.listeners import check_status_address, parse

HANDLER = socketserver.BaseRequestHandler
# 192.0.2.1 (RFC 5737) is no address of this machine: to bind it would be a BindError.
THERE: dict[str, Any] = {"status": "192.0.2.1:9000", "status_public": True}


@pytest.mark.parametrize(
    "make",
    [
        lambda: PreforkTCPServer("192.0.2.1:9000", HANDLER, **THERE),
        lambda: PreforkTCPServer(["192.0.2.1:1", ("192.0.2.1", 9000)], HANDLER, **THERE),
        lambda: PreforkWSGIServer("192.0.2.1:9000", lambda environ, respond: [], **THERE),
        lambda: Preforker(print, listen="192.0.2.1:9000", **THERE),
        lambda: PreforkAsyncioServer("192.0.2.1:9000", lambda reader, writer: None, **THERE),
        lambda: PreforkUnixStreamServer("/nowhere/a.sock", HANDLER, status="unix:/nowhere/a.sock"),
    ],
)
def test_each_constructor_says_so(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match="is where the server itself listens"):
        make()


@pytest.mark.parametrize(
    ("status", "address"),
    [
        ("127.0.0.1:9000", "127.0.0.1:9000"),
        ("127.0.0.1:9000", "0.0.0.0:9000"),
        ("127.0.0.1:9000", ":9000"),
        ("localhost:9000", "127.0.0.1:9000"),
        ("[::1]:9000", "[::]:9000"),
        ("127.0.0.1:9000", "[::]:9000"),
        ("unix:/run/s.sock", "unix:/run/s.sock"),
    ],
)
def test_addresses_of_which_the_second_could_not_be_bound(status: str, address: str) -> None:
    with pytest.raises(ConfigError, match="an address of its own"):
        check_status_address(status, [parse("127.0.0.1:0"), parse(address)])


@pytest.mark.parametrize(
    ("status", "address"),
    [
        (None, "127.0.0.1:9000"),
        ("127.0.0.1:9001", "127.0.0.1:9000"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("[::1]:9000", "127.0.0.1:9000"),
        ("[::1]:9000", "0.0.0.0:9000"),
        ("127.0.0.2:9000", "127.0.0.1:9000"),
        ("unix:/run/s.sock", "unix:/run/t.sock"),
        ("unix:/run/s.sock", "127.0.0.1:9000"),
    ],
)
def test_addresses_that_can_be_had_together(status: str | None, address: str) -> None:
    check_status_address(status, [parse(address)])


def test_datagrams_have_ports_of_their_own() -> None:
    with PreforkUDPServer("127.0.0.1:9000", HANDLER, False, status="127.0.0.1:9000"):
        pass
