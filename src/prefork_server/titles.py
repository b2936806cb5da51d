"""What ps shows.

``prctl(PR_SET_NAME)`` keeps 15 bytes, too few for anything but a name. So the
title is written over the command line, whose place in memory the kernel tells
(``proc(5)``: arg_start and arg_end), cut to the room there is. Everybody can read
it: state and counts only. Without ``ctypes`` or ``/proc`` nothing is shown.
"""

import sys

from .text import printable

_DIGITS = 4  # of a worker's count that find room before its name is cut
IDLE, BUSY = (int.from_bytes(word, sys.byteorder) for word in (b"idle", b"busy"))  # as one word


class Title:
    """The title of this process, and later of its forks; ``name`` starts it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._area = memoryview(bytearray())  # nothing, and writable
        try:
            import ctypes

            with open("/proc/self/stat", "rb") as stat:
                fields = stat.read().rpartition(b")")[2].split()
            # arg_start and arg_end are fields 48 and 49; what is left begins with field 3.
            start, end = int(fields[45]), int(fields[46])
            if 0 < start < end:
                self._area = memoryview((ctypes.c_char * (end - start)).from_address(start))
                self._area = self._area.cast("B")
        except (ImportError, OSError, ValueError, IndexError):
            pass  # hidden from us: then it stays as it is
        self._original = bytes(self._area)
        self._room = max(0, len(self._area) - 1)  # the last byte is the NUL
        self._end = self._room
        self.state: memoryview[int] = memoryview(bytearray(4)).cast("I")
        """Where IDLE or BUSY stands: in each request both are written, so it is one word."""

    def show(self, text: str, reserve: int = 0) -> int:
        """Show ``name text``, and return where it ends. A name that leaves too little room
        for the text, and ``reserve`` bytes more, is cut."""
        name = printable(self._name)[: max(0, self._room - len(text) - 1 - reserve)]
        line = f"{name} {text}".encode("ascii", "replace")[: self._room]
        self._area[:] = line.ljust(len(self._area), b"\0")
        return len(line)

    def show_worker(self, who: str) -> None:
        """Show which worker this is; what it does will stand behind that."""
        self._end = self.show(who, reserve=len(" idle ") + _DIGITS)
        at = self._end + 1
        if at + 4 <= self._room:
            self.state = self._area[at : at + 4].cast("I")

    def show_count(self, count: int) -> None:
        """Busy, and with which request: shown now and then, and at first each time."""
        line = b" busy %d" % count
        end = self._end + len(line)
        if end <= self._room:
            self._area[self._end : end] = line

    def restore(self) -> None:
        self._area[:] = self._original
