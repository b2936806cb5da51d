"""Small runs of the benchmarks, against real servers."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import lifecycle, servers, workloads
from benchmarks.load import Load, put_load_on
from benchmarks.processes import SECOND, ServerProcess
from benchmarks.runner import Runner, Terms
from benchmarks.servers import C_BLOCK, PREFORK
from tests.conftest import ROOT, unmeasured


def test_a_server_hears_its_reloads_where_the_benchmarks_run_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with lifecycle.start(workers=1) as server:
            assert server.hear("worker").text == "1"
            server.hear("ready")
            os.kill(server.pid, signal.SIGHUP)
            assert server.hear("worker").text == "2"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_cpu_time_of_a_server_is_that_of_its_whole_tree_ended_or_not():
    with ServerProcess("tests.spender", 0.2) as spender:
        spender.hear("ready")
        before_ns = spender.cpu_ns()
        os.kill(spender.pid, signal.SIGUSR1)
        spender.hear("ended")
        spent = (spender.cpu_ns() - before_ns) / SECOND
    assert 0.58 <= spent < 0.8  # 20 ms: what was reaped is known in ticks


@pytest.mark.parametrize("family", ["tcp", "unix", "udp", "http"])
def test_every_request_of_a_load_is_answered_once(family: str):
    runner = Runner(Terms(workers=2))
    ask = workloads.get("/") if family == "http" else workloads.ECHO
    with runner.start(servers.named(PREFORK), family, 2) as running:
        load = Load(family, running.place.address, (ask,), 50, 2)
        came = put_load_on(load, processes=2)
    assert (came.answered, came.errors, len(came.latencies_ns)) == (50, 0, 50)
    assert 0 < came.percentile_ms(50) <= came.percentile_ms(99.9) < 10_000


def test_more_connections_than_requests_under_way_all_have_their_turn():
    with Runner(Terms()).start(servers.named(PREFORK), "http", 2) as running:
        load = Load("http", running.place.address, (workloads.get("/"),), 60, 30, window=3)
        assert put_load_on(load).answered == 60


def test_an_open_loop_takes_its_time_and_judges_the_first_kind_of_request_only():
    asks = (workloads.get("/", closes=True),) * 4 + (workloads.get("/sleep/1", closes=True),)
    with Runner(Terms()).start(servers.named(PREFORK), "http", 2) as running:
        load = Load("http", running.place.address, asks, 20, 8, closes=True, rate=100)
        came = put_load_on(load)
    assert (came.answered, len(came.latencies_ns)) == (20, 16)
    assert came.seconds >= 0.19


def test_a_wrong_answer_is_an_error():
    with Runner(Terms()).start(servers.named(PREFORK), "http", 2) as running:
        load = Load("tcp", running.place.address, (b"NONSENSE\r\n\r\n",), 3, 1)
        came = put_load_on(load)
    assert (came.answered, came.errors) == (0, 3)
    assert math.isnan(came.percentile_ms(50))


@pytest.mark.timeout(120)
def test_a_small_run_of_the_whole_writes_its_results(tmp_path: Path):
    """That nobody is left of a server is proved by the run itself, or it fails."""
    names = f"{PREFORK};{servers.THREADS};{servers.HTTP_THREADS};{C_BLOCK}"
    arguments = ("--rounds", "2", "--scale", "0.01", "--only", "E1,U1,H1,S1", "--servers", names)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks", *arguments, "--results", tmp_path],
        cwd=ROOT,
        env=unmeasured(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    seen = {
        (sample["workload"], sample["server"], sample["round"]) for sample in results["samples"]
    }
    for workload, server in (("E1", servers.THREADS), ("U1", PREFORK), ("H1", PREFORK)):
        assert {(workload, server, 0), (workload, server, 1)} <= seen
    ours = [sample for sample in results["samples"] if sample["server"] == PREFORK]
    assert all(sample["errors"] == 0 and sample["cpu_us"] > 0 for sample in ours)
    assert [s["idle_answered"] for s in ours if s["workload"] == "S1"] == [64, 64]
    assert "at least 6 times that of prefork_server" in run.stdout  # the targets are said
    assert f"| {PREFORK} |" in (tmp_path / "tables.md").read_text()
