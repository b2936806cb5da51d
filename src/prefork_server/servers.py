"""The standard library's servers with the mix-in, and what ours have besides: addresses
checked and bound by our rules, several of them, the settings as keywords, ``start()``."""

import socket
import socketserver
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

from .calls import check_handler
from .errors import BootError, ConfigError
from .listeners import (
    Address,
    Addresses,
    Listener,
    address_text,
    bind,
    check_status_address,
    distinct,
    listen,
    new_socket,
    parse,
    parse_all,
    resolved,
    unix_address,
)
from .logfiles import logger_named
from .mixin import PreforkMixIn
from .settings import FilePath, Settings, SettingsKeywords, settle
from .sockets.connection import set_slice

if TYPE_CHECKING:
    import ssl

    from .credentials import Credentials, Password

HandlerClass = Callable[[Any, Any, Any], socketserver.BaseRequestHandler]


class ServerKeywords(SettingsKeywords, total=False):
    """The keywords of our servers, for ``**keywords: Unpack[ServerKeywords]`` of a subclass."""

    ssl_context: "ssl.SSLContext | None"
    certfile: FilePath | None
    keyfile: FilePath | None
    password: "Password | None"
    proxy_protocol_from: Sequence[str] | None


class _OwnServer(PreforkMixIn):
    """What our own servers share: addresses checked, and bound by our rules; a list of them;
    the settings as keywords, too; TLS and PROXY headers; ``start()``."""

    handshake_timeout: float = 10.0
    """Seconds for all of a TLS handshake; and, but for HTTP, for a PROXY header before it."""
    proxy_protocol_from: Sequence[str] = ()
    """Who begins with a PROXY header, and is believed: addresses, networks, or ``"unix"``."""
    defer_accept: int = 0
    """Seconds for which a TCP client that has only connected is not handed to a worker
    (``TCP_DEFER_ACCEPT``, to be set in the class); 0: it is at once. For handlers that read
    before they write: a silent client costs no worker then, and one that speaks is served
    without a wait for its first bytes."""

    _prefork_alpn: tuple[str, ...] = ()
    _prefork_credentials: "Credentials | None" = None
    address_family: int
    allow_reuse_port: bool
    server_address: Any
    _prefork_inherited: Sequence[Listener] = ()  # ``socket`` is a copy of the first one

    def __init__(
        self,
        server_address: Addresses,
        RequestHandlerClass: HandlerClass,  # noqa: N803 - socketserver's name
        bind_and_activate: bool = True,
        *,
        settings: Settings | None = None,
        ssl_context: "ssl.SSLContext | None" = None,
        certfile: FilePath | None = None,
        keyfile: FilePath | None = None,
        password: "Password | None" = None,
        proxy_protocol_from: Sequence[str] | None = None,
        **keywords: Unpack[SettingsKeywords],
    ) -> None:
        several = isinstance(server_address, list)
        parse = self._prefork_parse if several else self._prefork_checked
        self._prefork_addresses = parse_all(server_address, parse)
        check_handler(type(self), RequestHandlerClass)
        first = self._prefork_addresses[0]
        settled = settle(self.settings if settings is None else settings, keywords)
        if self.socket_type == socket.SOCK_STREAM:
            check_status_address(settled.status, self._prefork_addresses)
        if proxy_protocol_from is not None:
            self.proxy_protocol_from = proxy_protocol_from
        self._prefork_secure(ssl_context, certfile, keyfile, password)
        self.address_family = first.family
        # The standard library makes its socket by itself, and would raise a bare OSError.
        new_socket(first, socket.SocketKind(self.socket_type)).close()
        super().__init__(first.name, RequestHandlerClass, bind_and_activate, settings=settled)

    @property
    def addresses(self) -> list[str]:
        """Where it listens, each as one would write it: ``127.0.0.1:9000``, ``unix:/path``."""
        if self.socket.fileno() < 0:  # after start(), the daemon has it
            return list(self._prefork_remote.addresses)
        sockets = [self.socket, *(listener.socket for listener in self._prefork_more)]
        return [address_text(sock.getsockname()) for sock in sockets]

    def start(self) -> int:
        """Serve as a daemon; return its pid when its first worker is ready.

        What it prints goes to ``/dev/null``, and its log to ``./<app_name>.log``, unless
        the settings, or the logging of the program, say otherwise. It never comes back
        here. This server is closed: the sockets are the daemon's. Raises BootError, which
        says why, if it ends before it is ready. To be called in the main thread.
        """
        with ExitStack() as stack:
            stack.callback(self._prefork_leave)
            try:
                return self._prefork_launch().start()
            except (BootError, ConfigError):
                stack.pop_all()  # there is no daemon: the sockets and the paths are still ours
                raise

    def _prefork_leave(self) -> None:
        """The daemon has it all. After a Ctrl-C in between, nobody knows whether there is one:
        a path that is left behind is replaced at the next start, a lost one is not."""
        for listener in (self._prefork_listener, *self._prefork_more):
            if listener:
                listener.leave()
        self.socket.close()

    def get_request(self) -> Any:
        """As ever; in a worker, connections are accepted in another way."""
        request, peer = super().get_request()
        if self.socket_type == socket.SOCK_STREAM:
            set_slice(request, 0)
        return request, peer

    def handle_request(self) -> None:
        """As ever, in this process; refused where that would speak plain text to TLS clients, or
        take a PROXY header for a request."""
        if self._prefork_terms or self._prefork_proxies:
            raise ConfigError("handle_request() knows no TLS and no PROXY: use serve_forever()")
        super().handle_request()

    def server_bind(self) -> None:
        """Bind and listen, on all addresses or on none: then it may be tried again.

        Raises BindError; an address in use is tried for 2 s.
        """
        if self._prefork_inherited:
            self._prefork_more = list(self._prefork_inherited[1:])
        else:
            self._prefork_bind()
        self.server_address = self.socket.getsockname()
        for sock in (self.socket, *(listener.socket for listener in self._prefork_more)):
            tcp = sock.type == socket.SOCK_STREAM and sock.family != socket.AF_UNIX
            if self.defer_accept and tcp:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, self.defer_accept)

    def _prefork_bind(self) -> None:
        first, *others = self._prefork_addresses
        if self.server_address != first.name:  # changed between the making and this
            checked = self._prefork_checked(self.server_address)
            first, *others = distinct([*resolved(checked), *others])
        size, kind = self.request_queue_size, socket.SocketKind(self.socket_type)
        reuse = {
            socket.SO_REUSEADDR: self.allow_reuse_address,
            socket.SO_REUSEPORT: self.allow_reuse_port,
        }
        options = [option for option, wanted in reuse.items() if wanted]
        more: list[Listener] = []
        with ExitStack() as undo:
            for address in others:
                more.append(listen(address, size, kind, options))
                undo.callback(more[-1].close)
            # The last, since a socket that was bound cannot be bound again.
            self._prefork_listener = bind(self.socket, first, size, options)
            undo.pop_all()
        self._prefork_more = more

    def server_close(self) -> None:
        """Close the listening sockets, and remove their paths if we made them."""
        if self._prefork_listener:
            self._prefork_listener.unlink()
        for listener in self._prefork_more:
            listener.close()
        super().server_close()

    def _prefork_secure(
        self,
        context: "ssl.SSLContext | None",
        certfile: FilePath | None,
        keyfile: FilePath | None,
        password: "Password | None",
    ) -> None:
        given = {"certfile": certfile, "keyfile": keyfile, "password": password}
        said = [name for name, value in given.items() if value is not None]
        if self.proxy_protocol_from != ():
            from .peers import Peers

            self._prefork_proxies = Peers("proxy_protocol_from", self.proxy_protocol_from)
        for_streams = [*said, *["ssl_context"] * (context is not None)]
        for_streams += ["proxy_protocol_from"] * bool(self._prefork_proxies)
        if for_streams and self.socket_type != socket.SOCK_STREAM:
            raise ConfigError(
                f"{for_streams[0]} is for streams, and {type(self).__name__} has datagrams"
            )
        if context is not None and said:
            raise ConfigError(f"ssl_context has its certificate already: give it, or {said[0]}")
        if certfile is not None:
            from .credentials import credentials

            self._prefork_credentials = credentials(certfile, keyfile, password, self._prefork_alpn)
            context = self._prefork_credentials.context()
        elif said:
            raise ConfigError(f"{said[0]} is for a certfile, and there is none")
        if context is not None:
            from .tls import terms

            self._prefork_terms = terms(context)

    def _prefork_renew(self) -> None:
        if self._prefork_credentials and self._prefork_terms:
            context = self._prefork_credentials.context()
            self._prefork_credentials.warn_of_readers(logger_named(None))
            self._prefork_terms = self._prefork_terms._replace(context=context)

    @contextmanager
    def _prefork_listening(self) -> Iterator[list[Listener]]:
        if self._prefork_credentials:
            self._prefork_credentials.warn_of_readers(logger_named(None))
        with super()._prefork_listening() as listeners:
            yield listeners

    def _prefork_patience(self) -> float:
        return self.handshake_timeout

    def _prefork_settled(self) -> Settings:
        return self.settings

    @classmethod
    def _prefork_checked(cls, given: Any) -> Address:
        """The one address of a server, which must be of its own kind."""
        address = cls._prefork_parse(given)
        if address.family == socket.AF_UNIX:
            stream = cls.socket_type == socket.SOCK_STREAM
            cure = "PreforkUnixStreamServer" if stream else "PreforkUnixDatagramServer"
            raise ConfigError(f"{address} alone is for a {cure}, and not for {cls.__name__}")
        return address

    @classmethod
    def _prefork_parse(cls, given: Any) -> Address:
        address = parse(given)
        # A class that is for IPv6 means it of names, and of "", but not of a 127.0.0.1.
        ipv4 = str(address.name[0]).replace(".", "").isdigit()
        if cls.address_family == socket.AF_INET6 and address.family == socket.AF_INET and not ipv4:
            return replace(address, family=socket.AF_INET6)
        return address


class PreforkTCPServer(_OwnServer, socketserver.TCPServer):
    """``socketserver.TCPServer``, preforked.

    ``server_address`` is ``(host, port)``, or a text: ``"127.0.0.1:9000"``,
    ``"[::1]:9000"``. It may be a list of addresses, among them ``"unix:/path"``; then
    ``server_address`` and ``socket`` are the first one's, and ``addresses`` says all;
    ``handle_request()`` serves the first one alone. ``"[::]:9000"`` takes IPv4 clients, too,
    unless an IPv4 address of that port is in the list. The keywords are those of
    ``Settings``. ``bind_and_activate`` is the standard library's: False means that you call
    ``server_bind()`` yourself. Raises ConfigError and BindError, which is an ``OSError``.
    """


class PreforkUDPServer(_OwnServer, socketserver.UDPServer):
    """``socketserver.UDPServer``, preforked; addresses as with ``PreforkTCPServer``.

    ``self.request`` is ``(data, socket)``: answer by ``socket.sendto(answer,
    self.client_address)``. Each datagram goes to one worker. What is longer than
    ``max_packet_size`` bytes (8192) is cut, as in the standard library.
    """


class _UnixServer(_OwnServer):
    @classmethod
    def _prefork_checked(cls, given: Any) -> Address:
        if isinstance(given, str):
            given = given.removeprefix("unix:")
        return unix_address(given)

    @classmethod
    def _prefork_parse(cls, given: Any) -> Address:
        return parse(given) if isinstance(given, tuple) else cls._prefork_checked(given)


class PreforkUnixStreamServer(_UnixServer, socketserver.UnixStreamServer):
    """``socketserver.UnixStreamServer``, preforked.

    ``server_address`` is a path, of 107 bytes at most; ``"@name"`` is an abstract
    one. The socket has mode 0600. The one of a dead server is replaced, anything
    else that is there is left alone (BindError); it is removed when the server stops.
    In a list of addresses a text is a path, too, and a ``(host, port)`` is TCP.
    """


class PreforkUnixDatagramServer(_UnixServer, socketserver.UnixDatagramServer):
    """``socketserver.UnixDatagramServer``, preforked; paths as with
    ``PreforkUnixStreamServer``, requests as with ``PreforkUDPServer``.

    Only clients that have bound a path of their own can be answered.
    """
