"""The file of a UNIX socket: made for its owner alone, and known again later.

Whoever removed it, or has put another there, has not asked us. So what is done to it is done
to the very file that was made here.
"""

import errno
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

from . import lockfile

_TRIES, _PAUSE = 20, 0.05  # for the lock: a second in all


def bind_unix(sock: socket.socket, path: str, backlog: int | None) -> None:
    """Bind it, for its owner alone, and listen unless ``backlog`` is None. What a dead server
    has left there goes; for all else, a live one's socket too, it raises OSError."""
    with nullcontext() if path.startswith("\0") else _way_made(path):
        if not path.startswith("\0"):
            # The new file takes its mode from the socket's own, less the umask. So it is
            # never there with a wider one, and no umask of the process is touched.
            os.fchmod(sock.fileno(), 0o600)
        sock.bind(path)
        if backlog is not None:
            # Within the lock: bound and not yet listening looks stale to others.
            sock.listen(backlog)


@contextmanager
def _way_made(path: str) -> Iterator[None]:
    """Only one starter at a time looks, removes and binds at a path: it holds a lock file beside
    it, which is gone again afterwards."""
    fd = _locked(path)
    try:
        _remove_stale(path)
        yield
    finally:
        with suppress(OSError):
            lockfile.remove(path, fd)
        os.close(fd)


def _locked(path: str) -> int:
    for _ in range(_TRIES):  # another starter needs a moment
        with suppress(BlockingIOError):
            return lockfile.locked(path)
        time.sleep(_PAUSE)
    raise OSError(errno.EAGAIN, f"{path}{lockfile.SUFFIX} is locked by another process")


def _remove_stale(path: str) -> None:
    """Make way at ``path`` if nothing but a dead server's socket is there."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "something that is not a socket is there, and stays there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            pass  # no room in the queue, not permitted, another kind: it lives
    raise OSError(errno.EADDRINUSE, "a live server has it")


def identity(path: str) -> tuple[int, int] | None:
    """Which file has this name, and no link is followed; None: there is none, or none we see."""
    try:
        there = os.lstat(path)
    except OSError:
        return None
    return there.st_dev, there.st_ino


def is_lost(path: str, ours: tuple[int, int]) -> bool:
    """Whether our file has not this name any more, as far as we may see."""
    try:
        there = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return (there.st_dev, there.st_ino) != ours


def give(path: str, ours: tuple[int, int], uid: int, gid: int) -> None:
    """Change its owner, if it is ours still. -1: as it is. Raises OSError.

    Who can write to the directory could put another file there after any look at it: so it is
    held by a descriptor, and given by that.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        there = os.fstat(fd)
        if (there.st_dev, there.st_ino) == ours:
            os.chown(f"/proc/self/fd/{fd}", uid, gid)
    finally:
        os.close(fd)
