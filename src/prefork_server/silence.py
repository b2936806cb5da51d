"""When a worker has been silent, or on its way out, for too long, and what becomes of it."""

from dataclasses import dataclass
from typing import Literal

from .plan import WorkerHandle
from .scoreboard import DEADLINE, NEVER, READY, SECOND, Scoreboard, in_ns
from .settings import Settings

_GRACE_NS = SECOND // 10  # from asking a silent worker where it hangs to killing it

Verdict = Literal["kill", "end", "suspect", ""]


@dataclass(frozen=True)
class Silence:
    settings: Settings
    board: Scoreboard

    def verdict(
        self, worker: WorkerHandle, now_ns: int, awake_since_ns: int, hurried: bool
    ) -> tuple[Verdict, int]:
        """What is to be done about it, and when to look at it again."""
        deadline = self.board.get(worker.slot, DEADLINE)
        silent_ns = self._fault_ns(worker, deadline, awake_since_ns)
        if worker.kill_ns <= now_ns:
            return "kill", NEVER
        if hurried and not worker.ending:
            return "end", NEVER
        if silent_ns > now_ns:
            return "", min(silent_ns, worker.kill_ns)
        if worker.suspected_for != deadline:
            return "suspect", min(now_ns + _GRACE_NS, worker.kill_ns)
        if worker.suspected_ns + _GRACE_NS <= now_ns:
            return "kill", NEVER
        return "", min(worker.suspected_ns + _GRACE_NS, worker.kill_ns)

    def _fault_ns(self, worker: WorkerHandle, deadline: int, awake_since_ns: int) -> int:
        """When the silence of this worker becomes a fault."""
        if deadline >= NEVER or awake_since_ns <= worker.forked_ns:
            return deadline
        settings = self.settings
        ready = self.board.get(worker.slot, READY)
        allowed = settings.timeout if ready else settings.boot_timeout
        return max(deadline, awake_since_ns + in_ns(allowed or 1.0))
