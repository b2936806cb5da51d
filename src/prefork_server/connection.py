"""An accepted connection that keeps the worker alive while the client thinks.

A plain blocking ``recv`` would hide two things from the worker: that the master
wants it to go, and that it is the client who is slow. So every operation first
tries without waiting. Where it has to wait, it does so in slices, each with a
sign of life, until the client has been silent for longer than ``timeout``.

How it waits is in ``vigil``.
"""

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from .vigil import Vigil, Waiting

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


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

    __slots__ = ("_allowance", "_asked", "_hasty", "_patience", "_vigil")

    def __init__(
        self, family: int, kind: int, proto: int, fileno: int, vigil: Vigil, patience: float | None
    ) -> None:
        # Plain ints: enums cost 2 microseconds.
        socket.socket.__init__(self, family, kind, proto, fileno)
        if socket.getdefaulttimeout() is not None:
            socket.socket.settimeout(self, None)  # it would wait below us, without a beat
        self._vigil = vigil
        self._patience = patience
        self._asked = False
        self._allowance = _FOR_EVER
        self._hasty = 0

    # Reading

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        if flags & _WAITALL:
            buffer = bytearray(bufsize)
            return bytes(buffer[: self.recv_into(buffer, bufsize, flags)])
        try:  # as _read() has it, without a call more in each request
            try:
                data: bytes = _recv(self, bufsize, flags | _DONTWAIT)
            except BlockingIOError:
                if not self._waits_to_read():
                    raise
                if not self._wait(select.POLLIN, True):
                    return b""
                return self._read(_recv, b"", flags, bufsize)  # type: ignore[no-any-return]
        except _BY_CLIENT as failure:
            failure.by_client = True  # type: ignore[union-attr]
            raise
        self._asked = True
        self._vigil.beat()
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
        try:  # as _write() has it, without a call more in each request
            sent = _send(self, data, flags | _NO_SIGPIPE)
        except BlockingIOError:
            return self._write(_send, flags, self, data)  # type: ignore[no-any-return]
        except _BY_CLIENT as failure:
            failure.by_client = True  # type: ignore[union-attr]
            raise
        self._asked = False
        self._vigil.beat()
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
        sent = self.send(data, flags)
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
        if self._patience == 0:
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
        os.set_blocking(self.fileno(), False)
        try:
            while offset < end:
                sent = self._write(
                    _sendfile, 0, self.fileno(), source, offset, min(end - offset, _CHUNK)
                )
                if not sent:
                    break  # the file became shorter
                offset += sent
        finally:
            os.set_blocking(self.fileno(), True)
            if file.seekable():
                file.seek(offset)
        return offset - start

    # Time limits

    def settimeout(self, value: float | None, /) -> None:
        super().settimeout(value)
        socket.socket.settimeout(self, 0 if value == 0 else None)

    def dup(self) -> socket.socket:  # type: ignore[override]
        """A plain socket on the same connection: what is done with it is not looked after."""
        copy = socket.socket(self.family, self.type, self.proto, os.dup(self.fileno()))
        copy.settimeout(self._patience)
        return copy

    # Waiting

    def _read(self, operation: Callable[..., Any], nothing: Any, flags: int, *args: Any) -> Any:
        try:
            while True:
                try:
                    result = operation(self, *args, flags | _DONTWAIT)
                except BlockingIOError:
                    if not self._waits_to_read():
                        raise
                    if not self._wait(select.POLLIN, True):
                        return nothing
                else:
                    self._asked = True
                    self._vigil.beat()
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
                        last = self._last(time.monotonic())
                        self._wait(select.POLLOUT, False, last)
                    else:
                        # It was said to be writable, and is not: datagrams to a UNIX socket
                        # whose queue is full. Nobody tells when there is room again.
                        self._wait_blindly(last)
                else:
                    self._asked = False
                    self._vigil.beat()
                    return result
        except _BY_CLIENT as failure:
            failure.by_client = True  # type: ignore[union-attr]
            raise

    def _waits_to_read(self) -> bool:
        return self._hasty != threading.get_ident() and self._waits()

    def _waits(self) -> bool:
        """Whether to wait is ours: foreign code may have set O_NONBLOCK below us."""
        return self._patience != 0 and os.get_blocking(self.fileno())

    def _wait_blindly(self, last: float) -> None:
        self._vigil.beat()
        left = last - time.monotonic()
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
