"""What the master says: one record for each event, greppable, with extra fields.

``extra`` has ``event``, ``worker`` (its slot, or None), ``pid`` and ``generation``. The message is
one printable line, whatever a path, an error or another process has put into its arguments; a
report stands below it, indented. A log handler that fails costs nobody anything.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from .plan import Death, WorkerHandle
from .reaper import Used
from .reports import in_debugger
from .systemd import Notifier
from .text import one_record, printable, users_part


class Journal:
    def __init__(
        self, logger: logging.Logger, master_pid: int, notifier: Notifier | None = None
    ) -> None:
        self._logger = logger
        self._notifier = notifier
        self._master_pid = master_pid
        self._last_report = ""

    def say(
        self,
        level: int,
        event: str,
        worker: WorkerHandle | None,
        message: str,
        *args: object,
        report: str = "",
        exc_info: bool = False,
    ) -> None:
        who = str(worker) if worker else f"master pid={self._master_pid}"
        extra = {
            "event": event,
            "worker": worker.slot if worker else None,
            "pid": worker.pid if worker else self._master_pid,
            "generation": worker.generation if worker else None,
        }
        if self._notifier:
            self._notifier.hear(event, self._master_pid)
        try:
            clean = [
                each if isinstance(each, int | float) else printable(f"{each}") for each in args
            ]
            if report:
                message, clean = f"{message}%s", [*clean, one_record(f"\n{report}")]
            self._logger.log(level, f"%s {message}", who, *clean, extra=extra, exc_info=exc_info)
        except Exception:  # a handler of the user's: the workers must not suffer for it
            with suppress(OSError, ValueError, AttributeError):
                sys.stderr.write(f"{who}: the log handler failed for {event}\n")

    def ready(self, addresses: Sequence[str], how: str = "") -> None:
        where = f", listening on {', '.join(addresses)}" if addresses else ""
        self.say(logging.INFO, "ready", None, "ready%s%s", where, how)

    def run_hook(self, name: str, hook: Callable[..., object], *args: Any) -> None:
        try:
            hook(*args)
        except BaseException as error:  # user code: its errors are logged and change nothing
            users_part(error)
            self.say(logging.ERROR, "hook_failed", None, "%s failed", name, exc_info=True)
        if os.getpid() != self._master_pid:
            os._exit(1)  # it forked, and its child came back: there is one master

    def warn_of_threads(self) -> bool:
        """Whether some run that a fork will not have."""
        ours = (threading.main_thread(), threading.current_thread())
        names = [thread.name for thread in threading.enumerate() if thread not in ours]
        if names:
            self.say(
                logging.WARNING,
                "threads",
                None,
                "forking while other threads run (%s): a lock that one of them holds now is "
                "never released in a worker",
                ", ".join(names),
            )
        return bool(names)

    def kill(
        self, worker: WorkerHandle, fault: str, company: str, stack: str, again: bool = False
    ) -> None:
        """``again``: in another try of a reload, whose failure has been told."""
        place = innermost(stack)
        at = f" at {place}" if place else ""
        self.say(
            logging.INFO if again else logging.ERROR,
            "killed",
            worker,
            "%s%s, killing%s%s",
            fault,
            at,
            company,
            in_debugger(stack),
            report="" if again else stack,
        )

    def death(
        self, worker: WorkerHandle, death: Death, used: Used = None, again: bool = False
    ) -> None:
        """``again``: in another try of a reload, whose failure has been told."""
        level = logging.INFO if death.expected or death.serves_on else logging.ERROR
        if death.status == 0 and not death.expected:
            level = logging.WARNING
        report = death.report
        if death.killed:
            report = ""  # it was told before the kill
        elif report and report == self._last_report:
            report = "(with the same traceback as the one before)"
        self._last_report = death.report
        self.say(
            level,
            "reaped",
            worker,
            "reaped%s: %s; age=%.1fs requests=%d%s",
            "" if death.booted else " before it was ready",
            death,
            death.age,
            death.requests,
            # Nobody says who was killed for want of memory: how much it held may tell.
            f" held={used.ru_maxrss >> 10}MiB" if used and death.by_a_stranger else "",
            report="" if death.serves_on else report,
        )
        if death.serves_on and not again:
            message = "reload failed, generation %d serves on; %s: %s"
            report = "" if death.killed else death.report
            said = death.serves_on, worker, death
            self.say(logging.ERROR, "reload_failed", None, message, *said, report=report)


def innermost(stack: str) -> str:
    """``app.py:12 in handle``, from what faulthandler wrote of the main thread."""
    current = stack.partition("Current thread")[2] or stack
    for line in current.splitlines():
        parts = line.strip().split('"')
        if len(parts) == 3 and parts[0] == "File ":
            number, _, function = parts[2].removeprefix(", line ").partition(" in ")
            return f"{parts[1]}:{number} in {function}"
    return ""
