"""What a front room wants done, in one value that both roles read."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from .listeners import Listener
from .privileges import Identity
from .settings import Settings

if TYPE_CHECKING:
    from .handle import MasterHandle
    from .plan import Death


def nothing(*_: object) -> None:
    """The hook of those who have none, and the handler of signals that mean nothing."""


@dataclass(frozen=True)
class Hooks:
    """User code at four moments.

    ``before_fork()`` in the master before each fork; ``after_fork(master)`` in the
    worker, before its work; ``ready(addresses)`` in the master when the first
    worker is ready; ``after_worker_exit(death)`` in the master after each end of
    a worker. What they raise is logged and changes nothing, except that a worker
    whose ``after_fork`` raises has failed to boot.
    """

    before_fork: Callable[[], object] = nothing
    after_fork: "Callable[[MasterHandle], object]" = nothing
    ready: Callable[[Sequence[str]], object] = nothing
    after_worker_exit: "Callable[[Death], object]" = nothing


HOOKS = tuple(each.name for each in fields(Hooks))


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
