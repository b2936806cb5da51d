"""A hold of each worker, by which the master signals it and hears of its death.

A number may be a stranger's when its process is gone; a pidfd is never anybody else's.
"""

import os
import signal
from contextlib import suppress

from .plan import WorkerHandle
from .signals import Inbox


class Pidfds:
    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._fds: dict[int, int] = {}

    def take(self, worker: WorkerHandle) -> None:
        with suppress(OSError):  # an old kernel, or no descriptors left: a tick finds out, too
            pidfd = os.pidfd_open(worker.pid)
            self._fds[worker.pid] = pidfd
            self._inbox.watch(pidfd)

    def let_go(self, worker: WorkerHandle) -> None:
        pidfd = self._fds.pop(worker.pid, None)
        if pidfd is not None:
            # A fork of ours, a hook's for instance, may hold it too, and would keep it watched.
            self._inbox.unwatch(pidfd)
            os.close(pidfd)

    def signal(self, worker: WorkerHandle, signum: int) -> None:
        with suppress(ProcessLookupError):  # it died first: the master will find it
            if worker.pid in self._fds:
                signal.pidfd_send_signal(self._fds[worker.pid], signum)
            else:
                os.kill(worker.pid, signum)

    def leave_to_master(self) -> None:
        """In a fork: siblings are none of its business."""
        for fd in self._fds.values():
            os.close(fd)
