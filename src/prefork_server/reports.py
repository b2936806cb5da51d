"""What a worker leaves behind: a traceback, or the stack of where it hung or crashed.

One file in memory, a stretch of it for each slot. A worker writes to its own
stretch, even from a crash handler; the master reads it when the worker is gone,
or is about to be killed. It is text from another process: cleaned, and cut.

What workers show to the command goes to a file of its own, each line behind the last, and is
no matter of the master's: so whoever looks, and however often, leaves no word in a report.
"""

import fcntl
import os
import sys
import threading
from types import FrameType
from typing import Final

_STRETCH: Final = 1 << 20  # bytes; sparse: what is not written takes no memory
STACKS: Final = "prefork-stacks"
_LONGEST: Final = 64 * 1024  # bytes that are worth a log record


class Reports:
    def __init__(self) -> None:
        self._fd = os.memfd_create("prefork-reports")
        self.stacks: int = os.memfd_create(STACKS)
        # Whoever has emptied it finds the next word at its beginning.
        fcntl.fcntl(self.stacks, fcntl.F_SETFL, os.O_APPEND)

    def open_in_worker(self, slot: int) -> int:
        """A descriptor for this worker alone: it has an offset of its own, at its stretch."""
        fd = os.open(f"/proc/self/fd/{self._fd}", os.O_WRONLY)
        os.lseek(fd, slot * _STRETCH, os.SEEK_SET)
        os.close(self._fd)
        return fd

    def read(self, slot: int) -> str:
        return cleaned(self._stretch(slot).strip(b"\0"))

    def take(self, slot: int) -> str:
        """Read, and wipe for the next worker in this slot."""
        raw = self._stretch(slot).rstrip(b"\0")
        os.pwrite(self._fd, bytes(len(raw)), slot * _STRETCH)
        return cleaned(raw.strip(b"\0"))

    def close(self) -> None:
        os.close(self._fd)
        os.close(self.stacks)

    def _stretch(self, slot: int) -> bytes:
        return os.pread(self._fd, _STRETCH, slot * _STRETCH)


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
        lines.append(f"Thread {names.get(one, one)} (most recent call first):")
        frame: FrameType | None = frames[one]
        while frame:
            name, line, function = frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
            place = place or f"{name}:{line} in {function}"
            lines.append(f'  File "{name}", line {line} in {function}')
            frame = frame.f_back
    return place, cleaned("\n".join(lines).encode("utf-8", "backslashreplace"))


def cleaned(raw: bytes) -> str:
    text = raw[:_LONGEST].decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text).rstrip()
