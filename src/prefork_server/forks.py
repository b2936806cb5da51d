"""The fork itself, and what none may hold: descriptors that belong to one process alone.

Some mean something only by being closed: the end of a pipe says that its holder is gone,
and a lock is free. Every fork inherits them all, a worker's or one of the user's, and
would keep the news from whoever waits for it.
"""

import os
import warnings

_ours: set[int] = set()


def fork() -> int:
    """``os.fork()`` without its warning of threads (3.12): the master names them in its log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def keep_from_forks(fd: int) -> int:
    """From now on every fork of this process closes this one first. Close it with ``drop``."""
    _ours.add(fd)
    return fd


def drop(fd: int) -> None:
    _ours.discard(fd)
    os.close(fd)


def _close_in_fork() -> None:
    for fd in _ours:
        os.close(fd)
    _ours.clear()


os.register_at_fork(after_in_child=_close_in_fork)
