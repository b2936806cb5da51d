"""What ``stats`` say as a table of text, for a terminal: of a ``Stats.as_dict()``, or of the same
from another process."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..text import printable
from .words import duration, size

_HEADS = (
    *("slot", "pid", "state", "generation", "age", "requests", "errors", "busy", "memory"),
    *("busy for", "peer", "note"),
)
_LEFT = ("state", "peer", "note")
_WIDEST = 80  # characters of a cell: those of all workers are as wide as the widest


def table(told: Mapping[str, Any], stacks: bool) -> list[str]:
    """A line for the whole, and one for each worker; then what waits, is counted, and has died.
    Raises KeyError, TypeError or ValueError for what are no figures of ours."""
    return [
        printable(line)
        for line in (*_whole(told), *_workers(told["workers"]), *_rest(told, stacks))
    ]


def _whole(told: Mapping[str, Any]) -> Iterator[str]:
    states = [worker["state"] for worker in told["workers"]]
    yield (
        f"pid {told['pid']}: {told['state']}, generation {told['generation']}, "
        f"{len(states)} workers of {told['wanted']} wanted"
        + "".join(
            f", {states.count(state)} {state}"
            for state in ("busy", "idle", "booting", "retiring")
            if state in states
        )
        + f", {told['requests']} requests, {told['errors']} errors, {told['crashes']} crashes"
        + (f", upgrading to pid {told['successor']}" if told["successor"] else "")
    )


def _workers(workers: Any) -> Iterator[str]:
    cells = [_HEADS, *([cell[:_WIDEST] for cell in _cells(worker)] for worker in workers)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = [
            cell.ljust(width) if head in _LEFT else cell.rjust(width)
            for head, cell, width in zip(_HEADS, line, widths, strict=True)
        ]
        yield "  ".join(padded).rstrip()


def _cells(worker: Mapping[str, Any]) -> tuple[str, ...]:
    memory, busy_for = worker["memory"], worker["busy_for"]
    return (
        *(str(worker[name]) for name in ("slot", "pid", "state", "generation")),
        duration(worker["age"]),
        str(worker["requests"]),
        str(worker["errors"]),
        f"{100 * worker['busy'] / (worker['age'] or 1):.0f}%",
        "-" if memory is None else size(memory),
        "-" if busy_for is None else duration(busy_for),
        worker["peer"] or "-",
        worker["note"] or "-",
    )


def _rest(told: Mapping[str, Any], stacks: bool) -> Iterator[str]:
    for one in told["listeners"]:
        if one["queue"] is not None:
            yield f"{one['queue']} waiting at {one['address']}"
    for name, value in told["counters"].items():
        yield f"counter {name}: {value}"
    for death in told["last_deaths"]:
        yield (
            f"{duration(death['ago'])} ago worker={death['slot']} pid={death['pid']} died: "
            f"{death['cause']}; age={duration(death['age'])} requests={death['requests']} "
            f"cpu={death['cpu']:.2f}s memory={size(death['memory'])}"
        )
        if stacks:
            yield from (f"    {line}" for line in death["report"].splitlines())
