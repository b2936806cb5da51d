"""The page: rendered here alone, each time anew. The script in it only fetches it again and
takes the figures over, so it works without, too."""

import base64
import hashlib
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from ..plan import Death
from ..stats import Stats, WorkerStats
from .words import duration, size

_TEMPLATE = Path(__file__).with_name("page.html").read_text("utf-8")


def _hashes(tag: str) -> str:
    """Of what stands inline in the page: nothing else is a style or a script there."""
    texts = re.findall(rf"<{tag}>(.*?)</{tag}>", _TEMPLATE, re.DOTALL)
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


CSP = (
    f"default-src 'none'; style-src {_hashes('style')}; script-src {_hashes('script')}; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(stats: Stats, name: str) -> str:
    return _TEMPLATE.replace("{name}", escape(name)).replace("{main}", "".join(_main(stats)))


def _main(stats: Stats) -> Iterator[str]:
    figures = {
        "requests": stats.requests,
        "errors": stats.errors,
        "busy": f"{stats.busy:.6f}",
        "age": f"{stats.age:.6f}",
        "workers": len(stats.workers),
        "pid": stats.pid,
    }
    yield f"<main{''.join(f' data-{key}={value}' for key, value in figures.items())}>"
    successor = f", upgrading to pid {stats.successor}" if stats.successor else ""
    yield (
        f'<p class="lead"><b class="{escape(stats.state)}">{escape(stats.state)}</b> '
        f"pid {stats.pid}, generation {stats.generation}, up {duration(stats.age)}{successor}</p>"
    )
    yield from _tiles(stats)
    yield "<h2>Workers</h2>" + '<div class="grid" aria-hidden="true">'
    yield "".join(f'<i class="{each.state}" title="{_title(each)}"></i>' for each in stats.workers)
    yield (
        '</div><p class="key"><i class="idle"></i>idle <i class="busy"></i>busy '
        '<i class="booting"></i>booting <i class="retiring"></i>retiring</p>'
        '<div class="wide"><table><thead><tr><th>worker<th class="o">pid<th class="t">state'
        '<th>requests<th>errors<th>busy<th class="t">serving<th>for<th>age'
        '<th class="o">gen<th class="o">silent in<th class="o">memory</thead><tbody>'
    )
    yield "".join(map(_row, stats.workers)) + "</tbody></table></div>"
    yield '<div class="pair">'
    if stats.listeners:
        yield '<section><h2>Listeners</h2><table class="small"><tr><th class="t">address<th>waiting'
        for one in stats.listeners:
            queue = "–" if one.queue is None else one.queue  # noqa: RUF001 - a dash in a table
            yield f'<tr><td class="t">{escape(one.address)}<td>{queue}'
        yield "</table></section>"
    if stats.counters:
        yield '<section><h2>Counters</h2><table class="small"><tr><th class="t">name<th>value'
        for name, value in stats.counters.items():
            yield f'<tr><td class="t">{escape(name)}<td>{value:,}'
        yield "</table></section>"
    yield f"</div><h2>Last deaths</h2>{''.join(map(_death, stats.last_deaths)) or '<p>none'}</main>"


def _tiles(stats: Stats) -> Iterator[str]:
    queues = [one.queue for one in stats.listeners if one.queue is not None]
    count, busy = len(stats.workers), stats.count("busy")
    yield '<div class="tiles">'
    for key, figure, text in (
        ("rate", f"{stats.requests / (stats.age or 1):,.1f}", "requests/s since the start"),
        ("requests", f"{stats.requests:,}", "requests"),
        ("share", f"{100 * busy / (count or 1):.0f} %", "of the workers busy"),
        ("queue", str(sum(queues)) if queues else "–", "waiting in the queue"),  # noqa: RUF001
        ("workers", f"{count}", f"workers, {stats.wanted} wanted"),
        ("errors", f"{stats.errors:,}", "handlers raised"),
        ("crashes", f"{stats.crashes:,}", f"crashes in {stats.deaths:,} deaths"),
    ):
        yield f'<div id="{key}"><b>{figure}</b><span>{text}</span></div>'
    yield "</div>"


def _title(worker: WorkerStats) -> str:
    return f"worker {worker.slot}, pid {worker.pid}: {worker.state}"


def _row(worker: WorkerStats) -> str:
    share = 100 * worker.busy / (worker.age or 1)
    doing = " ".join(filter(None, (worker.note, worker.peer and f"({worker.peer})")))
    busy_for = "" if worker.busy_for is None else duration(worker.busy_for)
    left = "never" if worker.left is None else duration(worker.left)
    memory = "" if worker.memory is None else size(worker.memory)
    return (
        f'<tr class="worker {worker.state}"><td>{worker.slot}<td class="o">{worker.pid}'
        f'<td class="t"><i class="{worker.state}"></i>{worker.state}<td>{worker.requests:,}'
        f'<td class="{"bad" if worker.errors else ""}">{worker.errors:,}<td>{share:.0f} %'
        f'<td class="t doing">{escape(doing)}<td>{busy_for}<td>{duration(worker.age)}'
        f'<td class="o">{worker.generation}<td class="o">{left}<td class="o">{memory}'
    )


def _death(death: Death) -> str:
    line = (
        f"<b>{escape(death.cause)}</b> {duration(death.ago)} ago: worker {death.slot}, pid "
        f"{death.pid}, after {duration(death.age)} and {death.requests:,} requests; "
        f"{death.cpu:.2f}s of CPU, {size(death.memory)} at most"
    )
    kind = "meant" if death.expected else "crash"
    if not death.report:
        return f'<p class="death {kind}">{line}</p>'
    return (
        f'<details class="death {kind}" id="d{death.pid}"><summary>{line}</summary>'
        f"<pre>{escape(death.report)}</pre></details>"
    )
