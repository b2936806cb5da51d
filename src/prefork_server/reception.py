"""How a worker takes requests for a ``socketserver`` class: one after the other, or None when
there was nothing to take after all."""

import socket
import socketserver
import sys
from collections.abc import Callable
from typing import Any

from .acceptor import ENTRANCE, Acceptor
from .handle import MasterHandle
from .settings import Settings
from .vigil import Waiting

_Taken = tuple[Any, Any] | None  # request and peer, as get_request() returns them

_STANDARD = (socketserver.TCPServer.get_request, socketserver.UDPServer.get_request)


class Reception:
    """``take(listener)``, when somebody waits there.

    The standard ``get_request`` is replaced by what makes a Connection, or never waits for
    a datagram; an overridden one is the class's own business, and is asked.
    """

    def __init__(
        self, server: Any, master: MasterHandle, acceptor: Acceptor, settings: Settings
    ) -> None:
        self._server = server
        self._master = master
        self._acceptor = acceptor
        self._timeout = settings.timeout
        # How long a handler may be silent whose waiting is not ours; None: for ever.
        silence = settings.timeout and settings.client_timeout
        self._longest = max(settings.timeout or 0, silence) if silence else None
        self.take: Callable[[socket.socket], _Taken]
        stream = server.socket_type == socket.SOCK_STREAM
        foreign = type(server).get_request not in _STANDARD
        if stream and (foreign or acceptor.wrap):
            acceptor.lend()
        if foreign:
            self.take = self._ask if stream else self._ask_for_datagram
        else:
            self.take = self._accept if stream else self._receive

    def _accept(self, listener: socket.socket) -> _Taken:
        taken = self._acceptor.accept(listener)
        if taken:
            request, peer = taken
            if self._acceptor.wrap:  # in what waits as we do, or in a class of the context's own
                self._took(request, peer)
            else:
                self._master._took(peer, not self._server._prefork_parks(request))
        return taken

    def _receive(self, listener: socket.socket) -> _Taken:
        taken = self._acceptor.receive(listener, self._server.max_packet_size)
        if taken:
            self._master._took(taken[1])
        return taken

    def _ask_for_datagram(self, listener: socket.socket) -> _Taken:
        # Who loses the race for it must not wait for the next one.
        self._server.socket = answering = self._acceptor.answering(listener)
        with answering.without_waiting():
            taken: _Taken = self._server.get_request()
        if taken:
            self._acceptor.took(None)
            self._master._took(taken[1])
        return taken

    def _ask(self, listener: socket.socket) -> _Taken:
        self._server.socket = listener  # all that it knows
        if self._timeout:  # it may make a handshake of its own
            self._master.wants_me_alive(self._timeout + ENTRANCE)
        taken: _Taken = self._server.get_request()
        if not taken:
            return None
        request, peer = self._adopted(taken[0]), taken[1]
        self._acceptor.took(request)
        self._took(request, peer)
        return request, peer

    def _took(self, request: Any, peer: Any) -> None:
        self._master._took(peer, not self._server._prefork_parks(request))
        if self._longest and not isinstance(request, Waiting):
            # Reading from it and writing to it gives no signs of life.
            self._master.wants_me_alive(self._longest)

    def _adopted(self, request: Any) -> Any:
        """What the class itself took, with the waiting ours."""
        acceptor = self._acceptor
        if not isinstance(request, socket.socket):
            return request
        acceptor.let_in(request)
        if is_tls(request):
            from .tls import adopt

            return adopt(request, acceptor.vigil, request.gettimeout())
        return acceptor.wrap(request, acceptor.vigil) if acceptor.wrap else request


def is_tls(sock: object) -> bool:
    ssl = sys.modules.get("ssl")  # who has one of its sockets has imported it
    return ssl is not None and isinstance(sock, ssl.SSLSocket)
