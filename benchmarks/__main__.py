"""``make bench``: everybody, side by side. README.md in this directory says how to read it."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import prefork_server

from . import memory, report, servers, turnover
from .lifecycle import Figure
from .processes import compiled_files
from .report import machine
from .runner import Runner, Terms, surroundings
from .serving import program
from .workloads import WORKLOADS, Workload

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("gunicorn", "uvicorn", "uvloop", "httptools", "granian", "waitress",
            "bjoern", "flask", "matplotlib")  # fmt: skip
QUICK = Terms(rounds=2, scale=0.3, names=report.NAMES_IN_TARGETS)
QUICK_KEYS = ("E1", "E3", "C1", "H1", "H2", "S1", "S2")


def versions() -> dict[str, str]:
    """Of all that takes part and is here."""
    found = {"Python": platform.python_version(), "Linux": platform.release()}
    found["prefork-server"] = prefork_server.__version__
    for package in PACKAGES:
        if importlib.util.find_spec(package):
            found[package] = importlib.metadata.version(package)
    for name, option in (("nginx", "-v"), ("cc", "--version"), ("wrk", "-v")):
        if path := program(name):
            said = subprocess.run([path, option], capture_output=True, text=True, check=False)
            number = re.search(r"\d+\.[\w.]+", said.stdout + said.stderr)
            found[name] = number[0] if number else "unknown"
    return found


def absences() -> list[str]:
    """Everything that is left out because something is not here, with what that is."""
    found = [
        f"{each.name} (needs {', '.join(each.absent())})"
        for each in servers.CONTESTANTS
        if each.absent()
    ]
    if not program("wrk"):
        found.append("the check of the generator (needs wrk)")
    for module, what in (("flask", "W2"), ("matplotlib", "the plots"), ("tqdm", "the time left")):
        if not importlib.util.find_spec(module):
            found.append(f"{what} (needs {module})")
    return found


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], object]]:
    """A bar with the time that is left; a line for each step where tqdm is not."""
    if not importlib.util.find_spec("tqdm"):
        yield lambda name: print(name, file=sys.stderr)
        return
    import tqdm

    tqdm.tqdm.monitor_interval = 0  # its thread would be in every generator that we fork
    with tqdm.tqdm(total=total, smoothing=0.02, unit="", dynamic_ncols=True) as bar:

        def step(name: str) -> None:
            bar.set_description(name[:40].ljust(40), refresh=False)
            bar.update()

        yield step


def run(terms: Terms, keys: tuple[str, ...], scaling: int, tries: int) -> dict[str, Any]:
    """Everything, as it is written to ``results.json``. ``scaling`` is its rounds."""
    chosen = [workload for workload in WORKLOADS if not keys or workload.key in keys]
    if not importlib.util.find_spec("flask"):
        chosen = [workload for workload in chosen if workload.key != "W2"]
    before = os.getloadavg()[0]
    found, absent = versions(), absences()  # now: what fails later costs all that was measured
    runner = Runner(terms)
    total = sum(len(runner.taking_part(workload)) for workload in chosen) * terms.rounds
    total += scaling * runner.scaling_steps + (turnover.STEPS + 1 if tries else 0)
    figures: list[Figure] = []
    own: float | None = None
    with compiled_files(), surroundings(), progress(total) as runner.step:
        if tries:
            figures = list(turnover.turnover(runner, tries))
            runner.step("M1 prefork_server")
            own = memory.worker_percent()
        for family in dict.fromkeys(workload.family for workload in chosen):
            runner.compare(family, [each for each in chosen if each.family == family])
        if scaling:
            runner.by_workers(scaling)
            runner.by_connections(scaling)
    return {
        "machine": f"{machine()} at the end and {before:.1f} at the start",
        "versions": found,
        "absent": absent,
        "terms": asdict(terms) | {"processes": len(runner.cpus.clients)},
        "workloads": {each.key: _told(each) for each in chosen},
        "samples": [asdict(sample) for sample in runner.samples],
        "wrk": runner.wrk,
        "memory": {"worker_percent": own},
        "lifecycle": [asdict(figure) for figure in figures],
    }


def _told(workload: Workload) -> str:
    return f"{workload.title}; {workload.connections} at a time, {workload.requests:,} requests"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the targets only, roughly")
    parser.add_argument("--rounds", type=int, help="how often each is measured; 5")
    parser.add_argument("--scale", type=float, help="factor on the counts of requests; 1")
    parser.add_argument("--workers", type=int, default=4, help="of each server; 4")
    parser.add_argument("--only", default="", metavar="E1,H1", help="these workloads, no more")
    parser.add_argument("--servers", default="", metavar="A;B", help="these servers, no more")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIRECTORY")
    asked = parser.parse_args()
    default = QUICK if asked.quick else Terms()
    names = tuple(filter(None, asked.servers.split(";"))) or default.names
    for name in names:
        if name not in {each.name for each in servers.CONTESTANTS}:
            parser.error(f"there is no server {name}; see benchmarks/servers.py")
    rounds, scale = asked.rounds or default.rounds, asked.scale or default.scale
    terms = Terms(rounds, scale, asked.workers, names)
    keys = tuple(filter(None, asked.only.split(","))) or (QUICK_KEYS if asked.quick else ())
    for key in keys:
        if key not in {workload.key for workload in WORKLOADS}:
            parser.error(f"there is no workload {key}; see benchmarks/workloads.py")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the servers, too
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(1 << 16, limits[1])  # for 5,000 connections
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    for line in absences():
        print(f"absent: {line}", file=sys.stderr)
    whole = not keys
    came = run(terms, keys, scaling=2 if whole else 0, tries=10 if whole else 0)
    asked.results.mkdir(parents=True, exist_ok=True)
    asked.results.joinpath("results.json").write_text(json.dumps(came, indent=1))
    report.write(came, asked.results)


if __name__ == "__main__":
    main()
