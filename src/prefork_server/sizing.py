"""How many workers an adaptive pool is to have: a rule that is told the numbers and the time.

It grows as Apache's prefork does: while fewer are idle than should be, by 1, and each second
after that by 2, 4 ... 32. That nobody is idle at all is a reason to grow at once. It shrinks
by one at a time. A shrink that had to be undone soon makes the next one wait for twice as
long, so a load that comes and goes leaves it at the size that it needs.
"""

from dataclasses import dataclass

from .plan import WorkerHandle
from .scoreboard import NEVER, READY, SECOND, Scoreboard
from .settings import MAX_WORKERS, Settings

_MOST_AT_ONCE = 32
_GROWS_ON_NS = 2 * SECOND  # growth after so long a pause begins with one again
_SOON_NS = 10 * SECOND  # a shrink that is undone within this is regretted
_LONGEST = 32  # seconds to wait before a shrink, at most
_REMEMBERS = 10  # times that wait, until a regret is forgotten


@dataclass
class Sizing:
    """``floor`` is how many there are at least, which signals move; at 0 nobody is wanted,
    whatever the load."""

    settings: Settings
    board: Scoreboard
    floor: int
    _step: int = 1  # by how many it grew last
    _grown_ns: int = 0
    _shrunk_ns: int = 0
    _regretted_ns: int = 0
    _wait: int = 1  # seconds, when it was last regretted

    def shift(self, by: int, size: int) -> int:
        """The floor moves. The size then: one that rested on it goes with it."""
        at_rest = size <= self.floor
        self.floor = max(0, min(self.floor + by, self.settings.max_workers or MAX_WORKERS))
        return self.floor if at_rest or not self.floor else max(size, self.floor)

    def right_size(
        self, size: int, workers: list[WorkerHandle], steady: bool, now_ns: int, alarms: list[int]
    ) -> int:
        """``workers`` are those there are of the ``size`` that is wanted. ``steady``: they are
        not being replaced just now."""
        ready_ns = {worker: self.board.get(worker.slot, READY) for worker in workers}
        booted_ns = [ready_ns[worker] - worker.forked_ns for worker in workers if ready_ns[worker]]
        # One that starts counts as idle, unless it takes far longer than the others did.
        usual_ns = SECOND + 2 * max(booted_ns) if booted_ns else NEVER
        late_ns = [worker.forked_ns + usual_ns for worker in workers if not ready_ns[worker]]
        alarms += [each for each in late_ns if now_ns < each < NEVER]
        busy = [w for w in workers if ready_ns[w] and not self.board.is_idle(w.slot)]
        spare = size - len(busy) - sum(1 for each in late_ns if each <= now_ns)
        return self.decide(size, spare, steady, now_ns, alarms)

    def decide(self, size: int, spare: int, steady: bool, now_ns: int, alarms: list[int]) -> int:
        """The size to have now, of ``size`` workers of whom ``spare`` are idle or starting."""
        if not self.floor:
            return 0
        most = self.settings.max_workers or size
        least = self.settings.min_spare_workers or 1
        many = self.settings.max_spare_workers or max(self.floor, least + 1)
        if spare < least and size < most:
            if spare <= 0 or now_ns >= self._grown_ns + SECOND:
                return min(most, size + self._next_step(now_ns))
            alarms.append(self._grown_ns + SECOND)
        elif spare > many and size > self.floor and steady:
            shrink_ns = max(self._grown_ns, self._shrunk_ns) + self._wait_ns(now_ns)
            if now_ns >= shrink_ns:
                return size - 1
            alarms.append(shrink_ns)
        return max(size, self.floor)

    def resized(self, by: int, now_ns: int) -> None:
        if by < 0:
            self._shrunk_ns = now_ns
            return
        if self._grown_ns < self._shrunk_ns and now_ns - self._shrunk_ns < _SOON_NS:
            self._wait = min(_LONGEST, 2 * self._wait_ns(now_ns) // SECOND)
            self._regretted_ns = now_ns
        self._step = self._next_step(now_ns)
        self._grown_ns = now_ns

    def _next_step(self, now_ns: int) -> int:
        grows_on = now_ns - self._grown_ns < _GROWS_ON_NS
        return min(_MOST_AT_ONCE, 2 * self._step) if grows_on else 1

    def _wait_ns(self, now_ns: int) -> int:
        forgotten = now_ns - self._regretted_ns > _REMEMBERS * self._wait * SECOND
        return SECOND if forgotten else self._wait * SECOND
