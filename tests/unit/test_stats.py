"""What a server says of itself: figures, deaths, counters, and who may believe them."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from prefork_server import ConfigError, SharedCounter
from prefork_server.bulletin import Bulletin
from prefork_server.plan import Death
from prefork_server.scoreboard import (
    BUSY,
    DEADLINE,
    ERRORS,
    GENERAL,
    LAST_DEATHS,
    LEAVING,
    MOVING,
    NEVER,
    PAST_REQUESTS,
    READY,
    REQUESTS,
    SECOND,
    SINCE,
    WISH,
    Scoreboard,
)
from prefork_server.stats import Stats, read
from tests.conftest import soak


def a_board(slots: int = 3) -> Scoreboard:
    board = Scoreboard(slots)
    for slot in range(1, slots + 1):
        board.clear(slot, 9 * SECOND)
        board.occupy(slot, 100 + slot, SECOND, 1)
        board.set(slot, READY, SECOND)
    return board


def a_death(slot: int = 1, expected: bool = False, report: str = "") -> Death:
    return Death(slot, 100 + slot, 3, 2.5, 7, True, expected, False, report)


# Reading


def test_what_the_dead_had_counted_stays_in_the_totals() -> None:
    board = a_board()
    for slot in (1, 2, 3):
        board.set(slot, REQUESTS, 10 * slot)
        board.set(slot, ERRORS, slot)
    before = read(board, 2 * SECOND)
    assert (before.requests, before.errors, len(before.workers)) == (60, 6, 3)
    board.vacate(2, 2 * SECOND)
    after = read(board, 2 * SECOND)
    assert (after.requests, after.errors, len(after.workers)) == (60, 6, 2)
    assert {worker.slot: worker.requests for worker in after.workers} == {1: 10, 3: 30}


def test_a_worker_that_dies_while_it_serves_was_busy_until_then() -> None:
    board = a_board(1)
    board.set(1, BUSY, SECOND - 3 * SECOND)  # one second, and the present one since 3
    board.set(1, SINCE, 3 * SECOND)
    assert read(board, 5 * SECOND).busy == 3
    board.vacate(1, 6 * SECOND)
    assert read(board, 60 * SECOND).busy == 4


def test_a_worker_can_make_no_total_that_breaks_the_master() -> None:
    board = a_board()
    for slot, value in ((1, (1 << 63) - 1), (2, (1 << 63) - 1), (3, -(1 << 63))):
        for field in (REQUESTS, ERRORS, BUSY):
            board.set(slot, field, value)
    board.set(0, MOVING, (1 << 63) - 1)
    for slot in (1, 2, 3):
        board.vacate(slot, 5 * SECOND)
    assert read(board, SECOND).requests == board.get(0, PAST_REQUESTS) == NEVER


def test_who_looks_while_one_is_counted_out_looks_again() -> None:
    board = a_board(1)
    board.set(1, REQUESTS, 10)
    looks = []

    class Shown(Scoreboard):
        def occupied(self) -> list[int]:
            looks.append(1)
            if len(looks) == 1:  # the master is just about to add what it has taken away
                self.vacate(1, SECOND)
                self.set(0, PAST_REQUESTS, 0)
            elif len(looks) == 2:
                self.set(0, PAST_REQUESTS, 10)
            return super().occupied()

    board.__class__ = Shown
    assert read(board, SECOND).requests == 10
    assert len(looks) == 2


def test_a_state_is_the_first_that_holds() -> None:
    def state(**words: int) -> str:
        board = a_board(1)
        for name, value in words.items():
            board.set(
                1, {"ready": READY, "wish": WISH, "going": LEAVING, "since": SINCE}[name], value
            )
        return read(board, SECOND).workers[0].state

    assert state(ready=0) == "booting"
    assert state() == "idle"
    assert state(since=5) == "busy"
    assert state(since=5, wish=1) == state(ready=0, going=1) == "retiring"


def test_the_deadline_may_be_past_and_may_be_never() -> None:
    board = a_board(2)
    board.set(1, DEADLINE, 3 * SECOND)
    board.set(2, DEADLINE, NEVER + 17)
    assert [worker.left for worker in read(board, 5 * SECOND).workers] == [-2, None]


def test_a_note_is_of_one_request_and_of_64_bytes() -> None:
    board = a_board(1)

    def note() -> str:
        return read(board, SECOND).workers[0].note

    board.set(1, SINCE, 5)
    board.set_note(1, "é" * 40)
    assert note() == "é" * 32
    board.set_note(1, "x" + "é" * 40)  # half of the last one has no room
    assert note() == "x" + "é" * 31
    board.set_note(1, "a\nb\x1b[31m\u202e")
    assert note() == r"a\nb\x1b[31m\u202e"
    board.set(1, SINCE, 6)  # somebody else
    assert note() == ""
    board.set_note(1, "\udcff")
    assert note() == "?"


@given(st.binary(max_size=64))
def test_whatever_stands_in_a_text_can_be_shown(raw: bytes) -> None:
    board = a_board(1)
    board._write(0, raw)
    board._write(board._notes + 64, raw)
    board.set(1, SINCE, 5)
    board.set(1, 15, 5)
    worker = read(board, SECOND).workers[0]
    assert (worker.peer + worker.note).isprintable()


# What the master says


def test_a_notice_that_is_being_written_is_not_read_and_one_too_long_is_not_said() -> None:
    board = a_board()
    board.set_notice(1, b"hello")
    assert (board.notice(0), board.notice(1)) == (b"", b"hello")
    head, _ = board._page(1)
    head[0] += 1
    assert board.notice(1) == b""
    head[0] = (1 << 63) - 1
    board.set_notice(1, b"x" * 4080)
    assert board.notice(1) == b"x" * 4080
    assert board.notice(2) == b""
    board.set_notice(1, b"x" * 4081)
    assert board.notice(1) == b""
    board.set_notice(GENERAL, b"x" * 60_000)
    assert len(board.notice(GENERAL)) == 60_000


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=soak(40, 1000), deadline=None)
@example(b'{"listeners": [["a", false]], "counters": {"b": true}}')
@given(
    st.binary(max_size=4080)
    | st.builds(lambda v: json.dumps(v).encode()[:4080], _JSON)
    | st.builds(
        lambda a, b: json.dumps({"listeners": a, "counters": b}).encode()[:4080], _JSON, _JSON
    )
)
def test_whatever_stands_in_a_notice_breaks_nobody(text: bytes) -> None:
    board = a_board()
    for number in (0, GENERAL):
        board.set_notice(number, text)
    stats = read(board, SECOND)
    json.dumps(stats.as_dict())
    list(text_string_to_metric_families(stats.prometheus()))


def test_nested_notices_break_nobody_either() -> None:
    board = a_board()
    board.set_notice(0, b"[" * 4000)
    board.set_notice(GENERAL, b'{"listeners":' + b"[" * 4000)
    assert read(board, SECOND).last_deaths == ()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be", "utf-8-sig"])
def test_a_notice_in_another_encoding_is_none(encoding: str) -> None:
    board = a_board()
    board.set_notice(GENERAL, '{"counters": {"a": 1}}'.encode(encoding))
    assert read(board, SECOND).counters == {}


def test_a_death_is_told_as_it_was_and_how_long_ago() -> None:
    board = a_board()
    bulletin = Bulletin(board, [])
    bulletin.tell_death(a_death(report='File "app.py", line 3\n  <&>'), None, 5 * SECOND)
    stats = read(board, 65 * SECOND)
    (death,) = stats.last_deaths
    assert (death.slot, death.pid, death.status, death.age, death.requests) == (1, 101, 3, 2.5, 7)
    assert (death.ago, death.report) == (60, 'File "app.py", line 3\n  <&>')
    assert stats.as_dict()["last_deaths"][0]["cause"] == "exit code 3"
    assert (stats.deaths, stats.crashes) == (1, 1)


def test_the_last_20_deaths_are_kept_and_those_that_were_meant_make_room_first() -> None:
    board = a_board()
    bulletin = Bulletin(board, [])
    for number in range(1, 6):
        bulletin.tell_death(a_death(number), None, number)
    for number in range(6, 60):  # a reload
        bulletin.tell_death(a_death(number, expected=True), None, number)
    kept = [death.slot for death in read(board, SECOND).last_deaths]
    assert len(kept) == LAST_DEATHS
    assert kept == [*range(59, 44, -1), 5, 4, 3, 2, 1]
    for number in range(60, 90):
        bulletin.tell_death(a_death(number), None, number)
    assert [death.slot for death in read(board, SECOND).last_deaths] == [*range(89, 69, -1)]
    assert (read(board, SECOND).deaths, read(board, SECOND).crashes) == (89, 35)


@pytest.mark.parametrize("report", ["x" * 9000, "\U0001f600" * 3000, "\n" * 5000, '"' * 4000])
def test_of_a_long_report_both_ends_are_kept(report: str) -> None:
    board = a_board()
    Bulletin(board, []).tell_death(a_death(report=f"first{report}last"), None, SECOND)
    told = read(board, SECOND).last_deaths[0].report
    assert told.startswith("first")
    assert told.endswith("last")
    assert "\n[...]\n" in told
    assert len(told) > 200


# Told in other formats


def test_metrics_are_what_prometheus_reads() -> None:
    board = a_board()
    evil = "a\"b\\c{}'é"
    text = {"listeners": [["127.0.0.1:1", 3], ["unix:/x", None]], "counters": {evil: 5, "b": 0}}
    board.set_notice(GENERAL, json.dumps(text).encode())
    board.set(1, REQUESTS, 12)
    board.set(1, SINCE, 5)
    stats = read(board, 2 * SECOND)
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(stats.prometheus())
        for sample in family.samples
    }
    assert samples["prefork_requests_total",] == 12
    assert samples["prefork_workers", "busy"] == 1
    assert samples["prefork_workers", "idle"] == 2
    assert samples["prefork_listener_queue", "127.0.0.1:1"] == 3
    assert ("prefork_listener_queue", "unix:/x") not in samples
    assert samples["prefork_counter_total", evil] == 5
    kinds = {f.name: f.type for f in text_string_to_metric_families(stats.prometheus())}
    assert kinds["prefork_requests"] == kinds["prefork_counter"] == "counter"
    assert "unknown" not in kinds.values()


def test_as_dict_is_json_and_nothing_is_lost() -> None:
    board = a_board()
    Bulletin(board, []).tell_death(a_death(), None, SECOND)
    stats = read(board, 2 * SECOND)
    told = json.loads(json.dumps(stats.as_dict()))
    assert set(told) == set(Stats.__dataclass_fields__)
    assert len(told["workers"]) == 3
    assert told["workers"][0]["state"] == "idle"


# Counters


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 65, 7, "\u202e"])
def test_a_counter_has_a_name_that_can_be_shown(name: Any) -> None:
    with pytest.raises(ConfigError, match="1 to 64 characters"):
        SharedCounter(name)


def test_a_counter_only_grows_and_has_its_name_alone() -> None:
    counter = SharedCounter("of this test")
    counter.add()
    counter.add(0)
    counter.add(41)
    assert counter.value == 42
    assert repr(counter) == "<SharedCounter 'of this test': 42>"
    with pytest.raises(ValueError, match="only grows"):
        counter.add(-1)
    with pytest.raises(ConfigError, match="'of this test' already"):
        SharedCounter("of this test")
    del counter
    assert SharedCounter("of this test").value == 0


def test_a_hundred_counters_are_enough() -> None:
    kept = [SharedCounter(f"number {number}") for number in range(100)]
    with pytest.raises(ConfigError, match="100"):
        SharedCounter("one more")
    del kept
