"""Which worker this process is, if it is one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .worker.master_handle import MasterHandle

_here: "MasterHandle | None" = None


def stand_here(master: "MasterHandle") -> None:
    """From now on this process is a worker of ``master``."""
    global _here
    _here = master


def current_master() -> "MasterHandle":
    """The master, in any code that runs in a worker. Elsewhere: RuntimeError."""
    if _here is None:
        raise RuntimeError("current_master() is there in a worker process only")
    return _here


def slot_here() -> int:
    """The slot of this worker; 0 in a master, and in any other program. In a fork of a worker,
    which has none of its own: RuntimeError."""
    if _here is None:
        return 0
    if _here.heartbeat.foreign:
        raise RuntimeError(f"this process is a fork of worker {_here.slot}, and no worker")
    return _here.slot


def in_worker() -> bool:
    """Whether this process is a worker, and somewhere else is its master."""
    return _here is not None and not _here.inline


@contextmanager
def standing_in(master: "MasterHandle") -> Iterator[None]:
    """This process works with ``master``, though it is no fork of one."""
    global _here
    outer, _here = _here, master
    try:
        yield
    finally:
        _here = outer


def _in_fork_of_worker() -> None:
    if _here is not None:
        _here.disown()


os.register_at_fork(after_in_child=_in_fork_of_worker)
