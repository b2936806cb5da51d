"""How a ``socketserver`` class takes requests: by a ``get_request`` of its own, or by ours."""

import socket
import socketserver
import sys
from collections.abc import Callable
from typing import Any

from .acceptor import ENTRANCE
from .settings import Settings
from .sockets.connection import Waiting
from .worker.accept_loop import AcceptLoop, Taken

_STANDARD = (socketserver.__name__, f"{__package__}.servers")


class Reception:
    """``accept(listener)`` takes a request there, or None where there was none after all, and
    ``process(request, peer)`` serves it.

    The standard ``get_request`` is replaced by what makes a Connection, or never waits for
    a datagram; an overridden one is the class's own business, and is asked.
    """

    def __init__(
        self,
        server: Any,
        loop: AcceptLoop,
        settings: Settings,
        process: Callable[[Any, Any], object],
    ) -> None:
        self._server = server
        self._loop = loop
        self._acceptor = acceptor = loop.acceptor
        self._timeout = settings.timeout
        self._process = process
        self.accept: Callable[[socket.socket], Taken | None]
        self.process: Callable[[Any, Any], object] = process
        stream = server.socket_type == socket.SOCK_STREAM
        foreign = type(server).get_request.__module__ not in _STANDARD
        if stream and (foreign or acceptor.wrap):
            acceptor.lend()
            # How long a handler may be silent whose waiting is not ours.
            silence = settings.timeout and settings.client_timeout
            if silence:
                self._longest = max(settings.timeout or 0, silence)
                self.process = self._process_patiently
        self._get = self._get_connection if stream else self._get_datagram
        own = acceptor.accept if stream else self._receive
        self.accept = self._ask if foreign else own

    def _receive(self, listener: socket.socket) -> Taken | None:
        return self._acceptor.receive(listener, self._server.max_packet_size)

    def _ask(self, listener: socket.socket) -> Taken | None:
        try:
            return self._get(listener)
        except OSError as error:
            self._acceptor.failed(error)
        except Exception:  # user code, before there is a client to answer
            logger = self._loop.heartbeat.logger
            logger.exception("get_request failed", extra={"event": "request_failed"})
        return None

    def _get_datagram(self, listener: socket.socket) -> Taken | None:
        # The loser of the race for it must not wait for the next one.
        self._server.socket = answering = self._acceptor.answering(listener)
        with answering.without_waiting():
            taken: Taken | None = self._server.get_request()
        if taken:
            self._acceptor.took(None)
        return taken

    def _get_connection(self, listener: socket.socket) -> Taken | None:
        self._server.socket = listener  # all that it knows
        if self._timeout:  # it may make a handshake of its own
            self._loop.heartbeat.announce(self._timeout + ENTRANCE)
        taken: Taken | None = self._server.get_request()
        if not taken:
            return None
        request = self._adopted(taken[0])
        self._acceptor.took(request)
        return request, taken[1]

    def _process_patiently(self, request: Any, peer: Any) -> None:
        if not isinstance(request, Waiting):
            # Reading from it and writing to it gives no signs of life.
            self._loop.heartbeat.announce(self._longest)
        self._process(request, peer)

    def _adopted(self, request: Any) -> Any:
        """What the class itself took, with the waiting ours."""
        acceptor = self._acceptor
        if not isinstance(request, socket.socket):
            return request
        acceptor.let_in(request)
        if is_tls(request):
            from .tls import adopt

            return adopt(request, acceptor.watch, request.gettimeout())
        return acceptor.wrap(request, acceptor.watch) if acceptor.wrap else request


def is_tls(sock: object) -> bool:
    ssl = sys.modules.get("ssl")  # who has one of its sockets has imported it
    return ssl is not None and isinstance(sock, ssl.SSLSocket)
