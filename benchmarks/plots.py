"""The plots of a run: one for each question that a table answers badly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot

from .report import ORDER, Results, Spread
from .servers import PREFORK, named

OVERVIEW = ("E1", "H1", "H2", "S1")
OURS, OTHERS = "#c8321e", "#8a94a6"
AXES = {"cpu_us": "server CPU us a request", "per_second": "requests a second"}


def draw(results: Results, directory: Path) -> None:
    matplotlib.rcParams["svg.hashsalt"] = "prefork_server"  # the same figures, the same file
    matplotlib.rcParams["svg.fonttype"] = "none"  # letters, and not their outlines
    matplotlib.rcParams["font.size"] = 8
    keys = [key for key in OVERVIEW if key in results["workloads"]]
    if keys:
        _bars(results, keys, directory / "overview.svg")
    for key in ("workers", "connections"):
        samples = [s for s in results["samples"] if s["workload"] == key]
        if samples:
            _lines(samples, key, directory / f"{key}.svg")


def _bars(results: Results, keys: Sequence[str], path: Path) -> None:
    """What a request costs the server: short is good, and the scale is logarithmic."""
    figure, panels = pyplot.subplots(1, len(keys), figsize=(4 * len(keys), 4.5), squeeze=False)
    for key, axes in zip(keys, panels[0], strict=True):
        spreads = []
        for name in {s["server"] for s in results["samples"] if s["workload"] == key}:
            its = [s for s in results["samples"] if (s["workload"], s["server"]) == (key, name)]
            spread = Spread.of(sample["cpu_us"] for sample in its)
            if spread.median > 0 and not named(name).tuned:
                spreads.append((spread, name))
        spreads.sort(reverse=True)
        names = [name for _, name in spreads]
        medians = [spread.median for spread, _ in spreads]
        ranges = [[s.median - s.low for s, _ in spreads], [s.high - s.median for s, _ in spreads]]
        colours = [OURS if name.startswith(PREFORK) else OTHERS for name in names]
        axes.barh(names, medians, xerr=ranges, color=colours, error_kw={"elinewidth": 0.8})
        axes.set_xscale("log")
        axes.set_xlim(left=min(medians, default=2) / 2)
        axes.set_xlabel("server CPU us a request, log")
        axes.set_title(f"{key}: {results['workloads'][key].partition(';')[0]}", fontsize=8)
    _save(figure, path)


def _lines(samples: Sequence[dict[str, Any]], key: str, path: Path) -> None:
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6))
    for axes, measured in zip(panels, ("cpu_us", "per_second"), strict=True):
        for name in sorted({sample["server"] for sample in samples}, key=ORDER.__getitem__):
            its = [s for s in samples if s["server"] == name]
            counts = sorted({sample["x"] for sample in its})
            medians = [
                Spread.of(s[measured] for s in its if s["x"] == count).median for count in counts
            ]
            axes.plot(counts, medians, marker="o", markersize=3, label=name,
                      linewidth=2 if name == PREFORK else 1)  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel({"workers": "workers, or threads", "connections": "open connections"}[key])
        axes.set_ylabel(AXES[measured])
    panels[1].legend(fontsize=7)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
