"""TLS: connections that wait as ``Connection`` does, and listeners taken apart.

Imported where a program has an SSLSocket, and only there: ``ssl`` is heavy.
"""

import errno
import select
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from .clock import Clock
from .errors import ConfigError
from .sockets.connection import Waiting, Watch

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

HANDSHAKE = 10.0
"""Seconds for all of a handshake. It is a few round trips, and whoever is slower has asked
for nothing yet. A limit of each silence alone would let bytes that trickle in hold a place."""

_PIECE = 1 << 16
"""Bytes of a ``send``. OpenSSL would take all there are, and none before the last has left: a
limit on what the client takes next would be one on what it takes in all."""

_UNFINISHED = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError)
_BY_CLIENT = (ConnectionError, TimeoutError, ssl.SSLError)


class TLSConnection(Waiting, ssl.SSLSocket):
    """An ``SSLSocket`` that waits as a ``Connection`` does.

    ``timeout``, ``by_client`` and the end of the worker mean the same. What goes wrong in
    TLS itself is by the client, too. Below, the descriptor never blocks.
    """

    _sslobj: Any  # None after shutdown() and unwrap(): then it speaks, and waits, in plain

    def recv(self, buflen: int = 1024, flags: int = 0) -> Any:
        if self._sslobj and not flags:
            return self.read(buflen)
        return self._persist(super().recv, True, b"", buflen, flags)

    def recv_into(
        self, buffer: "WriteableBuffer", nbytes: int | None = None, flags: int = 0
    ) -> Any:
        nbytes = nbytes or memoryview(buffer).nbytes
        if self._sslobj and not flags:
            return self.read(nbytes, buffer)
        return self._persist(super().recv_into, True, 0, buffer, nbytes, flags)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - ssl's name
        return self._persist(super().read, True, b"" if buffer is None else 0, len, buffer)

    def recv_now(self, bufsize: int) -> bytes | None:
        """What is there, at most so many bytes; None if that is nothing yet. It never waits.

        What was decrypted and is longer stays with us, and ``pending()`` is how much of it."""
        read = super().read if self._sslobj else super().recv
        try:
            data: bytes = self._attempt(read, bufsize)
        except (ssl.SSLWantReadError, BlockingIOError):
            return None
        except ssl.SSLWantWriteError as wants:
            # It takes nothing of what we say, and changes its keys. To wait for both would be
            # for the sake of nobody but who wants to keep us waiting.
            failure = ConnectionAbortedError("it wants an answer, and takes none")
            failure.by_client = True  # type: ignore[attr-defined]
            raise failure from wants
        self._asked = True
        return data

    def send(self, data: "ReadableBuffer", flags: int = 0) -> Any:
        """As ever, some of it is sent, and how much is returned."""
        return self._persist(super().send, False, None, _beginning(data), flags)

    def send_now(self, data: "ReadableBuffer") -> int:
        """As many bytes as there is room for; 0 if for none. It never waits. After 0 the next
        that is sent must begin with the same."""
        try:
            sent: int = self._attempt(super().send, _beginning(data))
        except _UNFINISHED:
            return 0
        self._asked = False
        return sent

    def write(self, data: "ReadableBuffer") -> Any:
        return self._persist(super().write, False, None, data)

    def sendall(self, data: "ReadableBuffer", flags: int = 0) -> None:
        with memoryview(data) as view, view.cast("B") as rest:
            sent = 0
            while sent < len(rest):
                sent += self.send(rest[sent:], flags)

    def do_handshake(self, block: bool = False) -> None:
        """``TimeoutError`` after HANDSHAKE seconds in all; after ``timeout``, if that is less."""
        self.shake_hands(HANDSHAKE)

    def shake_hands(self, seconds: float) -> None:
        """The same, after so many seconds."""
        last = Clock.monotonic() + min(seconds, self.client_timeout or seconds)
        self._persist(super().do_handshake, True, None, last=last)
        self._asked = False  # it has only connected

    def shake_hands_now(self) -> int:
        """As much of it as can be done without waiting. Returns what has to be waited for then,
        POLLIN or POLLOUT; 0: it is done."""
        try:
            self._attempt(super().do_handshake)
        except ssl.SSLWantReadError:
            return select.POLLIN
        except ssl.SSLWantWriteError:
            return select.POLLOUT
        return 0

    def unwrap(self) -> Any:
        return self._persist(super().unwrap, True, None)

    def shutdown(self, how: int) -> None:
        # The standard library omits the goodbye that tells a whole answer from one cut short,
        # and clients complain. We say it if there is room, and await no reply.
        if self._sslobj and how != socket.SHUT_RD:
            with suppress(OSError, ValueError):
                self._sslobj.shutdown()
        super().shutdown(how)

    def _attempt(self, operation: Callable[..., Any], *args: Any) -> Any:
        try:
            return operation(*args)
        except _UNFINISHED:
            raise
        except _BY_CLIENT as failure:
            failure.by_client = True  # type: ignore[union-attr]
            raise

    def _persist(
        self,
        operation: Callable[..., Any],
        reading: bool,
        nothing: Any,
        *args: Any,
        last: float | None = None,
    ) -> Any:
        try:
            while True:
                try:
                    result = operation(*args)
                except _UNFINISHED as wants:
                    if self.client_timeout == 0:
                        raise
                    if reading and self._hasty == threading.get_ident():
                        raise BlockingIOError(errno.EAGAIN, "nothing yet") from None
                    said = type(wants)  # a handshake may have to read, and then to write
                    read = reading if said is BlockingIOError else said is ssl.SSLWantReadError
                    if not self._wait(select.POLLIN if read else select.POLLOUT, reading, last):
                        if nothing is None:
                            raise ConnectionAbortedError("nothing came, and we go") from None
                        return nothing
                    # Part of a record, perhaps: who has begun to ask is waited for.
                    self._asked = self._asked or (reading and read)
                else:
                    self._asked = reading
                    self.watch.beat()
                    return result
        except _UNFINISHED:  # a timeout of 0 is the handler's own wish
            raise
        except _BY_CLIENT as failure:
            failure.by_client = True  # type: ignore[union-attr]
            raise


def _beginning(data: "ReadableBuffer") -> "ReadableBuffer":
    if type(data) is bytes and len(data) <= _PIECE:
        return data
    return memoryview(data).cast("B")[:_PIECE]


def adopt(sock: Any, watch: Watch, client_timeout: float | None) -> ssl.SSLSocket:
    """Have it wait as a ``TLSConnection``; one of a class of the program's own stays as it is."""
    if type(sock) is ssl.SSLSocket:
        sock.setblocking(False)
        sock.__class__ = TLSConnection
        vars(sock).update(watch=watch, client_timeout=client_timeout)
    return sock  # type: ignore[no-any-return]


def shake_hands(request: Any, seconds: float) -> None:
    """Before anything is read; it may take so long. An OSError of it is ``by_client``."""
    if isinstance(request, ssl.SSLSocket):
        client_timeout = request.gettimeout()
        try:
            if isinstance(request, TLSConnection):
                request.shake_hands(seconds)
            else:
                request.settimeout(min(seconds, client_timeout or seconds))
                request.do_handshake()
                request.settimeout(client_timeout)
        except OSError as failure:
            failure.by_client = True  # type: ignore[attr-defined]
            raise


class Terms(NamedTuple):
    """What a listening SSLSocket was made with, and its connections shall be."""

    context: ssl.SSLContext
    handshake: bool
    ragged: bool

    def wrap(self, connection: socket.socket, watch: Watch) -> ssl.SSLSocket:
        """TLS from here on, the handshake yet to come. OSError: the client is gone."""
        client_timeout = connection.gettimeout()
        with connection:  # it is empty after this, or to be closed
            connection.getpeername()  # after a reset, wrap_socket fails and leaves one unclosed
            wrapped = self.context.wrap_socket(connection, True, False, self.ragged)
        return adopt(wrapped, watch, client_timeout)


def terms(context: Any) -> Terms:
    """Those of our own servers: an end without a goodbye is an error. Raises ConfigError."""
    if not isinstance(context, ssl.SSLContext):
        raise ConfigError(f"ssl_context must be an ssl.SSLContext, not {context!r}")
    if context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise ConfigError(
            "ssl_context must be for a server, and PROTOCOL_TLS_CLIENT is for clients"
        )
    return Terms(context, handshake=True, ragged=False)


def take_apart(listener: Any) -> tuple[socket.socket, Terms]:
    """A plain listener in place of this one, and on what terms its connections are wrapped."""
    terms = Terms(listener.context, listener.do_handshake_on_connect, listener.suppress_ragged_eofs)
    kinds = int(listener.family), int(listener.type), listener.proto
    return socket.socket(*kinds, listener.detach()), terms
