"""The status service: what it shows, to whom, and what it costs the server if it is abused."""

import json
import re
from typing import Any

import pytest

from prefork_server import ConfigError, Settings
from prefork_server.scoreboard import GENERAL, MEMORY, SECOND, Scoreboard
from prefork_server.stats import read
from prefork_server.status.server import _Server
from prefork_server.status.table import table
from prefork_server.status.words import duration, size
from tests.conftest import (
    ROOT,
)

# Settings, words and names


@pytest.mark.parametrize(
    ("status", "rule"),
    [
        ("", "must be host:port"),
        ("9100", "must be host:port"),
        (":9100", "must be host:port"),
        ("localhost:http", "must be host:port"),
        (9100, "must be host:port"),
        (("127.0.0.1", 9100), "must be host:port"),
        ("0.0.0.0:9100", "could be read by other machines"),
        ("[::]:9100", "could be read by other machines"),
        ("192.0.2.1:9100", "could be read by other machines"),
        ("127.example.org:9100", "could be read by other machines"),
        ("127.0.0.1.example.org:9100", "could be read by other machines"),
        ("localhost.example.org:9100", "could be read by other machines"),
    ],
)
def test_what_is_no_status_address_or_can_be_read_elsewhere_is_refused(
    status: Any, rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule):
        Settings(status=status)


def test_a_status_for_all_the_world_must_be_meant_and_inline_has_none() -> None:
    assert Settings(status="0.0.0.0:9100", status_public=True).status == "0.0.0.0:9100"
    for status in ("127.0.0.1:0", "127.9.9.9:1", "localhost:1", "[::1]:1", "unix:/x", "unix:x:1"):
        assert Settings(status=status).status == status
    with pytest.raises(ConfigError, match="inline=True has none"):
        Settings(status="127.0.0.1:9100", inline=True)
    with pytest.raises(ConfigError, match="status_public must be True or False"):
        Settings(status_public=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "meant"),
    [
        (None, True),
        ("localhost", True),
        ("LOCALHOST:9100", True),
        ("localhost.", True),
        ("127.0.0.1:9100", True),
        ("127.3.2.1", True),
        ("[::1]:9100", True),
        ("[::1]", True),
        ("box:9100", True),
        ("", False),
        ("example.org", False),
        ("example.org:9100", False),
        ("127.0.0.1.example.org", False),
        ("localhost.example.org", False),
        ("192.0.2.1:9100", False),
        ("[2001:db8::1]:9100", False),
        ("::ffff:192.0.2.1", False),
        ("evil:localhost", False),
    ],
)
def test_a_host_is_ours_or_loopback(host: str | None, meant: bool) -> None:
    server = _Server.__new__(_Server)
    server.hosts = frozenset({"localhost", "box"})
    assert server.is_meant(host) is meant
    server.hosts = None
    assert server.is_meant(host)


def test_figures_are_in_words() -> None:
    seconds = (-1, 0.04, 59.94, 60, 3599, 3600, 90061, 86400 * 400)
    assert [duration(each) for each in seconds] == [
        *("0.0s", "0.0s", "59.9s", "1m00s", "59m59s", "1h00m", "1d01h", "400d00h"),
    ]
    sizes = (0, 2048, (1 << 20) - 1, 3 << 19, 5 << 30)
    assert [size(each) for each in sizes] == ["0 KiB", "2 KiB", "1023 KiB", "1.5 MiB", "5.00 GiB"]


# The command


def test_nothing_that_another_process_says_steers_a_terminal() -> None:
    told = {
        **dict.fromkeys(("pid", "generation", "wanted", "requests", "errors", "crashes"), 1),
        "state": "\x1b[2J",
        "successor": 0,
        "listeners": [],
        "last_deaths": [],
        "workers": [],
        "counters": {"\x9b31m\r\n": 1},
    }
    assert all(line.isprintable() for line in table(told, stacks=True))


# In the documents


def test_the_page_on_the_status_names_every_metric_and_every_figure() -> None:
    text = (ROOT / "docs" / "status.md").read_text()
    board = Scoreboard(1)
    board.occupy(1, 2, 3, 1)
    board.set(1, MEMORY, 5)
    told = {"listeners": [["127.0.0.1:1", 0]], "counters": {"orders": 1}}
    board.set_notice(GENERAL, json.dumps(told).encode())
    stats = read(board, SECOND)
    told_of = set(re.findall(r"`(prefork_\w+)(?:\{\w+\})?`", text))
    assert told_of == set(re.findall(r"^(prefork_\w+)", stats.prometheus(), re.MULTILINE))
    names = [*stats.as_dict(), *stats.as_dict()["workers"][0]]
    assert [name for name in names if f"`{name}`" not in text] == []
