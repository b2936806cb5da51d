"""What a worker leaves behind: a traceback, or the stack of where it hung or crashed.

Files in memory, each with a stretch for every one of a few slots. A worker writes to its
own stretch, even from a crash handler; the master reads it when the worker is gone,
or is about to be killed. It is text from another process: cleaned, and cut.

A file is made when the first of its slots is forked into, and its size is sealed: what a
worker writes to it is memory that stays when the worker is gone, at most 16 MiB.

What workers show to the command goes to a memory of its own, each dump behind the last one, and
is no matter of the master's: a look leaves no word in a report. All workers have one open
description of it, so its position, which the kernel tells in ``/proc/PID/fdinfo``, says where a
dump began and where it ended, and the command needs no right to write. The size is fixed.
"""

import mmap
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Final

from .scoreboard import sealed_memory
from .text import printable

_STRETCH: Final = 1 << 20  # bytes; sparse: what is not written takes no memory
_SLOTS: Final = 16  # whose stretches are in one file, where there is /proc
_PIECE: Final = 1 << 16
_BLANK: Final = bytes(_PIECE)
STACKS: Final = "prefork-stacks"
_LONGEST: Final = 64 * 1024  # bytes that are worth a log record


class Reports:
    def __init__(self) -> None:
        self._files: dict[int, tuple[int, mmap.mmap]] = {}  # with a descriptor, by number
        # Without /proc a file cannot be opened anew, and slots would share one offset.
        self._slots = _SLOTS if os.path.exists("/proc/self/fd") else 1  # in one file
        self.stacks: int = sealed_memory(STACKS, _STRETCH)

    def make_room(self, slot: int) -> None:
        """Before the fork of a worker into this slot. Raises OSError: no descriptor is left."""
        if slot // self._slots not in self._files:
            fd = sealed_memory("prefork-reports", self._slots * _STRETCH)
            try:
                self._files[slot // self._slots] = fd, mmap.mmap(fd, 0)
            except OSError:
                os.close(fd)
                raise

    def open_in_worker(self, slot: int) -> int:
        """A descriptor for this worker alone: it has an offset of its own, at its stretch."""
        file, _, start = self._place(slot)
        fd = os.dup(file) if self._slots == 1 else os.open(f"/proc/self/fd/{file}", os.O_WRONLY)
        os.lseek(fd, start, os.SEEK_SET)
        self._close()
        return fd

    def rewind(self, *_: object) -> None:
        """In a worker, as a handler of AGAIN: the next dump goes to the beginning of the memory."""
        os.lseek(self.stacks, 0, os.SEEK_SET)

    def read(self, slot: int) -> str:
        return _text_of(self._written(slot))

    def take(self, slot: int) -> str:
        """Read, and wipe for the next worker in this slot."""
        pieces = list(self._written(slot))
        for place, _ in pieces:
            self._place(slot)[1][place : place + _PIECE] = _BLANK
        return _text_of(pieces)

    def close(self) -> None:
        self._close()
        os.close(self.stacks)

    def _close(self) -> None:
        for fd, memory in self._files.values():
            os.close(fd)
            memory.close()

    def _place(self, slot: int) -> tuple[int, mmap.mmap, int]:
        """The descriptor of the file, the file, and where the stretch of this slot begins."""
        return *self._files[slot // self._slots], slot % self._slots * _STRETCH

    def _written(self, slot: int) -> Iterator[tuple[int, bytes]]:
        """The pieces of a stretch with something in them, and where each begins.

        It is read by ``pread`` and wiped by the mapping. Any call that takes the lock of the
        file, as ``pwrite`` and a look for holes do, could wait for ever: a worker holds it in a
        ``write`` from memory whose pages it never delivers.
        """
        file, _, start = self._place(slot)
        for place in range(start, start + _STRETCH, _PIECE):
            text = os.pread(file, _PIECE, place)
            if text != _BLANK:
                yield place, text


def _text_of(pieces: Iterable[tuple[int, bytes]]) -> str:
    return cleaned(b"".join(text for _, text in pieces).strip(b"\0"))


def leave_report(fd: int, text: str) -> None:
    """In the worker: write what the master should read, into its own stretch and no further."""
    os.write(fd, text.encode("utf-8", "backslashreplace")[:_LONGEST])


def innermost_first(ident: int) -> tuple[str, str]:
    """Where this thread of the process is, ``app.py:12 in handle``; and the stacks of all, in
    the form that faulthandler has, with their names, that one's first."""
    frames, names = sys._current_frames(), {t.ident: t.name for t in threading.enumerate()}
    order = sorted(frames, key=lambda one: one != ident)
    place, lines = "", list[str]()
    for one in order:
        thread = printable(str(names.get(one, one)))
        lines.append(f"Thread {thread} (most recent call first):")
        frame: FrameType | None = frames[one]
        while frame:
            name, line, function = frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
            name, function = printable(name), printable(function)
            place = place or f"{name}:{line} in {function}"
            lines.append(f'  File "{name}", line {line} in {function}')
            frame = frame.f_back
    return place, "\n".join(lines)[:_LONGEST]


def in_debugger(stack: str) -> str:
    """If these frames are those of a debugger that waits for its user: how to give it time."""
    if not re.search(r'/(bdb|pdb|pydevd)\.py"', stack):
        return ""
    return "; it was in a debugger: inline=True (-X) runs one worker without timeouts"


def cleaned(raw: bytes) -> str:
    """Text of several lines from another process."""
    return printable(raw[:_LONGEST].decode("utf-8", "backslashreplace"), "\n").rstrip()
