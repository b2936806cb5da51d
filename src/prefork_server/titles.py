"""What ps shows.

``prctl(PR_SET_NAME)`` keeps 15 bytes, too few for anything but a name. So the
title is written over the command line, whose place in memory the kernel tells
(``proc(5)``: arg_start and arg_end), cut to the room there is. Everybody can read
it: state and counts only. Without ``ctypes`` or ``/proc`` nothing is shown.
"""

from typing import Any


class Title:
    """The title of this process, and later of its forks; ``name`` starts it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._area: Any = None
        self._room = 0
        try:
            import ctypes

            with open("/proc/self/stat", "rb") as stat:
                fields = stat.read().rpartition(b")")[2].split()
            # arg_start and arg_end are fields 48 and 49; what is left begins with field 3.
            start, end = int(fields[45]), int(fields[46])
            if start and end > start:
                self._room = end - start - 1
                self._area = (ctypes.c_char * (end - start)).from_address(start)
        except (ImportError, OSError, ValueError, IndexError):
            return  # hidden from us: then it stays as it is
        self._original = self._area.raw if self._area is not None else b""

    def show(self, text: str) -> None:
        """Show ``name text``; a name too long for the room gives way."""
        if self._area is not None:
            name = self._name[: max(0, self._room - len(text) - 1)]
            line = f"{name} {text}".encode("ascii", "replace")[: self._room]
            self._area.raw = line.ljust(self._room + 1, b"\0")

    def restore(self) -> None:
        if self._area is not None:
            self._area.raw = self._original
