"""The addresses that the name of a host has, and which of them are listened on."""

import errno
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
    "link.test": ["fe80::1", "127.0.0.1"],
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


def test_a_link_local_address_which_cannot_be_bound_without_a_scope_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As nss-myhostname has it for the machine's own name."""

    class Socket(socket.socket):
        def bind(self, where: Any) -> None:
            if not where[0].startswith("fe80:"):
                super().bind(where)
            elif not any(where[2:]):
                raise OSError(errno.EINVAL, "Invalid argument")  # as the kernel says

    answers = socket.getaddrinfo

    def with_scope(*args: Any) -> list[Any]:
        return [
            (*rest, (*where[:3], 2) if where[0].startswith("fe80:") else where)
            for *rest, where in answers(*args)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", with_scope)
    monkeypatch.setattr(socket, "socket", Socket)
    assert [str(each) for each in resolved(parse("link.test:80"))] == ["127.0.0.1:80"]


def test_what_is_given_besides_the_name_counts_once_and_what_is_given_twice_is_refused() -> None:
    both = parse_all(["both.test:80", "[::1]:80", "unix:sock"])
    assert [str(each) for each in both] == ["127.0.0.1:80", "[::1]:80", "unix:sock"]
    with pytest.raises(ConfigError, match=r"and 127\.0\.0\.1:80 is given twice"):
        parse_all(["127.0.0.1:80", "both.test:80"])
