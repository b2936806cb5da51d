"""The master that holds a pid file, and its scoreboard: looked at through ``/proc``.

What is read there is somebody else's, to be checked, and is never written to.
"""

import fcntl
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ..errors import PreforkError
from ..scoreboard import NAME, PID, Scoreboard
from ..stats import Stats, read
from ..text import printable
from .options import Misuse


class NotDone(PreforkError):
    """What was asked for has not happened: exit code 1."""


@dataclass(frozen=True)
class Holder:
    """The process that holds the file, and a descriptor of it."""

    path: str
    pid: int
    pidfd: int
    board: Scoreboard

    def word(self, field: int) -> int:
        """One of what the master says of the whole."""
        return max(0, self.board.get(0, field))

    def stats(self) -> Stats:
        return read(self.board, time.monotonic_ns())

    def is_gone(self) -> bool:
        watch = select.poll()
        watch.register(self.pidfd, select.POLLIN)
        return bool(watch.poll(0))

    def signal(self, signum: int) -> None:
        """Raises NotDone where nobody would hear it: most of these would then be its end."""
        if not hears(self.pid, signum):
            name = signal.Signals(signum).name
            raise NotDone(
                f"pid {self.pid} does not hear {name}: it is only just starting or ending"
                + (", or was started with nohup" if signum == signal.SIGHUP else "")
            )
        with suppress(ProcessLookupError):  # it went by itself: whoever waits will see
            signal.pidfd_send_signal(self.pidfd, signum)


@contextmanager
def held(path: str) -> Iterator[Holder]:
    """Who holds the file, with its scoreboard. Raises Misuse if that is no server of ours, or
    another user's."""
    pidfd, pid = holder(path)
    try:
        try:
            board = _board_of(pid)
        except PermissionError as error:
            raise Misuse(others(pid, path)) from error
        except OSError as error:
            raise Misuse(f"pid {pid}, which holds {path}: {error.strerror}") from error
        try:
            yield Holder(path, pid, pidfd, board)
        finally:
            board.close()
    finally:
        os.close(pidfd)


def others(pid: int, path: str) -> str:
    return f"pid {pid}, which holds {path}, is another user's"


def _board_of(pid: int) -> Scoreboard:
    """A process may have several: of servers in threads, and of one that it is a worker of."""
    found = []
    for link in links(pid, NAME):
        fd = os.open(link, os.O_RDONLY)
        try:
            board = Scoreboard.read_only(fd)
        except ValueError as error:
            raise Misuse(f"pid {pid} is of another version: it has {error}") from error
        finally:
            os.close(fd)
        if board.get(0, PID) == pid:
            found.append(board)
        else:
            board.close()
    if len(found) == 1:
        return found[0]
    for board in found:
        board.close()
    kind = f"has {len(found)} servers" if found else "is no server, or none yet"
    raise Misuse(f"pid {pid} {kind}")


def links(pid: int, name: str) -> list[str]:
    """Its descriptors of a memory with this name. Raises OSError."""
    found = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        link = f"/proc/{pid}/fd/{entry}"
        with suppress(FileNotFoundError):  # it was closed just now
            if os.readlink(link) == f"/memfd:{name} (deleted)":
                found.append(link)
    return found


def parent_of(pid: int) -> int:
    """0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def hears(pid: int, signum: int) -> bool:
    """Whether a handler of its own is there."""
    return signum in signals_of(f"/proc/{pid}/status", "SigCgt")


def signals_of(path: str, field: str) -> set[int]:
    """The signals of one mask in a ``status`` of ``/proc``: none, if the process is gone."""
    try:
        with open(path) as status:
            text = next((line for line in status if line.startswith(f"{field}:")), "x:0")
    except (FileNotFoundError, ProcessLookupError):
        return set()
    mask = int(text.partition(":")[2], 16)
    return {number + 1 for number in range(64) if mask >> number & 1}


def wait(what: str, within: float | None, done: Callable[[], bool]) -> bool:
    """Look until it is done, and say on a terminal for how long. False: the time is over."""
    start = time.monotonic()
    shown = False
    terminal = sys.stderr.isatty()
    pause = select.poll()  # of nothing
    try:
        while not done():
            passed = time.monotonic() - start
            if within is not None and passed >= within:
                return False
            if terminal and passed >= 1:
                sys.stderr.write(f"\r{printable(what)}: {passed:.0f}s ")
                sys.stderr.flush()
                shown = True
            pause.poll(20 if passed < 2 else 100)
    finally:
        if shown:
            sys.stderr.write("\n")
    return True


def holder(path: str) -> tuple[int, int]:
    """A descriptor of the process that holds the file, and its pid.

    The lock says that somebody runs, and the number who; and that one must have the file open,
    since whoever can read it can lock it, too. The number is looked at again when we have hold
    of the process: meanwhile it could have become a stranger's.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Misuse(f"{path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Misuse(f"{path} is no pid file")
        pid = _number(path, fd)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise Misuse(f"{path} names pid {pid}: {error.strerror}") from error
        try:
            if not _has_open(pid, fd):
                raise Misuse(f"{path} is held, but not by pid {pid}, whose number is in it")
            if _number(path, fd) != pid:
                raise Misuse(f"{path} has changed hands just now")
        except PermissionError as error:
            os.close(pidfd)
            raise Misuse(others(pid, path)) from error
        except Misuse:
            os.close(pidfd)
            raise
        return pidfd, pid
    finally:
        os.close(fd)


def names(path: str, pid: int) -> bool:
    """Whether the file is held, and this is the number in it, dead or alive: of a dead one, its
    predecessor has the lock, too."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return _number(path, fd) == pid
    except Misuse:
        return False
    finally:
        os.close(fd)


def _has_open(pid: int, fd: int) -> bool:
    """Whether the process has the file open that is ours as ``fd``. Raises PermissionError."""
    try:
        entries = os.listdir(f"/proc/{pid}/fd")
    except FileNotFoundError:
        return False  # it is gone
    for entry in entries:
        with suppress(FileNotFoundError):  # it was closed just now, or is no file
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{entry}"), os.fstat(fd)):
                return True
    return False


def _number(path: str, fd: int) -> int:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        fcntl.flock(fd, fcntl.LOCK_UN)  # ours alone: nobody else has this descriptor
        raise Misuse(f"nobody holds {path}: the server does not run")
    text = os.pread(fd, 20, 0).partition(b"\n")[0]
    if not text.isdigit() or not 1 < int(text) < 1 << 31:
        raise Misuse(f"{path} is held, and its number is {text!r}")
    return int(text)
