"""Shared memory through which workers tell the master that they are alive.

One row a slot, each 24 aligned words of 8 bytes, twice 64 bytes of text, and a byte:

    field      writer          meaning
    deadline   master, worker  when silence becomes a fault, monotonic ns
    wish       master          what it wants of the worker: STAY, RETIRE, DRAIN ...
    ready      worker          when it got ready, monotonic ns; 0 = still booting
    leaving    worker          1 = it is going, of its own accord
    asks_stop  worker          1 = it wants the whole server to stop
    due        worker          it is to be replaced when a successor is ready: WORN, TOO_LARGE ...
    memory     worker          what it holds for itself alone, bytes; 0 = not measured
    requests   worker          connections taken since it was forked; over HTTP, requests
    since      worker          when the present one was taken, monotonic ns; 0 = idle
    rotation   worker          the last rotation of the logs that it has followed; negative: it
                               keeps an old file, since it could not open the new one
    pid        master          of the worker; 0 = the row is free
    forked     master          when it was forked, monotonic ns
    generation master          of which reload it is, from 1
    errors     worker          handlers that raised, since it was forked
    busy       worker          how long it has served in all, ns; while it does, that less ``since``
    noted      worker          the ``since`` for which its note is
    in_hand    worker          connections served besides the accept loop: in a loop, in threads
    held       worker          connections that it holds, and that cost it nothing
    port       worker          of the client that is being served
    host       worker          of the same (text: may tear, checked when read)
    note       worker          what it says of that itself (the same)
    idle       worker          1 = it waits for somebody to serve; in an adaptive pool only

The idle bytes of all slots lie side by side, so that to find one takes 0.1 microseconds.
Behind the slots are the rows of a service and of its successor.

The deadline, as the rotation, is the master's before the fork and the worker's after it. So
every field has one writer at a time and is one aligned word: there is no lock, and a
worker killed in the middle of anything leaves nothing torn.

Row 0 is the master's own, about the whole: its ``pid``, the ``generation`` of whoever is
forked from now on, the ``rotation`` that it has begun, and

    layout           which layout this is: who reads it from outside looks here first
    wanted           how many workers there should be
    floor            how many at least, which signals move; the same, unless it is adaptive
    most             how many at most
    grows            1 = tell the master when nobody is idle
    state            BOOTING, SERVING, STOPPING, or LEFT to a successor
    served           the newest generation that has replaced all before it
    failed           the newest whose first worker came to nothing
    successor        the pid of the one that an upgrade has started; 0 = none is under way
    upgrades_failed  how many were refused, or ended before they had everything
    rotated          the last rotation that has ended; negative: somebody keeps an old file
    past_requests, past_errors, past_busy    what those who are dead had counted
    forks, deaths    how many there were; of the second ``crashes`` were not meant
    begun            when the master began, monotonic ns
    told             of the names of lost state, what workers have told: a bit for each, or few
    moving           odd: what a dead worker had counted is on its way to the totals

Behind the rows there are notices: what the master alone says, in JSON, each with a number that
is odd while it is being written, so whoever reads it in that moment knows. The first few
tell how the last workers died, the last one of the listeners and what else is counted.

The memory has a name: the command finds it in ``/proc/PID/fd``, and reads it there. The
descriptor is the one that ``mmap`` keeps. Workers have it too, as they have the memory.

Nothing here knows a process: who writes what is up to ``pool`` and ``worker``.
"""

import fcntl
import mmap
import os
from contextlib import suppress
from typing import Final

from .clock import Clock
from .text import printable

_WORDS: Final = 24  # 192 bytes: neighbours never share a cache line
_TEXT: Final = 64
_ROW: Final = _WORDS * 8 + 2 * _TEXT + 1
_MOST_ROWS: Final = 1 << 14  # of a memory that is read from outside
_TRIES: Final = 3
_MFD_CLOEXEC, _MFD_ALLOW_SEALING = 1, 2  # memfd_create(2)
_F_ADD_SEALS: Final = 1033  # fcntl(2); a build of Python may be without these, too
_SEALS: Final = 7  # F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW
_NOTICE: Final = 4096  # bytes; a page, which takes no memory until it is written to

DEADLINE: Final = 0
WISH: Final = 1
READY: Final = 2
LEAVING: Final = 3
REQUESTS: Final = 4
SINCE: Final = 5
ASKS_STOP: Final = 6
ROTATION: Final = 7
DUE: Final = 8
MEMORY: Final = 9
PID: Final = 10
FORKED: Final = 11
GENERATION: Final = 12
ERRORS: Final = 13
BUSY: Final = 14
NOTED: Final = 15
IN_HAND: Final = 16
HELD: Final = 17
PORT: Final = 18

# Of row 0. To change anything above or below is to change the last digits of LAYOUT.
THIS_LAYOUT: Final = 0x70726566_0004
LAYOUT: Final = 0
WANTED: Final = 1
STATE: Final = 2
SERVED: Final = 3
FAILED: Final = 4
SUCCESSOR: Final = 5
UPGRADES_FAILED: Final = 6
FLOOR: Final = 8
MOST: Final = 9
GROWS: Final = 11
PAST_REQUESTS: Final = 13
PAST_ERRORS: Final = 14
PAST_BUSY: Final = 15
FORKS: Final = 16
DEATHS: Final = 17
CRASHES: Final = 18
BEGUN: Final = 19
MOVING: Final = 20
ROTATED: Final = 21
TOLD: Final = 22

LAST_DEATHS: Final = 20  # notices of them, numbered from 0
GENERAL: Final = LAST_DEATHS  # the notice of all else
_NOTICES: Final = (LAST_DEATHS + 16) * _NOTICE  # bytes; the last one has what is left

BOOTING: Final = 0
SERVING: Final = 1
STOPPING: Final = 2
LEFT: Final = 3

STAY: Final = 0
RETIRE: Final = 1  # finish what you have, then go
DRAIN: Final = 2  # serve what waits in the queue too: nobody else will
DRAIN_ONCE: Final = 3  # the same, but the door stays ajar: go when the queue was empty once

WORN: Final = 1  # it has served max_requests
TOO_LARGE: Final = 2  # it holds more than max_worker_memory
OUT_OF_MEMORY: Final = 3  # a handler of its had a MemoryError

NAME: Final = "prefork-scoreboard"
SERVICES: Final = 2  # rows behind those of the workers

SECOND: Final = 1_000_000_000  # ns: all times here are Clock.monotonic_ns()
NEVER: Final = 1 << 62  # ns; half of what a word holds, so that adding to it never overflows
_MASK: Final = NEVER - 1


def sealed_memory(name: str, size: int) -> int:
    """The descriptor of a file in memory that keeps its size of so many bytes. Raises OSError.

    A worker that made it shorter would end every process that has it mapped, by SIGBUS. One
    that made it longer could fill all memory, which would stay taken after its death.
    """
    fd = memory_file(name)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def memory_file(name: str) -> int:
    """The descriptor of a new, empty file in memory. Raises OSError."""
    try:
        if hasattr(os, "memfd_create"):
            return os.memfd_create(name, _MFD_CLOEXEC | _MFD_ALLOW_SEALING)
        # A build of Python for C libraries before 2.27, as some of those of uv and conda are.
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        fd: int = libc.memfd_create(name.encode(), _MFD_CLOEXEC | _MFD_ALLOW_SEALING)
        if fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except OSError as error:
        raise OSError(error.errno, f"memfd_create: {error.strerror}") from error
    return fd


def path_of(pid: int) -> str:
    """Where the scoreboard of a process is that has hidden its descriptors from its own user."""
    return f"/dev/shm/{NAME}.{pid}"  # noqa: S108 - made with O_EXCL, and only where root is not


def _memory(size: int) -> tuple[int, str]:
    """The descriptor of the memory, and its path, which is empty of one that has none.

    The kernel hides ``/proc/PID/fd`` of a process that has capabilities, as by
    ``AmbientCapabilities``, or has changed its user, from the other processes of its user. Then
    the memory has a path, for that user alone, who could kill each process of it, too.
    """
    path = path_of(os.getpid())
    with suppress(OSError):  # there is none
        os.unlink(path)  # of a dead process with this number: the command would read that
    if _hides_descriptors():
        with suppress(OSError):  # there is no such directory, or the name is taken
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(fd, 0, size)  # or a full file system would be a SIGBUS later
            except OSError:
                os.close(fd)
                os.unlink(path)
                raise
            return fd, path
    return sealed_memory(NAME, size), ""


def _hides_descriptors() -> bool:
    user = os.geteuid()
    try:
        with open("/proc/self/status", "rb") as file:
            sets = [int(line.split()[1], 16) for line in file if line.startswith(b"CapPrm:")]
        return user != 0 and (any(sets) or os.stat("/proc/self/fd").st_uid != user)
    except OSError:
        return False


def in_ns(seconds: float) -> int:
    return int(seconds * SECOND)


class Scoreboard:
    """``capacity`` rows, numbered from 1, and those of a service, shared with every process
    forked from now on."""

    _path = ""  # of a copy

    def __init__(self, capacity: int) -> None:
        fd, self._path = _memory((1 + capacity + SERVICES) * _ROW + _NOTICES)
        try:
            self._lay_out(mmap.mmap(fd, 0))
        finally:
            os.close(fd)
        begun_ns = Clock.monotonic_ns()
        for field, value in ((PID, os.getpid()), (GENERATION, 1), (SERVED, 1), (BEGUN, begun_ns)):
            self.set(0, field, value)
        self.set(0, LAYOUT, THIS_LAYOUT)

    @classmethod
    def read_only(cls, fd: int) -> "Scoreboard":
        """A copy of another process's, to look at. Raises ValueError if it is none of this layout.

        Its owner may be hostile: what is copied by ``read`` cannot end the reader by SIGBUS.
        """
        board = cls._copied(fd)
        for _ in range(_TRIES):  # what is written during a copy may be half of it
            again = cls._copied(fd)
            if board._numbers() == again._numbers() and not board.get(0, MOVING) & 1:
                break
            board = again
        if board.get(0, LAYOUT) != THIS_LAYOUT:
            layout = board.get(0, LAYOUT)
            raise ValueError(f"a scoreboard of layout {layout:#x}, and not {THIS_LAYOUT:#x}")
        return board

    @classmethod
    def _copied(cls, fd: int) -> "Scoreboard":
        board = cls.__new__(cls)
        size = os.fstat(fd).st_size
        rows = size - _NOTICES
        if not (2 + SERVICES) * _ROW <= rows <= _MOST_ROWS * _ROW or rows % _ROW:
            raise ValueError(f"a scoreboard of {size} bytes")
        memory = mmap.mmap(-1, size)
        os.preadv(fd, [memory], 0)
        board._lay_out(memory)
        return board

    def _numbers(self) -> list[int]:
        """What changes with each change that takes several steps, in the order of the memory."""
        notices = self._notices.cast("q")[: (GENERAL + 1) * _NOTICE // 8 : _NOTICE // 8]
        return [self.get(0, MOVING), *notices]

    def _lay_out(self, memory: mmap.mmap) -> None:
        rows = (len(memory) - _NOTICES) // _ROW
        text = rows * _WORDS * 8
        self._notes = rows * _TEXT  # behind the peers
        notices = text + 2 * rows * _TEXT
        self._idle_at = notices + _NOTICES
        self._map = memory
        self.words: memoryview[int] = memoryview(memory)[:text].cast("q")
        self._text = memoryview(memory)[text:notices]
        self._notices = memoryview(memory)[notices : self._idle_at]
        self._idle = memoryview(memory)[self._idle_at :]
        self.capacity: int = rows - 1 - SERVICES

    @staticmethod
    def at(slot: int, field: int) -> int:
        """Where in ``words`` a field is."""
        return slot * _WORDS + field

    def row(self, slot: int) -> "memoryview[int]":
        """The words of one row, for the one that writes there."""
        return self.words[slot * _WORDS : (slot + 1) * _WORDS]

    def get(self, slot: int, field: int) -> int:
        return self.words[slot * _WORDS + field]

    def set(self, slot: int, field: int, value: int) -> None:
        self.words[slot * _WORDS + field] = value

    def clear(self, slot: int, deadline: int) -> None:
        """A fresh row for a worker about to be forked, who must be ready by ``deadline``."""
        for field in range(_WORDS):
            self.set(slot, field, 0)
        self.set(slot, DEADLINE, deadline)
        self.set(slot, ROTATION, self.get(0, ROTATION))  # it is forked with the files of today
        self.set_host(slot, "")
        self.set_note(slot, "")
        self.set_idle(slot, False)

    def occupy(self, slot: int, pid: int, forked_ns: int, generation: int) -> None:
        """Who is there: last the pid, which says that the rest is true."""
        self.set(slot, FORKED, forked_ns)
        self.set(slot, GENERATION, generation)
        self.set(slot, PID, pid)

    def vacate(self, slot: int, now_ns: int) -> None:
        """Nobody is there any more. What it had counted stays in the totals."""
        moving = self.get(0, MOVING) & _MASK | 1
        self.set(0, MOVING, moving)
        self.set(slot, PID, 0)
        if slot <= self.capacity:  # a service serves nobody
            self.add(PAST_REQUESTS, self.get(slot, REQUESTS))
            self.add(PAST_ERRORS, self.get(slot, ERRORS))
            self.add(PAST_BUSY, self.busy_ns(slot, now_ns))
        self.set(0, MOVING, moving + 1)
        self.set_idle(slot, False)

    def add(self, field: int, count: int) -> None:
        """To a word of row 0. Workers could have written anything to either."""
        self.set(0, field, max(0, min(self.get(0, field) + max(0, count), NEVER)))

    def busy_ns(self, slot: int, now_ns: int) -> int:
        """How long it has served in all. One word says it, so it never goes back."""
        busy_ns = self.get(slot, BUSY)
        return busy_ns if busy_ns >= 0 else max(0, busy_ns + now_ns)

    def occupied(self) -> list[int]:
        """The slots with a worker in them; a service is none."""
        pids = self.words[_WORDS + PID :: _WORDS].tolist()[: self.capacity]
        return [slot for slot, pid in enumerate(pids, 1) if pid > 0]

    def set_idle(self, slot: int, idle: bool) -> None:
        self._idle[slot] = idle

    def is_idle(self, slot: int) -> bool:
        return self._idle[slot] != 0

    def nobody_idle(self) -> bool:
        return self._map.find(b"\1", self._idle_at, self._idle_at + 1 + self.capacity) < 0

    def held(self) -> list[int]:
        """How many connections each worker holds."""
        rows = self.words[_WORDS : (1 + self.capacity) * _WORDS]
        there = zip(rows[PID::_WORDS].tolist(), rows[HELD::_WORDS].tolist(), strict=True)
        return [max(0, held) for pid, held in there if pid > 0]

    def set_host(self, slot: int, host: object) -> None:
        """Note who is being served; "" has no name. The port is in a word."""
        self._write(slot * _TEXT, f"{host}\0".encode("ascii", "replace"))

    def peer(self, slot: int) -> str:
        """Who is being served, safe to log whatever the worker wrote there."""
        host = self._read(slot * _TEXT, "ascii")
        return f"{host}:{self.get(slot, PORT)}" if host else ""

    def set_note(self, slot: int, text: str) -> None:
        self._write(self._notes + slot * _TEXT, text.encode("utf-8", "replace") + b"\0")
        self.set(slot, NOTED, self.get(slot, SINCE))

    def note(self, slot: int) -> str:
        """What a worker says of what it does now; safe to show, as above."""
        if self.get(slot, NOTED) != self.get(slot, SINCE):
            return ""  # it was of another request, and nobody had to wipe it
        return self._read(self._notes + slot * _TEXT, "utf-8")

    def _write(self, at: int, raw: bytes) -> None:
        raw = raw[:_TEXT]
        self._text[at : at + len(raw)] = raw

    def _read(self, at: int, encoding: str) -> str:
        raw = bytes(self._text[at : at + _TEXT]).split(b"\0", 1)[0]
        text = raw.decode(encoding, "ignore" if encoding == "utf-8" else "replace")
        return printable(text)

    def set_notice(self, number: int, text: bytes) -> None:
        """Of the master alone. What is too long is not said at all."""
        head, page = self._page(number)
        if len(text) > len(page):
            text = b""
        head[0] = head[0] & _MASK | 1  # from here on it is being written
        head[1] = len(text)
        page[: len(text)] = text
        head[0] = head[0] + 1 & _MASK

    def notice(self, number: int) -> bytes:
        """Empty if there is none, or if it changed while it was read, again and again."""
        head, page = self._page(number)
        for _ in range(3):
            before = head[0]
            text = bytes(page[: max(0, head[1])])
            if head[0] == before and not before & 1:
                return text
        return b""

    def _page(self, number: int) -> "tuple[memoryview[int], memoryview]":
        start = number * _NOTICE
        page = self._notices[start : start + _NOTICE if number < GENERAL else None]
        return page[:16].cast("q"), page[16:]

    def close(self) -> None:
        """Unmap, in this process only; the master takes its name away."""
        if self._path == path_of(os.getpid()):
            with suppress(OSError):  # it was removed
                os.unlink(self._path)
        self.words.release()
        self._text.release()
        self._notices.release()
        self._idle.release()
        self._map.close()
