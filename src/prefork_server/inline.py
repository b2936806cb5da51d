"""Debug mode: one worker, and it is this very process. No fork, no timeout, no supervision.

``breakpoint()``, a profiler and a plain traceback work here as in any program.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

from .bulletin import Bulletin
from .handle import MasterHandle, Shared
from .here import standing_in
from .job import Job
from .journal import Journal
from .logfiles import logger_named
from .remote import Remote
from .reports import Reports
from .scoreboard import DRAIN, DRAIN_ONCE, SERVING, STATE, WANTED, Scoreboard
from .signals import Bell, Relay, handled
from .titles import Title

if TYPE_CHECKING:
    from .stats import Stats


def run_inline(job: Job, remote: Remote) -> None:
    """Work until a signal or ``shutdown()`` says stop, or the work ends or raises by itself."""
    board, relay, reports, bell = Scoreboard(1), Relay(), Reports(), Bell()
    nobodys = -1  # it outlives no master, and follows none
    shared = Shared(board, reports, relay, bell, Title(job.app_name), nobodys, os.getpid())
    job = replace(job, settings=replace(job.settings, timeout=None))
    master = _Inline(job, shared, bell, remote)
    board.occupy(master.slot, os.getpid(), time.monotonic_ns(), shared.generation)
    board.set(0, WANTED, 1)
    try:
        for listener in job.listeners:
            listener.serve()
        with remote.ringing(bell, board), standing_in(master), _hearing(master):
            job.hooks.after_fork(master)
            logger_named(job.logger)
            addresses = [listener.address for listener in job.listeners]
            journal = Journal(job.logger, os.getpid())
            journal.ready(addresses, ", inline")
            journal.run_hook("ready", job.hooks.ready, addresses)
            remote.is_ready(addresses)
            board.set(0, STATE, SERVING)
            job.work(master)
    finally:
        master._hang_up()
        for closing in (relay, reports, bell, board):
            closing.close()


class _Inline(MasterHandle):
    """There is no master. This says what one would."""

    inline = True

    def __init__(self, job: Job, shared: Shared, bell: Bell, remote: Remote) -> None:
        super().__init__(1, job, shared, bell)
        self._remote = remote

    def stats(self) -> "Stats":
        Bulletin(self._board, self._listeners).tell(time.monotonic_ns())
        return super().stats()

    def _is_over(self) -> bool:
        return self._remote.stop_asked or super()._is_over()

    def _asked_to_go(self) -> int:
        ajar = [one for one in self._listeners if not one.shut_the_door()]
        return DRAIN_ONCE if ajar else DRAIN


@contextmanager
def _hearing(master: _Inline) -> Iterator[None]:
    """The signals that stop a server end the work when it next asks; a second one, at once."""

    def stop(signum: int, frame: FrameType | None) -> None:
        if master._is_over():
            raise KeyboardInterrupt
        master.retire()  # rings its own bell

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with handled(dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGQUIT), stop)):
        yield
