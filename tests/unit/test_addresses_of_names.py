"""The addresses that the name of a host has, and which of them are listened on."""

import socket
from typing import Any

import pytest

from prefork_server import ConfigError
from prefork_server.listeners import Address, parse, parse_all, resolved

V4, V6 = socket.AF_INET, socket.AF_INET6
NAMES = {
    "six.test": ["::1"],
    "both.test": ["::1", "127.0.0.1"],
    "several.test": ["127.0.0.3", "127.0.0.2"],
    "partly.test": ["192.0.2.1", "::1", "2001:db8::1"],
    "elsewhere.test": ["192.0.2.1"],
}


@pytest.fixture(autouse=True)
def _resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: str, port: int, family: int = 0, kind: int = 0) -> list[Any]:
        found = [(V6 if ":" in where else V4, where) for where in NAMES.get(host, ())]
        found = [each for each in found if family in (0, each[0])]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [
            (each, kind, 6, "", (where, port, 0, 0) if each == V6 else (where, port))
            for each, where in found
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("six.test:80", ["[::1]:80"]),
        ("both.test:80", ["127.0.0.1:80", "[::1]:80"]),
        ("both.test:0", ["127.0.0.1:0"]),
        ("several.test:80", ["127.0.0.3:80", "127.0.0.2:80"]),
        ("partly.test:80", ["[::1]:80"]),
        ("elsewhere.test:80", ["192.0.2.1:80"]),
        ("no.test:80", ["no.test:80"]),
        ("127.1:80", ["127.1:80"]),
        (":80", [":80"]),
        ("unix:both.test", ["unix:both.test"]),
    ],
)
def test_a_name_is_all_its_addresses_on_this_machine(text: str, found: list[str]) -> None:
    assert [str(each) for each in resolved(parse(text))] == found


def test_a_class_for_ipv6_has_the_ipv6_addresses_of_a_name() -> None:
    assert resolved(Address(V6, ("both.test", 80))) == [Address(V6, ("::1", 80))]


def test_what_is_given_besides_the_name_counts_once_and_what_is_given_twice_is_refused() -> None:
    both = parse_all(["both.test:80", "[::1]:80", "unix:sock"])
    assert [str(each) for each in both] == ["127.0.0.1:80", "[::1]:80", "unix:sock"]
    with pytest.raises(ConfigError, match=r"and 127\.0\.0\.1:80 is given twice"):
        parse_all(["127.0.0.1:80", "both.test:80"])
