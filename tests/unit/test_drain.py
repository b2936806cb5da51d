"""When a worker that stops has accepted its last connection: the rule, without a socket."""

import pytest

from prefork_server.sockets.connection import FAREWELL
from prefork_server.worker.accept_loop import HANDSHAKES, QUIET, Drain

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
