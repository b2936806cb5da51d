"""TCP handshakes under way at a listening socket, as the kernel's table of sockets has them.

The kernel is asked by netlink, sock_diag(7), which needs no privilege and picks the rows itself.
Where netlink is refused (a seccomp filter, a kernel without INET_DIAG), /proc/net is read.
"""

import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from typing import Final

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_SOCK_DIAG: Final = 4  # the netlink protocol
_BY_FAMILY: Final = 20  # the type of the request and of each row
_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP: all rows that fit
_ERROR, _DONE = 2, 3  # types of messages
_SYN_RECV: Final = 3  # the state; the kernel means its request sockets, too
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, sender
_ASKED: Final = struct.Struct("=BBxxI2s46x")  # family, protocol, states, the local port
_ROW: Final = struct.Struct("=4x2s2x16s")  # of a row: the local port and address


def handshakes(listeners: Iterable[socket.socket]) -> bool:
    """Whether the SYN of a client was answered at one of these sockets, and the client's ACK,
    or with TCP_DEFER_ACCEPT its data, has not come yet.

    To close the listening socket resets such a client, which may have sent its request
    already. False where the kernel does not tell.
    """
    return any(map(_at, listeners))


def _at(listener: socket.socket) -> bool:
    try:
        if listener.type != socket.SOCK_STREAM or listener.family not in _FAMILIES:
            return False
        host, port = listener.getsockname()[:2]
    except OSError:
        return False  # the program closed it
    own = socket.inet_pton(listener.family, host.partition("%")[0])
    anywhere = not any(own[-4:])  # 0.0.0.0, ::, ::ffff:0.0.0.0
    for look in (rows_by_netlink, rows_by_proc):
        try:
            rows = look(listener.family, port)
            return any(anywhere or address == own for address in rows)
        except OSError:
            continue
    return False


def rows_by_netlink(family: int, port: int) -> Iterator[bytes]:
    """The local addresses of the handshakes at this port. Raises OSError."""
    wanted = _ASKED.pack(family, socket.IPPROTO_TCP, 1 << _SYN_RECV, port.to_bytes(2, "big"))
    size = 4 if family == socket.AF_INET else 16
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as talk:
        talk.setblocking(False)  # the kernel makes the rows while they are read
        talk.send(_HEADER.pack(_HEADER.size + len(wanted), _BY_FAMILY, _DUMP, 1, 0) + wanted)
        while True:
            data = talk.recv(1 << 16)
            while data:
                length, kind = _HEADER.unpack_from(data)[:2]
                if kind == _ERROR:
                    number = -int.from_bytes(data[16:20], sys.byteorder, signed=True)
                    raise OSError(number, os.strerror(number))
                if kind == _DONE:
                    return
                local_port, address = _ROW.unpack_from(data, _HEADER.size)
                if int.from_bytes(local_port, "big") == port:
                    yield address[:size]
                data = data[(length + 3) & ~3 :]


def rows_by_proc(family: int, port: int) -> Iterator[bytes]:
    """The same, read from text that has a line for each socket of the machine."""
    name = "tcp" if family == socket.AF_INET else "tcp6"
    with open(f"/proc/net/{name}") as table:
        for line in table:
            _, local, _, state = line.split(maxsplit=4)[:4]
            if state == f"{_SYN_RECV:02X}":
                digits, _, number = local.partition(":")
                if int(number, 16) == port:
                    words = (int(digits[n : n + 8], 16) for n in range(0, len(digits), 8))
                    yield b"".join(word.to_bytes(4, sys.byteorder) for word in words)
