"""Accepting, at the edge: what goes wrong there costs no spin and strands nobody."""

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from prefork_server import acceptor as module
from prefork_server.job import Hooks, Job, nothing
from prefork_server.listeners import Listener
from prefork_server.reports import Reports
from prefork_server.scoreboard import Scoreboard
from prefork_server.settings import Settings
from prefork_server.signals import Bell, Relay
from prefork_server.titles import Title
from prefork_server.worker.accept_loop import AcceptLoop, Guest
from prefork_server.worker.heartbeat import Heartbeat, Shared

AT_ONCE, PATIENTLY = 0.0, 5.0


class Loop(AcceptLoop):
    """An accept loop that looks once for each question."""

    def __init__(self, listeners: list[socket.socket], relay: Relay, bell: Bell) -> None:
        logger = logging.getLogger("prefork_server")
        reports, master = Reports(), Bell()
        self.closing: list[Reports | Bell] = [reports, master]
        shared = Shared(Scoreboard(1), reports, relay, master, Title("test"), -1, os.getpid())
        own = [Listener(listener) for listener in listeners]
        job = Job(Settings(client_timeout=5), "test", logger, nothing, own, Hooks())
        super().__init__(job, relay, Heartbeat(1, job, shared, bell))

    def close(self) -> None:
        super().close()
        while self.closing:
            self.closing.pop().close()

    def wait(self, seconds: float) -> socket.socket | Guest | None:
        self.heartbeat.pause = seconds
        if not (self._turns or self._knocked):
            self._look()
        knocked, self._knocked = self._knocked, None
        return knocked or (self._turns.popleft() if self._turns else None)


class Bench:
    """Listeners, and as many workers' acceptors on them as a test wants."""

    def __init__(self, stack: ExitStack, listeners: int = 1) -> None:
        self.stack = stack
        self.relay = Relay()
        stack.callback(self.relay.close)
        self.listeners = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(listeners)
        ]
        for listener in self.listeners:
            listener.setblocking(False)

    def loop(self) -> "Loop":
        bell = Bell()
        self.stack.callback(bell.close)
        own = [socket.socket(fileno=os.dup(sock.fileno())) for sock in self.listeners]
        for sock in own:
            sock.setblocking(False)
        loop = Loop(own, self.relay, bell)
        self.stack.callback(loop.close)
        self.bell = bell
        return loop

    def knock(self, listener: int = 0) -> socket.socket:
        address = self.listeners[listener].getsockname()
        return self.stack.enter_context(socket.create_connection(address, 5))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_who_waits_is_told_and_taken(stack: ExitStack) -> None:
    bench = Bench(stack)
    loop = bench.loop()
    assert loop.wait(AT_ONCE) is None
    client = bench.knock()
    listener = loop.wait(PATIENTLY)
    assert listener is not None
    taken = loop.accept(listener)
    assert taken is not None
    connection, peer = taken
    with connection:
        assert peer == client.getsockname()
        assert repr(connection.gettimeout()) == "5.0"
        assert not os.get_inheritable(connection.fileno())
        client.sendall(b"x")
        assert connection.recv(1) == b"x"
    assert loop.accept(listener) is None  # a sibling would have been faster


def test_it_accepts_by_the_public_way_where_there_is_no_other(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_accept", module._accept_publicly)
    test_who_waits_is_told_and_taken(stack)


@pytest.mark.parametrize(
    "code",
    [
        "ECONNABORTED",
        "EPROTO",
        "ECONNRESET",
        "ETIMEDOUT",
        "EHOSTUNREACH",
        "ENETUNREACH",
        "EAGAIN",
        "EINTR",
        "EPERM",
    ],
)
def test_a_client_that_is_gone_before_it_is_taken_costs_nothing(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    loop, listener = _failing(stack, monkeypatch, code)
    assert loop.accept(listener) is None


@pytest.mark.parametrize("code", ["EBADF", "EINVAL", "ENOTSOCK"])
def test_a_broken_listener_ends_the_worker(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    loop, listener = _failing(stack, monkeypatch, code)
    with pytest.raises(OSError, match="stubbed"):
        loop.accept(listener)


@pytest.mark.parametrize("code", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"])
def test_out_of_anything_it_pauses_and_asks_a_sibling(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    loop, listener = _failing(stack, monkeypatch, code)
    assert loop.accept(listener) is None
    assert caplog.messages == ["accept: stubbed, trying again in 0.1s"]
    assert os.read(loop.acceptor.relay.fd, 9) == b"!"
    assert loop.wait(AT_ONCE) is None  # somebody is there, and we do not look
    pauses = [loop.acceptor._pause]
    while pauses[-1] < 1:
        loop.accept(listener)
        pauses.append(loop.acceptor._pause)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0]
    assert len(caplog.messages) == 1  # in 5 seconds
    monkeypatch.undo()
    loop.acceptor.resting_until_ns = 1  # it is over
    assert loop.wait(PATIENTLY) is not None
    taken = loop.accept(listener)
    assert taken and loop.acceptor._pause == 0
    taken[0].close()


def _failing(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, code: str
) -> tuple[Loop, socket.socket]:
    bench = Bench(stack)
    loop = bench.loop()
    bench.knock()
    listener = loop.wait(PATIENTLY)
    assert listener is not None

    def fail(_: object) -> Any:
        raise OSError(getattr(errno, code), "stubbed")

    monkeypatch.setattr(module, "_accept", fail)
    return loop, listener


def test_a_worker_woken_for_two_listeners_asks_a_sibling_to_look(stack: ExitStack) -> None:
    bench = Bench(stack, listeners=2)
    loop = bench.loop()
    bench.knock(0)
    bench.knock(1)
    chosen = set()
    for _ in range(2):
        listener = loop.wait(PATIENTLY)
        assert listener is not None
        chosen.add(listener.getsockname())  # round robin, or one could starve the other
        assert os.read(bench.relay.fd, 9) == b"!"
    assert len(chosen) == 2


def test_a_ring_of_the_relay_makes_one_look_anew(stack: ExitStack) -> None:
    bench = Bench(stack)
    loop = bench.loop()
    bench.relay.wake_one()
    assert loop.wait(PATIENTLY) is None
    assert loop.wait(AT_ONCE) is None
    bench.relay.woken()  # nothing is left of it, and that is no error


def test_the_bell_ends_the_wait(stack: ExitStack) -> None:
    bench = Bench(stack)
    loop = bench.loop()
    for _ in range(3):
        bench.bell.ring()
        assert loop.wait(PATIENTLY) is None
