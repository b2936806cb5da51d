"""A connection between its requests: parked with the listeners, so that it costs no worker.

Only here is decided what happens next to a connection: wait for a head, answer, wait for the
next one, skip a body that nobody read, or linger. The handler is told when there is something
to do, and never waits for a head.
"""

import functools
import socket
import socketserver
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..scoreboard import in_ns
from ..worker.accept_loop import AcceptLoop, Guest
from .handler import HTTPRequestHandler
from .stream import LINGER, LINGER_BYTES, SIZE
from .wire import Reject, find_head, read_known


class _Parked(socketserver.BaseRequestHandler):
    """Goes before a handler class: nothing is served while it is made, and it ends later."""

    def handle(self) -> None:
        pass

    def finish(self) -> None:
        pass


def parkable(handler: Any) -> Callable[..., Any] | None:
    """A form of this handler class whose connections can be parked; None if it has its own way
    of handling them. A ``functools.partial`` of one will do, too."""
    kind = handler.func if type(handler) is functools.partial else handler
    if not (
        isinstance(kind, type)
        and issubclass(kind, HTTPRequestHandler)
        and kind.handle is HTTPRequestHandler.handle
        and kind.handle_one_request is HTTPRequestHandler.handle_one_request
    ):
        return None
    parked = type(kind.__name__, (_Parked, kind), {"__module__": kind.__module__})
    if kind is handler:
        return parked
    return functools.partial(parked, *handler.args, **handler.keywords)


class Visit(Guest):
    """One connection, from its first byte to its last."""

    awaited: bool = True  # until it has been answered, and while a part of a head is there
    handler: Any
    _step: Callable[[Any], None]  # what to do next: a function, since a method would be a cycle

    def __init__(
        self, server: Any, loop: AcceptLoop, acceptor: Any, request: Any, peer: Any
    ) -> None:
        self.request = request
        self.peer = peer
        self._server = server
        self._heartbeat = loop.heartbeat
        self._acceptor = acceptor
        self._lingered = 0

    def begin(self, make: Callable[..., Any]) -> None:
        """It has just been accepted."""
        handler = self.handler = make(self.request, self.peer, self._server)
        self._stream = handler._stream
        self._limits = handler.limits
        self._pause_ns = in_ns(handler.keep_alive_timeout)
        self._step = Visit._read if handler.wfile is handler._reply else Visit._hold
        self.until_ns = time.monotonic_ns() + in_ns(handler.head_timeout)
        self.resume()

    def _hold(self) -> None:
        """The handler has files of its own, which wait: it keeps its worker."""
        self._heartbeat.begin(self.peer)
        try:
            super(_Parked, self.handler).handle()  # type: ignore[misc]
        finally:
            self._heartbeat.end()
        self._close()

    def dismiss(self) -> None:
        self._close()

    def _keep(self, seconds: float, ready: bool = False) -> None:
        self._acceptor.keep(self, time.monotonic_ns() + in_ns(seconds), ready)

    def resume(self) -> None:
        try:
            self._step(self)
        except BaseException:
            self._finish()
            raise

    def _close(self) -> None:
        self._finish()
        self._server.shutdown_request(self.request)

    def _finish(self) -> None:
        self._acceptor.let_go(self)
        self.handler.lingers = False  # it has
        with suppress(OSError):
            super(_Parked, self.handler).finish()  # type: ignore[misc]

    # Each step ends by keeping the connection for the next one, or closing it.

    def _read(self) -> None:
        """Something of a head has come, or its time is over."""
        stream = self._stream
        begun = stream.buffer
        data = self.request.recv_now(SIZE)  # as fill_now() does, with a call less
        if data and not begun:
            stream.buffer = data
            self._answer()
        elif data is not None and stream.took(data):
            self._answer(begun)
        elif stream.ended:
            self._close()
        elif time.monotonic_ns() < self.until_ns:
            self._acceptor.keep(self, self.until_ns)
        else:
            self._give_up()

    def _give_up(self) -> None:
        self.handler.refuse_slow_head()
        self._leave()

    def _answer(self, begun: bytes | bytearray = b"") -> None:
        """Answer the request at the front of the buffer, if it is whole."""
        handler, stream = self.handler, self._stream
        head = stream.buffer
        request = read_known(head, self._limits)
        if request:
            stream.buffer = b""
        else:
            try:
                end = find_head(head, self._limits, stream.seen)
            except Reject as fault:
                handler.refuse(fault)
                self._leave()
                return
            if not end:
                self._await_more(begun)
                return
            head = stream.take(end)
        self.awaited = False
        self._heartbeat.begin(self.peer)
        try:
            handler.serve_request(head, request)
        except BaseException as error:
            if not handler.lingers:
                raise
            self._server._prefork_report(self.request, self.peer, error)
            self._leave()
            return
        finally:
            self._heartbeat.end()
        if handler.close_connection or handler._body or stream.buffer:
            self._next()
        else:
            self._step = Visit._read
            self._acceptor.keep(self, time.monotonic_ns() + self._pause_ns)

    def _await_more(self, begun: bytes | bytearray) -> None:
        handler, stream = self.handler, self._stream
        stream.seen = len(stream.buffer)
        self.awaited = True
        if handler._served and not begun:
            self.until_ns = time.monotonic_ns() + in_ns(handler.head_timeout)
        elif time.monotonic_ns() >= self.until_ns:
            self._give_up()
            return
        self._step = Visit._read
        self._acceptor.keep(self, self.until_ns)

    def _next(self) -> None:
        handler = self.handler
        if handler.skip_now() is None:
            if self._step is not Visit._next:
                self._step = Visit._next
                self.until_ns = time.monotonic_ns() + in_ns(handler.body_timeout)
            elif time.monotonic_ns() >= self.until_ns:
                self._close()
                return
            self._acceptor.keep(self, self.until_ns)
        elif handler.close_connection:
            self._leave()
        elif self._stream.buffer:
            self._step = Visit._answer
            self._keep(handler.head_timeout, ready=True)
        else:
            self._step = Visit._read
            self._keep(handler.keep_alive_timeout)

    def _leave(self) -> None:
        """Close it; if bytes that nobody read may be on their way, not at once."""
        handler = self.handler
        if handler._reply.half or not (handler.lingers or self._stream.buffer):
            self._close()
            return
        with suppress(OSError):
            self.request.shutdown(socket.SHUT_WR)
        self._step = Visit._linger
        self._keep(LINGER)

    def _linger(self) -> None:
        data: bytes | None = b""
        with suppress(OSError):
            data = self.request.recv_now(SIZE)
        self._lingered += len(data or b"")
        over = time.monotonic_ns() >= self.until_ns or self._lingered > LINGER_BYTES
        if data == b"" or over:
            self._close()
        else:
            self._acceptor.keep(self, self.until_ns)
