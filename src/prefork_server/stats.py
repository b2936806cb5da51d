"""What the scoreboard says, as one frozen value: read alike in a worker, in the master, on the
status page and by the command, which looks from outside.

``read`` is told the time, and makes no system call. What is there was written by others, some of
whom may be broken: numbers are bounded, and text is cleaned, when they are read.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_type_hints

from .clock import Clock
from .counter import counters
from .plan import Death
from .scoreboard import (
    BEGUN,
    BOOTING,
    CRASHES,
    DEADLINE,
    DEATHS,
    ERRORS,
    FORKED,
    FORKS,
    GENERAL,
    GENERATION,
    IN_HAND,
    LAST_DEATHS,
    LEAVING,
    LEFT,
    MEMORY,
    MOVING,
    NEVER,
    PAST_BUSY,
    PAST_ERRORS,
    PAST_REQUESTS,
    PID,
    READY,
    REQUESTS,
    SECOND,
    SERVING,
    SINCE,
    STATE,
    STOPPING,
    SUCCESSOR,
    WANTED,
    WISH,
    Scoreboard,
)
from .text import printable

_STATES = {BOOTING: "booting", SERVING: "serving", STOPPING: "stopping", LEFT: "leaving"}
_TRIES = 100  # looks at a scoreboard on which somebody is just being counted out


@dataclass(frozen=True)
class WorkerStats:
    """One worker. Times are seconds; ``requests``, ``errors`` and ``busy`` are its own, since it
    was forked.

    ``state`` is ``"booting"``, ``"idle"``, ``"busy"`` or ``"retiring"``. ``errors`` counts
    handlers that raised. ``busy`` is how long it has served, in a loop how long it held a
    connection; ``busy_for`` how long the present request takes, None if there is none. ``left``
    is what is left until its silence is a fault; None: it may be silent for ever. ``peer`` is
    who is served, ``note`` what ``master.note()`` said. ``memory`` is what it holds for itself
    alone, in bytes: None if it does not weigh itself, which it does with ``max_worker_memory``
    or ``status``.
    """

    slot: int
    pid: int
    state: str
    generation: int
    age: float
    requests: int
    errors: int
    busy: float
    busy_for: float | None
    left: float | None
    peer: str
    note: str
    memory: int | None


@dataclass(frozen=True)
class ListenerStats:
    """Where connections come in, and how many wait there to be accepted, as the master saw it
    at most a second ago; None where the system does not tell: on all but TCP."""

    address: str
    queue: int | None


@dataclass(frozen=True)
class Stats:
    """What a server is doing, and has done. Times are seconds.

    ``requests``, ``errors`` and ``busy`` are those of all workers there are and were, so they
    never go down. ``state`` is ``"booting"``, ``"serving"``, ``"stopping"``, or ``"leaving"``
    to a successor, whose pid is ``successor`` from its start on (else 0). ``wanted`` is how
    many workers there should be. ``crashes`` are those of the ``deaths`` that nobody meant.
    ``last_deaths`` are the last 20, the newest first; of those that were meant, fewer are kept.
    ``counters`` are the values of each ``SharedCounter``, by name.
    """

    pid: int
    state: str
    successor: int
    generation: int
    age: float
    wanted: int
    requests: int
    errors: int
    busy: float
    forks: int
    deaths: int
    crashes: int
    workers: tuple[WorkerStats, ...]
    listeners: tuple[ListenerStats, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)
    last_deaths: tuple[Death, ...] = ()

    def count(self, state: str) -> int:
        """How many workers are in this state."""
        return sum(worker.state == state for worker in self.workers)

    def as_dict(self) -> dict[str, Any]:
        """The same in plain dicts, lists, texts and numbers, for ``json.dumps``. Each death
        has its ``cause`` in words, too."""
        whole = asdict(self)
        for told, death in zip(whole["last_deaths"], self.last_deaths, strict=True):
            told["cause"] = death.cause
        return whole

    def prometheus(self) -> str:
        """The same as metrics, in Prometheus' text format (version 0.0.4)."""
        return "".join(_metrics(self))


def read(board: Scoreboard, now_ns: int, counted: Mapping[str, int] | None = None) -> Stats:
    """``counted``: the counters, as they are now. Who does not see them is told as they lately
    were."""
    for _ in range(_TRIES):
        moving = board.get(0, MOVING)
        workers = tuple(_worker(board, slot, now_ns) for slot in board.occupied())
        requests = _word(board, 0, PAST_REQUESTS) + sum(each.requests for each in workers)
        errors = _word(board, 0, PAST_ERRORS) + sum(each.errors for each in workers)
        busy = _word(board, 0, PAST_BUSY) / SECOND + sum(each.busy for each in workers)
        if not moving & 1 and board.get(0, MOVING) == moving:
            break
    general = _told(board.notice(GENERAL))
    deaths = (_death(_told(board.notice(number)), now_ns) for number in range(LAST_DEATHS))
    return Stats(
        pid=_word(board, 0, PID),
        state=_STATES.get(board.get(0, STATE), "unknown"),
        successor=_word(board, 0, SUCCESSOR),
        generation=_word(board, 0, GENERATION),
        age=_seconds(now_ns - _word(board, 0, BEGUN)),
        wanted=_word(board, 0, WANTED),
        requests=requests,
        errors=errors,
        busy=busy,
        forks=_word(board, 0, FORKS),
        deaths=_word(board, 0, DEATHS),
        crashes=_word(board, 0, CRASHES),
        workers=workers,
        listeners=tuple(_listeners(general)),
        counters=dict(_counters(general)) if counted is None else counted,
        last_deaths=tuple(sorted(filter(None, deaths), key=lambda death: death.ago)),
    )


def current(board: Scoreboard) -> Stats:
    """As it is now, with the counters of this process."""
    return read(board, Clock.monotonic_ns(), counters())


def _word(board: Scoreboard, slot: int, which: int) -> int:
    return max(0, board.get(slot, which))


def _seconds(passed_ns: int) -> float:
    return max(0, passed_ns) / SECOND


def _worker(board: Scoreboard, slot: int, now_ns: int) -> WorkerStats:
    def word(which: int) -> int:
        return _word(board, slot, which)

    since_ns, deadline_ns = word(SINCE), word(DEADLINE)
    ready, busy = word(READY) != 0, bool(since_ns or word(IN_HAND))
    state = ("busy" if busy else "idle") if ready else "booting"
    return WorkerStats(
        slot=slot,
        pid=word(PID),
        state="retiring" if board.get(slot, WISH) or board.get(slot, LEAVING) else state,
        generation=word(GENERATION),
        age=_seconds(now_ns - word(FORKED)),
        requests=word(REQUESTS),
        errors=word(ERRORS),
        busy=_seconds(board.busy_ns(slot, now_ns)),
        busy_for=_seconds(now_ns - since_ns) if since_ns else None,
        left=None if deadline_ns >= NEVER else (deadline_ns - now_ns) / SECOND,
        peer=board.peer(slot) if since_ns else "",
        note=board.note(slot),
        memory=word(MEMORY) or None,
    )


# What the master says in JSON


def _told(text: bytes) -> dict[str, Any]:
    try:
        told = json.loads(text.decode())  # of bytes json guesses the encoding, and imports it
    except (ValueError, RecursionError):  # there is none, or it is not what was written
        return {}
    return told if isinstance(told, dict) else {}


def _listeners(general: dict[str, Any]) -> Iterator[ListenerStats]:
    told = general.get("listeners")
    for each in told if isinstance(told, list) else ():
        match each:
            case [str(address), queue] if _is_a(queue, int | None) and _is_bounded(queue or 0):
                yield ListenerStats(printable(address), queue)


def _counters(general: dict[str, Any]) -> Iterator[tuple[str, int]]:
    told = general.get("counters")
    for name, value in told.items() if isinstance(told, dict) else ():
        if _is_a(value, int) and _is_bounded(value):
            yield printable(name), value


def _is_a(value: object, kind: Any) -> bool:
    """To Python, unlike JSON, True is a number."""
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)


def _is_bounded(number: float) -> bool:
    """Not beyond any word of the scoreboard; nor is NaN, or infinity."""
    return -NEVER <= number <= NEVER


_KINDS = {"ago": int} | {
    each.name: hint
    for each, hint in zip(fields(Death), get_type_hints(Death).values(), strict=True)
    if each.name != "ago"
}


def _death(told: dict[str, Any], now_ns: int) -> Death | None:
    if told.keys() != _KINDS.keys():
        return None
    if not all(_is_a(told[name], kind) for name, kind in _KINDS.items()):
        return None
    if not all(_is_bounded(each) for each in told.values() if isinstance(each, int | float)):
        return None
    texts = {"report": printable(told["report"], "\n"), "why": printable(told["why"])}
    return Death(**(told | texts | {"ago": _seconds(now_ns - told["ago"])}))


# Metrics


def _metrics(stats: Stats) -> Iterator[str]:
    def family(name: str, kind: str, text: str, *samples: tuple[str, object]) -> str:
        lines = [f"# HELP prefork_{name} {text}\n# TYPE prefork_{name} {kind}\n"]
        lines += (f"prefork_{name}{label} {value}\n" for label, value in samples)
        return "".join(lines)

    def each(values: Mapping[Any, object], label: str) -> Iterator[tuple[str, object]]:
        for key, value in values.items():
            yield f'{{{label}="{_escaped(str(key))}"}}', value

    states = {name: stats.count(name) for name in ("booting", "idle", "busy", "retiring")}
    serving = int(stats.state == "serving")
    queues = {one.address: one.queue for one in stats.listeners if one.queue is not None}
    memory = {one.slot: one.memory for one in stats.workers if one.memory is not None}
    yield family("serving", "gauge", "1 while the server serves.", ("", serving))
    yield family("age_seconds", "gauge", "Since the master began.", ("", stats.age))
    yield family("generation", "gauge", "1, and one more with each reload.", ("", stats.generation))
    yield family("workers_wanted", "gauge", "How many there should be.", ("", stats.wanted))
    yield family("workers", "gauge", "How many there are.", *each(states, "state"))
    yield family("requests_total", "counter", "Requests, or connections.", ("", stats.requests))
    yield family("errors_total", "counter", "Handlers that raised.", ("", stats.errors))
    yield family("busy_seconds_total", "counter", "Spent serving.", ("", stats.busy))
    yield family("forks_total", "counter", "Workers that were started.", ("", stats.forks))
    yield family("deaths_total", "counter", "Workers that ended.", ("", stats.deaths))
    yield family("crashes_total", "counter", "Those that nobody meant.", ("", stats.crashes))
    if queues:
        text = "Connections that wait to be accepted."
        yield family("listener_queue", "gauge", text, *each(queues, "address"))
    if memory:
        text = "What a worker holds for itself alone."
        yield family("worker_memory_bytes", "gauge", text, *each(memory, "slot"))
    if stats.counters:
        text = "What the program counts by SharedCounter."
        yield family("counter_total", "counter", text, *each(stats.counters, "name"))


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
