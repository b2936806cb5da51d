"""From what was measured to what is read: medians, ratios, tables, targets.

    python -m benchmarks.report [benchmarks/results]

writes the tables and plots of a ``results.json`` anew. Nothing here measures.
"""

import importlib.util
import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import servers
from .servers import C_BLOCK, GRANIAN, GTHREAD, NGINX, PREFORK, SYNC, THREADS, UVICORN

Results = dict[str, Any]

FULL = 0.95  # a generator that computes for so much of the time is the limit itself
ORDER = {each.name: number for number, each in enumerate(servers.CONTESTANTS)}
NOBODY = "-"
REFERENCES = (PREFORK, servers.PREFORK_WSGI)  # the first that a workload has


def machine() -> str:
    """What one must know to compare figures with those of another day.

    The load average is that of the last minute: above 0.5 the machine is not ours alone.
    """
    return (
        f"{os.cpu_count()} CPUs, {platform.system()} {platform.release()} {platform.machine()}, "
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"load average {os.getloadavg()[0]:.1f}"
    )


class Spread(NamedTuple):
    """The rounds of one figure. NaN where no round had any."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        there = [value for value in values if not math.isnan(value)]
        if not there:
            return cls(math.nan, math.nan, math.nan)
        return cls(statistics.median(there), min(there), max(there))

    def text(self, digits: int = 1) -> str:
        if math.isnan(self.median):
            return NOBODY
        low, high = f"{self.low:,.{digits}f}", f"{self.high:,.{digits}f}"
        return f"{self.median:,.{digits}f} ({low}-{high})"


@dataclass(frozen=True)
class Target:
    """A ratio of two medians in one run: ``figure`` of one server to that of another."""

    workload: str
    figure: str
    of: str
    to: str
    limit: float
    at_least: bool = False
    text: str = ""

    def value(self, samples: Sequence[dict[str, Any]]) -> float:
        """NaN if one of the two was not measured."""
        of, to = (median(samples, self.workload, name, self.figure) for name in (self.of, self.to))
        return of / to if to else math.nan

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        bound = "at least" if self.at_least else "at most"
        return self.text or (
            f"{self.workload}: {FIGURES[self.figure]} of {self.of} {bound} {self.limit:g} times "
            f"that of {self.to}"
        )


FIGURES = {
    "cpu_us": "CPU time a request",
    "per_second": "requests a second",
    "p99_ms": "p99 of the short requests",
}
TARGETS = (
    Target("E1", "cpu_us", PREFORK, C_BLOCK, 1.6),
    Target("E1", "cpu_us", THREADS, PREFORK, 6, at_least=True),
    Target("E3", "cpu_us", PREFORK, C_BLOCK, 1.25),
    Target("H1", "cpu_us", PREFORK, C_BLOCK, 1.6),
    Target("H1", "cpu_us", SYNC, PREFORK, 7, at_least=True),
    Target("H1", "cpu_us", UVICORN, PREFORK, 1, at_least=True),
    Target("H1", "cpu_us", GRANIAN, PREFORK, 1, at_least=True),
    Target("H2", "cpu_us", PREFORK, C_BLOCK, 1.8),
    Target("C1", "per_second", PREFORK, THREADS, 1.9, at_least=True),
    Target("S2", "p99_ms", PREFORK, GTHREAD, 0.5),
    Target("S1", "per_second", PREFORK, NGINX, 0.8, at_least=True),
)
NAMES_IN_TARGETS = tuple(sorted({name for each in TARGETS for name in (each.of, each.to)}))


def rounds_of(
    samples: Sequence[dict[str, Any]], workload: str, server: str, figure: str
) -> list[float]:
    return [
        sample[figure]
        for sample in samples
        if sample["workload"] == workload and sample["server"] == server
    ]


def median(samples: Sequence[dict[str, Any]], workload: str, server: str, figure: str) -> float:
    return Spread.of(rounds_of(samples, workload, server, figure)).median


def targets(results: Results) -> list[list[str]]:
    """Every target, what came of it, and whether it was met. Misses are said."""
    rows = [["target", "measured", ""]]
    samples = results["samples"]
    for target in TARGETS:
        value = target.value(samples)
        told = "not measured" if math.isnan(value) else "hit" if target.is_met(value) else "MISS"
        rows.append([str(target), NOBODY if math.isnan(value) else f"{value:.2f}", told])
    idle = rounds_of(samples, "S1", PREFORK, "idle_answered")
    if idle:
        told = "hit" if min(idle) == 64 else "MISS"
        text = f"S1: every idle client of {PREFORK} is answered, of 64"
        rows.append([text, f"{min(idle):.0f}", told])
    rows.append(["M1: private memory of a worker at most 3 % of a preloaded graph",
                 *_memory(results)])  # fmt: skip
    return rows


def _memory(results: Results) -> list[str]:
    percent = results.get("memory", {}).get("worker_percent")
    if percent is None:
        return [NOBODY, "not measured"]
    return [f"{percent:.1f} %", "hit" if percent <= 3 else "MISS"]


def comparison(results: Results, workload: str, tuned: bool) -> list[list[str]]:
    """The table of one workload, cheapest first."""
    samples = [s for s in results["samples"] if s["workload"] == workload]
    is_idle = any(sample["idle_answered"] >= 0 for sample in samples)
    header = ["server", "CPU us/request", "to ours", "requests/s", "p50 ms", "p99 ms",
              "p99.9 ms", "PSS MB", "errors", *(["idle answered"] if is_idle else []),
              "offers"]  # fmt: skip
    references = [median(samples, workload, name, "cpu_us") for name in REFERENCES]
    reference = next((value for value in references if not math.isnan(value)), math.nan)
    rows: list[tuple[float, list[str]]] = []
    for name in dict.fromkeys(sample["server"] for sample in samples):
        contestant = servers.named(name)
        if contestant.tuned is not tuned and name not in REFERENCES:
            continue
        its = [sample for sample in samples if sample["server"] == name]
        cpu = Spread.of(sample["cpu_us"] for sample in its)
        full = any(sample["load_busy"] > FULL for sample in its)
        row = [
            name,
            cpu.text(),
            NOBODY if math.isnan(cpu.median / reference) else f"{cpu.median / reference:.2f}",
            ("at least " if full else "") + Spread.of(s["per_second"] for s in its).text(0),
            *(f"{Spread.of(s[key] for s in its).median:.2f}" for key in ("p50_ms", "p99_ms")),
            f"{Spread.of(s['p999_ms'] for s in its).median:.2f}",
            f"{max(s['pss_mb'] for s in its):.1f}",
            str(sum(s["errors"] for s in its)),
            *([str(min(s["idle_answered"] for s in its))] if is_idle else []),
            contestant.offers,
        ]
        rows.append((cpu.median, [cell.replace("nan", NOBODY) for cell in row]))
    rows.sort(key=lambda row: (math.isnan(row[0]), row[0]))
    return [header, *(row for _, row in rows)]


def generator(results: Results) -> list[list[str]]:
    """What the load itself costs, and the most that it could send."""
    rows = [["workload", "generator's CPU us/request", "its ceiling, requests/s", "busy at most"]]
    processes = results["terms"]["processes"]
    for key in results["workloads"]:
        its = [s for s in results["samples"] if s["workload"] == key and s["load_us"] > 0]
        if its:
            cost = min(sample["load_us"] for sample in its)
            busiest = max(sample["load_busy"] for sample in its)
            ceiling = processes * 1e6 / cost
            rows.append([key, f"{cost:.1f}", f"{ceiling:,.0f}", f"{busiest * 100:.0f} %"])
    return rows


def checked_by_wrk(results: Results) -> list[list[str]]:
    rows = [["server", "CPU us/request: wrk", "ours", "requests/s: wrk", "ours"]]
    for each in results["wrk"]:
        cpu, many = (
            median(results["samples"], "H1", each["server"], figure)
            for figure in ("cpu_us", "per_second")
        )
        row = [f"{each['cpu_us']:.1f}", f"{cpu:.1f}", f"{each['per_second']:,.0f}", f"{many:,.0f}"]
        rows.append([each["server"], *row])
    return rows


def lifecycle(results: Results) -> list[list[str]]:
    rows = [["figure", "median", "worst", "unit", "count", "target"]]
    for each in results["lifecycle"]:
        spread = Spread.of(each["values"])
        rows.append([each["name"], f"{spread.median:.1f}", f"{spread.high:.1f}", each["unit"],
                     str(len(each["values"])), each["target"]])  # fmt: skip
    return rows


def scaling(results: Results, key: str) -> list[list[str]]:
    samples = [s for s in results["samples"] if s["workload"] == key]
    counts = sorted({sample["x"] for sample in samples})
    rows = [["server", *(f"{count:,} {key}" for count in counts)]]
    for name in sorted({sample["server"] for sample in samples}, key=ORDER.__getitem__):
        cells = []
        for count in counts:
            its = [s for s in samples if s["server"] == name and s["x"] == count]
            cpu, many = (Spread.of(s[f] for s in its).median for f in ("cpu_us", "per_second"))
            failed = sum(sample["errors"] for sample in its)
            cells.append(f"{cpu:.1f} us, {many:,.0f}/s" + (f", {failed} errors" * bool(failed)))
        rows.append([name, *cells])
    return rows


README_COLUMNS = {
    "E1": "echo, a TCP connection each (E1)",
    "E3": "echo, UNIX (E3)",
    "H1": "GET (H1)",
    "H2": "GET, a connection each (H2)",
    "S1": "GET beside 64 idle clients (S1)",
    "C1": "1 ms of Python (C1)",
}


def for_the_readme(results: Results) -> list[list[str]]:
    """One table, to be pasted: the CPU time of each; of C1, requests a second."""
    keys = [key for key in README_COLUMNS if key in results["workloads"]]
    rows = [["", *(README_COLUMNS[key] for key in keys), "offers"]]
    samples = [sample for sample in results["samples"] if sample["workload"] in keys]
    for name in sorted({sample["server"] for sample in samples}, key=ORDER.__getitem__):
        if servers.named(name).tuned:
            continue
        cells = []
        for key in keys:
            figure = "per_second" if key == "C1" else "cpu_us"
            value = median(samples, key, name, figure)
            unit, digits = ("/s", 0) if key == "C1" else (" us", 1)
            cells.append("" if math.isnan(value) else f"{value:,.{digits}f}{unit}")
        ours = f"**{name}**" if name == PREFORK else name
        rows.append([ours, *cells, servers.named(name).offers])
    return rows


def document(results: Results) -> str:
    """The whole of ``tables.md``."""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    terms = results["terms"]
    parts = [
        "# Results\n",
        f"{results['machine']}.\n\n{versions}.\n",
        f"Absent: {'; '.join(results['absent']) or 'nothing'}.\n",
        f"{terms['rounds']} rounds, requests times {terms['scale']:g}, {terms['workers']} workers "
        "each. Medians, with the range of the rounds in brackets.\n",
        markdown("Targets", targets(results)),
    ]
    for key, title in results["workloads"].items():
        parts.append(markdown(f"{key}: {title}", comparison(results, key, tuned=False)))
        tuned = comparison(results, key, tuned=True)
        if any(servers.named(row[0]).tuned for row in tuned[1:]):
            parts.append(markdown(f"{key}, tuned", tuned))
    for title, rows in (
        ("CPU time and throughput by workers (E1, on all CPUs)", scaling(results, "workers")),
        (
            "CPU time and throughput by open connections (H1, 16 requests at a time)",
            scaling(results, "connections"),
        ),
        ("Life cycle (L1)", lifecycle(results)),
        ("The generator", generator(results)),
        ("The generator, checked by wrk (H1)", checked_by_wrk(results)),
    ):
        if len(rows) > 1:
            parts.append(markdown(title, rows))
    return "\n".join(parts)


def markdown(title: str, rows: Sequence[Sequence[str]]) -> str:
    header, *others = rows
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *others]
    return f"## {title}\n\n" + table(lines)


def table(lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """The first row is the header, the first column is text, the others are figures."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"\n{title}")
    for name, *cells in rows:
        figures = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print("  ".join((name.ljust(widths[0]), *figures)).rstrip())


def write(results: Results, directory: Path) -> None:
    """``tables.md``, ``readme.md`` and the plots, beside ``results.json``; the targets, and
    what the generator costs, are printed."""
    header, *others = for_the_readme(results)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *others]
    directory.joinpath("readme.md").write_text(table(lines))
    directory.joinpath("tables.md").write_text(document(results))
    print(f"{results['machine']}\nabsent: {'; '.join(results['absent']) or 'nothing'}")
    print_table("The generator", generator(results))
    print_table("Targets", targets(results))
    if importlib.util.find_spec("matplotlib"):
        from . import plots

        plots.draw(results, directory)
    print(f"\nwritten: {', '.join(sorted(str(path) for path in directory.iterdir()))}")


def main() -> None:
    directory = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).with_name("results")
    write(json.loads(directory.joinpath("results.json").read_text()), directory)


if __name__ == "__main__":
    main()
