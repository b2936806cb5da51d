"""Sockets to listen on: addresses checked, bound here, and shut without losing who queues.

Nothing here waits for clients: that is ``acceptor``, in the workers.
"""

import array
import errno
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

from .errors import BindError, ConfigError
from .forks import keep_from_forks
from .inheritance import Legacy, inheritance, take_over
from .paths import bind_unix, give, identity, is_lost
from .sockets.connection import SLICE, set_slice
from .text import printable

_T = TypeVar("_T")
AddressLike: TypeAlias = str | tuple[str, int] | os.PathLike[str]
Addresses: TypeAlias = AddressLike | Sequence[AddressLike]  # when run, a list

BACKLOG = 2048  # connections that may wait; the kernel cuts it to net.core.somaxconn
_UNIX_MAX = 107  # bytes in sun_path, less the final NUL
_TRIES, _PAUSE = 5, 0.5  # for an address in use, as Unicorn and nginx do: 2 seconds in all

# Tells TCP listeners apart by what a segment's flags say: a bare SYN is somebody who
# knocks now, everything else belongs to connections that were under way.
_DROP_BARE_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the flags byte of the TCP header
        (0x54, 0, 0, 0x12),  # keep SYN and ACK
        (0x15, 0, 1, 0x02),  # SYN alone?
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFFFFFF),  # keep
    )
)
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)
_SO_ATTACH_FILTER = getattr(socket, "SO_ATTACH_FILTER", 26)

_CURES = {
    errno.EADDRINUSE: "is another server running there?",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "a port below 1024, or a directory that is not yours?",
    errno.ENOENT: "the directory must be there",
    errno.EAFNOSUPPORT: "the kernel or its sandbox has no such sockets: is IPv6 switched off?",
    errno.EMFILE: "raise the limit of open files, ulimit -n",
    errno.ENOLCK: "its directory must be on a file system with locks",
}


@dataclass(frozen=True)
class Address:
    """Where to listen: ``name`` is what ``socket.bind`` takes for this ``family``.

    ``v6only``: an IPv6 address that leaves its port to an IPv4 one of the same list.
    """

    family: int
    name: tuple[str, int] | str
    v6only: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return address_text(self.name)


def address_text(name: object) -> str:
    """An address for a log: ``127.0.0.1:80``, ``[::1]:80``, ``unix:/path``, with escapes for
    what a client that binds a name of its own may have put into it."""
    if isinstance(name, tuple):
        host, port = name[0], name[1]
        return printable(f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}")
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    return printable(f"unix:{str(name).replace(chr(0), '@')}")


def tcp_address(name: object) -> Address:
    """Check a ``(host, port)``, as ``socketserver`` has it. ConfigError says what is wrong."""
    if not isinstance(name, (tuple, list)) or len(name) != 2:
        raise ConfigError(f"a TCP address is a (host, port) tuple, not {name!r}")
    host, port = name
    if not isinstance(host, str) or "\0" in host:
        raise ConfigError(f"a host is a text, not {host!r} in {name!r}")
    if type(port) is not int or not 0 <= port <= 65535:
        raise ConfigError(f"a port is a whole number, 0 to 65535, not {port!r} in {name!r}")
    return Address(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port))


def unix_address(name: object) -> Address:
    """Check a path (``\\0name`` or ``@name``: abstract). ConfigError says what is wrong."""
    if isinstance(name, os.PathLike):
        name = os.fspath(name)
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"a UNIX socket address is a path, not {name!r}")
    if name.startswith("@"):
        name = "\0" + name[1:]
    if "\0" in name[1:]:
        raise ConfigError(f"a UNIX socket path cannot hold a NUL: {name!r}")
    length = len(os.fsencode(name))
    if length > _UNIX_MAX:
        raise ConfigError(
            f"a UNIX socket path is at most {_UNIX_MAX} bytes, not {length}: {name!r}"
        )
    return Address(socket.AF_UNIX, name)


def parse(given: AddressLike) -> Address:
    """``"host:port"``, ``"[::1]:port"``, ``"unix:/path"``, a tuple, or a ``Path``."""
    if isinstance(given, tuple):
        return tcp_address(given)
    if isinstance(given, os.PathLike):
        return unix_address(given)
    if not isinstance(given, str):
        raise ConfigError(f"an address is a text, a (host, port) tuple or a Path, not {given!r}")
    if given.startswith("unix:"):
        return unix_address(given.removeprefix("unix:"))
    host, colon, port = given.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"an IPv6 address goes in brackets, as in [::1]:9000, not {given!r}")
    if not colon or not (port.isascii() and port.isdigit()):
        raise ConfigError(f"write host:port, as in 127.0.0.1:9000, or unix:/path, not {given!r}")
    return tcp_address((host, int(port)))


def parse_all(given: Addresses, parse: Callable[[Any], Address] = parse) -> tuple[Address, ...]:
    """One address, or a list of them, all different (port 0 may come again)."""
    several = given if isinstance(given, list) else [given]
    if not several:
        raise ConfigError("there must be at least one address to listen on, not an empty list")
    return tuple(address for _, address in resolved_all([(None, parse(each)) for each in several]))


def resolved_all(given: Sequence[tuple[_T, Address]]) -> list[tuple[_T, Address]]:
    """Each address with what belongs to it, and behind them the other addresses of the names.
    ConfigError if one is given twice."""
    found = [(owner, resolved(address)) for owner, address in given]
    first = distinct(addresses[0] for _, addresses in found)
    others = [(owner, each) for owner, addresses in found for each in addresses[1:]]
    kept = [(owner, each) for owner, each in others if each not in first]
    owners = [owner for owner, _ in [*found, *kept]]
    return list(zip(owners, distinct([*first, *(each for _, each in kept)]), strict=True))


def resolved(address: Address) -> list[Address]:
    """The addresses of this machine that a host's name has, IPv4 ones first; with port 0 the
    first alone, since each would have a port of its own.

    A name that has none is returned as it is: to bind it says why.
    """
    if isinstance(address.name, str):
        return [address]
    host, port = address.name
    if not host or ":" in host or host[0] == "<" or host.replace(".", "").isdigit():
        return [address]
    only = socket.AF_INET6 if address.family == socket.AF_INET6 else socket.AF_UNSPEC
    try:
        answers = socket.getaddrinfo(host, port, only, socket.SOCK_STREAM)
    except OSError:
        return [address]
    answers.sort(key=lambda answer: answer[0] != socket.AF_INET)
    found = {(family, where): None for family, _, _, _, where in answers}
    ours = [each for each in found if _is_here(*each)] or list(found)
    return [
        Address(family, (str(where[0]), port)) for family, where in (ours if port else ours[:1])
    ]


def _is_here(family: int, where: tuple[Any, ...]) -> bool:
    """Whether it is an address of this machine."""
    try:
        with socket.socket(family) as probe:
            probe.bind((where[0], 0))
    except OSError:
        return False
    return True


def distinct(addresses: Iterable[Address]) -> tuple[Address, ...]:
    """All of them can be had together; ConfigError if one is given twice.

    ``[::]`` takes the IPv4 clients of its port, too, as the system has it. Beside an IPv4
    address with that port it must not, or the second of the two would be in use.
    """
    found: list[Address] = []
    for address in addresses:
        if address in found and address.name[1:] != (0,):
            raise ConfigError(f"each address may be given once, and {address} is given twice")
        found.append(address)
    ports = {address.name[1] for address in found if address.family == socket.AF_INET} - {0}
    for n, a in enumerate(found):
        # An IPv4 address in the clothes of IPv6 (::ffff:127.0.0.1) is refused with the option.
        if a.family == socket.AF_INET6 and a.name[1] in ports and "." not in a.name[0]:
            found[n] = replace(a, v6only=True)
    return tuple(found)


def check_status_address(status: str | None, addresses: Iterable[Address]) -> None:
    """``addresses`` are those of the server, for streams. Raises ConfigError if the status page is
    to be at one of them."""
    where = None if status is None else parse(status)
    for address in addresses:
        if where and _overlap(where.name, address.name):
            raise ConfigError(
                f"status={status!r} is where the server itself listens, {address}: give the status "
                "page an address of its own, with another port"
            )


def _overlap(one: tuple[str, int] | str, other: tuple[str, int] | str) -> bool:
    """Whether a second of them could not be bound: the same, or one of them is all hosts."""
    if isinstance(one, str) or isinstance(other, str) or one[1] != other[1] or not one[1]:
        return one == other and one[1:] != (0,)
    hosts = [{"localhost": "127.0.0.1", "": "0.0.0.0"}.get(host, host) for host, _ in (one, other)]  # noqa: S104
    ipv4 = [":" not in host or host == "::" for host in hosts]
    return hosts[0] == hosts[1] or "::" in hosts or ("0.0.0.0" in hosts and all(ipv4))  # noqa: S104


class Listener:
    """One listening socket. ``path``: what to unlink when it is shut, if it is still ours.

    ``key`` is what a successor knows it by: the address as it stands in the program.
    """

    def __init__(
        self, sock: socket.socket, path: str = "", key: str = "", backlog: int | None = None
    ) -> None:
        self.socket = sock
        self.key = key
        self._path = os.path.abspath(path) if path else ""
        self._identity = identity(self._path) if path else None
        self._backlog = backlog
        self._owner = os.getpid()

    def serve(self) -> None:
        """From now on workers accept here, and this process shuts it."""
        # Once and for all: the flag belongs to the open file description, which the
        # workers share, and whoever loses the race for a connection must not wait. For
        # datagrams that is said with each read: their answers are sent from here, too,
        # and must not fail because a buffer is full.
        self.socket.setblocking(self.socket.type == socket.SOCK_DGRAM)
        self._owner = os.getpid()
        # A server in another thread forks, too, and would keep the door open after our end.
        keep_from_forks(self.socket.fileno(), but=threading.current_thread())

    def give_to(self, uid: int | None, gid: int | None) -> None:
        """Have the path be this user's and group's, so that their clients find it open.

        Raises BindError.
        """
        if self._identity:
            ids = (-1 if each is None else each for each in (uid, gid))
            try:
                give(self._path, self._identity, *ids)
            except OSError as reason:
                raise BindError(self.address, reason) from None

    @property
    def deserted(self) -> bool:
        """Whether its path was removed, or is another's: nobody finds it there any more."""
        return self._identity is not None and is_lost(self._path, self._identity)

    def renew(self) -> bool:
        """If it is deserted: bind a new socket to its path, in the place of the old one, which
        stays with the workers that have it. Raises BindError."""
        if not self.deserted or self._owner != os.getpid() or not inheritance().settled():
            return False
        try:
            with socket.socket(socket.AF_UNIX, self.socket.type) as sock:
                bind_unix(sock, self._path, self._backlog)
                # All who know the socket have it by this number.
                os.dup2(sock.fileno(), self.socket.fileno(), inheritable=False)
        except OSError as reason:
            raise _refused(f"unix:{self._path}", reason) from None
        self._identity = identity(self._path)
        self.serve()
        return True

    def leave(self) -> None:
        """It is another process's now: close it, and let the path be."""
        self._identity = None
        self.socket.close()

    @property
    def legacy(self) -> Legacy:
        """What a successor needs."""
        path = self._path if self._identity else ""
        return Legacy(self.key, self.socket.fileno(), path, self._identity)

    @property
    def address(self) -> str:
        """Where it really listens: the port is known even if 0 was asked for."""
        return address_text(self.socket.getsockname())

    def shut_the_door(self) -> bool:
        """Let nobody else in, and keep everybody who waits already. False: it stays ajar.

        To close the socket at once would reset those who wait. A path is removed, so the
        next client is refused. For TCP the kernel drops who knocks now, unheard, until
        the socket is closed a moment later and refuses them; for UDP, what comes now.
        Where accepting is deferred, that ends: the kernel sends such a client its SYN-ACK
        again, 1 s after the first one, and hands the connection over when it is acknowledged.
        Where it does not let us attach the filter, and for a path that is not ours, a
        backlog of 0 lets in one at a time: who comes in at the very last moment may be
        lost. UNIX datagrams still come from those who are connected.
        """
        if not inheritance().settled():
            return False  # the predecessor still accepts here
        stream = self.socket.type == socket.SOCK_STREAM
        if self.socket.family == socket.AF_UNIX:
            if self.unlink() and stream:
                return True
        else:
            if stream:
                with suppress(OSError):  # the program closed it itself, or it is not TCP
                    self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)
            if self._attach(_DROP_BARE_SYN if stream else _DROP_ALL):
                return True
        if stream:
            with suppress(OSError):  # the program closed it itself: nobody waits there
                self.socket.listen(0)
        return False

    def _attach(self, program: bytes) -> bool:
        """Have the kernel run this on all that comes; False if it does not permit it."""
        code = array.array("B", program)
        fprog = struct.pack("HL", len(program) // 8, code.buffer_info()[0])
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
        except OSError:
            return False
        return True

    def unlink(self) -> bool:
        """Remove the path, unless it is somebody else's by now or we are a fork of its owner."""
        if not self._identity or self._owner != os.getpid() or not inheritance().settled():
            return False
        ours, self._identity = self._identity, None  # the number may soon be another file's
        with suppress(OSError):  # gone already, or not ours to remove any more
            if identity(self._path) == ours:
                os.unlink(self._path)
                return True
        return False

    def close(self) -> None:
        self.unlink()
        self.socket.close()


def adopt(sock: socket.socket, key: str = "") -> Listener:
    """A socket that somebody else bound, and whose path, if it has one, is theirs to unlink."""
    return Listener(sock, key=key)


def key_of(sock: socket.socket, name: Any) -> str:
    """By what a successor, whose program says the same, finds this socket."""
    return f"{socket.SocketKind(sock.type).name} {address_text(name)}"


def is_deaf(sock: socket.socket) -> bool:
    """Whether nobody can come in: it does not listen, or has no address for datagrams."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        return False  # others may say it in other ways
    if sock.type == socket.SOCK_STREAM:
        return not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    name = sock.getsockname()
    unnamed = not (name if sock.family == socket.AF_UNIX else name[1])
    return sock.type == socket.SOCK_DGRAM and unnamed


def listen(
    address: Address,
    backlog: int = BACKLOG,
    kind: socket.SocketKind = socket.SOCK_STREAM,
    options: Iterable[int] = (socket.SO_REUSEADDR,),
) -> Listener:
    """Bind a new socket and listen. Raises BindError."""
    sock = new_socket(address, kind)
    try:
        return bind(sock, address, backlog, options)
    except BaseException:
        sock.close()
        raise


def new_socket(address: Address, kind: socket.SocketKind) -> socket.socket:
    """Raises BindError: a kernel without IPv6, a seccomp filter, too many open files."""
    try:
        return socket.socket(address.family, kind)
    except OSError as reason:
        raise _refused(str(address), reason) from reason


def bind(sock: socket.socket, address: Address, backlog: int, options: Iterable[int]) -> Listener:
    """Bind this socket and listen; whatever prepares it for that is done here.

    These options of ``SOL_SOCKET`` are set, but not on a UNIX socket, which may refuse
    them. An address in use is tried for 2 s. Raises BindError.
    """
    stream = sock.type == socket.SOCK_STREAM
    key = key_of(sock, address.name)
    path = address.name if isinstance(address.name, str) and address.name[0] != "\0" else ""
    queue = backlog if stream else None
    try:
        if legacy := take_over(sock, key):
            listener = Listener(sock, path, key, queue)
            listener._identity = legacy.file
            return listener
        if isinstance(address.name, str):
            bind_unix(sock, address.name, queue)
            return Listener(sock, path, key, queue)
        for option in options:
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        if stream:
            set_slice(sock, SLICE)
        if address.v6only:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _while_in_use(lambda: sock.bind(address.name), address)
        if stream:
            # Of two who start together, one is told only here that it is in use.
            _while_in_use(lambda: sock.listen(backlog), address)
            # Accepted sockets inherit it. Small replies must not wait for the client's
            # delayed acknowledgement of the one before.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Listener(sock, key=key)
    except OSError as reason:
        raise _refused(str(address), reason) from None  # it has the reason, and the sentence


def _refused(address: str, reason: OSError) -> BindError:
    return BindError(address, reason, _CURES.get(reason.errno or 0, ""))


def _while_in_use(step: Callable[[], None], address: Address) -> None:
    for left in reversed(range(_TRIES)):
        try:
            step()
        except OSError as reason:
            if reason.errno != errno.EADDRINUSE or not left:
                raise
            if left == _TRIES - 1:
                logging.getLogger("prefork_server").warning(
                    "%s is in use, trying for %gs",
                    address,
                    _PAUSE * left,
                    extra={"event": "in_use"},
                )
            time.sleep(_PAUSE)
        else:
            return
