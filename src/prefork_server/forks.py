"""The fork itself, and what none may hold: descriptors that belong to one process alone.

Some mean something only by being closed: the end of a pipe says that its holder is gone,
and a lock is free. Every fork inherits them all, a worker's or one of the user's, and
would keep the news from whoever waits for it.
"""

import gc
import os
import sys
import threading
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

# By descriptor: the thread whose forks keep it, and the inode, since whoever closed it without
# ``drop`` must not have the next one of that number closed.
_ours: dict[int, tuple[threading.Thread | None, int]] = {}

forking: "threading.RLock" = threading.RLock()
"""Held by every fork. Whoever holds it can make a descriptor and keep it from forks, and no
other thread forks in between."""


_forker = 0  # the thread that is in ``fork()``


def fork() -> int:
    """``os.fork()`` without its warning of threads (3.12): the master names them in its log."""
    global _forker
    with forking, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        _forker = threading.get_ident()
        try:
            pid = os.fork()
        finally:
            _forker = 0
    if pid == 0:
        _forget_children()
    return pid


def is_own_fork() -> bool:
    """In a function of ``os.register_at_fork``: whether ``fork`` made this one, and no other code,
    a handler of the program for instance."""
    return _forker == threading.get_ident()


def _forget_children() -> None:
    """The processes that ``multiprocessing`` keeps for itself are children of the parent alone:
    in a fork it would wait for them, and fail. It starts a new forkserver where it needs one."""
    with suppress(KeyError, AttributeError, OSError):
        server = sys.modules["multiprocessing.forkserver"]._forkserver
        alive, server._forkserver_alive_fd = server._forkserver_alive_fd, None
        server._forkserver_pid = server._forkserver_address = server._forkserver_authkey = None
        if alive is not None:
            os.close(alive)
    with suppress(KeyError, AttributeError):  # its pipe still leads to the one for all
        sys.modules["multiprocessing.resource_tracker"]._resource_tracker._pid = None


def null() -> int:
    """A new descriptor of ``/dev/null``. Where that is missing, as in a chroot: of one that can
    be neither read nor written, as if it were closed (EBADF). Raises OSError."""
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:
        return os.open("/", os.O_PATH)


def close_passed_on(but: Collection[int]) -> None:
    """Close the descriptors above 2 that this process was started with, except ``but``.

    A descriptor that is not inheritable (any more) was opened or taken over by this program, and
    stays open.
    """
    for fd in _passed_on.difference(but):
        with suppress(OSError):  # it was closed
            if os.get_inheritable(fd):
                os.close(fd)


def _inheritable() -> frozenset[int]:
    """The open descriptors above 2 that survived an exec: Python makes none that would."""
    found = set()
    with suppress(OSError):  # no /proc
        for fd in map(int, os.listdir("/proc/self/fd")):
            with suppress(OSError):  # the one of listdir() itself
                if fd > 2 and os.get_inheritable(fd):
                    found.add(fd)
    return frozenset(found)


_passed_on = _inheritable()  # by the process that started this one; looked at when this is imported


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
