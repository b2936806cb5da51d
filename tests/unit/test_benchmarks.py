"""The benchmarks: what they compute, whom they charge, and one small run of the whole."""

import math
from typing import Any

import pytest

from benchmarks import report, servers, workloads
from benchmarks.load import Load, put_load_on
from benchmarks.report import Spread, Target
from benchmarks.runner import Cpus
from benchmarks.servers import C_BLOCK, PREFORK, SYNC


def a_sample(workload: str, server: str, **figures: Any) -> dict[str, Any]:
    usual = {"cpu_us": 1.0, "per_second": 1.0, "p50_ms": 1.0, "p99_ms": 1.0, "p999_ms": 1.0}
    more = {"errors": 0, "pss_mb": 1.0, "load_us": 1.0, "load_busy": 0.1, "idle_answered": -1}
    return {"workload": workload, "server": server, "x": 0, **usual, **more, **figures}


def some_results(*samples: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": "a machine",
        "versions": {"Python": "3"},
        "absent": ["bjoern (needs bjoern)"],
        "terms": {"rounds": 3, "scale": 1.0, "workers": 4, "processes": 1},
        "workloads": {sample["workload"]: "a title; so many" for sample in samples},
        "samples": list(samples),
        "wrk": [],
        "lifecycle": [],
    }


def test_a_figure_is_its_median_with_the_range_of_its_rounds():
    assert Spread.of([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert Spread.of([1234.5, 1000.0, 2000.0]).text() == "1,234.5 (1,000.0-2,000.0)"


def test_a_round_in_which_nobody_was_answered_has_no_figure_and_spoils_none():
    assert Spread.of([math.nan, 5.0]) == (5.0, 5.0, 5.0)
    assert Spread.of([math.nan]).text() == "-"


def test_a_target_is_a_ratio_of_medians():
    samples = [a_sample("E1", PREFORK, cpu_us=us) for us in (10.0, 16.0, 100.0)]
    samples += [a_sample("E1", C_BLOCK, cpu_us=us) for us in (1.0, 10.0, 11.0)]
    target = Target("E1", "cpu_us", PREFORK, C_BLOCK, 1.6)
    assert target.value(samples) == 1.6
    assert target.is_met(1.6)
    assert not target.is_met(1.61)
    assert Target("E1", "cpu_us", SYNC, PREFORK, 7, at_least=True).is_met(7.0)


def test_a_miss_is_called_a_miss_and_what_was_not_measured_is_no_hit():
    results = some_results(
        a_sample("E1", PREFORK, cpu_us=17.0), a_sample("E1", C_BLOCK, cpu_us=10.0)
    )
    told = {row[0]: row[1:] for row in report.targets(results)}
    told = {
        text.partition(":")[0] + text.partition("of ")[2][:14]: row for text, row in told.items()
    }
    assert told["E1" + PREFORK] == ["1.70", "MISS"]
    assert [row for row in told.values() if row[1] == "hit"] == []


def test_a_table_has_the_cheapest_first_and_who_answered_nobody_last():
    results = some_results(
        a_sample("S1", SYNC, cpu_us=math.nan, errors=9, idle_answered=0),
        a_sample("S1", PREFORK, cpu_us=20.0, idle_answered=64),
        a_sample("S1", "nginx", cpu_us=10.0, idle_answered=64),
    )
    rows = report.comparison(results, "S1", tuned=False)
    assert [row[0] for row in rows[1:]] == ["nginx", PREFORK, SYNC]
    ratios = [row[rows[0].index("to ours")] for row in rows[1:]]
    assert ratios == ["0.50", "1.00", "-"]
    assert [row[rows[0].index("idle answered")] for row in rows[1:]] == ["64", "64", "0"]


def test_throughput_that_the_generator_limits_is_told_as_such():
    results = some_results(a_sample("E1", PREFORK, per_second=9000.0, load_busy=0.99))
    assert "at least 9,000" in report.document(results)


def test_what_is_absent_is_named_in_the_tables():
    assert "Absent: bjoern (needs bjoern)." in report.document(some_results())


def test_the_table_for_the_readme_has_a_row_for_each_server_and_no_tuned_one():
    tuned = next(each.name for each in servers.CONTESTANTS if each.tuned)
    rows = report.for_the_readme(
        some_results(a_sample("E1", PREFORK), a_sample("E1", C_BLOCK), a_sample("E1", tuned))
    )
    assert [row[0] for row in rows] == ["", f"**{PREFORK}**", C_BLOCK]


def test_clients_have_cpus_of_their_own_where_there_are_two():
    assert Cpus.halves([0, 1]) == Cpus(frozenset({0}), frozenset({1}))
    assert Cpus.halves([4, 5, 6, 7, 8]) == Cpus(frozenset({4, 5}), frozenset({6, 7, 8}))
    assert Cpus.halves([3]) == Cpus(frozenset({3}), frozenset({3}))


def test_whoever_cannot_hold_the_connections_of_a_workload_takes_no_part():
    by_key = {workload.key: workload for workload in workloads.WORKLOADS}
    block, ours, one = map(servers.named, (C_BLOCK, PREFORK, "socketserver"))
    assert by_key["H1"].suits(block, workers=4)
    assert not by_key["S1"].suits(block, workers=4)  # 64 idle ones would hold all
    assert by_key["S1"].suits(ours, workers=4)
    assert by_key["E1"].suits(one, workers=4)
    assert not by_key["E2"].suits(one, workers=4)
    assert by_key["U1"].suits(one, workers=4)  # datagrams have no connections


def test_every_target_is_of_servers_that_take_part_in_its_workload():
    by_key = {workload.key: workload for workload in workloads.WORKLOADS}
    for target in report.TARGETS:
        for name in (target.of, target.to):
            assert by_key[target.workload].suits(servers.named(name), workers=4), target


def test_a_load_goes_nowhere_but_to_this_machine():
    with pytest.raises(ValueError, match=r"not 192\.0\.2\.1:80"):
        put_load_on(Load("tcp", "192.0.2.1:80", (b"x",), 1, 1))
