"""The rotation of logs: begun by the master, followed by each worker, and it has an end.

Whoever has renamed a file may compress it when the last one that wrote there is done. That
is said in the log.
"""

import logging
from collections.abc import Iterable

from .journal import Journal
from .logfiles import reopen
from .plan import WorkerHandle
from .scoreboard import ROTATION, Scoreboard


class Rotation:
    """The master's side. A worker follows in ``MasterHandle``, between two requests."""

    def __init__(self, board: Scoreboard, journal: Journal) -> None:
        self._board = board
        self._say = journal.say
        self._number = 0  # what stands on the board a worker may have written
        self._under_way = False

    def begin(self) -> None:
        """Open the files anew here, and have the workers do so: wake them after this.

        The master comes first: it may make files, and give them to the workers' user.
        """
        failures = reopen()
        self._number = number = self._number + 1
        self._board.set(0, ROTATION, number)
        self._under_way = True
        self._say(logging.INFO, "reopening", None, "SIGUSR1: rotation %d, logs reopened", number)
        for failure in failures:
            message = "keeps the old file: %s"
            self._say(logging.ERROR, "reopen_failed", None, message, failure)

    def look(self, workers: Iterable[WorkerHandle]) -> None:
        """Say it, once, when the last worker has followed."""
        if self._under_way:
            number = self._number
            if all(self._board.get(worker.slot, ROTATION) == number for worker in workers):
                self._under_way = False
                message = "rotation %d done: nobody writes to the old files"
                self._say(logging.INFO, "reopened", None, message, number)
