"""The terminal that the server was started in, and whether it is still there.

When it is closed the kernel sends HUP; when a reload is wanted, an operator does; and a
handler is not told who it was. But with its HUP the kernel takes the terminal from the
whole session, and that can be seen.
"""

import errno
import os

from .scoreboard import SECOND

_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_LATELY_NS = 3 * SECOND  # a shell that hears HUP, too, passes it on to its jobs


class Terminal:
    """To be looked at once in a while. A server may outlive its terminal unheard, if its
    shell disowned it: then HUP is an operator's again a few seconds later."""

    def __init__(self) -> None:
        self._there = is_there()
        self._gone_ns = 0

    def look(self, now_ns: int) -> None:
        if self._there and not is_there():  # what is gone does not come back
            self._there, self._gone_ns = False, now_ns

    def was_closed(self, now_ns: int) -> bool:
        """Whether it went just now."""
        self.look(now_ns)
        return self._gone_ns > 0 and now_ns - self._gone_ns < _LATELY_NS


def is_there() -> bool:
    """Whether this process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError as error:
        return error.errno in _SCARCE  # which says nothing: it is there until it is seen to be gone
    return True


def is_ours() -> bool:
    """Whether we run in the foreground of one, which sends WINCH when it is resized."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False
