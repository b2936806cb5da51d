"""The outgoing side of a connection: the head and the body of an answer leave together.

What a handler says of its body is made true: no more than Content-Length promised is sent,
no body where there can be none, and one whose length nobody said goes in chunks.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedRandom, BufferedReader, FileIO
from typing import Any, Final

from ..vigil import Waiting

# Bytes of a file that are sent at once. The client has ``write_timeout`` for each, in all: with
# a mebibyte that cut off who took 30 KB a second. Half of it costs 0.1 s of CPU more a GiB.
_PIECE = 1 << 17
_JOINED = 1 << 16  # bytes; longer ones are not copied to stand behind their head

AS_IT_IS: Final = 0  # nothing is known of the body: its end is that of the connection
COUNTED: Final = 1  # ``left`` bytes are yet to come
UNDECIDED: Final = 2  # in chunks, if there is one
CHUNKED: Final = 3
BODILESS: Final = 4  # there can be none


def _send_none(data: Any) -> int:
    return 0  # over TLS, and on sockets of others: that may have to wait


def _say_nothing() -> None:
    pass


def is_real(file: Any) -> bool:
    """Whether what can be read of it is what its descriptor has: a GzipFile has one, too."""
    raw = file.raw if type(file) in (BufferedReader, BufferedRandom) else file
    return type(raw) is FileIO and stat.S_ISREG(os.fstat(raw.fileno()).st_mode)


class Reply:
    """What handlers call ``wfile``. A write is sent at once; a head waits for the first one.

    Before any head, it sends what it is given: some write their own. It has the methods of a
    binary file to be written, and is none of ``io``'s classes: their attributes are slow.
    """

    __slots__ = (
        "_allow", "_beat", "_connection", "_send_now", "_timeout", "begun", "excess", "left",
        "length", "lines", "mode", "pending", "raw", "said_connection", "status", "streamed",
        "whole",
    )  # fmt: skip

    closed: bool = False  # it ends with its connection

    def __init__(self, connection: Any, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout
        # Anew after each piece. There is room for one only when the client has taken a part of
        # what the kernel holds for it, a third or so: who takes a byte now and then is late.
        self._allow = connection.allow if isinstance(connection, Waiting) else connection.settimeout
        self._send_now = getattr(connection, "send_now", _send_none)
        self._beat = connection._vigil.beat if isinstance(connection, Waiting) else _say_nothing
        self.reset()

    def reset(self) -> None:
        """Before each request."""
        self.lines: list[bytes] = []  # of the head, as the handler makes it
        self.status: int = 0
        self.length: int | None = None  # what Content-Length says
        self.raw: bool = False  # whether the handler makes the chunks
        self.said_connection: bool = False
        self.pending: bool = False  # whether the head is complete, and has not left
        self.begun: bool = False  # whether anything of the answer has left
        self.excess: bool = False  # whether there was more of a body than there may be
        self.whole: bool = False  # whether all of it has left, and in one piece
        self.left: int = 0
        self.streamed: int = 0  # bytes of a body that is not COUNTED
        self.mode: int = AS_IT_IS

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def isatty(self) -> bool:
        return False

    def close(self) -> None:
        self.flush()

    def writelines(self, lines: Iterable[Any]) -> None:
        for line in lines:
            self.write(line)

    def fileno(self) -> int:
        fd: int = self._connection.fileno()
        return fd

    def frame(self, status: int, empty: bool, old: bool) -> bool:
        """Decide how the body goes; whether its end has to be that of the connection. ``empty``:
        there can be none, and its client knows that; ``old``: that knows no chunks."""
        if empty or status in (204, 304):
            self.mode = BODILESS
        elif self.length is not None:
            self.mode, self.left = COUNTED, self.length
        elif status == 205:  # it has none, and has to say so
            self.mode = BODILESS
            self.lines.append(b"Content-Length: 0\r\n")
        elif not self.raw and not old:
            self.mode = UNDECIDED
        return self.mode == AS_IT_IS and not self.raw

    # What the handler calls it with

    def write(self, data: Any) -> int:
        if self.pending and type(data) is bytes and 0 < len(data) == self.left <= _JOINED:
            # Nearly every answer: all of it, in one piece.
            size, self.left = self.left, 0
            self.pending = False
            lines = self.lines
            lines += b"\r\n", data
            self._send(b"".join(lines))
            self.whole = True
            return size
        if type(data) is not bytes:
            data = memoryview(data).cast("B")  # an array's items may be longer than a byte
        size = len(data)
        mode = self.mode
        if mode == COUNTED:
            if size > self.left:
                self.excess = True
                data = data[: self.left]
            self.left -= len(data)
        elif mode == BODILESS and size:
            self.excess = True
            return size
        elif size:
            self.streamed += size
            if mode != AS_IT_IS:
                self._go_in_chunks()
                data = b"%x\r\n%b\r\n" % (size, bytes(data))
        if self.pending:
            self._send_head(data)
        elif size:
            self._send(data)
        self._beat()  # who writes lives; the answer in one piece, above, is soon over
        return size

    def flush(self) -> None:
        """Send the head, if it still waits; what was written has left already."""
        if self.pending:
            self._go_in_chunks()
            self._send_head(b"")

    def end(self) -> bool:
        """Whether all that was promised has been sent, so that another answer may follow."""
        if self.mode == UNDECIDED:  # and nothing was written
            self.lines.append(b"Content-Length: 0\r\n")
        if self.pending:
            self._send_head(b"")
        if self.mode == CHUNKED:
            self._send(b"0\r\n\r\n")
        return self.left == 0

    @property
    def body_sent(self) -> int:
        """Bytes of the body that the kernel has taken, without their framing."""
        if self.mode == COUNTED and self.length is not None:
            return self.length - self.left
        return self.streamed

    def interim(self, head: bytes) -> None:
        """An answer of the 100s: another is to follow."""
        self._connection.sendall(head)

    def sendfile(self, file: Any, offset: int, count: int) -> None:
        """So many bytes of a real file, as a ``write`` of them; the kernel copies them."""
        if self.mode == COUNTED and hasattr(self._connection, "sendfile"):
            self.flush()
            self.excess = self.excess or count > self.left
            count = min(count, self.left)
            with self._on_time():
                while count > 0:
                    self._allow(self._timeout)
                    try:
                        sent = self._connection.sendfile(file, offset, min(count, _PIECE))
                    except OSError:
                        self.left -= max(0, file.tell() - offset)
                        raise
                    if not sent:
                        break  # the file has become shorter
                    offset, count, self.left = offset + sent, count - sent, self.left - sent
            return
        file.seek(offset)
        while count > 0 and (data := file.read(min(count, _JOINED))):
            self.write(data)
            count -= len(data)

    # How it works

    def _go_in_chunks(self) -> None:
        if self.mode == UNDECIDED:
            self.mode = CHUNKED
            self.lines.append(b"Transfer-Encoding: chunked\r\n")

    def _send_head(self, body: Any) -> None:
        self.pending = False
        lines, self.lines = self.lines, []
        lines.append(b"\r\n")
        if len(body) <= _JOINED:
            lines.append(body)
            self._send(b"".join(lines))
        else:
            self._send(b"".join(lines))
            self._send(body)

    def _send(self, data: Any) -> None:
        self.begun = True
        try:
            sent = self._send_now(data)
        except OSError:
            self._unsend(memoryview(data).nbytes)
            raise
        if sent < len(data):
            self._send_slowly(memoryview(data)[sent:])

    def _send_slowly(self, data: Any) -> None:
        rest = memoryview(data).cast("B")
        try:
            with self._on_time():
                while rest:
                    self._allow(self._timeout)
                    rest = rest[self._connection.send(rest) :]
        except OSError:
            self._unsend(rest.nbytes)
            raise

    @contextmanager
    def _on_time(self) -> Iterator[None]:
        """Within, its client's time is the answer's; for who reads then, it is what it was."""
        connection = self._connection
        ours = isinstance(connection, Waiting)
        before = connection._allowance if ours else connection.gettimeout()
        yield
        self._allow(before)

    def _unsend(self, size: int) -> None:
        """So many bytes did not leave after all, and the connection is at its end."""
        if self.mode == COUNTED:
            self.left = min(self.length or 0, self.left + size)
        else:
            self.streamed = max(0, self.streamed - size)
