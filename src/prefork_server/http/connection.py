"""One HTTP connection as a state machine, from its first byte to its close.

PROXY header, TLS handshake, head, request, the rest of a body, linger: each step takes what has
come and waits for nothing; then the connection is parked for the next step, or closed. Nothing
else decides when a connection ends. ``Held`` is the same where a connection has a worker, or a
thread, to itself, as in the servers of others: there the steps may wait.
"""

import socket
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from functools import cached_property
from io import BufferedReader, BytesIO
from select import EPOLLIN
from socketserver import BaseRequestHandler
from typing import Any, Final, NoReturn

from ..clock import Clock
from ..job import nothing
from ..proxy import Introduction, ProxyError
from ..scoreboard import SECOND, in_ns
from ..sockets.connection import Connection, Waiting
from ..worker.accept_loop import Guest
from .access import log_answer
from .stream import LINGER, LINGER_BYTES, SIZE, Body, Stream, linger
from .wire import LIMITS, Limits, Reject, Request, find_head, known_requests, read_head, read_known

ENOUGH: Final = 65536  # bytes of a body that was not read are skipped; after more it closes
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_REFUSAL: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 25\r\n"
    b"Connection: close\r\n\r\nThere is no PROXY header."
)
_SAYS: Final = ("send_response", "send_header", "end_headers")
_new = object.__new__

_Step = Callable[[Any], Request | None]  # returns a request that is to be answered


def turn_away(request: Any) -> None:
    """Where a client that began without its PROXY header has a worker to itself."""
    with suppress(OSError):
        request.sendall(_REFUSAL)
    linger(request)


class Parked(BaseRequestHandler):
    """Goes before a handler class: nothing is served while it is made, and it ends later."""

    def __init_subclass__(cls) -> None:
        pass  # that of the handler class may want arguments, and has been called for it

    def handle(self) -> None:
        pass

    def finish(self) -> None:
        pass


class Service:
    """What all connections of a worker have in common: the class of their handlers, and what
    serves and parks them. ``args`` and ``keywords`` are those of a ``functools.partial``."""

    def __init__(
        self, kind: Any, args: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> None:
        self.kind: Any = kind
        self.args: tuple[Any, ...] = args
        self.keywords: dict[str, Any] = keywords or {}
        # Whether to make a handler is to set its attributes, and nothing else.
        self.simple: bool = kind.__init__ is BaseRequestHandler.__init__
        self.finishes: bool = False  # whether the class has a finish()
        self.parses: bool = kind.has_own("parse_request")
        self.asks: bool = bool(kind.forwarded_from) or self.parses  # before each request
        self.logs: bool = kind.access_log
        self.tells: bool = kind.logs_requests or kind.has_own("log_request")
        self.plain: bool = not kind.has_own("send_response_only")
        self.repeats: bool = self.plain and not (self.tells or kind.has_own(*_SAYS))
        self.most: int = kind.max_requests
        self.limits: Limits = kind.limits
        self.known: Callable[[Any], Request | None] = (
            known_requests if kind.limits is LIMITS else nothing
        )
        self.rate: float = kind.minimum_rate
        self.head_ns: int = in_ns(kind.head_timeout)
        self.pause_ns: int = in_ns(kind.keep_alive_timeout)
        self.begin: Callable[[Any], object] = nothing  # a request of this peer
        self.end: Callable[[], object] = nothing  # of that request
        self.is_over: Callable[[], object] = nothing  # whether the worker is to go
        self.keep: Callable[..., None]
        self.let_go: Callable[[Guest], object] = nothing
        self.server: Any = None

    @cached_property
    def over_tls(self) -> "Service":
        """What was decrypted and not read yet, epoll does not tell of."""
        service, keep = copy(self), self.keep

        def keep_unless_pending(guest: Guest, until_ns: int, ready: bool = False) -> None:
            keep(guest, until_ns, ready or guest.request.pending() > 0)

        service.keep = keep_unless_pending
        return service

    def arrive(self, request: Any, peer: Any) -> None:
        """It was accepted."""
        http = _new(HTTPConnection)
        http.prepare(self, request, peer)
        if type(request) is Connection and peer not in self.server._prefork_proxies:
            http.make_handler()
        else:
            http.enter()
            return
        http.resume()


class HTTPConnection(Stream, Guest):
    """A parked connection."""

    # Not in the class: CPython 3.11 is slow with what has a value there, too.
    __slots__ = (
        "asked", "awaited", "body", "buffer", "connection", "dirty", "handler", "head", "peer",
        "reply", "request", "served", "service", "step", "until_ns",
    )  # fmt: skip
    awaited: bool  # by a stop, for a little
    body: Body | None
    buffer: bytes | bytearray
    connection: Any
    handler: Any
    head: bytes  # of the last request, as it came
    peer: Any
    request: Any
    seen: int
    until_ns: int  # 0: no time limit runs yet

    lingers: bool = False  # whether bytes that were not read may be on their way at the end
    _left: int = LINGER_BYTES
    _event: int = EPOLLIN

    def prepare(self, service: Service, connection: Any, peer: Any) -> None:
        self.service: Service = service
        self.request = self.connection = connection
        self.peer = peer
        self.handler = None
        self.reply: Any = None  # what the handler writes to
        self.asked: Any = None  # the last request
        self.body = None  # of it, if that did not come with the head
        self.buffer = b""
        self.served: int = 0  # requests
        self.awaited = True  # until it has been answered, and while a part of a head is there
        self.until_ns = 0
        self.dirty: bool = False  # whether anything was made of the last request
        self.step: _Step | None = None  # what comes next; None: a head. Bound, it would be a cycle

    # From the accept to the handler

    def enter(self) -> None:
        """Something may come before HTTP."""
        if self.peer in self.service.server._prefork_proxies:
            self._introduction = Introduction(self.peer)
            self.until_ns = Clock.monotonic_ns() + self.service.head_ns
            self.step = HTTPConnection._introduce
        else:
            self._secure()
        try:
            self.resume()
        except BaseException as error:  # user code, about the client that a proxy has named
            self.service.server._prefork_failed(self.request, self.peer, error)

    def _introduce(self) -> Request | None:
        try:
            whole = self._introduction.take_now(self.connection)
        except ProxyError as fault:
            if hasattr(self.connection, "shake_hands_now"):
                raise
            self._report(fault)
            with suppress(OSError):
                self.connection.send_now(_REFUSAL)
            self._linger_on()
            return None
        if not whole:
            self._await(EPOLLIN)
            return None
        self.peer = self._introduction.peer
        self._secure()
        return self.step(self)  # type: ignore[misc]

    def _secure(self) -> None:
        self.step = HTTPConnection._open
        if hasattr(self.connection, "shake_hands_now"):
            self.until_ns = Clock.monotonic_ns() + in_ns(self.service.server.handshake_timeout)
            self.step = HTTPConnection._shake_hands

    def _shake_hands(self) -> Request | None:
        event = self.connection.shake_hands_now()
        if event:
            self._await(event)
            return None
        if self._event != EPOLLIN:
            self.service.let_go(self)
        self.service = self.service.over_tls
        return self._open()

    def _await(self, event: int) -> None:
        if Clock.monotonic_ns() >= self.until_ns:
            failure = TimeoutError("timed out")
            failure.by_client = True  # type: ignore[attr-defined]
            raise failure
        if event != self._event:  # a handshake may have to read, and then to write
            self.service.let_go(self)
            self._event = event
        self.service.keep(self, self.until_ns, event=event)

    def _open(self) -> Request | None:
        """What comes before HTTP is over."""
        self.until_ns, self.step = 0, None
        self.make_handler()
        return self.step(self) if self.step else self._read(self.connection.recv_now(SIZE))

    def make_handler(self) -> None:
        """What its class does when it is called, but that it does not serve yet."""
        service = self.service
        kind = service.kind
        if service.simple:
            self.handler = handler = _new(kind)
            handler._http = self
            handler.request, handler.client_address = self.request, self.peer
            handler.server = service.server
            handler.setup()
        else:
            args = (*service.args, self.request, self.peer, service.server)
            self.handler = handler = kind.__new__(kind, *args, **service.keywords)
            handler._http = self
            handler.__init__(*args, **service.keywords)
        if handler.wfile is not self.reply:
            self.step = HTTPConnection._hold

    def _hold(self) -> None:
        """The handler has files of its own, which wait: it keeps its worker."""
        self.service.finishes = True  # it closes them
        self.service.begin(self.peer)
        try:
            super(Parked, self.handler).handle()  # type: ignore[misc]
        finally:
            self.service.end()
        self._close()

    # A step. It ends by having the connection kept for the next one, or closed.

    def resume(self) -> None:
        service, request = self.service, None
        try:
            try:
                if self.step is None:
                    data = self.request.recv_now(SIZE)
                    request = None if self.buffer else service.known(data)
                    if request is None:
                        request = self._read(data)
                    else:
                        self.head = data
                else:
                    request = self.step(self)
                    service = self.service  # after a handshake it is another one
                if request is None:
                    return
                service.begin(self.peer)
                handler, reply = self.handler, self.reply
                self.awaited = False
                self.served += 1
                self.asked = request
                if self.dirty:
                    self._forget()
                reply.reset()
                handler.command = request.method
                handler.target = request.target
                handler.path, handler.request_version, closes = request.shown
                handler.close_connection = closes or handler.protocol_version < "HTTP/1.1"
                if (request.said.length == 0 and not service.asks) or self._admit(request):
                    handler.dispatch()
                if service.logs or self.body or not reply.whole:
                    self._complete()
            except BaseException as error:
                if request is None:
                    raise
                self._failed(error)
            finally:
                if request is not None:
                    service.end()
            if handler.close_connection or self.body or self.buffer:
                self._go_on()
            else:
                service.keep(self, Clock.monotonic_ns() + service.pause_ns)
        except BaseException:
            self._finish()
            raise

    def dismiss(self) -> None:
        self._close()

    def _read(self, data: bytes | None) -> Request | None:
        """This has come of a head that is not whole, or not known. None: the time is over, or
        nothing has come."""
        begun = bool(self.buffer)
        if data is not None and self.took(data):
            return self._take_head(begun)
        self.until_ns = self.until_ns or Clock.monotonic_ns() + self.service.head_ns
        if self.ended:
            self._close()
        elif Clock.monotonic_ns() < self.until_ns:
            self.service.keep(self, self.until_ns)
        else:
            self._give_up()
        return None

    def _take_head(self, begun: bool = False) -> Request | None:
        """The request at the front of the buffer, if its head is whole."""
        self.step, limits = None, self.service.limits
        try:
            end = find_head(self.buffer, limits, self.seen)
            if end:
                head = bytes(self.buffer[:end])
                request = read_known(head, limits) or read_head(head, limits)
                self.head = self.take(end)
                return request
        except Reject as fault:
            self.handler.refuse(fault)
            self._leave()
            return None
        self.seen = len(self.buffer)
        self.awaited = True
        if not self.until_ns or (self.served and not begun):
            self.until_ns = Clock.monotonic_ns() + self.service.head_ns
        if Clock.monotonic_ns() < self.until_ns:
            self.service.keep(self, self.until_ns)
        else:
            self._give_up()
        return None

    def _give_up(self) -> None:
        """Only a client that had begun to ask is told."""
        self.handler.close_connection = True
        if self.buffer:
            self.handler.refuse(Reject(408, "The head of the request did not come in time."))
        self._leave()

    def _admit(self, request: Request) -> bool:
        """What comes before the handler's method. False: the request was answered."""
        handler = self.handler
        if handler.forwarded_from:
            handler.hear_proxy()
        welcome = request.length == 0 or self._expect_body(request)
        return welcome and (not self.service.parses or handler.parse_request())

    def _expect_body(self, request: Request) -> bool:
        handler, length = self.handler, request.length
        if length is not None and length <= len(self.buffer):
            handler.rfile = BytesIO(self.take(length))
        else:
            limits, timeout = self.service.limits, handler.body_timeout
            self.body = Body(self, length, limits, timeout, self._welcome)
            handler.rfile = BufferedReader(self.body, 65536)
        return not request.expects_continue or handler.handle_expect_100()

    def _welcome(self) -> None:
        reply = self.reply
        if self.asked.expects_continue and not self.buffer and not reply.begun:
            reply.interim(_CONTINUE)

    def is_last(self) -> bool:
        """Whether the connection ends after this answer, whatever the handler wants."""
        if self.served >= self.service.most or self.service.is_over():
            return True
        body = self.body
        if body is None or body.finished:
            return False
        waits = self.asked.expects_continue and not body.started
        return waits or body.left is None or body.left > ENOUGH  # it would have to be skipped

    def _forget(self) -> None:
        self.dirty, self.body = False, None
        self.handler.forget_request()

    def _complete(self) -> None:
        """After the handler's method, where that was not all."""
        handler, reply = self.handler, self.reply
        if self.body or not reply.whole:
            handler._end(reply)
        if handler.access_log:
            log_answer(handler, self.head)

    def _failed(self, error: BaseException) -> None:
        """What was raised while a request was answered, by user code or by what was read of it."""
        handler = self.handler
        if isinstance(error, Reject):
            handler.answer_fault(error)
        else:
            handler.answer_failure(error)
        if handler.access_log:
            log_answer(handler, self.head)
        if not isinstance(error, Reject):
            if not self.lingers:
                raise error
            self._report(error)

    def _report(self, error: BaseException) -> None:
        self.service.server._prefork_report(self.request, self.peer, error)

    # After an answer

    def _go_on(self) -> None:
        """Skip what was not read of the body, as far as it has come; then leave, or go on."""
        handler, body = self.handler, self.body
        if body and not handler.close_connection:
            try:
                skipped = body.discard_now(ENOUGH)
            except (Reject, TimeoutError):
                skipped = False
            if skipped is None:
                if self.step is None:
                    self.step = HTTPConnection._go_on
                    self.until_ns = Clock.monotonic_ns() + in_ns(handler.body_timeout)
                if Clock.monotonic_ns() < self.until_ns:
                    self.service.keep(self, self.until_ns)
                else:
                    self._close()
                return
            self.body = None
            if not skipped:
                handler.close_connection = self.lingers = True
        if handler.close_connection:
            self._leave()
            return
        self.step = HTTPConnection._take_head if self.buffer else None
        self.service.keep(self, Clock.monotonic_ns() + self.service.pause_ns, bool(self.buffer))

    def _leave(self) -> None:
        """Close it; if bytes that were not read may be on their way, not at once: that would be
        answered with a reset, and take the answer from the client (RFC 9112 9.6)."""
        if self.reply.half or not (self.lingers or self.buffer):
            self._close()
        else:
            self._linger_on()

    def _linger_on(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
        self.awaited, self.step = False, HTTPConnection._linger
        self.service.keep(self, Clock.monotonic_ns() + in_ns(LINGER))

    def _linger(self) -> None:
        data: bytes | None = b""
        with suppress(OSError):
            data = self.connection.recv_now(SIZE)
        self._left -= len(data or b"")
        if data == b"" or self._left < 0 or Clock.monotonic_ns() >= self.until_ns:
            self._close()
        else:
            self.service.keep(self, self.until_ns)

    def _close(self) -> None:
        self._finish()
        self.service.server.shutdown_request(self.request)

    def _finish(self) -> None:
        self.service.let_go(self)
        handler, self.handler, self.body = self.handler, None, None  # it would be a cycle
        if handler and self.service.finishes:
            with suppress(OSError):
                super(Parked, handler).finish()  # type: ignore[misc]
        if self.reply and self.reply.half:
            self.reply.cut()

    def end(self) -> None:
        """Called when the handler has finished."""


class Held(HTTPConnection):
    """A connection whose handler waits for it, on a socket of ours or of others."""

    over: bool = False
    body: Body | None
    handler: Any
    request: Any
    until_ns: int

    def __init__(self, handler: Any) -> None:
        self.prepare(Service(type(handler)), handler.request, handler.client_address)
        self.handler = handler
        self.request = self  # what the steps read from
        self.service.keep = self._keep
        if isinstance(self.connection, Waiting):
            self.service.is_over = self.connection.is_over

    def serve_one(self) -> None:
        """Wait for a request, answer it, and skip its body."""
        served = self.served
        if not served:
            self.until_ns = Clock.monotonic_ns() + self.service.head_ns
        while not self.over and (self.served == served or self.body):
            self.resume()
        if self.over:
            self.handler.close_connection = True

    def recv_now(self, size: int) -> Any:
        """It waits, as long as it may."""
        self.allow(max(0.001, (self.until_ns - Clock.monotonic_ns()) / SECOND))
        try:
            return self.connection.recv(size)
        except TimeoutError:
            self.until_ns = 1  # long ago
            return None

    def fill_now(self) -> bool:
        return self.fill()

    def _keep(self, guest: Guest, until_ns: int, ready: bool = False) -> None:
        self.until_ns = until_ns

    def _report(self, error: BaseException) -> NoReturn:
        raise error

    def _leave(self) -> None:
        self.over = True

    _close = _finish = _leave

    def end(self) -> None:
        if self.reply.half:
            self.reply.cut()
        elif self.lingers or self.buffer:
            linger(self.connection)
        self.handler = self.request = self.body = None
        self.service.keep = nothing
