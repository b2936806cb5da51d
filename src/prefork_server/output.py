"""Writes to standard output, standard error and log files that do not wait for a reader.

The reader of a pipe, a socket or a terminal may stop: a stuck log driver, Ctrl-S. A process that
supervises or serves loses lines then, counts them, and says how many as soon as there is room:
``(3 lines were lost)``. Regular files are written as ever; a full disk loses a line, too.

O_NONBLOCK is never set on a file description that other processes share. Between two writes
neither a descriptor nor a lock is held, so a fork, a ``dup2()`` or a change of user needs no care.
"""

import errno
import fcntl
import io
import logging
import os
import select
import signal
import socket
import stat
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from .clock import Clock
from .forks import forking

_PATIENCE: Final = 0.1  # seconds, within which a reader that is only busy reads again
_WHOLE: Final = select.PIPE_BUF  # bytes
_NOWAIT: Final = getattr(os, "RWF_NOWAIT", 0)  # 0: the C library has no pwritev2()
_TIOCGDEV: Final = 0x80045432
_NOT_SO: Final = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}  # of that flag


class Output:
    """What is written to the descriptor ``fd``, whatever is open there at the moment.

    The first line that finds no room waits for 0.1 s; later ones are dropped at once, until
    there is room again. So a reader that has stopped costs 0.1 s once, not once a request.
    """

    def __init__(self, fd: int, lines: str = "lines") -> None:
        self.fd = fd
        self._lines = lines
        self._lost = 0  # lines that were dropped, and not told yet
        self._torn = False  # the beginning of a line was dropped, its end has not come yet
        self._open = False  # what was written last does not end a line
        self._stalled = False
        _outputs.add(self)

    def write(self, data: Any) -> int:
        """Write bytes, or drop what finds no room. Returns their length, as a raw stream that
        takes all of it, and raises no OSError."""
        text = data if type(data) is bytes else memoryview(data).tobytes()
        size, lost = len(text), self._lost + self._torn
        if lost:
            end = "\n" if self._open else ""
            text = f"{end}({lost} {self._lines} were lost)\n".encode() + text
        if text:
            self._written(text, len(text) - size)
        return size

    def _written(self, text: bytes, notice: int) -> None:
        """Write as much as finds room of ``notice`` bytes that tell of lost lines, and the rest."""
        at, patience = 0, 0.0 if self._stalled else _PATIENCE
        try:
            while at < len(text):
                try:
                    if _never_waits(self.fd):
                        at += os.write(self.fd, text[at:])
                    else:
                        at += _write_now(self.fd, _piece(text, at))
                except BlockingIOError:
                    patience = self._wait(patience)
        except OSError:  # no room, a reader that is gone, a full disk, a closed descriptor
            pass
        self._stalled = at < len(text)
        if at:
            self._open = not text.endswith(b"\n", 0, at)
        if at >= notice:
            self._lost, self._torn = 0, False
        dropped = text[max(at, notice) :]
        if dropped:
            self._lost += dropped.count(b"\n")
            self._torn = not dropped.endswith(b"\n")

    def _wait(self, patience: float) -> float:
        """Wait for room; returns what is left of the patience. Raises TimeoutError."""
        begun = Clock.monotonic()
        if patience < 0 or not _has_room(self.fd, patience):
            raise TimeoutError
        # At least a millisecond: a terminal has room, and is locked by another who writes there.
        return patience - max(0.001, Clock.monotonic() - begun)

    def forget(self) -> None:
        """In a fork: what was lost is told by the process that lost it."""
        self._lost, self._torn = 0, False


_outputs: "weakref.WeakSet[Output]" = weakref.WeakSet()


def _forget_all() -> None:
    for output in list(_outputs):
        output.forget()


os.register_at_fork(after_in_child=_forget_all)

STANDARD: Final = {fd: Output(fd) for fd in (1, 2)}


def _piece(text: bytes, start: int) -> bytes:
    """As many lines as a pipe takes whole or not at all; of a longer line a part."""
    end = start + _WHOLE
    if end >= len(text):
        return text[start:]
    return text[start : text.rfind(b"\n", start, end) + 1 or end]


def _never_waits(fd: int) -> bool:
    """Whether a write does not wait for a reader: to a file that has positions. It is asked for
    each write, since a ``dup2()`` may have put another file there."""
    try:
        os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return False
    return True


def _has_room(fd: int, seconds: float) -> bool:
    room = select.poll()
    room.register(fd, select.POLLOUT)
    return bool(room.poll(max(0.0, seconds * 1000)))


def _write_now(fd: int, piece: bytes) -> int:
    """Write to what is no file, and raise BlockingIOError rather than wait."""
    if _NOWAIT:
        try:
            return os.pwritev(fd, (piece,), -1, _NOWAIT)
        except OSError as error:  # a terminal, or a pipe of an older kernel
            if error.errno not in _NOT_SO:
                raise
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        with _socket_at(os.dup(fd)) as sock:
            return sock.send(piece, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    # In the background of a terminal with ``stty tostop`` a write sends SIGTTOU, and where that
    # has a handler it would be repeated for ever; where it is blocked, it is a write.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        own = _opened_anew(fd)
        if own >= 0:
            try:
                return os.write(own, piece)
            finally:
                os.close(own)
        if stat.S_ISFIFO(mode):
            return _spliced(fd, piece)
        if not _has_room(fd, 0):
            raise BlockingIOError
        return os.write(fd, piece[:1])  # a terminal that has room has it for one byte at least
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _socket_at(fd: int) -> socket.socket:
    """Without ``socket.setdefaulttimeout()``, which would set O_NONBLOCK on a file description
    that others share, and wait."""
    with forking:
        seconds = socket.getdefaulttimeout()
        socket.setdefaulttimeout(None)
        try:
            return socket.socket(fileno=fd)
        finally:
            socket.setdefaulttimeout(seconds)


def _opened_anew(fd: int) -> int:
    """A file description of our own for the pipe or terminal at ``fd``, that does not wait; -1:
    it may not be opened."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY
    with suppress(OSError):  # another user's, as the output of a container is, or after su
        return os.open(f"/proc/self/fd/{fd}", flags)
    with suppress(OSError):  # no controlling terminal, or another one
        own = os.open("/dev/tty", flags)
        if _device_of(own) == os.fstat(fd).st_rdev:
            return own
        os.close(own)
    return -1


def _device_of(terminal: int) -> int:
    """The number of the terminal that ``/dev/tty`` has led to, as ``stat`` tells it."""
    number = int.from_bytes(fcntl.ioctl(terminal, _TIOCGDEV, bytes(4)), sys.byteorder)
    return os.makedev(number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00)


def _spliced(fd: int, piece: bytes) -> int:
    """The same through a pipe of our own: from one to another a flag of the call says it."""
    reader, writer = os.pipe()
    try:
        os.write(writer, piece)
        return os.splice(reader, fd, len(piece), flags=os.SPLICE_F_NONBLOCK)
    finally:
        os.close(reader)
        os.close(writer)


_covered: dict[io.FileIO, int] = {}  # and how many servers have asked for it


@contextmanager
def unhindered() -> Iterator[None]:
    """Within, nothing waits for a reader that goes through ``sys.stdout``, ``sys.stderr``, or a
    handler of ``logging`` with a stream on a pipe, a socket or a terminal.

    The streams stay what they are, and so does what a program has put around them or keeps of
    them: only the ``write()`` of the raw file at their bottom is exchanged. What is in their
    buffers goes the same way, at the latest in the end.
    """
    files = cover()
    try:
        yield
    finally:
        try:
            _flush()
        finally:
            _uncover(files)


def cover() -> list[io.FileIO]:
    """The same from now on, for what the program has opened meanwhile, too."""
    with forking:
        files = list(_raw_files())
        for file in files:
            if file not in _covered:
                _covered[file] = 0
                fd = file.fileno()
                vars(file)["write"] = (STANDARD.get(fd) or Output(fd)).write
            _covered[file] += 1
    return files


def _uncover(files: list[io.FileIO]) -> None:
    with forking:
        for file in files:
            _covered[file] -= 1
            if not _covered[file]:
                del _covered[file]
                vars(file).pop("write", None)


def flush_streams() -> None:
    """Before a fork, which would write what is in a buffer again, and before ``os._exit``,
    which would not write it at all."""
    with unhindered():
        pass  # which flushes in the end


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # none, closed, or a class of the program that raises
            stream.flush()
    for output in STANDARD.values():
        output.write(b"")  # what was lost is told, if there is room now


def _raw_files() -> Iterator[io.FileIO]:
    """The files at the bottom of the standard streams, and of those of log handlers."""
    streams = [sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__]
    # All that there are, as logging.shutdown() finds them: one may stand behind another.
    handlers = logging._handlerList.copy()  # type: ignore[attr-defined]
    streams += [getattr(reference(), "stream", None) for reference in handlers]
    found = set()
    for stream in streams:
        file = _bottom(stream)
        if file and file not in found:
            found.add(file)
            yield file


def _bottom(stream: Any) -> io.FileIO | None:
    try:
        for name in ("buffer", "raw"):
            stream = getattr(stream, name, stream)
        if type(stream) is io.FileIO:
            fd = stream.fileno()
            return stream if fd in STANDARD or not stat.S_ISREG(os.fstat(fd).st_mode) else None
    except Exception:  # closed, detached, or a class of the program that raises
        return None
    return None
