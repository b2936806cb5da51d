"""Whom we believe when he speaks for others."""

import re

import pytest

from prefork_server import ConfigError
from prefork_server.peers import Peers

TRUSTED = Peers("trusted", ["192.0.2.1", "10.0.0.0/8", "fd00::/8", "::ffff:203.0.113.0/120"])


@pytest.mark.parametrize(
    "host",
    ["192.0.2.1", "::ffff:192.0.2.1", "10.255.255.255", "fd00::1", "fdff::1%eth0", "203.0.113.7"],
)
def test_an_address_that_is_named_or_in_a_network_that_is_named_is_trusted(host: str) -> None:
    assert (host, 1) in TRUSTED


@pytest.mark.parametrize(
    "host", ["192.0.2.2", "11.0.0.0", "fe00::1", "::1", "203.0.114.0", "", "x"]
)
def test_no_other_is(host: str) -> None:
    assert (host, 1, 0, 0) not in TRUSTED


@pytest.mark.parametrize("peer", ["", "/run/client.sock", b"\0abstract", None, ()])
def test_a_client_of_a_unix_socket_is_trusted_where_unix_is_named(peer: object) -> None:
    assert peer in Peers("trusted", ["unix"])
    assert peer not in TRUSTED
    assert ("127.0.0.1", 1) not in Peers("trusted", ["unix"])


def test_nobody_is_trusted_by_default() -> None:
    assert not Peers("trusted", ())
    assert Peers("trusted", ["unix"])
    assert TRUSTED


@pytest.mark.parametrize("wrong", ["localhost", "10.0.0.1/8", "10.0.0", "*", ""])
def test_what_is_no_address_is_an_error_that_names_it(wrong: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"not {wrong!r}: ")):
        Peers("trusted", [wrong])


def test_one_text_is_no_list() -> None:
    with pytest.raises(ConfigError, match=re.escape("not the text '127.0.0.1'")):
        Peers("trusted", "127.0.0.1")
