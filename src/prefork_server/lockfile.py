"""Locks that a user who may only read a file cannot take.

``flock`` needs no more than a descriptor, so a file that others may open is no place for it:
the lock files here have mode 0600 from their first moment. A write lock of ``fcntl`` needs a
descriptor that is open for writing. So it says of a file that all may read, as a pid file, that
a process of its owner holds it, whatever locks its readers have taken.
"""

import errno
import fcntl
import os
import struct

from .trusted import check, is_at, opened

SUFFIX = ".lock"
_IN_THE_WAY = (errno.EPERM, errno.EACCES, errno.ELOOP, errno.EISDIR, errno.ENXIO)
_FLOCK = "hhqqi4x"  # struct flock: type, whence, start, length (0: to the end), pid


def locked(path: str) -> int:
    """The descriptor that holds the lock file of ``path``, which is made if there is none.

    Raises BlockingIOError if another process holds it, and OSError if there can be none, which
    names what is in the way.
    """
    path += SUFFIX
    try:
        while True:
            fd = opened(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                if check(fd).st_mode & 0o077:
                    os.fchmod(fd, 0o600)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_at(path, fd):
                    return fd
            except OSError:
                os.close(fd)
                raise
            os.close(fd)  # its last holder removed it between the open and the lock
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _IN_THE_WAY or not os.path.lexists(path):
            raise
        raise OSError(error.errno, f"{path}: {error.strerror}: remove it") from error


def remove(path: str, fd: int) -> None:
    """Remove the lock file of ``path``, if it is the one that ``fd`` holds. Raises OSError."""
    if is_at(path + SUFFIX, fd):
        os.unlink(path + SUFFIX)


def write_lock(fd: int) -> None:
    """Lock the open file for its whole life, forks and an ``exec`` included. Raises OSError."""
    lock = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)


def is_write_locked(fd: int) -> bool:
    """Whether another open file description holds the write lock. Raises OSError."""
    wish = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    found: tuple[int, ...] = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wish))
    return found[0] != fcntl.F_UNLCK
