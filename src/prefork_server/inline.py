"""Debug mode: one worker, and it is this very process. No fork, no timeout, no supervision.

``breakpoint()``, a profiler and a plain traceback work here as in any program.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

from .bulletin import Bulletin
from .clock import Clock
from .here import standing_in
from .job import Job
from .journal import Journal
from .logfiles import logger_named
from .remote import Remote
from .reports import Reports
from .scoreboard import DRAIN, DRAIN_ONCE, SERVING, STATE, WANTED, Scoreboard
from .signals import Bell, Relay, handled
from .titles import Title
from .worker.accept_loop import AcceptLoop
from .worker.heartbeat import Heartbeat, Shared
from .worker.master_handle import MasterHandle

if TYPE_CHECKING:
    from .stats import Stats


def run_inline(job: Job, remote: Remote) -> None:
    """Work until a signal or ``shutdown()`` says stop, or the work ends or raises by itself."""
    board, relay, reports, bell = Scoreboard(1), Relay(), Reports(), Bell()
    nobodys = -1  # it outlives no master, and follows none
    shared = Shared(board, reports, relay, bell, Title(job.app_name), nobodys, os.getpid())
    job = replace(job, settings=replace(job.settings, timeout=None))
    heartbeat = _Heartbeat(job, shared, bell, remote)
    loop = AcceptLoop(job, relay, heartbeat) if job.listeners else None
    master = MasterHandle(heartbeat, loop, os.getpid(), inline=True)
    board.occupy(master.slot, os.getpid(), Clock.monotonic_ns(), shared.generation)
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
        master.close()
        for closing in (heartbeat, relay, reports, bell, board):
            closing.close()


class _Heartbeat(Heartbeat):
    """There is no master. This says what one would."""

    def __init__(self, job: Job, shared: Shared, bell: Bell, remote: Remote) -> None:
        super().__init__(1, job, shared, bell)
        self._remote = remote
        self._listeners = job.listeners
        self._wish = 0  # until it is to go

    def stats(self) -> "Stats":
        Bulletin(self.board, self._listeners).tell(Clock.monotonic_ns())
        return super().stats()

    def is_over(self) -> bool:
        return self._remote.stop_asked or super().is_over()

    @property
    def wish(self) -> int:
        return self._wish

    def awaits_wish(self) -> bool:
        if not self._wish:
            ajar = [one for one in self._listeners if not one.shut_the_door()]
            self._wish = DRAIN_ONCE if ajar else DRAIN
        return False


@contextmanager
def _hearing(master: MasterHandle) -> Iterator[None]:
    """The signals that stop a server end the work when it next asks; a second one, at once."""

    def stop(signum: int, frame: FrameType | None) -> None:
        if master.heartbeat.is_over():
            raise KeyboardInterrupt
        master.retire()  # rings its own bell

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with handled(dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGQUIT), stop)):
        yield
