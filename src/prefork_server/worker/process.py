"""The worker process: from the fork to its end.

``become_worker`` never returns: the frames that called it belong to the master.
In here the master is a ``MasterHandle``, which user code calls ``master``.
"""

import os
import signal
import traceback
from typing import NoReturn

from .. import exits
from ..here import stand_here
from ..job import Job, nothing
from ..logfiles import logger_named
from ..output import cover
from ..reports import leave_report
from ..signals import (
    AGAIN,
    ORPHANED,
    SHOW,
    WHERE,
    Bell,
    ask_anew,
    make_room_for_signals,
    take,
    take_crashes,
    take_wakeups,
    when_it_ends,
)
from ..text import users_part
from .accept_loop import AcceptLoop
from .heartbeat import Heartbeat, Shared
from .master_handle import MasterHandle
from .threads import ThreadedLoop, ThreadsHeartbeat

# Of the signals that mean something to the master, or that a terminal sends to all
# its processes: in a worker they do nothing. Not SIG_IGN, which programs started
# from a handler would inherit.
_NOT_FOR_WORKERS = (
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGWINCH,
)


def become_worker(slot: int, job: Job, shared: Shared, mask: set[int]) -> NoReturn:
    """Live and die as the worker in ``slot``. All signals are blocked when this is called,
    ``mask`` were it before."""
    status = 1
    try:
        exits.begin()
        report = shared.reports.open_in_worker(slot)
        try:
            status = _live(slot, job, shared, mask, report)
        except Exception as error:  # before its own: the system refuses what each worker needs
            leave_report(report, "".join(traceback.format_exception(error)))
    finally:
        # Not sys.exit(): the frames below, and most of the exit functions, are the master's.
        exits.end(status)


def _live(slot: int, job: Job, shared: Shared, mask: set[int], report: int) -> int:
    take_crashes(report, {WHERE: report, SHOW: shared.reports.stacks})
    make_room_for_signals()
    bell = Bell()
    heartbeat, loop = _heart(slot, job, shared, bell)
    master = MasterHandle(heartbeat, loop, shared.master_pid, report)
    stand_here(master)
    for signum in _NOT_FOR_WORKERS:
        take(signum, nothing)
    take(signal.SIGUSR1, heartbeat.call)  # a rotation
    # systemd sends it to all processes of a service, unless told otherwise.
    graceful = job.settings.term == "graceful"
    take(signal.SIGTERM, heartbeat.go if graceful else signal.SIG_DFL)
    take(signal.SIGQUIT, heartbeat.go)
    take(ORPHANED, heartbeat.be_orphaned)
    take(AGAIN, shared.reports.rewind)
    take_wakeups(bell.rope)
    heard = {signal.SIGQUIT, signal.SIGTERM, ORPHANED, WHERE, SHOW, AGAIN, *_NOT_FOR_WORKERS}
    signal.pthread_sigmask(signal.SIG_SETMASK, mask - heard)
    # The pipe of life: only the master holds its writing end.
    if when_it_ends(shared.life, ORPHANED):
        heartbeat.be_orphaned()
    shared.title.show_worker(job.name or f"worker {slot}")
    is_ready = False
    try:
        if job.identity:
            job.identity.leave({listener.socket.fileno() for listener in job.listeners})
            if shared.prints:
                shared.prints.print_here()
            job.identity.assume()
            if ask_anew():
                heartbeat.be_orphaned()
        job.hooks.after_fork(master)
        logger_named(job.logger)  # is heard, though the program may have configured logging
        cover()  # log handlers, too, that the program has made since the fork
        heartbeat.be_ready()
        is_ready = True
        job.work(master)
        return 0
    except SystemExit as asked:
        if asked.code is None or isinstance(asked.code, int):
            return (asked.code or 0) & 0xFF
        leave_report(report, str(asked.code))
        return 1
    except BaseException as error:
        # User code failed. The master logs what it reads here, once, however many fail alike.
        leave_report(report, "".join(traceback.format_exception(users_part(error))))
        return 1
    finally:
        # What follows may hang: code of the program, or a stream whose lock a thread of the master
        # held at the fork, where no handler of a signal can run.
        heartbeat.end_in_time()
        if is_ready and not heartbeat.foreign:  # no fork of the program's that came back here
            _say_goodbye(job, master)


def _heart(slot: int, job: Job, shared: Shared, bell: Bell) -> tuple[Heartbeat, AcceptLoop | None]:
    if job.settings.threads > 1:
        heartbeat = ThreadsHeartbeat(slot, job, shared, bell)
        return heartbeat, ThreadedLoop(job, shared.relay, heartbeat)
    alone = Heartbeat(slot, job, shared, bell)
    return alone, AcceptLoop(job, shared.relay, alone) if job.listeners else None


def _say_goodbye(job: Job, master: MasterHandle) -> None:
    try:
        job.hooks.before_exit(master)
    except BaseException:  # user code
        extra = {"event": "hook_failed", "worker": master.slot, "pid": os.getpid()}
        message = "worker=%d pid=%d before_exit failed"
        master.logger.exception(message, master.slot, os.getpid(), extra=extra)
