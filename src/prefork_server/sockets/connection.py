"""Blocking socket I/O that sends heartbeats, and watches for shutdown, while it waits.

A plain blocking ``recv`` would hide two things from the worker: that the master
wants it to go, and that it is the client that is slow. So a wait is cut into slices, each
with a beat, until the client has been silent for longer than ``client_timeout``.

The first slice of a ``recv`` may pass in the kernel (``SO_RCVTIMEO``, which accepted TCP sockets
inherit from their listener): one system call then, where a try, a poll and another try were
three. Code that sees the descriptor must not see that: it is taken off before.
"""

import _socket
import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..clock import Clock

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    _Socket = socket.socket
else:
    _Socket = object

FAREWELL = 1.0  # seconds a retiring worker waits for a client that has asked for nothing
SLICE: Final = 0.25  # seconds of a first wait in the kernel

_BLINK = 0.02  # seconds between two tries where the kernel cannot say when there is room
_CHUNK = 1 << 20  # bytes of a file per system call
_PIECE = 1 << 16  # bytes of a file that is read and written
# What sendfile(2) answers for a file system without it, and in a sandbox.
_NOT_FOR_THIS_FILE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
_FOR_EVER: Final = float("inf")
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_WAITALL: Final = int(socket.MSG_WAITALL)
_NO_SIGPIPE: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

_recv = socket.socket.recv
_recv_into = socket.socket.recv_into
_recvfrom = socket.socket.recvfrom
_recvfrom_into = socket.socket.recvfrom_into
_recvmsg = socket.socket.recvmsg
_recvmsg_into = socket.socket.recvmsg_into
_send = socket.socket.send
_fileno = socket.socket.fileno


def set_slice(sock: socket.socket, seconds: float) -> None:
    """``SO_RCVTIMEO``, to be set before a socket listens: those that are queued by then do not
    inherit it. 0: none."""
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, int(seconds * 1e6))
    )


def has_slice(sock: socket.socket) -> bool:
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.calcsize("@ll"))
    seconds, micros = struct.unpack("@ll", found)
    return bool(0 < seconds + micros / 1e6 <= 2 * SLICE)  # it is rounded to the kernel's ticks


class Watch(Protocol):
    """What waiting means in a worker: its heartbeat, as its connections see it.

    ``beat`` says that the worker is alive, ``is_over`` whether it is to go, ``wake_fd`` is a
    descriptor that is readable when it may have become so, ``hush`` silences that, ``pause`` is
    the length of a slice in seconds.
    """

    wake_fd: int
    pause: float

    def beat(self) -> None: ...

    def hush(self) -> None: ...

    def is_over(self) -> bool: ...


class Waiting(_Socket):
    """Waiting for a client by the rules of a ``Watch``: what a connection is over TLS, too."""

    watch: Watch
    client_timeout: float | None = None
    """The longest silence of the client; see ``settimeout``."""
    _allowance: float = _FOR_EVER
    _asked: bool = False  # whether the client spoke last
    _hasty: int = 0  # the thread that never waits to read

    def settimeout(self, value: float | None, /) -> None:
        if value is not None and not value >= 0:
            raise ValueError(f"a timeout is a number of seconds, 0 or more, or None, not {value!r}")
        self.client_timeout = None if value is None else float(value)

    def gettimeout(self) -> float | None:
        return self.client_timeout

    @property
    def timeout(self) -> float | None:
        return self.client_timeout

    def setblocking(self, flag: bool, /) -> None:
        self.settimeout(None if flag else 0)

    def getblocking(self) -> bool:
        return self.client_timeout != 0

    def allow(self, seconds: float) -> None:
        """From now on the client may keep us waiting for so long in all, however often it
        speaks in between; ``inf``: for ever. What we do ourselves meanwhile does not count."""
        self._wait_here()  # where each moment counts
        self._allowance = seconds

    def is_over(self) -> bool:
        """Whether the worker is to go: then it is time to say goodbye."""
        return self.watch.is_over()

    def beat(self) -> None:
        """A sign of life, where none is given by reading or writing."""
        self.watch.beat()

    def allow_more(self, seconds: float) -> None:
        """So much longer, for what it has read or sent."""
        self._allowance += seconds

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Within, to read raises ``BlockingIOError`` instead, in this thread: the handlers in
        others may be answering from it."""
        self._wait_here()
        self._hasty = threading.get_ident()
        try:
            yield
        finally:
            self._hasty = 0

    def _wait_here(self) -> None:
        """And not in the kernel, if it did."""

    def __getstate__(self) -> object:
        raise TypeError("cannot pickle a connection")

    def _wait(self, event: int, reading: bool, last: float | None = None) -> bool:
        """Wait until the socket may be used, at the latest until ``last``, if that is not
        ``client_timeout`` from now. False: the worker is to go, and nothing came."""
        watch = self.watch
        fd = _fileno(self)
        poll = select.poll()
        poll.register(fd, event)
        poll.register(watch.wake_fd, select.POLLIN)
        over = False
        began = now = Clock.monotonic()
        if last is None:
            last = self._last(now)
        while True:
            watch.beat()
            if not over and watch.is_over():
                over = True
                poll.unregister(watch.wake_fd)  # it has nothing more to say, and may ring on
                if reading and not self._asked:
                    last = min(last, now + FAREWELL)
            pause = max(0.0, min(watch.pause, last - now))
            ready = [found for found, _ in poll.poll(pause * 1000)]
            if fd in ready:
                self._allowance -= Clock.monotonic() - began
                return True
            now = Clock.monotonic()
            if now >= last:
                if over and reading and not self._asked:
                    return False
                failure = TimeoutError("timed out")
                failure.by_client = True  # type: ignore[attr-defined]
                raise failure
            if ready:
                watch.hush()

    def _last(self, now: float) -> float:
        silence = _FOR_EVER if self.client_timeout is None else self.client_timeout
        return now + min(silence, self._allowance)


def _sendmsg(sock: socket.socket, buffers: Any, ancdata: Any, address: Any, flags: int) -> int:
    to = () if address is None else (address,)
    return socket.socket.sendmsg(sock, buffers, ancdata, flags, *to)


def _sendto(sock: socket.socket, data: "ReadableBuffer", address: Any, flags: int) -> int:
    return socket.socket.sendto(sock, data, flags, address)


def size_of(fd: int) -> int | None:
    """Bytes of a file, if ``stat`` tells them; None if only reading does: files of /proc have the
    size 0 there, and those of /sys that of a page. Raises OSError for what has no positions."""
    size = os.fstat(fd).st_size
    last = os.pread(fd, 1, max(0, size - 1))
    return size if len(last) == min(size, 1) else None


# What says that the client is gone, or silent. A path to answer to may be gone, too.
_BY_CLIENT = (ConnectionError, TimeoutError, FileNotFoundError)


class Connection(Waiting, socket.socket):
    """A connected stream socket; all of the ``socket`` API, with other waiting.

    Of a datagram server it is what answers are sent from.

    ``timeout`` (``settimeout``, seconds) is the longest silence of the client in
    one read or write: past it the operation raises ``TimeoutError``. ``None``
    means for ever, and never costs the worker its life. With 0 it is an ordinary
    non-blocking socket.

    A ``ConnectionError`` or ``TimeoutError`` of it has the attribute ``by_client``: it is
    the client who is gone, or silent, and not the handler that is wrong.

    When the worker is told to finish, a client that has just connected, or that spoke
    before the worker did, has one second to say more; then it reads as end-of-file. One
    that spoke last has begun to ask, and is waited for as before.
    """

    # A socket without the constructor of ``socket.socket``, which is a third of what it takes to
    # make one: what that sets has its defaults here, as the rest.
    if not TYPE_CHECKING:
        __init__ = _socket.socket.__init__
    _io_refs = 0
    _closed = False
    first_flags: int = _DONTWAIT
    """Of a read; 0 where the listener has ``SO_RCVTIMEO``, and the kernel waits for a slice."""

    def _wait_here(self) -> None:
        """Before code that knows nothing of it sees the descriptor."""
        if not self.first_flags:
            self.first_flags = _DONTWAIT
            set_slice(self, 0)

    def fileno(self) -> int:
        self._wait_here()
        return super().fileno()

    def detach(self) -> int:
        self._wait_here()
        return super().detach()

    # Reading

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        if flags & _WAITALL:
            buffer = bytearray(bufsize)
            return bytes(buffer[: self.recv_into(buffer, bufsize, flags)])
        try:
            data: bytes = _recv(self, bufsize, flags | self.first_flags)
        except BlockingIOError as silence:
            came = self._await_client(silence)
            return self._read(_recv, b"", flags, bufsize) if came else b""
        except _BY_CLIENT as failure:
            failure.by_client = True  # type: ignore[union-attr]
            raise
        self._asked = True
        self.watch.beat()
        return data

    def recv_into(self, buffer: "WriteableBuffer", nbytes: int = 0, flags: int = 0) -> int:
        if not flags & _WAITALL:
            count: int = self._read(_recv_into, 0, flags, buffer, nbytes)
            return count
        # The kernel would wait for all of it in one piece, with no slices.
        view = memoryview(buffer).cast("B")[: nbytes or None]
        got = 0
        while got < len(view):
            count = self.recv_into(view[got:], 0, flags & ~_WAITALL)
            if not count:
                break
            got += count
        return got

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        found: tuple[bytes, Any] = self._read(_recvfrom, (b"", None), flags, bufsize)
        return found

    def recvfrom_into(
        self, buffer: "WriteableBuffer", nbytes: int = 0, flags: int = 0
    ) -> tuple[int, Any]:
        found: tuple[int, Any] = self._read(_recvfrom_into, (0, None), flags, buffer, nbytes)
        return found

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> tuple[Any, ...]:
        end = (b"", (), 0, None)
        found: tuple[Any, ...] = self._read(_recvmsg, end, flags, bufsize, ancbufsize)
        return found

    def recvmsg_into(
        self, buffers: "Iterable[WriteableBuffer]", ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[Any, ...]:
        buffers, end = list(buffers), (0, (), 0, None)
        found: tuple[Any, ...] = self._read(_recvmsg_into, end, flags, buffers, ancbufsize)
        return found

    def recv_now(self, bufsize: int) -> bytes | None:
        """What is there, at most so many bytes; None if that is nothing yet. It never waits."""
        try:
            data = _recv(self, bufsize, _DONTWAIT)
        except BlockingIOError:
            return None
        except _BY_CLIENT as failure:
            failure.by_client = True  # type: ignore[union-attr]
            raise
        self._asked = True
        return data

    # Writing

    def send(self, data: "ReadableBuffer", flags: int = 0, /) -> int:
        sent: int = self._write(_send, flags, self, data)
        return sent

    def send_now(self, data: "ReadableBuffer") -> int:
        """As many bytes as there is room for; 0 if for none. It never waits."""
        try:
            sent = _send(self, data, _NO_SIGPIPE)
        except BlockingIOError:
            return 0
        except _BY_CLIENT as failure:
            failure.by_client = True  # type: ignore[union-attr]
            raise
        self._asked = False
        return sent

    def sendall(self, data: "ReadableBuffer", flags: int = 0, /) -> None:
        size = len(data) if type(data) is bytes else memoryview(data).nbytes
        try:
            sent = _send(self, data, flags | _NO_SIGPIPE)
        except BlockingIOError:
            sent = 0
        except _BY_CLIENT as failure:
            failure.by_client = True  # type: ignore[union-attr]
            raise
        else:
            self._asked = False
            self.watch.beat()
        if sent < size:
            rest = memoryview(data).cast("B")
            while sent < size:
                sent += self.send(rest[sent:], flags)

    def sendto(self, data: "ReadableBuffer", flags: Any, address: Any = None, /) -> int:
        """``sendto(data, address)``, or ``sendto(data, flags, address)``."""
        if address is None:
            flags, address = 0, flags
        sent: int = self._write(_sendto, flags, self, data, address)
        return sent

    def sendmsg(
        self,
        buffers: "Iterable[ReadableBuffer]",
        ancdata: Iterable[Any] = (),
        flags: int = 0,
        address: Any = None,
        /,
    ) -> int:
        buffers = list(buffers)  # it may have to be sent twice
        sent: int = self._write(_sendmsg, flags, self, buffers, ancdata, address)
        return sent

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a file, by ``os.sendfile`` where it is a real one. Return the bytes sent."""
        if self.client_timeout == 0:
            raise ValueError("sendfile waits, and this connection must not: its timeout is 0")
        size = None
        with suppress(AttributeError, OSError, ValueError):
            size = size_of(file.fileno())
        if size is None:
            sent: int = self._sendfile_use_send(file, offset, count)  # type: ignore[attr-defined]
            return sent
        end = size if count is None else min(size, offset + count)
        source, start = file.fileno(), offset
        # A blocking descriptor would take the whole file in one call, however slow the
        # client is. O_NONBLOCK is on this connection alone.
        os.set_blocking(_fileno(self), False)
        try:
            while offset < end:
                sent = self._write(
                    _sendfile, 0, _fileno(self), source, offset, min(end - offset, _CHUNK)
                )
                if not sent:
                    break  # the file became shorter
                offset += sent
        finally:
            os.set_blocking(_fileno(self), True)
            if file.seekable():
                file.seek(offset)
        return offset - start

    # Time limits

    def settimeout(self, value: float | None, /) -> None:
        self._wait_here()
        super().settimeout(value)
        socket.socket.settimeout(self, 0 if value == 0 else None)

    def dup(self) -> socket.socket:  # type: ignore[override]
        """A plain socket on the same connection: what is done with it is not looked after."""
        copy = socket.socket(self.family, self.type, self.proto, os.dup(self.fileno()))
        copy.settimeout(self.client_timeout)
        return copy

    # Waiting

    def _read(self, operation: Callable[..., Any], nothing: Any, flags: int, *args: Any) -> Any:
        try:
            while True:
                try:
                    result = operation(self, *args, flags | _DONTWAIT)
                except BlockingIOError as silence:
                    if not self._await_client(silence):
                        return nothing
                else:
                    self._asked = True
                    self.watch.beat()
                    return result
        except _BY_CLIENT as failure:
            failure.by_client = True  # type: ignore[union-attr]
            raise

    def _write(self, operation: Callable[..., Any], flags: int, *args: Any) -> Any:
        last = 0.0
        try:
            while True:
                try:
                    result = operation(*args, flags | _NO_SIGPIPE)
                except BlockingIOError:
                    # sendfile() has set O_NONBLOCK itself.
                    if operation is not _sendfile and not self._waits():
                        raise
                    if not last:
                        last = self._last(Clock.monotonic())
                        self._wait(select.POLLOUT, False, last)
                    else:
                        # It was said to be writable, and is not: datagrams to a UNIX socket
                        # whose queue is full. Nobody tells when there is room again.
                        self._wait_blindly(last)
                else:
                    self._asked = False
                    self.watch.beat()
                    return result
        except _BY_CLIENT as failure:
            failure.by_client = True  # type: ignore[union-attr]
            raise

    def _await_client(self, silence: BlockingIOError) -> bool:
        """Until there is something to read. False: the worker is to go, and nothing came."""
        if self._hasty == threading.get_ident() or not self._waits():
            raise silence
        last = None if self.first_flags else self._last(Clock.monotonic() - SLICE)
        return self._wait(select.POLLIN, True, last)

    def _waits(self) -> bool:
        """Whether to wait is ours: foreign code may have set O_NONBLOCK below us."""
        return self.client_timeout != 0 and os.get_blocking(_fileno(self))

    def _wait_blindly(self, last: float) -> None:
        self.watch.beat()
        left = last - Clock.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        select.poll().poll(min(left, _BLINK) * 1000)


def _sendfile(target: int, source: int, offset: int, count: int, flags: int) -> int:
    try:
        return os.sendfile(target, source, offset, count)
    except OSError as error:
        if error.errno not in _NOT_FOR_THIS_FILE:
            raise
        return os.write(target, os.pread(source, min(count, _PIECE), offset))
