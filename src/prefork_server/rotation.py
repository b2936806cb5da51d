"""The rotation of logs: begun by the master, followed by each worker, and it has an end.

Whoever has renamed a file may compress it when the last one that wrote there is done. That
is said in the log.
"""

import logging
from collections.abc import Iterable

from .journal import Journal
from .logfiles import reopen
from .plan import WorkerHandle
from .privileges import Identity
from .scoreboard import ROTATED, ROTATION, Scoreboard


class Rotation:
    """The master's side. A worker follows in ``MasterHandle``, between two requests."""

    def __init__(self, board: Scoreboard, journal: Journal, identity: Identity | None) -> None:
        self._board = board
        self._say = journal.say
        self._number = 0  # what stands on the board a worker may have written
        self._give = identity.own if identity and identity.drops else None
        self._under_way = False
        self._failed = False  # here, in the master

    def begin(self) -> None:
        """Open the files anew here, and have the workers do so: wake them after this.

        The master comes first: it may make files, and gives them to the workers' user.
        """
        failures = reopen(self._give)
        self._number = number = self._number + 1
        self._board.set(0, ROTATION, number)
        self._under_way, self._failed = True, bool(failures)
        self._say(logging.INFO, "reopening", None, "SIGUSR1: rotation %d, logs reopened", number)
        for failure in failures:
            message = "keeps the old file: %s"
            self._say(logging.ERROR, "reopen_failed", None, message, failure)

    def look(self, workers: Iterable[WorkerHandle]) -> None:
        """Say it, once, when the last worker has followed, or could not."""
        if not self._under_way:
            return
        number = self._number
        followed = [self._board.get(worker.slot, ROTATION) for worker in workers]
        if any(abs(each) != number for each in followed):
            return
        self._under_way = False
        keep = sum(each < 0 for each in followed)
        failed = keep > 0 or self._failed
        self._board.set(0, ROTATED, -number if failed else number)
        if not failed:
            message = "rotation %d done: nobody writes to the old files"
            self._say(logging.INFO, "reopened", None, message, number)
        else:
            message = "rotation %d failed: old files are kept by %d of %d workers%s"
            too = ", and by the master" if self._failed else ""
            said = number, keep, len(followed), too
            self._say(logging.ERROR, "rotation_failed", None, message, *said)
