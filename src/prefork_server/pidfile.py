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
    """The file that is held. ``lock``: its path and descriptor, or None if there is none."""

    def __init__(self, lock: tuple[str, int] | None) -> None:
        self.lock: tuple[str, int] | None = lock
        self._left = False

    def write(self) -> None:
        """Put our pid in it. Raises ConfigError."""
        if self.lock:
            path, fd = self.lock
            line = b"%d\n" % os.getpid()
            try:
                os.pwrite(fd, line, 0)
                os.ftruncate(fd, len(line))
            except OSError as error:  # a full disk
                raise ConfigError(f"pid_path {path}: {error.strerror}") from error

    def remove(self) -> None:
        """Early, for who has signals in hand that could end us before it is done."""
        if self.lock and not self._left and inheritance().settled():
            path, fd = self.lock
            with suppress(OSError):  # the directory is gone, or may not be written any more
                if _is_at(path, fd):
                    os.unlink(path)

    def leave(self) -> None:
        """It is another process's now."""
        self._left = True


@contextmanager
def claimed(path: FilePath | None) -> Iterator[Claim]:
    """Hold the file, with our pid in it, and remove it afterwards if it is still ours.

    A successor has the lock from its predecessor, whose pid stays there until ``write``.
    Raises BootError, which names the holder, if another process has it, and ConfigError
    if there can be no such file. ``None``: nothing is held.
    """
    if path is None:
        yield Claim(None)
        return
    path = absolute("pid_path", path)
    inherited = inheritance().take_lock(path)
    fd = keep_from_forks(_locked(path) if inherited is None else inherited)
    claim = Claim((path, fd))
    try:
        if inherited is None:
            claim.write()
        yield claim
    finally:
        # Before the lock is free: whoever has it after us may have written there.
        claim.remove()
        drop(fd)


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
    except FileNotFoundError:
        return False


def _holder(fd: int) -> str:
    """Who has the lock. It writes its pid a moment after it got it."""
    for _ in range(20):
        text = os.pread(fd, 20, 0).partition(b"\n")[0].decode("ascii", "replace")
        if text.isdigit() and os.path.exists(f"/proc/{text}"):
            return f"pid {text}"
        time.sleep(0.05)
    return "another process"
