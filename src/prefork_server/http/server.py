"""``http.server.HTTPServer``, preforked: keep-alive connections are parked, not held."""

import socketserver
from collections.abc import Callable
from functools import partial
from http.server import HTTPServer
from typing import Any

from ..listeners import Address
from ..proxy import ProxyError
from ..servers import _OwnServer
from ..worker.accept_loop import AcceptLoop
from .connection import turn_away
from .forwarded import believed
from .standard import handler_class, parked


class PreforkHTTPServer(_OwnServer, HTTPServer):
    """``http.server.HTTPServer``, preforked; addresses and keywords as with
    ``PreforkTCPServer``.

    Between two requests a connection costs no worker, if the handler class overrides neither
    ``handle()`` nor ``handle_one_request()``, and this neither ``process_request()`` nor
    ``finish_request()``; one that does keeps its worker, as ever. Before the first request,
    too, it costs none: while a PROXY header or a TLS handshake is under way.

    ``HTTPRequestHandler`` is the handler to use. A class for ``http.server`` is served by a
    class of its name, in which ``HTTPRequestHandler`` stands in the place of
    ``BaseHTTPRequestHandler``; see ``docs/migrating.md`` for what stays as it is.
    """

    _prefork_alpn = ("http/1.1",)
    server_name: str
    server_port: int
    defer_accept: int = 10
    """As with ``PreforkTCPServer``; 0 for a handler that speaks first."""

    @classmethod
    def _prefork_checked(cls, given: Any) -> Address:
        return cls._prefork_parse(given)  # HTTP is spoken on UNIX sockets, too

    def server_bind(self) -> None:
        handler = self.RequestHandlerClass
        kind = handler.func if isinstance(handler, partial) else handler
        believed(getattr(kind, "forwarded_from", ()))  # or ConfigError, before anything is bound
        super().server_bind()
        # The standard library asks the name service for server_name, which may take minutes.
        self.server_name, self.server_port = "localhost", 0
        if isinstance(self.server_address, tuple):
            self.server_name, self.server_port = self.server_address[:2]

    def _prefork_parking(self, loop: AcceptLoop) -> Callable[[Any, Any], object] | None:
        self.RequestHandlerClass: Any = handler_class(self.RequestHandlerClass)
        kind = type(self)
        if (
            kind.process_request is not socketserver.BaseServer.process_request
            or kind.finish_request is not socketserver.BaseServer.finish_request
        ):
            return None
        if self._prefork_terms and not self._prefork_terms.handshake:
            return None  # it is left to the handler
        service = parked(self.RequestHandlerClass)
        if service is None:
            return None
        heartbeat = loop.heartbeat
        service.server = self
        service.begin, service.end = heartbeat.begin, heartbeat.end
        service.is_over = heartbeat.is_over
        service.keep, service.let_go = loop.keep, loop.let_go
        return service.arrive

    def _prefork_greet(self, request: Any, peer: Any) -> Any:
        try:
            return super()._prefork_greet(request, peer)
        except ProxyError:
            if not self._prefork_terms:
                turn_away(request)
            raise
