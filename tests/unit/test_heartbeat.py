"""A worker's row: what a request, a wish and a fork leave there."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from prefork_server.job import Hooks, Job, nothing
from prefork_server.reports import Reports
from prefork_server.scoreboard import LEAVING, PID, REQUESTS, SINCE, Scoreboard
from prefork_server.settings import Settings
from prefork_server.signals import Bell, Relay
from prefork_server.titles import Title
from prefork_server.worker.heartbeat import Heartbeat, Shared


@pytest.fixture
def heartbeats() -> Iterator[list[Heartbeat]]:
    """Of four workers of one server."""
    with ExitStack() as stack:
        reports, relay, master, bell = (
            stack.enter_context(closing(kind())) for kind in (Reports, Relay, Bell, Bell)
        )
        shared = Shared(Scoreboard(4), reports, relay, master, Title("test"), -1, 1)  # type: ignore[arg-type]
        job = Job(Settings(), "test", logging.getLogger("test"), nothing, [], Hooks())
        for slot in range(1, 5):
            shared.board.set(slot, PID, 100 + slot)
        yield [Heartbeat(slot, job, shared, bell) for slot in range(1, 5)]  # type: ignore[arg-type]


def quick(heartbeat: Heartbeat) -> None:
    for _ in range(500):
        heartbeat.begin(("127.0.0.1", 1))
        heartbeat.end()


def test_a_request_is_counted_once_and_named_by_its_client(heartbeats: list[Heartbeat]) -> None:
    heartbeat, board = heartbeats[0], heartbeats[0].board
    for peer, text in (
        (("127.0.0.1", 4000), "127.0.0.1:4000"),
        (("127.0.0.1", 4001), "127.0.0.1:4001"),
        (("::1", 4001, 0, 0), "::1:4001"),
        ("", ""),
        (b"\0name", ""),
        (("host", "no port"), "host:0"),
        (("host", 1 << 70), ""),
        ((), ""),
        (None, ""),
    ):
        before = board.get(1, REQUESTS)
        heartbeat.begin(peer)
        assert board.get(1, SINCE) and board.get(1, REQUESTS) == before + 1
        assert board.peer(1) == text
        heartbeat.end()
        assert not board.get(1, SINCE)


def test_busy_time_never_goes_back(heartbeats: list[Heartbeat]) -> None:
    heartbeat, board, seen = heartbeats[0], heartbeats[0].board, 0
    for _ in range(100):
        heartbeat.begin(None)
        for now_ns in (heartbeat.began_ns, heartbeat.began_ns + 5):
            assert board.busy_ns(1, now_ns) >= seen
            seen = board.busy_ns(1, now_ns) - 5
        heartbeat.end()


def test_a_worker_whose_requests_are_quick_makes_way_only_beyond_its_share(
    heartbeats: list[Heartbeat],
) -> None:
    one, two, *_ = heartbeats
    one.park(3)
    assert one.has_its_share(cpus=1)  # nothing is known of its requests yet
    quick(one)
    assert not one.has_its_share(cpus=1)  # to spread would win nothing
    assert one.has_its_share(cpus=2) and one.has_its_share(cpus=4)
    two.park(3)
    assert not one.has_its_share(cpus=2)
    assert one.has_its_share(cpus=4)


def test_a_worker_whose_requests_are_slow_always_makes_way(heartbeats: list[Heartbeat]) -> None:
    one = heartbeats[0]
    one.park(1)
    quick(one)
    assert not one.has_its_share(cpus=1)
    for _ in range(2):
        one.begin(None)
        one.began_ns -= 50_000_000  # it took 50 ms
        one.end()
    assert one.has_its_share(cpus=1)


def test_a_fork_of_a_worker_writes_nothing_that_is_read(heartbeats: list[Heartbeat]) -> None:
    heartbeat, board = heartbeats[0], heartbeats[0].board
    heartbeat.begin(("127.0.0.1", 4000))
    heartbeat.end()
    heartbeat.disown()
    heartbeat.begin(("10.0.0.1", 5000))
    heartbeat.note("of the fork")
    heartbeat.fail(ValueError())
    heartbeat.go()
    assert board.get(1, REQUESTS) == 1 and not board.get(1, SINCE) and not board.get(1, LEAVING)
    assert board.peer(1) == "127.0.0.1:4000" and board.note(1) == ""
