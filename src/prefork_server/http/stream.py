"""The incoming side of a connection: what was read and not used yet, and the bodies in it.

It decides nothing about a message: that is ``wire``. It waits only where it is told to.
"""

import io
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from ..clock import Clock
from ..sockets.connection import Waiting
from .wire import Chunks, Limits, Reject

SIZE: Final = 65536  # bytes that are read at once
LINGER: Final = 2.0  # seconds of waiting for what is not read any more
LINGER_BYTES: Final = 1 << 20  # and how much of it


class Stream:
    """``buffer`` is what has come and was not used; ``seen`` of it hold no end of a head."""

    connection: Any
    service: Any  # whose ``rate`` is the bytes a second that are to come at least
    buffer: bytes | bytearray
    seen: int = 0
    ended: bool = False  # whether its client will say no more

    def allow(self, seconds: float) -> None:
        """The client may keep us waiting for so long in all, and a second more for each ``rate``
        bytes. On a socket that is not ours, at one time."""
        if isinstance(self.connection, Waiting):
            self.connection.allow(seconds)
        else:
            self.connection.settimeout(None if seconds == float("inf") else seconds)

    def fill_now(self) -> bool:
        """Take what is there; False if that is nothing."""
        data = self.connection.recv_now(SIZE)
        return data is not None and self.took(data)

    def fill(self) -> bool:
        """The same, and waits. Raises TimeoutError, by the rules of ``allow``."""
        data = self.connection.recv(SIZE)
        if isinstance(self.connection, Waiting):
            self.connection.allow_more(len(data) / self.service.rate)
        return self.took(data)

    def took(self, data: bytes) -> bool:
        """That was read; whether it was something, and not the end."""
        if data and not self.buffer:
            self.buffer = data
        elif data:
            if type(self.buffer) is bytes:
                self.buffer = bytearray(self.buffer)
            self.buffer += data
        else:
            self.ended = True
        return not self.ended

    def take(self, size: int) -> bytes:
        """At most so many bytes from the front of the buffer."""
        buffer, self.seen = self.buffer, 0
        if type(buffer) is bytes and len(buffer) <= size:
            self.buffer = b""
            return buffer
        self.buffer = buffer[size:]
        return bytes(buffer[:size])


def linger(connection: Any) -> None:
    """Say that nothing follows, and let what is on its way arrive: closed at once, it would be
    answered with a reset, and that takes our answer from the client (RFC 9112 9.6)."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(LINGER)
        end, left = Clock.monotonic() + LINGER, LINGER_BYTES
        while left > 0 and Clock.monotonic() < end and (data := connection.recv(SIZE)):
            left -= len(data)


def is_connection(request: Any) -> bool:
    """Whether it can be read from, and not only be asked for files."""
    try:
        return bool(request.fileno() >= 0)
    except (AttributeError, TypeError, OSError):
        return False


class Rest(io.RawIOBase):
    """What comes on a connection on which HTTP is over; some of it was read already."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def fileno(self) -> int:
        fd: int = self._stream.connection.fileno()
        return fd

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        stream = self._stream
        with memoryview(buffer) as view:
            if not stream.buffer:
                return int(stream.connection.recv_into(view))
            data = stream.take(len(view))
            view[: len(data)] = data
            return len(data)


class Body(io.RawIOBase):
    """The body of a request as it arrives. It ends where the body ends, and ``Reject`` says
    that it never will: too slow, cut off, or malformed.

    ``length`` is None for one in chunks. ``first`` is called before it is first waited for.
    """

    def __init__(
        self,
        stream: Stream,
        length: int | None,
        limits: Limits,
        timeout: float,
        first: Callable[[], None],
    ) -> None:
        self.left: int | None = length
        self.started: bool = False
        self.fault: Reject | None = None  # why it never ends, for whoever caught that
        self._stream = stream
        self._chunks = Chunks(limits) if length is None else None
        self._decoded = b""
        self._timeout = timeout
        self._first = first

    def readable(self) -> bool:
        return True

    @property
    def finished(self) -> bool:
        if self._chunks:
            return self._chunks.finished and not self._decoded
        return not self.left

    def readinto(self, buffer: Any) -> int:
        try:
            with memoryview(buffer) as view:
                while not (data := self._next(len(view))):
                    if self.finished:
                        return 0
                    self._wait()
                view[: len(data)] = data
                return len(data)
        except Reject as fault:
            self.fault = fault
            raise

    def discard_now(self, most: int) -> bool | None:
        """Forget what has come of it, at most so many bytes. True: that was all; None: more is
        to come; False: it will not come, or is too much."""
        while True:
            while data := self._next(SIZE):
                most -= len(data)
            if self.finished:
                return True
            if most < 0:
                return False
            if not self._stream.fill_now():
                return False if self._stream.ended else None

    def _next(self, size: int) -> bytes:
        stream = self._stream
        if self._chunks is None:
            data = stream.take(min(size, self.left or 0)) if stream.buffer else b""
            self.left = (self.left or 0) - len(data)
            return data
        if not self._decoded and stream.buffer:
            if isinstance(stream.buffer, bytes):
                stream.buffer = bytearray(stream.buffer)
            self._decoded = self._chunks.feed(stream.buffer)
        data, self._decoded = self._decoded[:size], self._decoded[size:]
        return data

    def _wait(self) -> None:
        if not self.started:
            self.started = True
            self._first()
            self._stream.allow(self._timeout)
        try:
            filled = self._stream.fill()
        except TimeoutError as error:
            raise Reject(408, "The body did not come in time.") from error
        if not filled:
            raise Reject(400, "The body ended too early.")
