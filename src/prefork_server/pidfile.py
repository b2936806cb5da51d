"""One file that says who is running, and refuses a second.

The lock on it decides, and goes with the process, however that ends. The number inside
is information: stale, reused or garbage, it never keeps anybody from starting.
"""

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .errors import BootError, ConfigError
from .forks import drop, keep_from_forks
from .inheritance import inheritance
from .settings import FilePath, absolute


class Claim:
    """A file with our pid in it, locked. ``None``: nothing is held.

    A successor has the lock from its predecessor, whose pid stays there until ``renew``. While
    it is ``lent`` to a successor, the number is not ours to write.
    """

    lent: bool = False

    def __init__(self, path: FilePath | None) -> None:
        self._path = "" if path is None else absolute("pid_path", path)
        self._left = False
        inherited = inheritance().take_lock(self._path) if self._path else None
        if inherited is not None:
            self._fd = keep_from_forks(inherited)
        else:
            self._fd = _written(self._path) if self._path else -1

    @property
    def lock(self) -> tuple[str, int] | None:
        """The path, and the descriptor that holds it."""
        return (self._path, self._fd) if self._path else None

    def renew(self) -> None:
        """Put our pid in it; make it again, if it was removed or replaced. Raises as
        ``claimed`` does."""
        if self.lent or not self._path:
            return
        if _is_at(self._path, self._fd):
            _write(self._path, self._fd)
        else:
            fd = _written(self._path)  # first: at no time is there none that we hold
            drop(self._fd)
            self._fd = fd

    def leave(self) -> None:
        """It is another process's now."""
        self._left = True

    def remove(self) -> None:
        """Remove the file, if it is still ours, before the end: for who has signals in hand
        that could end us first."""
        if self._left or not self._path or not inheritance().settled():
            return
        with suppress(OSError):  # the directory is gone, or may not be written any more
            if _is_at(self._path, self._fd):
                os.unlink(self._path)

    def release(self) -> None:
        # In this order: whoever has the lock after us may have written there.
        self.remove()
        if self._path:
            drop(self._fd)


@contextmanager
def claimed(path: FilePath | None) -> Iterator[Claim]:
    """Hold the file, with our pid in it, and remove it afterwards if it is still ours.

    Raises BootError, which names the holder, if another process has it, and ConfigError
    if there can be no such file.
    """
    claim = Claim(path)
    try:
        yield claim
    finally:
        claim.release()


def _written(path: str) -> int:
    fd = keep_from_forks(_locked(path))
    try:
        _write(path, fd)
    except ConfigError:
        with suppress(OSError):
            os.unlink(path)
        drop(fd)
        raise
    return fd


def _write(path: str, fd: int) -> None:
    line = b"%d\n" % os.getpid()
    try:
        os.pwrite(fd, line, 0)
        os.ftruncate(fd, len(line))
    except OSError as error:  # a full disk
        raise ConfigError(f"pid_path {path}: {error.strerror}") from error


def _locked(path: str) -> int:
    while True:
        try:
            # Without O_NONBLOCK a FIFO there would hang us.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(path, flags, 0o644)
        except OSError as error:
            raise ConfigError(f"pid_path {path}: {error.strerror}") from error
        try:
            _check(path, os.fstat(fd))
            _lock(path, fd)
            if _is_at(path, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its last holder removed it between our open and our lock


def _lock(path: str, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BootError(f"already running: {_holder(fd)} holds {path}") from None
    except OSError as error:  # a file system without locks
        raise ConfigError(f"pid_path {path}: cannot lock it: {error.strerror}") from error


def _check(path: str, there: os.stat_result) -> None:
    """Only a plain file, of ours or of root's, that has no other name: it will be written."""
    if not stat.S_ISREG(there.st_mode):
        raise ConfigError(f"pid_path {path}: something that is not a regular file is there")
    if there.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"pid_path {path}: it belongs to another user, uid {there.st_uid}")
    if there.st_nlink > 1:
        raise ConfigError(f"pid_path {path}: it is a hard link to another file")


def _is_at(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except OSError:  # gone, or nothing that we may see
        return False


def _holder(fd: int) -> str:
    """Who has the lock. It writes its pid a moment after it got it."""
    for _ in range(20):
        text = os.pread(fd, 20, 0).partition(b"\n")[0].decode("ascii", "replace")
        if text.isdigit() and os.path.exists(f"/proc/{text}"):
            return f"pid {text}"
        time.sleep(0.05)
    return "another process"
