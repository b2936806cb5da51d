"""What comes before the first request: for whom the client speaks, and the TLS handshake.

Whoever has not come so far is a guest of the acceptor, as one between two requests is, and costs
no worker. What comes after is decided in ``visit``.
"""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from select import EPOLLIN
from typing import Any, Final

from ..proxy import Introduction, ProxyError
from ..scoreboard import in_ns
from ..worker.accept_loop import AcceptLoop, Guest
from .stream import LINGER, LINGER_BYTES, SIZE, linger

_REFUSAL: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 25\r\n"
    b"Connection: close\r\n\r\nThere is no PROXY header."
)


def turn_away(request: Any) -> None:
    """Where the handler has a worker of its own anyway."""
    with suppress(OSError):
        request.sendall(_REFUSAL)
    linger(request)


class Entrance(Guest):
    """One connection, from when it was accepted until its first byte of HTTP can be read."""

    peer: Any
    until_ns: int
    awaited: bool = True  # a client that has just connected has begun a request
    _step: Callable[[], None]  # what to do next

    def __init__(
        self,
        server: Any,
        loop: AcceptLoop,
        request: Any,
        peer: Any,
        go_in: Callable[[Any, Any, Any], None],
    ) -> None:
        self.request = request
        self.peer = peer
        self._server = server
        self._acceptor = loop
        self._go_in = go_in
        self._event = EPOLLIN
        self._left = LINGER_BYTES
        self._is_tls = hasattr(request, "shake_hands_now")

    def begin(self, head_timeout: float) -> None:
        """It has just been accepted."""
        if self.peer in self._server._prefork_proxies:
            self._introduction = Introduction(self.peer)
            self._allow(head_timeout)
            self._step = self._listen
        else:
            self._prepare()
            if self._is_tls:
                self._acceptor.keep(self, self.until_ns)
                return
        self.resume()

    def resume(self) -> None:
        try:
            self._step()
        except BaseException:
            self._acceptor.let_go(self)
            raise

    def dismiss(self) -> None:
        self._close()

    def _allow(self, seconds: float) -> None:
        self.until_ns = time.monotonic_ns() + in_ns(seconds)

    # Each step goes on to the next one, keeps the connection for itself, or closes it.

    def _listen(self) -> None:
        try:
            whole = self._introduction.take_now(self.request)
        except ProxyError as fault:
            if self._is_tls:
                raise
            self._server._prefork_report(self.request, self.peer, fault)
            self._refuse()
            return
        if whole:
            self.peer = self._introduction.peer
            self._prepare()
            self._step()
        else:
            self._await(EPOLLIN)

    def _prepare(self) -> None:
        if self._is_tls:
            self._allow(self._server.handshake_timeout)
            self._step = self._shake_hands
        else:
            self._step = self._enter

    def _shake_hands(self) -> None:
        event = self.request.shake_hands_now()
        if event:
            self._await(event)
        else:
            self._enter()

    def _enter(self) -> None:
        self._acceptor.let_go(self)
        acceptor: Any = _Attentive(self._acceptor) if self._is_tls else self._acceptor
        # What goes wrong in there is about whom a proxy spoke for, and not about the proxy.
        try:
            self._go_in(acceptor, self.request, self.peer)
        except BaseException as error:  # user code
            self._server._prefork_failed(self.request, self.peer, error)

    def _await(self, event: int) -> None:
        if time.monotonic_ns() >= self.until_ns:
            failure = TimeoutError("timed out")
            failure.by_client = True  # type: ignore[attr-defined]
            raise failure
        if event != self._event:  # a handshake may have to read, and then to write
            self._acceptor.let_go(self)
            self._event = event
        self._acceptor.keep(self, self.until_ns, event=event)

    def _refuse(self) -> None:
        self.awaited = False
        with suppress(OSError):
            self.request.send_now(_REFUSAL)
            self.request.shutdown(socket.SHUT_WR)
        self._allow(LINGER)
        self._step = self._linger
        self._linger()

    def _linger(self) -> None:
        """Closed at once, it would be answered with a reset, and our answer be lost."""
        data: bytes | None = b""
        with suppress(OSError):
            data = self.request.recv_now(SIZE)
        self._left -= len(data or b"")
        if data == b"" or self._left < 0 or time.monotonic_ns() >= self.until_ns:
            self._close()
        else:
            self._acceptor.keep(self, self.until_ns)

    def _close(self) -> None:
        self._acceptor.let_go(self)
        self._server.shutdown_request(self.request)


class _Attentive:
    """The acceptor, for visits over TLS: what has been decrypted and nobody read yet, epoll does
    not tell of."""

    def __init__(self, acceptor: AcceptLoop) -> None:
        self._acceptor = acceptor
        self.let_go = acceptor.let_go

    def keep(self, guest: Guest, until_ns: int, ready: bool = False) -> None:
        self._acceptor.keep(guest, until_ns, ready or guest.request.pending() > 0)
