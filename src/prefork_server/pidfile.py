"""The pid file: which process is the master, and a lock that refuses a second one.

Two files: ``pid_path``, which all may read, and a lock file beside it, of mode 0600. The lock
file decides, and goes with the process, however that ends. The pid file has a write lock, too,
by which a command sees that its server runs, and a second master that a lock file was removed
while the first one runs. The number inside is information: stale, reused or garbage, it never
keeps a master from starting.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from . import lockfile
from .errors import BootError, ConfigError, PreforkError
from .forks import drop, keep_from_forks
from .inheritance import inheritance
from .settings import FilePath, absolute
from .trusted import check, is_at, opened


class Claim:
    """A file with our pid in it, and its lock file, both locked. ``None``: nothing is held.

    A successor has both descriptors from its predecessor, whose pid stays there until ``renew``.
    While they are ``lent`` to a successor, the number is not ours to write.
    """

    lent: bool = False

    def __init__(self, path: FilePath | None) -> None:
        self._path = "" if path is None else absolute("pid_path", path)
        self._left = False
        if not self._path:
            return
        lock = inheritance().take_lock(self._path + lockfile.SUFFIX)
        self._lock = keep_from_forks(_locked(self._path) if lock is None else lock)
        try:
            inherited = inheritance().take_lock(self._path)
            fd = _written(self._path) if inherited is None else inherited
        except PreforkError:
            self._let_go(self._lock)
            raise
        self._fd = keep_from_forks(fd)

    @property
    def locks(self) -> list[tuple[str, int]]:
        """Each file, and the descriptor that holds it."""
        if not self._path:
            return []
        return [(self._path, self._fd), (self._path + lockfile.SUFFIX, self._lock)]

    def renew(self) -> None:
        """Put our pid in it; make both files again, if they were removed or replaced. Raises as
        ``claimed`` does."""
        if self.lent or not self._path:
            return
        if not is_at(self._path + lockfile.SUFFIX, self._lock):
            lock = keep_from_forks(_locked(self._path))
            drop(self._lock)
            self._lock = lock
        if is_at(self._path, self._fd):
            _write(self._path, self._fd)
        else:
            fd = keep_from_forks(_written(self._path))
            drop(self._fd)
            self._fd = fd

    def leave(self) -> None:
        """It is another process's now."""
        self._left = True

    def remove(self) -> None:
        """Remove both files, if they are still ours, before the end: for a process with signals
        in hand that could end it first."""
        if self._left or not self._path or not inheritance().settled():
            return
        with suppress(OSError):  # the directory is gone, or may not be written any more
            if is_at(self._path, self._fd):
                os.unlink(self._path)
            lockfile.remove(self._path, self._lock)

    def release(self) -> None:
        # In this order: the next holder of the lock may have written there already.
        self.remove()
        if self._path:
            drop(self._fd)
            drop(self._lock)

    def _let_go(self, lock: int) -> None:
        if inheritance().settled():
            with suppress(OSError):
                lockfile.remove(self._path, lock)
        drop(lock)


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


def _locked(path: str) -> int:
    try:
        return lockfile.locked(path)
    except BlockingIOError:
        raise _running(path) from None
    except OSError as error:
        raise ConfigError(f"pid_path {path}: cannot lock it: {error.strerror}") from None


def _written(path: str) -> int:
    """Make it, locked before any other user may open it. The caller has the lock file."""
    try:
        fd = _made(path)
        try:
            lockfile.write_lock(fd)
            _write(path, fd)
            os.fchmod(fd, 0o644)
        except (OSError, ConfigError):
            with suppress(OSError):
                os.unlink(path)
            os.close(fd)
            raise
    except OSError as error:
        raise ConfigError(f"pid_path {path}: {error.strerror}") from None
    return fd


def _made(path: str) -> int:
    """A new file in the place of what a dead master left there. Raises OSError."""
    while True:
        with suppress(FileExistsError):
            return opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        with suppress(FileNotFoundError):
            fd = opened(path, os.O_RDWR)
            try:
                check(fd)
                if lockfile.is_write_locked(fd):
                    raise _running(path)  # its lock file was removed by an operator
                os.unlink(path)
            finally:
                os.close(fd)


def _write(path: str, fd: int) -> None:
    line = b"%d\n" % os.getpid()
    try:
        os.pwrite(fd, line, 0)
        os.ftruncate(fd, len(line))
    except OSError as error:  # a full disk
        raise ConfigError(f"pid_path {path}: {error.strerror}") from None


def _running(path: str) -> BootError:
    return BootError(f"already running: {_holder(path)} holds {path}")


def _holder(path: str) -> str:
    """The holder of the lock. It writes its pid a moment after it got it."""
    for _ in range(20):
        with suppress(OSError):
            fd = opened(path, os.O_RDONLY)
            try:
                text = os.pread(fd, 20, 0).partition(b"\n")[0].decode("ascii", "replace")
            finally:
                os.close(fd)
            if text.isdigit() and os.path.exists(f"/proc/{text}"):
                return f"pid {text}"
        time.sleep(0.05)
    return "another process"
