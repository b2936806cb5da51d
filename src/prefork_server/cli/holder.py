"""The master that holds a pid file, and its memories: looked at through ``/proc``.

The command may run as root, and the pid file, the process and all that it shows may belong to
another user. So nothing here is written to, waited for, mapped, or taken for what its name says:
a process is the master if it holds the write lock of the file, and a descriptor of it is a memory
if it lies on the kernel's own file system of memories and its size is sealed.
"""

import errno
import fcntl
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice

from ..errors import PreforkError
from ..lockfile import is_write_locked
from ..pidfds import Process
from ..scoreboard import NAME, PID, Scoreboard, memory_file, path_of
from ..stats import Stats, read
from ..text import printable
from .options import Misuse

_MOST = 1 << 16  # descriptors of a process that are looked at; a master has one for each worker
_SEVERAL = 100  # memories of one name
_PATIENCE = 10.0  # seconds for all descriptors of a process
_LONGEST = 1 << 20  # bytes of a file of /proc
_F_GET_SEALS = 1034  # fcntl(2); a build of Python may be without these
_FIXED = 6  # F_SEAL_SHRINK | F_SEAL_GROW


class NotDone(PreforkError):
    """What was asked for has not happened: exit code 1."""


@dataclass(frozen=True)
class Holder:
    """The process that holds the file, a descriptor of it, and one of its scoreboard."""

    path: str
    process: Process
    board: int

    @property
    def pid(self) -> int:
        return self.process.pid

    def word(self, field: int) -> int:
        """One of what the master says of the whole."""
        return max(0, self.signed(field))

    def signed(self, field: int) -> int:
        raw = os.pread(self.board, 8, 8 * Scoreboard.at(0, field))
        return int.from_bytes(raw, sys.byteorder, signed=True)

    def stats(self) -> Stats:
        try:
            return read(Scoreboard.read_only(self.board), time.monotonic_ns())
        except ValueError as error:  # it was one of this layout a moment ago
            raise NotDone(f"pid {self.pid} has {error}") from error

    def is_gone(self) -> bool:
        return self.process.ends_within(0)

    def signal(self, signum: int) -> None:
        """Raises NotDone where nobody would hear it: most of these would then be its end."""
        if not hears(self.pid, signum):
            name = signal.Signals(signum).name
            raise NotDone(
                f"pid {self.pid} does not hear {name}: it is only just starting or ending"
                + (", or was started with nohup" if signum == signal.SIGHUP else "")
            )
        with suppress(ProcessLookupError):  # it went by itself: whoever waits will see
            self.process.send(signum)


@contextmanager
def held(path: str) -> Iterator[Holder]:
    """The holder of the file, with its scoreboard. Raises Misuse if that is no server of ours, or
    another user's."""
    with ExitStack() as closing:
        process = holder(path)
        closing.callback(process.close)
        pid = process.pid
        try:
            board = _board_of(pid)
            closing.callback(os.close, board)
        except PermissionError as error:
            raise Misuse(others(pid, path)) from error
        except OSError as error:
            raise Misuse(f"pid {pid}, which holds {path}: {error.strerror}") from error
        yield Holder(path, process, board)


def others(pid: int, path: str) -> str:
    if user_of(pid) == os.geteuid():
        return f"pid {pid}, which holds {path}, hides what it has, by its capabilities: ask as root"
    return f"pid {pid}, which holds {path}, is another user's"


def _board_of(pid: int) -> int:
    """A process may have several: of servers in threads, and of one that it is a worker of."""
    named = _named_board_of(pid)
    if named >= 0:
        return named
    with memories(pid, NAME) as found:
        boards = []
        for fd, _ in found:
            try:
                board = Scoreboard.read_only(fd)
            except ValueError as error:
                raise Misuse(f"pid {pid} is of another version: it has {error}") from error
            if board.get(0, PID) == pid:
                boards.append(fd)
        if len(boards) == 1:
            return os.dup(boards[0])
    kind = f"has {len(boards)} servers" if boards else "is no server, or none yet"
    raise Misuse(f"pid {pid} {kind}")


def _named_board_of(pid: int) -> int:
    """The scoreboard with a path, of a process that hides its descriptors; -1: it has none."""
    try:
        fd = os.open(path_of(pid), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return -1
    there = os.fstat(fd)
    with suppress(ValueError):  # of another layout
        if (
            stat.S_ISREG(there.st_mode)
            and there.st_uid == user_of(pid)
            and Scoreboard.read_only(fd).get(0, PID) == pid
        ):
            return fd
    os.close(fd)
    return -1


@contextmanager
def memories(pid: int, name: str) -> Iterator[list[tuple[int, int]]]:
    """Its memories of this name: a descriptor of ours, for reading only, and its own number.
    Raises OSError."""
    with ExitStack() as closing:
        own = memory_file("prefork-server")
        closing.callback(os.close, own)
        kernels = infos(f"/proc/self/fdinfo/{own}", b"mnt_id")
        found: list[tuple[int, int]] = []
        for number, target in _descriptors(pid):
            if target == f"/memfd:{name} (deleted)" and len(found) < _SEVERAL:
                fd = _memory(f"/proc/{pid}/fd/{number}", kernels)
                if fd >= 0:
                    closing.callback(os.close, fd)
                    found.append((fd, number))
        yield found


def _memory(link: str, kernels: list[bytes]) -> int:
    """A descriptor of what the link leads to, if that is a memory of a fixed size; -1: it is not.

    The text of a link can be that of any file, in a mount namespace of the process's own. So it
    is held by a descriptor that opens nothing, and opened if it lies where ``memfd_create`` alone
    makes files. (``pidfd_getfd`` would give the right to write, and needs that to trace.)
    """
    try:
        pin = os.open(link, os.O_PATH)
    except FileNotFoundError:
        return -1  # it was closed just now
    try:
        if infos(f"/proc/self/fdinfo/{pin}", b"mnt_id") != kernels:
            return -1
        fd = os.open(f"/proc/self/fd/{pin}", os.O_RDONLY | os.O_NONBLOCK)
    finally:
        os.close(pin)
    try:
        fixed = fcntl.fcntl(fd, _F_GET_SEALS) & _FIXED == _FIXED
    except OSError:
        fixed = False
    if fixed:
        return fd
    os.close(fd)
    return -1


def _descriptors(pid: int) -> Iterator[tuple[int, str]]:
    """The number of each, and where its link in ``/proc`` leads. It has an end, whatever the
    process does. Raises OSError."""
    end = time.monotonic() + _PATIENCE
    with os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in islice(entries, _MOST):
            if time.monotonic() > end:
                raise Misuse(f"pid {pid} has more descriptors than can be looked at")
            with suppress(FileNotFoundError):  # it was closed just now
                yield int(entry.name), os.readlink(entry.path)


def infos(path: str, field: bytes) -> list[bytes]:
    """The lines of this name in a ``status`` or ``fdinfo`` of ``/proc``, written by the kernel:
    none, if the process is gone."""
    try:
        with open(path, "rb") as file:
            lines = file.read(_LONGEST).splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return []
    found = (line.partition(b":") for line in lines)
    return [value.strip() for name, _, value in found if name == field]


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
    mask = int((infos(path, field.encode()) or [b"0"])[0], 16)
    return {number + 1 for number in range(64) if mask >> number & 1}


def user_of(pid: int) -> int:
    """The effective uid; -1 if it is gone."""
    return int((infos(f"/proc/{pid}/status", b"Uid") or [b"-1 -1"])[0].split()[1])


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


def holder(path: str) -> Process:
    """The process that holds the file; to be closed.

    The number says which process, and a write lock that it has on the file that it is so: only
    its owner can write there. The number is looked at again when we have hold of the process:
    meanwhile it could have become a stranger's.
    """
    try:
        fd = _opened(path)
    except OSError as error:
        raise Misuse(f"{path}: {error.strerror}") from error
    try:
        pid = _number(path, fd)
        try:
            process = Process(pid)
        except OSError as error:
            raise Misuse(f"{path} names pid {pid}: {error.strerror}") from error
        try:
            if not _holds(pid, fd):
                if user_of(pid) < 0:  # it has ended, or /proc hides what is another user's
                    with suppress(ProcessLookupError):
                        process.send(0)
                raise Misuse(
                    f"{path} is held, but not by pid {pid}, whose number is in it: if the server "
                    "runs in a container, ask inside it"
                )
            if _number(path, fd) != pid:
                raise Misuse(f"{path} has changed hands just now")
        except PermissionError as error:
            process.close()
            raise Misuse(others(pid, path)) from error
        except Misuse:
            process.close()
            raise
        return process
    finally:
        os.close(fd)


def _opened(path: str) -> int:
    """To open a device can do something. So it is looked at before. Raises OSError."""
    pin = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        there = os.fstat(pin)
        if stat.S_ISLNK(there.st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        # Another name of it may be that of another server, in a directory of another user.
        if not stat.S_ISREG(there.st_mode) or there.st_nlink > 1:
            raise Misuse(f"{path} is no pid file")
        return os.open(f"/proc/self/fd/{pin}", os.O_RDONLY | os.O_NONBLOCK)
    finally:
        os.close(pin)


def names(path: str, pid: int) -> bool:
    """Whether the file is held, and this is the number in it, dead or alive: of a dead one, its
    predecessor has the lock, too."""
    try:
        fd = _opened(path)
    except (OSError, Misuse):
        return False
    try:
        return _number(path, fd) == pid
    except Misuse:
        return False
    finally:
        os.close(fd)


def _holds(pid: int, fd: int) -> bool:
    """Whether the process holds the write lock of the file that is ours as ``fd``, and is one of
    the user whose file it is. Raises PermissionError."""
    ours = os.fstat(fd)
    if ours.st_uid not in (0, user_of(pid)):
        return False
    if ours.st_uid == os.geteuid() == user_of(pid) and not os.access(f"/proc/{pid}/cwd", os.F_OK):
        # It has capabilities: the kernel does not tell what it holds. The file, its number, and
        # what a signal may do there are all of this very user.
        return True
    with suppress(FileNotFoundError):  # the process is gone, or has closed it just now
        for number, target in _descriptors(pid):
            # Of what is no file this can be long, and it has no such locks.
            lines = infos(f"/proc/{pid}/fdinfo/{number}", b"lock") if target[0] == "/" else []
            if any({b"OFDLCK", b"WRITE"} <= {*line.split()} for line in lines) and (
                os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), ours)
            ):
                return True
    return False


def _number(path: str, fd: int) -> int:
    if not is_write_locked(fd):
        raise Misuse(f"nobody holds {path}: the server does not run")
    text = os.pread(fd, 20, 0).partition(b"\n")[0].decode("ascii", "replace")
    if not text.isdecimal() or not 0 < int(text) < 1 << 31:
        raise Misuse(f"{path} is held, and names no process: its first line is {printable(text)!r}")
    return int(text)
