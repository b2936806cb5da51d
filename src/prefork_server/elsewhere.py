"""What a worker serves besides its accept loop: in threads, or in processes of its own."""

import socketserver
import threading
from typing import Any


class Elsewhere:
    """Requests that ThreadingMixIn or ForkingMixIn serve besides the accept loop.

    Nobody joins the daemon threads of ThreadingHTTPServer, for one. But who has begun
    is to be finished, so the worker waits for them before it goes.
    """

    def __init__(self, server: Any) -> None:
        self._children = server if isinstance(server, socketserver.ForkingMixIn) else None
        self._count = 0
        self._changed = threading.Condition()
        if isinstance(server, socketserver.ThreadingMixIn):
            self._begin, self._serve = server.process_request, server.process_request_thread
            vars(server)["process_request"] = self._begin_counted
            vars(server)["process_request_thread"] = self._serve_counted

    def _begin_counted(self, request: Any, peer: Any) -> None:
        self._add(1)  # it is under way before its thread is
        try:
            self._begin(request, peer)
        except BaseException:
            self._add(-1)
            raise

    def _serve_counted(self, request: Any, peer: Any) -> None:
        try:
            self._serve(request, peer)
        finally:
            self._add(-1)

    def _add(self, number: int) -> None:
        with self._changed:
            self._count += number
            self._changed.notify_all()

    def is_busy(self) -> bool:
        """Whether somebody is still being served; waits for a moment if so."""
        if self._children and self._children.active_children:
            self._children.collect_children()
        with self._changed:
            forked = bool(self._children and self._children.active_children)
            if self._count or forked:
                self._changed.wait(0.05)
            return bool(self._count) or forked
