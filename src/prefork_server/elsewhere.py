"""What a worker serves besides its accept loop: in threads, or in processes of its own."""

import socket
import socketserver
import threading
from collections.abc import Callable
from typing import Any

_HERE = (socketserver.BaseServer.process_request, socketserver.ForkingMixIn.process_request)


def _is_open(request: Any) -> bool:
    return isinstance(request, socket.socket) and request.fileno() != -1


class Elsewhere:
    """Requests that ThreadingMixIn or ForkingMixIn serve besides the accept loop.

    Nobody joins the daemon threads of ThreadingHTTPServer, for one. But who has begun
    is to be finished, so the worker waits for them before it goes.
    """

    def __init__(
        self,
        server: Any,
        failed: Callable[[object], None],
        exited: Callable[[SystemExit], None],
        hold: Callable[[int], None],
    ) -> None:
        self._failed, self._exited, self._hold = failed, exited, hold
        self._children = server if isinstance(server, socketserver.ForkingMixIn) else None
        self._count = 0
        self._open: list[socket.socket] = []
        self._changed = threading.Condition()
        if isinstance(server, socketserver.ThreadingMixIn):
            self._begin, self._serve = server.process_request, server.process_request_thread
            vars(server)["process_request"] = self._begin_counted
            vars(server)["process_request_thread"] = self._serve_counted
            whole: Any = server  # not its mix-in alone
            self._finish = whole.finish_request
            vars(server)["finish_request"] = self._finish_watched
        elif type(server).process_request not in _HERE:
            self._begin = server.process_request
            vars(server)["process_request"] = self._begin_kept

    def _begin_counted(self, request: Any, peer: Any) -> None:
        self._add(1)  # it is under way before its thread is
        try:
            self._begin(request, peer)
        except BaseException:
            self._add(-1)
            raise

    def _begin_kept(self, request: Any, peer: Any) -> None:
        """The class's own way, a pool of threads for one: it is under way until it is closed."""
        self._begin(request, peer)
        self._open = [one for one in (*self._open, request) if _is_open(one)]

    def _serve_counted(self, request: Any, peer: Any) -> None:
        try:
            self._serve(request, peer)
        finally:
            self._add(-1)

    def _finish_watched(self, request: Any, peer: Any) -> None:
        """The mix-in keeps to itself what a handler raises."""
        try:
            self._finish(request, peer)
        except SystemExit as error:
            self._exited(error)
            raise
        except BaseException as error:  # user code
            if not getattr(error, "by_client", False):
                self._failed(error)
            raise

    def _add(self, number: int) -> None:
        with self._changed:
            self._count += number
            self._hold(self._count)
            self._changed.notify_all()

    def is_busy(self) -> bool:
        """Whether somebody is still being served; waits for a moment if so."""
        if self._children and self._children.active_children:
            self._children.collect_children()
        with self._changed:
            forked = bool(self._children and self._children.active_children)
            busy = bool(self._count) or forked or any(map(_is_open, self._open))
            if busy:
                self._changed.wait(0.05)
            return busy
