"""How long what has failed is left alone: the slot of a false start, and forks the system refused.

Pure: it is told the time, and returns when the next try may be.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from .scoreboard import in_ns

_MAX_DELAY = 30.0  # seconds between false starts of one slot, at most


@dataclass
class _Slot:
    """What a slot remembers between two workers."""

    false_starts: int
    rest_until_ns: int


@dataclass
class Backoff:
    """``chance`` returns a float between 0 and 1, as ``random.random`` does."""

    chance: Callable[[], float]
    fork_again_ns: int = 0
    _slots: dict[int, _Slot] = field(default_factory=dict)  # those whose last start was false
    _fork_failures: int = 0

    def false_start(self, slot: int, now_ns: int) -> None:
        # The first replacement is made at once, the next ones wait for 1 s, 1.5 s, 2.25 s ...
        before = self._slots[slot].false_starts if slot in self._slots else 0
        delay = self._delay(before - 1) if before else 0.0
        self._slots[slot] = _Slot(before + 1, now_ns + in_ns(delay))

    def was_of_use(self, slot: int) -> None:
        self._slots.pop(slot, None)

    def forget(self) -> None:
        """What failed before may be mended by now."""
        self._slots.clear()

    def failed(self) -> int:
        """In how many slots the last start was false."""
        return len(self._slots)

    def has_failed(self, slot: int) -> bool:
        return slot in self._slots

    def rest_until_ns(self, slot: int) -> int:
        return self._slots[slot].rest_until_ns if slot in self._slots else 0

    def fork_failed(self, now_ns: int) -> float:
        """Return the seconds until the next try, for any slot."""
        delay = self._delay(self._fork_failures)
        self._fork_failures += 1
        self.fork_again_ns = now_ns + in_ns(delay)
        return delay

    def fork_succeeded(self) -> None:
        self._fork_failures = 0

    def _delay(self, failures: int) -> float:
        """1 s x 1.5^failures, 30 s at most, +-20 % so that slots do not march in step."""
        return min(_MAX_DELAY, 1.5 ** min(failures, 20)) * (0.8 + 0.4 * self.chance())
