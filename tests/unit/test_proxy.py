"""The PROXY protocol: what a header says, by its bytes alone."""

import socket
import struct

import pytest

from prefork_server.proxy import MOST, ProxyError, read_header

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
PLACES = {0x11: b"\x01\x02\x03\x04\x05\x06\x07\x08" + struct.pack("!HH", 1000, 80)}
PLACES[0x21] = socket.inet_pton(socket.AF_INET6, "2001:db8::1") * 2 + struct.pack("!HH", 7, 80)
PLACES[0x31] = b"/run/client".ljust(108, b"\0") + b"/run/server".ljust(108, b"\0")


def v2(
    family: int = 0x11, more: bytes = b"", command: int = 0x21, place: bytes | None = None
) -> bytes:
    body = (PLACES.get(family, b"") if place is None else place) + more
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(body)) + body


# What it says


@pytest.mark.parametrize(
    ("header", "peer"),
    [
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", ("192.0.2.1", 56324)),
        (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 0\r\n", ("255.255.255.255", 65535)),
        (b"PROXY TCP6 2001:DB8::0001 ::1 1 2\r\n", ("2001:db8::1", 1, 0, 0)),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", ("::ffff:192.0.2.1", 1, 0, 0)),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff::1 whatever 9\n \0\r\n", None),
        (v2(), ("1.2.3.4", 1000)),
        (v2(0x21), ("2001:db8::1", 7, 0, 0)),
        (v2(0x31), "/run/client"),
        (v2(0x31, place=b"\0abstract".ljust(216, b"\0")), b"\0abstract"),
        (v2(0x31, place=bytes(216)), b""),
        (v2(0x11, b"\x03\x00\x04abcd"), ("1.2.3.4", 1000)),  # with a TLV
        (v2(0x11, bytes(MOST - 28)), ("1.2.3.4", 1000)),
        (v2(0x11, command=0x20), None),
        (v2(0x77, command=0x20, place=b"xyz"), None),  # LOCAL: what follows means nothing
        (v2(0x00), None),
        (v2(0x12, place=PLACES[0x11]), None),  # datagrams: known, and not for streams
    ],
)
def test_a_header_names_its_peer_in_as_many_bytes_as_it_has(header: bytes, peer: object) -> None:
    for rest in (b"", b"GET / HTTP/1.1\r\n", header):
        assert read_header(header + rest) == (len(header), peer)
    for size in range(len(header)):
        assert read_header(header[:size]) is None


@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n\r\n",
        b"PROXY TCP4 1.2.3.4\t1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        b"PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 0x1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP6 :::1 ::1 1 2\r\n",
        b"PROXY TCP6 ::1%lo ::1 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 \xb2 2\r\n",
        b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY \r\n",
        b"PROXY UNKNOWN ".ljust(106, b"x") + b"\r\n",
        b"PROXY UNKNOWN ".ljust(107, b"x"),
        v2(command=0x22),
        v2(command=0x11),
        v2(0x41),
        v2(0x13),
        v2(place=bytes(11)),
        v2(0x21, place=bytes(35)),
        v2(0x31, place=bytes(215)),
        v2(0x11, bytes(MOST - 27)),
        SIGNATURE + b"\x21\x11\xff\xff",
        SIGNATURE[:-1] + b"\r",
    ],
)
def test_what_is_no_header_is_none(header: bytes) -> None:
    with pytest.raises(ProxyError) as error:
        read_header(header)
    assert error.value.by_client


def test_the_longest_line_has_107_bytes_and_no_more_are_waited_for() -> None:
    line = b"PROXY UNKNOWN ".ljust(105, b"x")
    assert read_header(line + b"\r\n") == (107, None)
    assert read_header(line + b"x") is None
    with pytest.raises(ProxyError, match="longer than 107 bytes"):
        read_header(line + b"x\r")
