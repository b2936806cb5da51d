"""The fork itself, and what none may hold: descriptors that belong to one process alone.

Some mean something only by being closed: the end of a pipe says that its holder is gone,
and a lock is free. Every fork inherits them all, a worker's or one of the user's, and
would keep the news from whoever waits for it.
"""

import gc
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# By descriptor: the thread whose forks keep it, and the inode, since whoever closed it without
# ``drop`` must not have the next one of that number closed.
_ours: dict[int, tuple[threading.Thread | None, int]] = {}

forking: "threading.RLock" = threading.RLock()
"""Held by every fork. Whoever holds it can make a descriptor and keep it from forks, and no
other thread forks in between."""


def fork() -> int:
    """``os.fork()`` without its warning of threads (3.12): the master names them in its log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


@contextmanager
def shared_with_forks(wanted: bool) -> Iterator[None]:
    """Within, what is there now is none of the collector's business: looking at an object it
    writes to it, and in a fork that makes a copy of the page. Does nothing if not ``wanted``.
    """
    if wanted:
        gc.collect()  # or what is garbage now is kept for ever
        gc.freeze()
    try:
        yield
    finally:
        if wanted:
            gc.unfreeze()


def keep_from_forks(fd: int, but: threading.Thread | None = None) -> int:
    """From now on every fork of this process closes this one first. Close it with ``drop``.

    The forks that the thread ``but`` makes keep it, and so do theirs.
    """
    _ours[fd] = but, os.fstat(fd).st_ino
    return fd


def drop(fd: int) -> None:
    with forking:
        _ours.pop(fd, None)
        os.close(fd)


def _close_in_fork() -> None:
    me = threading.current_thread()
    try:
        for fd, (keeper, inode) in _ours.items():
            with suppress(OSError):  # it was closed without us
                if keeper is not me and os.fstat(fd).st_ino == inode:
                    os.close(fd)
        _ours.clear()
    finally:
        forking.release()


os.register_at_fork(
    before=forking.acquire, after_in_parent=forking.release, after_in_child=_close_in_fork
)
