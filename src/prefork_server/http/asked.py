"""What has been asked, and by whom: made when a handler first asks for it."""

from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import TYPE_CHECKING, Any

from ..reception import is_tls
from .forwarded import believed, origin


class Asked(BaseHTTPRequestHandler):
    """The request as ``http.server`` shows it to a handler, and its client.

    ``scheme`` is that of the client's own connection, ``http`` or ``https``. Where a proxy
    that is listed in ``forwarded_from`` speaks for somebody, ``client_address`` and
    ``scheme`` are what it says of him.
    """

    forwarded_from: Sequence[str] = ()

    client_address: Any
    command: str
    path: str
    requestline: str
    scheme: str = "http"
    _http: Any  # the connection
    _made_file: Any = None
    _made_line: str | None = None
    _made_headers: Any = None

    if not TYPE_CHECKING:  # where they are what http.server says

        @property
        def rfile(self) -> Any:
            """The body of the request: it ends where that ends."""
            if self._made_file is None:
                self.rfile = BytesIO()
            return self._made_file

        @rfile.setter
        def rfile(self, file: Any) -> None:
            self._made_file = file
            self._is_made()

        @property
        def requestline(self) -> str:
            if self._made_line is None:
                asked = self._http.asked
                line = f"{asked.method} {asked.target} {self.request_version}" if asked else ""
                self.requestline = line
            return self._made_line

        @requestline.setter
        def requestline(self, line: str) -> None:
            self._made_line = line
            self._is_made()

        @property
        def headers(self) -> Any:
            """An ``email.message.Message``."""
            if self._made_headers is None:
                message = self.MessageClass()
                for name, value in self._http.asked.fields:
                    message.set_raw(name, value)
                self.headers = message
            return self._made_headers

        @headers.setter
        def headers(self, headers: Any) -> None:
            self._made_headers = headers
            self._is_made()

    def _is_made(self) -> None:
        if self._http:
            self._http.dirty = True

    def forget_request(self) -> None:
        """What was made of the request before this one."""
        self._made_file = self._made_line = self._made_headers = None

    def hear_proxy(self) -> None:
        """Of each request anew: on one connection a proxy speaks for many. Raises ``Reject``;
        until then nothing is left of the request before."""
        peer, peers = self._http.peer, believed(self.forwarded_from)
        command, path = self.command, self.path
        self.command, self.path, self.client_address = "", "", peer
        self.scheme = "https" if is_tls(self.connection) else "http"
        said = origin(self._http.asked, peers) if peer in peers else None
        self.command, self.path = command, path
        if said and said.address:
            self.client_address = (said.address, said.port)
        if said and said.scheme:
            self.scheme = said.scheme
