"""Addresses, as they may be written and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from prefork_server import ConfigError
from prefork_server.listeners import (
    parse,
    parse_all,
)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("127.0.0.1:9000", ("127.0.0.1", 9000)),
        (":9000", ("", 9000)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9000", ("::1", 9000)),
        (("::1", 9000), ("::1", 9000)),
        ("unix:/run/x.sock", "/run/x.sock"),
        ("unix:@x", "\0x"),
        (Path("x.sock"), "x.sock"),
    ],
)
def test_an_address_may_be_written_in_the_usual_ways(given: object, name: object) -> None:
    assert parse(given).name == name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("9000", "write host:port, as in 127.0.0.1:9000, or unix:/path, not '9000'"),
        ("127.0.0.1:http", "write host:port"),
        ("127.0.0.1:-1", "write host:port"),
        ("127.0.0.1:", "write host:port"),
        ("127.0.0.1:65536", "a port is a whole number, 0 to 65535, not 65536"),
        ("127.0.0.1:\u0665", "write host:port"),
        ("::1:9000", "an IPv6 address goes in brackets, as in [::1]:9000, not '::1:9000'"),
        (("127.0.0.1", -1), "not -1 in ('127.0.0.1', -1)"),
        (("127.0.0.1", "9000"), "not '9000' in"),
        (("127.0.0.1", True), "not True in"),
        (("127.0.0.1",), "a TCP address is a (host, port) tuple, not ('127.0.0.1',)"),
        ((1, 2), "a host is a text, not 1"),
        (("a\0b", 2), "a host is a text"),
        (9000, "an address is a text, a (host, port) tuple or a Path, not 9000"),
        (None, "an address is a text, a (host, port) tuple or a Path, not None"),
        ("unix:", "a UNIX socket address is a path, not ''"),
        ("unix:a\0b", "cannot hold a NUL"),
        ("unix:" + "x" * 108, "at most 107 bytes, not 108"),
        ("unix:" + "é" * 54, "at most 107 bytes, not 108"),
        ([], "at least one address to listen on, not an empty list"),
        (["127.0.0.1:1", ("127.0.0.1", 1)], "127.0.0.1:1 is given twice"),
        (["unix:x", Path("x")], "unix:x is given twice"),
    ],
)
def test_a_malformed_address_is_one_clear_sentence(given: object, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_all(given)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_port_0_may_be_given_twice() -> None:
    assert len(parse_all(["127.0.0.1:0", "127.0.0.1:0"])) == 2


@pytest.mark.parametrize(
    ("given", "alone"),
    [
        (["0.0.0.0:1", "[::]:1"], [False, True]),
        (["[::]:1", "127.0.0.1:2", "127.0.0.1:1", "[::]:2"], [True, False, False, True]),
        (["[::]:1", "127.0.0.1:2", "unix:1"], [False, False, False]),
        (["[::]:0", "127.0.0.1:0"], [False, False]),
        (["[::ffff:127.0.0.1]:1", "127.0.0.2:1"], [False, False]),
        ("[::]:1", [False]),
    ],
)
def test_an_ipv6_address_leaves_its_port_to_an_ipv4_one(given: Any, alone: list[bool]) -> None:
    assert [address.v6only for address in parse_all(given)] == alone
