"""The PROXY protocol: a header in front of a connection, by which a proxy says for whom it speaks.

``read_header`` is given bytes, and knows no socket. It is strict: what is no header of version 1
or 2, as HAProxy's specification has it, is an error and nothing else.
"""

import os
import re
import select
import socket
import struct
from functools import partial
from typing import Any, Final

from .clock import Clock
from .sockets.connection import Waiting

MOST: Final = 4096
"""Bytes of a header. 536 always have to be taken; the rest is for what it says of TLS."""

_MOST_TEXT: Final = 107  # bytes of one in version 1, which the specification has counted
_TEXT: Final = b"PROXY "
_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_PORT = rb"(0|[1-9][0-9]{0,4})"
_line = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r]*)?|TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) "
    + rb"%b %b)\r\n" % (_PORT, _PORT)
).fullmatch

_LOCAL, _PROXY = 0x20, 0x21  # version 2, and what is meant by it
_ADDRESSES = {0x11: 12, 0x21: 36, 0x31: 216}  # bytes of both, by family, of streams
_UNNAMED = (0x00, 0x12, 0x22, 0x32)  # unspecified, and datagrams, which no stream speaks for


class ProxyError(ConnectionError):
    """A proxy that is believed did not begin with a PROXY header."""

    by_client = True


def read_header(data: bytes) -> tuple[int, Any] | None:
    """The length of the header at the front, and the peer that it names, as ``accept()`` would;
    None for that if it names nobody. None at all: more has to come. Raises ProxyError as soon as
    no header can begin like this."""
    if _SIGNATURE.startswith(data[:12]):
        return _read_binary(data) if len(data) > 12 else None
    if _TEXT.startswith(data[:6]):
        return _read_line(data) if len(data) > 6 else None
    raise ProxyError("this does not begin as a PROXY header does")


def _read_line(data: bytes) -> tuple[int, Any] | None:
    size = data.find(b"\r\n", 0, _MOST_TEXT) + 2
    if size < 2:
        if len(data) >= _MOST_TEXT:
            raise ProxyError("the PROXY line is longer than 107 bytes")
        return None
    found = _line(data[:size])
    if found is None:
        raise ProxyError("the PROXY line is malformed")
    version, source, target, port, other = found.groups()
    if version is None:
        return size, None
    family = socket.AF_INET if version == b"4" else socket.AF_INET6
    try:
        packed = [socket.inet_pton(family, text.decode()) for text in (source, target)]
    except OSError as error:
        raise ProxyError("the PROXY line names what is no address") from error
    if max(int(port), int(other)) > 65535:
        raise ProxyError("the PROXY line names what is no port")
    return size, _named(family, packed[0], int(port))


def _read_binary(data: bytes) -> tuple[int, Any] | None:
    command = data[12]
    if command not in (_LOCAL, _PROXY):
        raise ProxyError("the PROXY header has a version or a command that is not known")
    family = data[13] if len(data) > 13 and command == _PROXY else 0
    if family not in _ADDRESSES and family not in _UNNAMED:
        raise ProxyError("the PROXY header has a family that is not known")
    if len(data) < 16:
        return None
    size = 16 + int.from_bytes(data[14:16])
    least = 16 + _ADDRESSES.get(family, 0)
    if not least <= size <= MOST:
        raise ProxyError("the PROXY header is too long, or too short for its addresses")
    if len(data) < size:
        return None
    if family in _UNNAMED:  # or a proxy that speaks for itself
        return size, None
    if family == 0x31:
        return size, _path(data[16:124])
    width = (least - 20) // 2
    kind = socket.AF_INET if width == 4 else socket.AF_INET6
    (port,) = struct.unpack_from("!H", data, 16 + 2 * width)
    return size, _named(kind, data[16 : 16 + width], port)


def _named(family: int, packed: bytes, port: int) -> tuple[Any, ...]:
    host = socket.inet_ntop(family, packed)
    return (host, port) if family == socket.AF_INET else (host, port, 0, 0)


def _path(name: bytes) -> str | bytes:
    if name.startswith(b"\0"):  # abstract, or none
        return name.rstrip(b"\0")
    return os.fsdecode(name.partition(b"\0")[0])


class Introduction:
    """The header in front of one connection, as it comes. ``peer`` is for whom it speaks, and
    until that is known who it is."""

    def __init__(self, peer: Any) -> None:
        self.peer: Any = peer
        self._begun = b""

    def take_now(self, sock: socket.socket) -> bool:
        """Take what has come of it, and not one byte more: below it TLS may follow. Whether that
        was all. It never waits. Raises ProxyError, or what else says that it is gone, which is
        ``by_client``."""
        try:
            ahead = socket.socket.recv(sock, MOST, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except ConnectionError as failure:
            failure.by_client = True  # type: ignore[attr-defined]
            raise
        if not ahead:
            raise ProxyError("it ended before its PROXY header did")
        found = read_header(self._begun + ahead)
        # What no header ends in is part of it.
        size = len(ahead) if found is None else found[0] - len(self._begun)
        self._begun += socket.socket.recv(sock, size, socket.MSG_DONTWAIT)
        if found and found[1] is not None:
            self.peer = found[1]
        return found is not None


def introduced(request: Any, peer: Any, seconds: float) -> Any:
    """For whom the connection speaks, which is read from its front. It waits so long in all.
    An OSError of it is ``by_client``."""
    header, last = Introduction(peer), Clock.monotonic() + seconds
    try:
        while not header.take_now(request):
            wait = request._wait if isinstance(request, Waiting) else partial(_wait, request)
            if not wait(select.POLLIN, True, last):
                raise ProxyError("nothing came, and we go")
    except OSError as failure:
        failure.by_client = True  # type: ignore[attr-defined]
        raise
    return header.peer


def _wait(request: Any, event: int, _: bool, last: float) -> bool:
    """For a class of the program's own."""
    poll = select.poll()
    poll.register(request, event)
    if not poll.poll(max(0.0, last - Clock.monotonic()) * 1000):
        raise TimeoutError("timed out")
    return True
