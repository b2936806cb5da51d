"""What the master knows of a worker, and what it may be about to do: values, and no rules.

The rules are in ``pool``.
"""

import signal
from dataclasses import dataclass

from .scoreboard import NEVER


@dataclass(eq=False)
class WorkerHandle:
    """What the master knows of one worker."""

    slot: int
    pid: int
    forked_ns: int
    generation: int = 1
    service: str = ""  # the name of the one that it runs; it is then none of the workers
    retiring: bool = False  # the master told it to go
    succeeded: bool = False  # and another one takes its place
    told_ns: int = 0  # when it did
    ending: bool = False  # the master sent TERM
    kill_ns: int = NEVER  # when patience with its going ends
    suspected_ns: int = 0  # when it was asked where it hangs
    suspected_for: int = 0  # the deadline it had missed then: a new one is a new silence
    killed: bool = False
    why: str = ""  # it was told to go, or killed

    def __str__(self) -> str:
        return f"{self._who} pid={self.pid}"

    @property
    def _who(self) -> str:
        return f"service={self.service}" if self.service else f"worker={self.slot}"


@dataclass(frozen=True)
class Death:
    """How one worker ended. ``str()`` is the cause in words.

    ``status`` is the exit code, or minus the number of the signal, as in
    ``subprocess``; ``None`` where somebody else reaped it. ``age`` is in seconds.
    ``expected`` says that the master or the worker itself meant it. ``report``
    is what the worker had to say: a traceback, or where it hung; it may be "".
    ``generation`` counts the reloads before it, from 1. ``serves_on`` is the generation
    that goes on serving, if this worker was to be the first of a new one and failed; else 0.
    ``why`` is for what the master told it to go or killed it, in words. ``cpu``, in seconds, and
    ``memory``, the most that it held, in bytes, are what it used, its dead children included;
    0 where somebody else reaped it. ``ago`` is in seconds: 0 when it is told to a hook.
    """

    slot: int
    pid: int
    status: int | None
    age: float
    requests: int
    booted: bool
    expected: bool
    killed: bool
    report: str = ""
    generation: int = 1
    serves_on: int = 0
    why: str = ""
    cpu: float = 0.0
    memory: int = 0
    ago: float = 0.0

    @property
    def cause(self) -> str:
        """All that is known of it in one line: ``str()``, and why the master wanted it so."""
        early = "" if self.booted else " before it was ready"
        return f"{self}{early}{self.why and f': {self.why}'}"

    def __str__(self) -> str:
        if self.status is None:
            return "exit status unknown, reaped by somebody else"
        if self.status >= 0:
            returned = self.status == 0 and not self.expected
            return f"exit code {self.status}{', its function returned' if returned else ''}"
        try:
            name = signal.Signals(-self.status).name
        except ValueError:
            name = f"signal {-self.status}"
        stranger = ", not by us: perhaps out of memory" if self.by_a_stranger else ""
        return f"killed by {name}{stranger}"

    @property
    def by_a_stranger(self) -> bool:
        return self.status == -signal.SIGKILL and not self.killed


@dataclass(frozen=True)
class Plan:
    """What to do now, and when to plan again if nothing happens before (monotonic ns).

    ``reload``: begin a new generation, and plan anew. ``wanted``: have so many, and plan anew.
    ``serves``: with what is retired here
    the last of the old one is told to go.
    """

    reload: bool = False
    wanted: int | None = None
    serves: bool = False
    fork: tuple[int, ...] = ()
    retire: tuple[WorkerHandle, ...] = ()
    suspect: tuple[WorkerHandle, ...] = ()
    end: tuple[WorkerHandle, ...] = ()
    kill: tuple[WorkerHandle, ...] = ()
    wake_ns: int = NEVER
