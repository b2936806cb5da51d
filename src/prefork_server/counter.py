"""A number that all workers add to: what a program loses when threads become processes."""

import mmap
import os
import threading
from weakref import WeakValueDictionary

from .errors import ConfigError
from .here import in_worker, slot_here
from .scoreboard import SERVICES
from .settings import MAX_WORKERS

_LONGEST = 64  # characters of a name
_MOST = 100  # counters: all are told of once a second

_counters: "WeakValueDictionary[str, SharedCounter]" = WeakValueDictionary()
# Two threads of a worker share its word. Reentrant, for the handlers of signals.
_adding = threading.RLock()


def _renew_lock() -> None:
    global _adding
    _adding = threading.RLock()  # another thread may have held it at the fork


os.register_at_fork(after_in_child=_renew_lock)


class SharedCounter:
    """A number that all workers add to, and anybody reads: ``orders = SharedCounter("orders")``.

    Make it before the fork: at the level of a module that the master imports, or before
    ``serve_forever()``. Made in a worker it would be that worker's alone: RuntimeError, as
    with the command, whose workers import the program each for itself, unless it is told to
    ``--preload``. What a worker has added stays when it dies. An upgrade (USR2) starts at 0,
    as any new program does. The name is shown in ``stats()``, in the metrics and on the status
    page; one that is taken, empty, or no printable text is a ConfigError.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST or not name.isprintable():
            raise ConfigError(
                f"the name of a counter is printable text of 1 to {_LONGEST} characters, "
                f"not {name!r}"
            )
        if name in _counters:
            raise ConfigError(f"there is a counter {name!r} already")
        if len(_counters) >= _MOST:
            raise ConfigError(f"there may be {_MOST} counters, and {name!r} is one more")
        if in_worker():
            raise RuntimeError(
                f"SharedCounter({name!r}) is made in a worker, and nobody else would see it: "
                "make it before the fork (with the command: --preload)"
            )
        self.name: str = name
        # One word a slot, which only the worker there writes to; the first is the master's.
        self._words = memoryview(mmap.mmap(-1, (2 * MAX_WORKERS + 1 + SERVICES) * 8)).cast("q")
        _counters[name] = self

    def __repr__(self) -> str:
        return f"<SharedCounter {self.name!r}: {self.value}>"

    def add(self, n: int = 1) -> None:
        """Add ``n``, 0 or more; ValueError for less, since a count never goes down.

        From any thread of a worker, or of the master. RuntimeError in a fork that a worker
        made by itself: two would write to one word.
        """
        if n < 0:
            raise ValueError(f"a counter only grows, and cannot add {n!r}")
        slot = slot_here()
        with _adding:
            self._words[slot] += n

    @property
    def value(self) -> int:
        """What all have added, the dead included."""
        return sum(self._words.tolist())


def counters() -> dict[str, int]:
    """All there are in this process, by name, as they are now."""
    return {name: counter.value for name, counter in sorted(_counters.items())}
