"""The terminal that the server was started in: whether it is still there, and what workers of
another user print on it.

When it is closed the kernel sends HUP; when a reload is wanted, an operator does; and a
handler is not told which of them it was. But with its HUP the kernel takes the terminal from
the whole session, and that can be seen.
"""

import codecs
import errno
import os
from contextlib import suppress

from .output import STANDARD
from .scoreboard import SECOND
from .signals import Inbox
from .text import printable

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


class Prints:
    """What workers that drop privileges print where the master has its terminal.

    They print into a pipe, and the master passes it on with each control character escaped. With
    the terminal itself they could send it escape sequences and change its settings (tcsetattr).
    """

    def __init__(self, inbox: Inbox) -> None:
        self._pipes = {fd: os.pipe() for fd in (1, 2) if os.isatty(fd)}
        self._decoders = {fd: codecs.getincrementaldecoder("utf-8")("replace") for fd in (1, 2)}
        for reader, _ in self._pipes.values():
            os.set_blocking(reader, False)
            inbox.watch(reader)

    def print_here(self) -> None:
        """In a worker: from now on it prints into the pipes."""
        for fd, (reader, writer) in self._pipes.items():
            os.dup2(writer, fd)
            os.close(reader)
            os.close(writer)

    def pass_on(self) -> None:
        """In the master, in each turn of its loop: at most what a pipe holds."""
        for fd, (reader, _) in self._pipes.items():
            with suppress(BlockingIOError):
                text = self._decoders[fd].decode(os.read(reader, 1 << 16))
                STANDARD[fd].write(printable(text, "\n\t").encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        self.pass_on()  # what the last worker has printed
        for pipe in self._pipes.values():
            for fd in pipe:
                os.close(fd)
