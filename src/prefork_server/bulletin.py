"""What the master says of the whole to whoever looks at the scoreboard: in a worker, on the
status page, in the command. It only writes there; ``stats`` reads it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

from .acceptor import queue_at
from .counter import counters
from .listeners import Listener
from .plan import Death
from .reaper import Used
from .scoreboard import CRASHES, DEATHS, GENERAL, LAST_DEATHS, SECOND, Scoreboard
from .text import both_ends

_LONGEST = 3500  # bytes in JSON of what a worker had to say; a notice holds 4080 of all
_MOST = 200  # listeners that are told of


class Bulletin:
    def __init__(self, board: Scoreboard, listeners: Sequence[Listener]) -> None:
        self._board = board
        self._listeners = [(one.address, one.socket) for one in listeners[:_MOST]]
        self._places: list[tuple[bool, int]] = []  # by age: whether it was meant, and where
        self._again_ns = 0

    def tell_death(self, death: Death, used: Used, now_ns: int) -> Death:
        """Keep it with the last ones, and return it with what it used. Those that were meant go
        first, to make room: a reload must not wipe out how somebody crashed before it."""
        if used:
            cpu, memory = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
            death = replace(death, cpu=cpu, memory=memory)
        self._board.add(DEATHS, 1)
        self._board.add(CRASHES, int(not death.expected))
        place = len(self._places)
        if place == LAST_DEATHS:
            oldest = next((each for each in self._places if each[0]), self._places[0])
            self._places.remove(oldest)
            place = oldest[1]
        self._places.append((death.expected, place))
        told = asdict(death) | {"report": _cut(death.report), "ago": now_ns}
        self._board.set_notice(place, json.dumps(told).encode())
        return death

    def tell(self, now_ns: int) -> None:
        """How many wait at each listener, and what is counted: once a second."""
        if now_ns < self._again_ns:
            return
        self._again_ns = now_ns + SECOND
        told = {
            "listeners": [(address, queue_at(sock)) for address, sock in self._listeners],
            "counters": counters(),
        }
        self._board.set_notice(GENERAL, json.dumps(told).encode())


def _cut(report: str) -> str:
    kept, longest = report, len(report)
    while len(json.dumps(kept)) > _LONGEST:
        longest = longest * 3 // 4
        kept = both_ends(report, longest)
    return kept
