"""The outgoing side of a connection: the head and the body of an answer leave together.

``part`` says which part of the answer comes next, and every write passes it. So what a handler
does wrong never leaves the client with bytes that it could take for the next answer: what may
not follow is dropped, ``wrong`` says what it was, and the connection ends after this answer.
"""

import os
import socket
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom, BufferedReader, FileIO
from typing import Any, Final

from ..sockets.connection import Waiting
from .wire import Chunks, Limits, Reject

# Bytes of a file that are sent at once. The client has ``write_timeout`` for each, in all: with
# a mebibyte that cut off who took 30 KB a second. Half of it costs 0.1 s of CPU more a GiB.
_PIECE = 1 << 17
JOINED: Final = 1 << 16  # bytes; longer ones are not copied to stand behind their head

# The part of the answer that comes next.
NOTHING: Final = 0  # the status line
HEAD: Final = 1  # a field, or the end of the head
COUNTED: Final = 2  # ``left`` bytes of the body
UNDECIDED: Final = 3  # the body in chunks, if there is one
CHUNKED: Final = 4  # another chunk
HANDMADE: Final = 5  # chunks that the handler makes
TO_THE_END: Final = 6  # the body, whose end is that of the connection
BODILESS: Final = 7  # no body, because of the status
HEAD_ONLY: Final = 8  # no body, because of HEAD: what is written of one is dropped
TUNNEL: Final = 9  # another protocol
OVER: Final = 10  # nothing

_UNBOUND: Final = Limits(body=1 << 62, extensions=1 << 20)  # of the chunks of a handler
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: a close, by whatever means, is a reset
_NO_RESET: Final = struct.pack("ii", 0, 0)


def is_real(file: Any) -> bool:
    """Whether what can be read of it is what its descriptor has: a GzipFile has one, too."""
    raw = file.raw if type(file) in (BufferedReader, BufferedRandom) else file
    return type(raw) is FileIO and stat.S_ISREG(os.fstat(raw.fileno()).st_mode)


class Reply:
    """What handlers call ``wfile``. A write is sent at once; a head waits for the first one.

    It has the methods of a binary file to be written, and is none of ``io``'s classes: their
    attributes are slow.
    """

    # Not in the class: CPython 3.11 is slow with what has a value there, too.
    __slots__ = (
        "_chunks", "_rest", "begun", "broken", "connection", "half", "handmade", "left", "length",
        "lines", "part", "pending", "said_connection", "status", "streamed", "timeout", "unusual",
        "whole", "wrong",
    )  # fmt: skip

    closed: bool = False  # it ends with its connection

    def prepare(self, connection: Any, timeout: float) -> None:
        self.connection: Any = connection
        self.timeout: float = timeout
        self.broken: bool = False  # whether a write has failed, after which none is tried
        self.half: bool = False  # whether the client would take what it has for a whole answer
        self.unusual: bool = True  # whether anything differs that few answers change

    def reset(self) -> None:
        """Before each request."""
        self.part: int = NOTHING
        self.lines: list[bytes] = []  # of the head, as the handler makes it
        self.length: int | None = None  # what Content-Length says
        self.left: int = 0
        self.pending: bool = False  # whether the head is complete, and has not left
        self.begun: bool = False  # whether anything of the answer has left
        self.whole: bool = False  # whether all of it has left, in one piece, and nothing is wrong
        if self.unusual:
            self.unusual = False
            self.status: int = 0
            self.handmade: bool = False  # whether the handler makes the chunks
            self.said_connection: bool = False
            self.wrong: str = ""  # what the handler did that is no answer, at first
            self.streamed: int = 0  # bytes of a body that is not COUNTED

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
        fd: int = self.connection.fileno()
        return fd

    def frame(self, status: int, head_only: bool, old: bool, closes: bool) -> bool:
        """Decide how the body goes; whether its end has to be that of the connection. ``old``:
        the client knows no chunks; ``closes``: the connection ends after this answer."""
        self.unusual = True
        if status in (204, 205, 304) or head_only:
            self.part = HEAD_ONLY if head_only else BODILESS
            self.unframe(status in (204, 205))
            if status == 205 and not (head_only or closes):  # it has none, and has to say so
                self.lines.append(b"Content-Length: 0\r\n")
        elif self.length is not None:
            self.part, self.left = COUNTED, self.length
        elif not (self.handmade or old):
            self.part = UNDECIDED
        else:
            self.part = TO_THE_END if old else HANDMADE
            if self.handmade:
                self._chunks = Chunks(_UNBOUND)
                self._rest = bytearray()
            if old:
                self.unframe(False)
        return self.part == TO_THE_END

    def unframe(self, length: bool = True) -> None:
        """Take Transfer-Encoding out of the head, and Content-Length, if that may not be there."""
        names = (b"transfer-encoding:", b"content-length:") if length else (b"transfer-encoding:",)
        if self.handmade or (length and self.length is not None):
            self.lines = [line for line in self.lines if not line.lower().startswith(names)]

    def forget_length(self) -> None:
        """In a head that has not left: the body has another one, and goes in another way."""
        self.unframe()
        self.length, self.left = None, 0

    def fault(self, what: str, last: bool = False) -> None:
        """The handler did this, and it is no answer. ``last``: nothing is sent after it."""
        self.unusual = True
        if not self.broken:  # else it is the connection that failed
            self.wrong = self.wrong or what
        self.whole = False
        if last:
            self.pending = False
            if self.part == COUNTED:
                self.streamed, self.left = self.body_sent, 0
            self.part = OVER

    # What the handler calls it with

    def write(self, data: Any) -> int:
        if self.pending and type(data) is bytes and 0 < len(data) == self.left <= JOINED:
            # Nearly every answer: all of it, in one piece.
            size, self.left = self.left, 0
            self.pending = False
            lines = self.lines
            lines += b"\r\n", data
            self._send(b"".join(lines))
            self.whole = not self.wrong
            return size
        if type(data) is not bytes:
            data = memoryview(data).cast("B")  # an array's items may be longer than a byte
        size = len(data)
        if size:
            data = self._framed(data)
        if len(data):
            if self.pending:
                self._send_head(data)
            else:
                self._send(data)
        if isinstance(self.connection, Waiting):
            self.connection.beat()  # the answer in one piece, above, is soon over
        return size

    def send_whole(self, status: int, head: bytes, body: bytes) -> None:
        """An answer of which nothing was said before, and nothing is to follow."""
        self.status, self.part, self.length = status, COUNTED, len(body)
        self._send(head + body)
        self.whole = True

    def _framed(self, data: Any) -> Any:
        """What is to be sent of so much more of the body: all that was written passes here."""
        part, size = self.part, len(data)
        if part == COUNTED:
            if size > self.left:
                self.fault("a body is longer than its Content-Length, and the rest was dropped")
                data = data[: self.left]
            self.left -= len(data)
        elif part in (UNDECIDED, CHUNKED):
            self.streamed += size
            self._go_in_chunks()
            data = b"%x\r\n%b\r\n" % (size, bytes(data))
        elif part == HANDMADE or (part == TO_THE_END and self.handmade):
            data = self._check_chunks(bytes(data))
        elif part in (TO_THE_END, TUNNEL):
            self.streamed += size
        else:
            if part == BODILESS:
                self.fault(f"a {self.status} has no body, and the one written was dropped")
            elif part <= HEAD:
                self.fault("a body was written before end_headers() was called", True)
            elif part == OVER:
                self.fault("a body was written after the end of the answer, and was dropped")
            data = b""
        return data

    def _check_chunks(self, data: bytes) -> bytes:
        """Of chunks that the handler has made: no more than they are, and no others."""
        rest, chunks = self._rest, self._chunks
        rest += data
        try:
            decoded = chunks.feed(rest)
        except Reject as fault:
            self.fault(f"the handler's own chunks are malformed: {fault.reason}", True)
            return b""
        self.streamed += len(decoded)
        if chunks.finished and rest:
            self.fault("a body goes on after its last chunk, and the rest was dropped")
            data = data[: len(data) - len(rest)]
            rest.clear()
        return data if self.part == HANDMADE else decoded

    def flush(self) -> None:
        """Send the head, if it still waits; what was written has left already."""
        if self.pending:
            self._go_in_chunks()
            self._send_head(b"")

    def end(self) -> None:
        """The handler has said all: send what is missing; or ``wrong`` says why that cannot be."""
        part = self.part
        if part == COUNTED and self.left:
            self.fault(f"the body is {self.left} bytes shorter than its Content-Length", True)
        elif self.handmade and part in (HANDMADE, TO_THE_END) and not self._chunks.finished:
            self.fault("the handler's own chunks have no last chunk", True)
        elif part == UNDECIDED:  # and nothing was written
            self.lines.append(b"Content-Length: 0\r\n")
        if part != COUNTED:
            self.part = OVER
        if self.pending:
            self._send_head(b"")
        if part == CHUNKED:
            self._send(b"0\r\n\r\n")
        if self.half and not (self.wrong or self.broken):
            self._set_half(False)

    @property
    def body_sent(self) -> int:
        """Bytes of the body that the kernel has taken, without their framing."""
        if self.part == COUNTED and self.length is not None:
            return self.length - self.left
        return self.streamed

    def interim(self, head: bytes) -> None:
        """An answer of the 100s: another is to follow."""
        self.connection.sendall(head)

    def sendfile(self, file: Any, offset: int, count: int) -> None:
        """So many bytes of a real file, as a ``write`` of them; the kernel copies them."""
        if self.part == COUNTED and hasattr(self.connection, "sendfile"):
            self.flush()
            if count > self.left:
                self.fault("a body is longer than its Content-Length, and the rest was dropped")
            count = min(count, self.left)
            with self._on_time():
                while count > 0:
                    self._allow(self.timeout)
                    try:
                        sent = self.connection.sendfile(file, offset, min(count, _PIECE))
                    except OSError:
                        self.left -= max(0, file.tell() - offset)
                        self._break_off(0)
                        raise
                    if not sent:
                        break  # the file has become shorter
                    offset, count, self.left = offset + sent, count - sent, self.left - sent
            return
        file.seek(offset)
        while count > 0 and (data := file.read(min(count, JOINED))):
            self.write(data)
            count -= len(data)

    def cut(self) -> None:
        """Close the connection of an answer that is ``half``: the client is told by a reset."""
        self.connection.close()

    # How it works

    def _go_in_chunks(self) -> None:
        if self.part == UNDECIDED:
            self.part = CHUNKED
            self.lines.append(b"Transfer-Encoding: chunked\r\n")

    def _send_head(self, body: Any) -> None:
        if self.part == TO_THE_END:
            self._set_half(True)
        self.pending = False
        lines, self.lines = self.lines, []
        lines.append(b"\r\n")
        if len(body) <= JOINED:
            lines.append(body)
            self._send(b"".join(lines))
        else:
            self._send(b"".join(lines))
            self._send(body)

    def _set_half(self, half: bool) -> None:
        """Until all has been written, the client of an answer whose only end is that of the
        connection has half of it. So whatever closes that, an exception, SIGKILL or a crash,
        has to reset it. Of a UNIX socket there is no reset."""
        self.half = half
        with suppress(OSError, AttributeError):  # gone already, or in a wrapper without options
            linger = _RESET if half else _NO_RESET
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def _send(self, data: Any) -> None:
        self.begun = True
        try:
            # On a socket of others that may have to wait.
            ours = isinstance(self.connection, Waiting)
            sent = self.connection.send_now(data) if ours else 0
        except OSError:
            self._break_off(memoryview(data).nbytes)
            raise
        if sent < len(data):
            self._send_slowly(memoryview(data)[sent:])

    def _send_slowly(self, data: Any) -> None:
        rest = memoryview(data).cast("B")
        try:
            with self._on_time():
                while rest:
                    self._allow(self.timeout)
                    rest = rest[self.connection.send(rest) :]
        finally:
            if rest:  # also where a signal handler of the program raised something
                self._break_off(rest.nbytes)

    @contextmanager
    def _on_time(self) -> Iterator[None]:
        """Within, its client's time is the answer's; for who reads then, it is what it was."""
        connection = self.connection
        ours = isinstance(connection, Waiting)
        before = connection._allowance if ours else connection.gettimeout()
        yield
        self._allow(before)

    def _allow(self, seconds: Any) -> None:
        """Anew after each piece. There is room for one only when the client has taken a part of
        what the kernel holds for it, a third or so: one that takes a byte now and then is late."""
        connection = self.connection
        (connection.allow if isinstance(connection, Waiting) else connection.settimeout)(seconds)

    def _break_off(self, size: int) -> None:
        """So many bytes did not leave after all, and nothing can follow."""
        if self.part == COUNTED:
            self.left = min(self.length or 0, self.left + size)
            self.streamed, self.left = self.body_sent, 0
        else:
            self.streamed = max(0, self.streamed - size)
        self.part = OVER
        self.pending = self.whole = False
        self.broken = True
