"""Which workers there are, and what the scoreboard says of each: questions, and no decisions."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from .plan import WorkerHandle
from .scoreboard import ASKS_STOP, LEAVING, READY, REQUESTS, SECOND, Scoreboard
from .settings import Settings

HEALTHY_NS = SECOND  # a life shorter than this, in which nothing was served, is a false start


@dataclass
class Roster:
    settings: Settings
    board: Scoreboard
    _workers: dict[int, WorkerHandle] = field(init=False, default_factory=dict)  # by pid

    def __iter__(self) -> Iterator[WorkerHandle]:
        return iter(list(self._workers.values()))

    def __len__(self) -> int:
        return len(self._workers)

    def ready(self, worker: WorkerHandle) -> bool:
        return self.board.get(worker.slot, READY) != 0

    def _asks_stop(self, worker: WorkerHandle) -> bool:
        return self.board.get(worker.slot, ASKS_STOP) != 0

    def _leaves(self, worker: WorkerHandle) -> bool:
        return self.board.get(worker.slot, LEAVING) != 0

    def _serving(self) -> list[WorkerHandle]:
        return [worker for worker in self._workers.values() if not worker.retiring]

    def _holds_place(self, worker: WorkerHandle, now_ns: int) -> bool:
        """Whether this worker counts as one of those that are wanted.

        One that leaves of its own accord is replaced before it is gone, unless it has
        done nothing yet: a work function that leaves at once must meet the back-off.
        """
        return not self._leaves(worker) or self._false_start(worker, now_ns)

    def _false_start(self, worker: WorkerHandle, now_ns: int) -> bool:
        """Whether a life that ended now would have been too short to be any use.

        One that served somebody never is: clients must not be able to slow respawns down.
        """
        ready_ns = self.board.get(worker.slot, READY)
        served = self.board.get(worker.slot, REQUESTS)
        return not ready_ns or (not served and now_ns - ready_ns < HEALTHY_NS)
