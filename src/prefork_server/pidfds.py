"""Processes held by a pidfd: signalled, and their end waited for.

A number may be another process's when its process is gone; a pidfd never is. Where there are no
pidfds (Linux before 5.3, gVisor, a seccomp profile that does not know the calls, some builds of
Python, no descriptors left) the number has to do.
"""

import errno
import logging
import os
import select
import signal
from contextlib import suppress

from .clock import Clock
from .journal import Journal
from .plan import WorkerHandle
from .signals import Inbox

_TICK = 0.02  # seconds between two looks at a process without a pidfd
_CURES = {errno.EPERM: ": a process of another user is signalled with the capability CAP_KILL"}


class Process:
    """A process by its number; to be closed. ``fd`` is -1 where there is no pidfd.

    Raises ProcessLookupError if there is no such process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.fd: int = -1
        try:
            self.fd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise
        except (AttributeError, OSError, OverflowError):
            if not self._is_there():
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None

    def send(self, signum: int) -> None:
        """Raises OSError."""
        if self.fd >= 0:
            try:
                signal.pidfd_send_signal(self.fd, signum)
            except ProcessLookupError:
                raise
            except (AttributeError, OSError):
                pass  # not permitted, or a sandbox without this call
            else:
                return
        os.kill(self.pid, signum)

    def ends_within(self, seconds: float) -> bool:
        if self.fd >= 0:
            end = select.poll()
            end.register(self.fd, select.POLLIN)
            return bool(end.poll(seconds * 1000))
        until = Clock.monotonic() + seconds
        while self._is_there():
            left = until - Clock.monotonic()
            if left <= 0:
                return False
            select.poll().poll(min(left, _TICK) * 1000)  # of nothing
        return True

    def _is_there(self) -> bool:
        """A zombie is gone: it only waits for its parent."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                return file.read().rpartition(b")")[2].split()[0] != b"Z"
        except (OSError, IndexError):
            return False

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Pidfds:
    """Those of the workers, by which the master signals them and is woken when one dies."""

    def __init__(self, inbox: Inbox, journal: Journal) -> None:
        self._inbox = inbox
        self._say = journal.say
        self._held: dict[int, Process] = {}

    def take(self, worker: WorkerHandle) -> None:
        with suppress(OSError):  # it is dead already, or cannot be watched: a tick finds out, too
            held = self._held[worker.pid] = Process(worker.pid)
            if held.fd >= 0:
                self._inbox.watch(held.fd)

    def let_go(self, worker: WorkerHandle) -> None:
        held = self._held.pop(worker.pid, None)
        if held and held.fd >= 0:
            # A fork of ours, a hook's for instance, may hold it too, and would keep it watched.
            self._inbox.unwatch(held.fd)
            held.close()

    def signal(self, worker: WorkerHandle, signum: int) -> None:
        """What the system refuses is an ERROR in the log, and the worker is left to its deadlines:
        it reads on the scoreboard what is wanted of it, once a second at least."""
        refusal = self._refusal(worker, signum)
        if refusal:
            known = {each.value: each.name for each in signal.Signals}
            name = known.get(signum, f"signal {signum}")
            message = "%s was not sent: %s"
            self._say(logging.ERROR, "not_signalled", worker, message, name, refusal)

    def check(self, worker: WorkerHandle) -> None:
        """Say at the start that workers cannot be signalled, and what comes of it."""
        refusal = self._refusal(worker, 0)
        if refusal:
            message = (
                "the workers cannot be signalled: %s; one that hangs is not killed, and a reload, "
                "a rotation of logs and a stop take up to a second longer"
            )
            self._say(logging.WARNING, "cannot_signal", None, message, refusal)

    def _refusal(self, worker: WorkerHandle, signum: int) -> str:
        try:
            held = self._held.get(worker.pid)
            if held:
                held.send(signum)
            else:
                os.kill(worker.pid, signum)
        except ProcessLookupError:
            pass  # it died first: the master will find it
        except OSError as error:
            return f"{error.strerror}{_CURES.get(error.errno or 0, '')}"
        return ""

    def leave_to_master(self) -> None:
        """In a fork: siblings are none of its business."""
        for held in self._held.values():
            held.close()
