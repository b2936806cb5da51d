"""The PROXY protocol: what a header says, however it arrives, and who is believed."""

import socket
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork_server.proxy import Introduction, ProxyError, introduced, read_header
from tests.conftest import soak
from tests.edges.test_connection import PAUSE, Worker, later
from tests.unit.test_proxy import PLACES, v2

V1 = b"PROXY TCP4 192.0.2.7 127.0.0.1 1234 80\r\n"


def verdict(data: bytes) -> object:
    try:
        return read_header(data)
    except ProxyError as error:
        return str(error)


# What it says


GOOD = [
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
    b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n",
    b"PROXY UNKNOWN x\r\n",
    *(v2(family, b"\x03\x00\x01x") for family in PLACES),
    v2(command=0x20),
]


@st.composite
def _mangled(draw: Any) -> bytes:
    data = bytearray(draw(st.sampled_from(GOOD)) + draw(st.binary(max_size=20)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data) - 1))
        how = draw(st.integers(0, 2))
        if how == 0:
            data[at] = draw(st.integers(0, 255))
        elif how == 1:
            data[at:at] = draw(st.binary(max_size=3))
        elif len(data) > 1:
            del data[at]
    return bytes(data)


@given(st.one_of(_mangled(), st.binary(max_size=200)))
@settings(max_examples=soak(300, 10_000), deadline=None)
def test_the_verdict_is_the_same_however_it_arrives(data: bytes) -> None:
    """And nothing is raised but ProxyError."""
    whole, size = verdict(data), 0
    while size < len(data) and (early := verdict(data[:size])) is None:
        size += 1
    if size < len(data):
        assert type(early) is type(whole) and (early == whole or isinstance(early, str))


@given(st.ip_addresses(), st.integers(0, 65535), st.binary(max_size=50))
@settings(deadline=None)
def test_whatever_a_proxy_says_of_a_client_arrives(address: Any, port: int, rest: bytes) -> None:
    peer = (str(address), port) if address.version == 4 else (str(address), port, 0, 0)
    line = f"PROXY TCP{address.version} {address} {address} {port} 9\r\n".encode()
    place = address.packed * 2 + struct.pack("!HH", port, 9)
    for header in (line, v2(0x11 if address.version == 4 else 0x21, place=place)):
        size, named = read_header(header + rest) or (0, None)
        assert size == len(header) and named[1:] == peer[1:]
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        assert socket.inet_pton(family, named[0]) == address.packed


# How it is taken


@pytest.mark.parametrize("header", GOOD)
@pytest.mark.parametrize("step", [1, 2, 5, 1000])
def test_not_one_byte_more_than_the_header_is_read(header: bytes, step: int) -> None:
    after = b"what follows\r\n\r\n"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        introduction, sent = Introduction("nobody"), header + after
        while not introduction.take_now(ours):
            piece, sent = sent[:step], sent[step:]
            theirs.sendall(piece)
        theirs.sendall(sent)
        theirs.shutdown(socket.SHUT_WR)
        found = read_header(header)
        assert found and introduction.peer == (found[1] or "nobody")
        with ours.makefile("rb") as file:
            assert file.read() == after


def test_an_end_in_the_middle_of_it_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        introduction = Introduction("nobody")
        assert not introduction.take_now(ours)
        theirs.sendall(b"PROXY TCP4")
        assert not introduction.take_now(ours)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ProxyError, match="ended before"):
            introduction.take_now(ours)


def test_on_a_socket_that_is_not_ours_it_is_waited_for_as_well() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        timer = later(lambda: theirs.sendall(V1))
        assert introduced(ours, "nobody", 5) == ("192.0.2.7", 1234)
        timer.join()
        with pytest.raises(TimeoutError) as error:
            introduced(ours, "nobody", PAUSE)
        assert error.value.by_client  # type: ignore[attr-defined]


def test_a_worker_that_goes_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefork_server.sockets.connection.FAREWELL", PAUSE)
    worker = Worker()
    worker.retire()
    ours, theirs = worker.connect(None)
    with ours, theirs, pytest.raises(ProxyError, match="nothing came, and we go"):
        introduced(ours, "nobody", 5)
    worker.bell.close()


def test_a_reset_instead_of_it_is_by_the_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        with ours, pytest.raises(ConnectionResetError) as error:
            introduced(ours, "nobody", 5)
        assert error.value.by_client  # type: ignore[attr-defined]
