"""Proxies that say for whom they ask: who is believed, how far, and what is refused."""

import pytest

from prefork_server.http.forwarded import Origin, believed, origin
from prefork_server.http.wire import Reject, read_head

PEERS = believed(["10.0.0.0/8", "192.0.2.1", "fd00::/8"])


def said(*fields: str) -> Origin:
    head = "".join(f"{field}\r\n" for field in ("GET / HTTP/1.1", "Host: h", *fields, ""))
    return origin(read_head(head.encode("latin-1")), PEERS)


# What is said


@pytest.mark.parametrize(
    ("chain", "address", "port"),
    [
        ("203.0.113.9", "203.0.113.9", 0),
        ("203.0.113.9:4711", "203.0.113.9", 4711),
        ("2001:db8::1", "2001:db8::1", 0),
        ("[2001:DB8::1]", "2001:db8::1", 0),
        ("[2001:db8::1]:80", "2001:db8::1", 80),
        ("forged, 203.0.113.9", "203.0.113.9", 0),
        ("forged, 203.0.113.9,10.1.1.1 ,\t10.2.2.2", "203.0.113.9", 0),
        ("203.0.113.9, 198.51.100.1, fd00::1", "198.51.100.1", 0),
        ("10.1.1.1", "10.1.1.1", 0),  # one of ours is who asks
        ("10.1.1.1, 10.2.2.2", "10.1.1.1", 0),
        ("unknown", None, 0),
        ("203.0.113.9, unknown", None, 0),
        ("203.0.113.9, unknown, 10.2.2.2", "10.2.2.2", 0),  # as far as is known
    ],
)
def test_from_the_right_the_first_who_is_no_proxy_of_ours_is_the_client(
    chain: str, address: str | None, port: int
) -> None:
    assert said(f"X-Forwarded-For: {chain}") == Origin(address, port)
    lines = [f"X-Forwarded-For: {each}" for each in chain.split(",")]
    assert said(*lines) == Origin(address, port)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("for=203.0.113.9", Origin("203.0.113.9")),
        ("For=203.0.113.9;Proto=HTTPS;by=10.1.1.1", Origin("203.0.113.9", 0, "https")),
        ('for="203.0.113.9:47";proto=http', Origin("203.0.113.9", 47, "http")),
        ('for="[2001:db8::1]:_hidden"', Origin("2001:db8::1")),
        ("for=1.2.3.4;proto=http, for=203.0.113.9;proto=https", Origin("203.0.113.9", 0, "https")),
        # The scheme is that of the client's connection, and not of the proxies' among each other.
        ("for=203.0.113.9;proto=https,for=10.1.1.1;proto=http", Origin("203.0.113.9", 0, "https")),
        ("for=203.0.113.9, for=10.1.1.1;proto=http", Origin("203.0.113.9")),
        ("for=203.0.113.9, for=unknown;proto=https", Origin(None, 0, "https")),
        ("for=203.0.113.9, for=_a.b-c", Origin()),
        ("proto=https", Origin(None, 0, "https")),
        ('for="203.0.113.\\9"; host="a,b;c\\"" , ,', Origin("203.0.113.9")),
        ("", Origin()),
    ],
)
def test_the_standard_field_is_read_by_its_grammar(field: str, expected: Origin) -> None:
    assert said(f"Forwarded: {field}") == expected


@pytest.mark.parametrize(
    "fields",
    [
        ["X-Forwarded-For: me"],
        ["X-Forwarded-For: 203.0.113.9,"],
        ["X-Forwarded-For:"],
        ["X-Forwarded-For: 203.0.113.256"],
        ["X-Forwarded-For: 203.0.113.9:65536"],
        ["X-Forwarded-For: [203.0.113.9]:x"],
        ["X-Forwarded-For: 1:2"],
        ["X-Forwarded-For: fe80::1%eth0"],
        ["X-Forwarded-For: 203.0.113.9;10.0.0.1"],
        ["X-Forwarded-Proto: ftp"],
        ["X-Forwarded-Proto:"],
        ["X-Forwarded-Proto: https, http"],
        ["X-Forwarded-Proto: https", "X-Forwarded-Proto: http"],
        ["Forwarded: for=me"],
        ["Forwarded: for"],
        ["Forwarded: for=203.0.113.9 proto=http"],
        ['Forwarded: for="203.0.113.9'],
        ['Forwarded: for="1.2.3.4, for=203.0.113.9'],  # to swallow what a proxy adds
        ["Forwarded: for=203.0.113.9;for=1.2.3.4"],
        ["Forwarded: for=203.0.113.9;proto=ftp"],
        ["Forwarded: for=[::1]"],
        ["Forwarded: for=203.0.113.9", "X-Forwarded-For: 203.0.113.8"],
        ["Forwarded: proto=https", "X-Forwarded-For: 203.0.113.8"],
        ["Forwarded: for=203.0.113.8", "X-Forwarded-Proto: https"],
        ["Forwarded: for=203.0.113.8;proto=https", "X-Forwarded-For: 203.0.113.8"],
        ["Forwarded:", "X-Forwarded-For: 203.0.113.8"],
    ],
)
def test_what_is_malformed_or_said_twice_and_differs_is_refused(fields: list[str]) -> None:
    with pytest.raises(Reject) as caught:
        said(*fields)
    assert caught.value.status == 400


def test_two_fields_that_say_the_same_are_one() -> None:
    both = ["Forwarded: for=203.0.113.9;proto=https", "X-Forwarded-For: 203.0.113.9"]
    assert said(*both, "X-Forwarded-Proto: https, HTTPS") == Origin("203.0.113.9", 0, "https")


def test_who_says_nothing_speaks_for_himself() -> None:
    assert said() == said("X-Forwarded-Host: evil", "X-Forwarded-Port: 1") == Origin()


def test_a_field_as_long_as_can_be_is_soon_refused() -> None:
    for value in ('"' * 8000, "for=" * 2000, ("=" * 8000), 'for="' + "\\" * 7999):
        with pytest.raises(Reject):
            said(f"Forwarded: {value}")
