"""When a worker that stops has accepted its last connection, and what the kernel says of others."""

import select
import socket
from collections.abc import Callable, Iterator

import pytest

from prefork_server.handshakes import handshakes, rows_by_netlink, rows_by_proc
from prefork_server.listeners import Listener
from tests.conftest import eventually

# Edges


@pytest.fixture(params=["127.0.0.1", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """Where accepting is deferred, so a handshake is under way until its client speaks."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((request.param, 0))
        sock.listen()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10)
        yield sock


def client_of(listener: socket.socket) -> socket.socket:
    host, port = listener.getsockname()[:2]
    return socket.create_connection(("::1" if host == "::1" else "127.0.0.1", port), 5)


@pytest.mark.parametrize("rows", [rows_by_netlink, rows_by_proc])
def test_the_kernel_tells_of_a_handshake_until_it_ends(
    listener: socket.socket, rows: Callable[[int, int], Iterator[bytes]]
) -> None:
    port = listener.getsockname()[1]
    assert list(rows(listener.family, port)) == []
    with client_of(listener) as client, client_of(listener):
        host = client.getpeername()[0]
        own = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
        if listener.family == socket.AF_INET6 and len(own) == 4:
            own = b"\0" * 10 + b"\xff\xff" + own
        assert list(rows(listener.family, port)) == [own, own]
        client.sendall(b"now")
        eventually(lambda: list(rows(listener.family, port)) == [own])


@pytest.mark.parametrize("listener", ["127.0.0.1"], indirect=True)
def test_handshakes_are_found_by_address_and_port(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.2", listener.getsockname()[1])) as stranger:
        assert not handshakes([listener, stranger])
        with client_of(listener):
            assert handshakes([stranger, listener])
            assert not handshakes([stranger])


def test_where_netlink_is_refused_proc_is_read(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "AF_NETLINK", socket.AF_UNIX)  # no such protocol there
    with client_of(listener):
        assert handshakes([listener])
    monkeypatch.setattr("builtins.open", _refuse)
    with client_of(listener):
        assert not handshakes([listener])


def _refuse(*_: object) -> None:
    raise PermissionError


def test_sockets_without_handshakes_have_none() -> None:
    closed = socket.create_server(("127.0.0.1", 0))
    closed.close()
    with (
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        assert not handshakes([closed, unix, datagrams])


def test_a_client_that_was_deferred_is_accepted_when_the_door_is_shut() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10)
        with client_of(sock) as early, client_of(sock) as silent:
            door = Listener(sock)
            if not door.shut_the_door():
                pytest.skip("the kernel lets us attach no filter to a TCP socket")
            early.sendall(b"speaks")
            for client in (early, silent):  # by its data, and by the SYN-ACK that comes again
                assert select.select([sock], [], [], 5)[0]
                connection, peer = sock.accept()
                connection.close()
                assert peer == client.getsockname()
            assert not handshakes([sock])
