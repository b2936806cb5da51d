"""What has been asked, and by whom: made when a handler first asks for it."""

from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import TYPE_CHECKING, Any

from .forwarded import believed, origin
from .wire import Request


class Asked(BaseHTTPRequestHandler):
    """The request as ``http.server`` shows it to a handler, and its client.

    ``scheme`` is that of the client's own connection, ``http`` or ``https``. Where a proxy
    that is listed in ``forwarded_from`` speaks for somebody, ``client_address`` and
    ``scheme`` are what it says of him.
    """

    forwarded_from: Sequence[str] = ()

    client_address: Any = ""
    command: str
    path: str
    requestline: str
    request_version: str
    scheme: str
    _peer: Any  # the other end of the connection, whoever it speaks for
    _own_scheme: str
    _request: Request
    _made_file: Any = None
    _made_line: str | None = None
    _made_headers: Any = None

    if not TYPE_CHECKING:  # where they are what http.server says

        @property
        def rfile(self) -> Any:
            """The body of the request: it ends where that ends."""
            if self._made_file is None:
                self._made_file = BytesIO()
            return self._made_file

        @rfile.setter
        def rfile(self, file: Any) -> None:
            self._made_file = file

        @property
        def requestline(self) -> str:
            if self._made_line is None:
                request = self._request
                self._made_line = f"{request.method} {request.target} {self.request_version}"
            return self._made_line

        @requestline.setter
        def requestline(self, line: str) -> None:
            self._made_line = line

        @property
        def headers(self) -> Any:
            """An ``email.message.Message``."""
            if self._made_headers is None:
                message = self.MessageClass()
                for name, value in self._request.fields:
                    message.set_raw(name, value)
                self._made_headers = message
            return self._made_headers

        @headers.setter
        def headers(self, headers: Any) -> None:
            self._made_headers = headers

    def _forget(self) -> None:
        """The request before this was perhaps for a HEAD, or by another client of a proxy."""
        self.command, self.path, self.requestline = "", "", ""
        self.client_address = self._peer

    def hear_proxy(self) -> None:
        """Of each request anew: on one connection a proxy speaks for many. Raises ``Reject``;
        until then nothing is left of the request before."""
        self.command, self.path, self.client_address = "", "", self._peer
        peer, peers = self._peer, believed(self.forwarded_from)
        said = origin(self._request, peers) if peer in peers else None
        self.client_address = (said.address, said.port) if said and said.address else peer
        self.scheme = said.scheme if said and said.scheme else self._own_scheme
