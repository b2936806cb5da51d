"""What a front room wants done, in one value that both roles read."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .calls import check_call
from .listeners import Listener
from .privileges import Identity
from .settings import Settings

if TYPE_CHECKING:
    from .plan import Death
    from .worker.master_handle import MasterHandle

_SILENCE = 30.0  # seconds without a sign of life from a service
_PARTING = 1.0  # seconds it has to go
_PATIENCE = 5.0  # seconds with a silent client of its


def nothing(*_: object) -> None:
    """The hook of those who have none, and the handler of signals that mean nothing."""


@dataclass(frozen=True)
class Hooks:
    """User code at five moments.

    ``before_fork()`` in the master before each fork; ``after_fork(master)`` in the
    worker, before its work; ``ready(addresses)`` in the master when the first
    worker is ready; ``after_worker_exit(death)`` in the master after each end of
    a worker; ``before_exit(master)`` in a worker that was ready, when its work is over, and
    before the functions that were registered there with ``atexit``. All of that has
    ``graceful_timeout``, and a worker that is killed runs none of it. What hooks raise is
    logged and changes nothing, except that a worker whose ``after_fork`` raises has failed
    to boot.
    """

    before_fork: Callable[[], object] = nothing
    after_fork: "Callable[[MasterHandle], object]" = nothing
    ready: Callable[[Sequence[str]], object] = nothing
    after_worker_exit: "Callable[[Death], object]" = nothing
    before_exit: "Callable[[MasterHandle], object]" = nothing

    def __post_init__(self) -> None:
        for name, arguments in HOOKS.items():
            check_call(name, getattr(self, name), arguments, "a hook is a plain function")


HOOKS = {
    "before_fork": "",
    "after_fork": "master",
    "ready": "addresses",
    "after_worker_exit": "death",
    "before_exit": "master",
}
"""What each is called with."""


@dataclass(frozen=True)
class Service:
    """What one worker does beside the others, all the time that the server is there: a page
    that tells of them, for instance.

    ``name`` stands in the log and in ``ps``. Of ``listeners`` it has its own alone, and the
    others have none of them.
    """

    name: str = ""  # there is none
    work: "Callable[[MasterHandle], object]" = nothing
    listeners: Sequence[Listener] = ()


NO_SERVICE = Service()


@dataclass(frozen=True)
class Job:
    settings: Settings
    app_name: str
    logger: logging.Logger
    work: "Callable[[MasterHandle], object]"
    listeners: Sequence[Listener]
    hooks: Hooks
    identity: Identity | None = None  # whom the workers become
    renew: Callable[[], object] = nothing  # what is read from files, before a new generation
    service: Service = NO_SERVICE
    name: str = ""  # of who does it; else it is a worker with a number

    def of_service(self) -> "Job":
        """What the worker does that runs the service: none of the user's code, and when it is
        to go, it is gone within a second."""
        settings = replace(
            self.settings,
            timeout=self.settings.timeout or _SILENCE,
            graceful_timeout=min(_PARTING, self.settings.graceful_timeout),
            client_timeout=_PATIENCE,
            threads=1,
            max_workers=None,
            min_spare_workers=None,
            max_spare_workers=None,
            max_requests=0,
            max_worker_memory=None,
        )
        return replace(
            self,
            settings=settings,
            work=self.service.work,
            listeners=self.service.listeners,
            hooks=Hooks(),
            name=f"service {self.service.name}",
        )
