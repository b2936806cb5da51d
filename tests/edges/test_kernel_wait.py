"""The first wait of a read in the kernel: where it is used, and where it is taken off before."""

import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from prefork_server import Connection
from prefork_server.acceptor import Acceptor
from prefork_server.listeners import listen, parse
from prefork_server.signals import Relay
from prefork_server.sockets.connection import has_slice, set_slice
from tests.edges.test_connection import Worker

Accepted = Callable[..., tuple[Connection, socket.socket]]


@pytest.fixture
def accepted() -> Iterator[Accepted]:
    """A connection as a worker accepts it, and its client."""
    with ExitStack() as stack:

        def accept(
            client_timeout: float | None = 30, pause: float = 1.0, address: str = "127.0.0.1:0"
        ) -> tuple[Connection, socket.socket]:
            worker, relay, epoll = Worker(), Relay(), stack.enter_context(select.epoll())
            worker.pause = pause
            stack.callback(worker.bell.close)
            stack.callback(relay.close)
            listener = listen(parse(address))
            stack.callback(listener.close)
            logger = logging.getLogger("prefork_server")
            acceptor = Acceptor([listener.socket], relay, epoll, worker, client_timeout, logger)
            client = stack.enter_context(socket.socket(listener.socket.family))
            client.connect(listener.socket.getsockname())
            taken = acceptor.accept(listener.socket)
            assert taken
            return stack.enter_context(taken[0]), client

        yield accept


def test_a_late_client_is_waited_for_by_one_call_and_no_poll(
    accepted: Accepted, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, client = accepted()
    monkeypatch.setattr(Connection, "_wait", None)  # called, it would raise
    timer = threading.Timer(0.05, lambda: client.sendall(b"late"))
    timer.start()
    assert ours.recv(10) == b"late"
    timer.join()


def test_a_client_that_is_silent_for_longer_is_waited_for_all_the_same(accepted: Accepted) -> None:
    ours, client = accepted()
    timer = threading.Timer(0.6, lambda: client.sendall(b"late"))
    timer.start()
    assert ours.recv(10) == b"late"
    timer.join()


@pytest.mark.parametrize(
    "see",
    [
        lambda ours: ours.fileno(),
        lambda ours: ours.makefile("rb").fileno(),
        lambda ours: ours.settimeout(5),
        lambda ours: ours.allow(5),
    ],
)
def test_it_is_taken_off_before_other_code_sees_the_descriptor(
    accepted: Accepted, see: Callable[[Connection], object]
) -> None:
    ours, client = accepted()
    assert has_slice(ours)
    see(ours)
    assert not has_slice(ours)
    timer = threading.Timer(0.05, lambda: client.sendall(b"late"))
    timer.start()
    assert ours.recv(10) == b"late"
    timer.join()


def test_a_detached_descriptor_has_none(accepted: Accepted) -> None:
    ours, _ = accepted()
    with socket.socket(fileno=ours.detach()) as plain:
        assert not has_slice(plain)


@pytest.mark.parametrize(
    ("client_timeout", "pause", "address"),
    [(0.5, 1.0, "127.0.0.1:0"), (30, 0.1, "127.0.0.1:0"), (30, 1.0, "unix:@prefork-kernel-wait")],
)
def test_it_is_not_used_where_time_is_short_or_the_listener_has_none(
    accepted: Accepted, client_timeout: float, pause: float, address: str
) -> None:
    ours, client = accepted(client_timeout, pause, address)
    assert ours.first_flags == socket.MSG_DONTWAIT
    client.sendall(b"word")
    assert ours.recv(10) == b"word"


def test_a_slice_can_be_set_and_taken_off() -> None:
    with socket.socket() as plain:
        assert not has_slice(plain)
        set_slice(plain, 0.25)
        assert has_slice(plain)
        set_slice(plain, 0)
        assert not has_slice(plain)
