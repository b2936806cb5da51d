"""When a worker that stops has accepted its last connection, and what the kernel says of others."""

import select
import socket
from collections.abc import Callable, Iterator

import pytest

from prefork_server.handshakes import handshakes, rows_by_netlink, rows_by_proc
from prefork_server.leave import HANDSHAKES, QUIET, Drain
from prefork_server.listeners import Listener
from prefork_server.vigil import FAREWELL
from tests.conftest import eventually

# Thinking


def ended_at(
    handshake_until: float = 0.0,
    awaited_until: float = 0.0,
    quiet: float = QUIET,
    came: tuple[float, ...] = (),
    spoke: tuple[float, ...] = (),
) -> float:
    """When a drain that began at 0 is over, looked at every 10 ms. A handshake that ends becomes
    a connection in the queue."""
    drain = Drain(0.0, quiet)
    for tick in range(1000):
        now = tick / 100
        if now in came or (now == handshake_until and now):
            drain.came(now)
        if now in spoke:
            drain.came(now, parked=True)
        while now >= drain.look_at:
            if drain.is_over(now, now < handshake_until, now < awaited_until):
                return now
    raise AssertionError("it is never over")


def test_without_clients_it_is_over_after_one_quiet_time() -> None:
    assert ended_at() == QUIET


def test_a_connection_begins_the_quiet_time_anew() -> None:
    assert ended_at(came=(0.05, 0.1)) == pytest.approx(0.1 + QUIET)


@pytest.mark.parametrize("round_trip", [0.15, 0.25, 0.6, 0.95])
def test_a_handshake_is_waited_for_until_it_is_accepted(round_trip: float) -> None:
    assert round_trip < ended_at(round_trip) <= round_trip + 2 * QUIET


def test_a_handshake_that_does_not_end_is_waited_for_one_second() -> None:
    assert HANDSHAKES <= ended_at(handshake_until=9.0) <= HANDSHAKES + QUIET


def test_after_the_last_look_at_handshakes_the_queue_is_looked_at_once_more() -> None:
    drain = Drain(0.0, QUIET)
    assert not drain.is_over(QUIET, handshake=False, awaited=False)
    assert (drain.asks, drain.look_at) == (False, QUIET)
    drain.came(QUIET)  # it ended between the look at the queue and the one at the kernel's table
    assert drain.look_at == 2 * QUIET
    assert drain.is_over(2 * QUIET, handshake=False, awaited=False)


def test_where_new_clients_cannot_be_kept_out_handshakes_are_not_waited_for() -> None:
    assert not Drain(0.0, 0.0).asks
    assert ended_at(handshake_until=9.0, quiet=0.0) == 0.0
    assert ended_at(awaited_until=9.0, quiet=0.0, spoke=(0.5,)) == pytest.approx(FAREWELL)


def test_a_parked_client_has_a_second_and_one_more_from_its_last_word() -> None:
    assert ended_at(awaited_until=9.0) == pytest.approx(FAREWELL, abs=QUIET)
    assert ended_at(awaited_until=9.0, spoke=(0.7,)) == pytest.approx(0.7 + FAREWELL, abs=QUIET)
    words = tuple(tick / 10 for tick in range(1, 40, 5))
    assert ended_at(awaited_until=99.0, spoke=words) <= 2 * FAREWELL + QUIET


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
