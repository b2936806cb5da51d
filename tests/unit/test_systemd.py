"""The protocols of systemd: what the environment says."""

import os

import pytest

from prefork_server import ConfigError
from prefork_server.scoreboard import NEVER, SECOND
from prefork_server.systemd import Notifier, handed_over


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"WATCHDOG_USEC": "1000000"},  # and nobody to tell
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "-1"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "9" * 5000},
    ],
)
def test_without_a_watchdog_of_ours_there_is_none(environ: dict[str, str]) -> None:
    assert Notifier(environ).period_ns == NEVER
    assert environ == {}


def test_the_watchdog_is_fed_twice_in_its_time() -> None:
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier(environ).period_ns == 3 * SECOND // 2


@pytest.mark.parametrize("count", ["abc", "-1", "0", "1000000", "1.5", "٣", " 1"])
def test_a_number_of_sockets_that_cannot_be_is_an_error(count: str) -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": "x"}
    with pytest.raises(ConfigError, match="LISTEN_FDS must be a number of sockets, 1 to 1024"):
        handed_over(environ)
    assert environ == {}
