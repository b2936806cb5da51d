"""Shared memory through which workers tell the master that they are alive.

One row a slot, each 16 aligned words of 8 bytes and 64 bytes of text:

    field      writer          meaning
    deadline   master, worker  when silence becomes a fault, monotonic ns
    wish       master          what it wants of the worker: STAY, RETIRE, DRAIN ...
    ready      worker          when it got ready, monotonic ns; 0 = still booting
    leaving    worker          1 = it is going, of its own accord
    asks_stop  worker          1 = it wants the whole server to stop
    due        worker          it is to be replaced when a successor is ready: WORN, TOO_LARGE
    memory     worker          what it holds for itself alone, bytes; 0 = not measured
    requests   worker          connections taken since it was forked; over HTTP, requests
    since      worker          when the present one was taken, monotonic ns; 0 = idle
    rotation   worker          the last rotation of the logs that it has followed
    peer       worker          who is being served (text: may tear, checked when read)

Row 0 is nobody's: there ``rotation`` is the one that the master has begun. The deadline, as
the rotation, is the master's before the fork and the worker's after it. So every
field has one writer at a time and is one aligned word: there is no lock, and a
worker killed in the middle of anything leaves nothing torn.

Nothing here knows a process: who writes what is up to ``pool`` and ``worker``.
"""

import mmap
from typing import Final

_WORDS: Final = 16  # 128 bytes: neighbours never share a cache line
_TEXT: Final = 64

DEADLINE: Final = 0
WISH: Final = 1
READY: Final = 2
LEAVING: Final = 3
REQUESTS: Final = 4
SINCE: Final = 5
ASKS_STOP: Final = 6
ROTATION: Final = 7
DUE: Final = 8
MEMORY: Final = 9

STAY: Final = 0
RETIRE: Final = 1  # finish what you have, then go
DRAIN: Final = 2  # serve what waits in the queue too: nobody else will
DRAIN_ONCE: Final = 3  # the same, but the door stays ajar: go when the queue was empty once

WORN: Final = 1  # it has served max_requests
TOO_LARGE: Final = 2  # it holds more than max_worker_memory

SECOND: Final = 1_000_000_000  # ns: all times here are time.monotonic_ns()
NEVER: Final = 1 << 62  # ns; half of what a word holds, so that adding to it never overflows


def in_ns(seconds: float) -> int:
    return int(seconds * SECOND)


class Scoreboard:
    """``capacity`` rows, numbered from 1, shared with every process forked from now on."""

    def __init__(self, capacity: int) -> None:
        rows = capacity + 1
        self._map = mmap.mmap(-1, rows * (_WORDS * 8 + _TEXT))
        self.words: memoryview[int] = memoryview(self._map)[: rows * _WORDS * 8].cast("q")
        self._text = memoryview(self._map)[rows * _WORDS * 8 :]
        self.capacity = capacity

    @staticmethod
    def at(slot: int, field: int) -> int:
        """Where in ``words`` a field is. The hot paths keep this number."""
        return slot * _WORDS + field

    def get(self, slot: int, field: int) -> int:
        return self.words[slot * _WORDS + field]

    def set(self, slot: int, field: int, value: int) -> None:
        self.words[slot * _WORDS + field] = value

    def clear(self, slot: int, deadline: int) -> None:
        """A fresh row for a worker about to be forked, who must be ready by ``deadline``."""
        for field in range(_WORDS):
            self.set(slot, field, 0)
        self.set(slot, DEADLINE, deadline)
        self.set(slot, ROTATION, self.get(0, ROTATION))  # it is forked with the files of today
        self.set_peer(slot, None)

    def set_peer(self, slot: int, peer: object) -> None:
        """Note who is being served: a ``(host, port)``; anything else has no name."""
        text = f"{peer[0]}:{peer[1]}\0" if type(peer) is tuple and len(peer) > 1 else "\0"
        raw = text.encode("ascii", "replace")[:_TEXT]
        at = slot * _TEXT
        self._text[at : at + len(raw)] = raw

    def peer(self, slot: int) -> str:
        """Who is being served, safe to log whatever the worker wrote there."""
        at = slot * _TEXT
        raw = bytes(self._text[at : at + _TEXT]).split(b"\0", 1)[0]
        return raw.decode("ascii", "replace").encode("ascii", "backslashreplace").decode()

    def close(self) -> None:
        """Unmap, in this process only."""
        self.words.release()
        self._text.release()
        self._map.close()
