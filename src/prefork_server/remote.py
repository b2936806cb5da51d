"""What any thread of the master's process may do: stop the server, and wait for it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .here import current_master, in_worker
from .job import nothing
from .scoreboard import Scoreboard
from .signals import Bell

if TYPE_CHECKING:
    from .stats import Stats


class Remote:
    """What any thread of the master's process may do: stop the server, and wait for it."""

    def __init__(self) -> None:
        self.stop_asked: bool = False
        self.addresses: Sequence[str] = ()
        self.when_ready: Callable[[Sequence[str]], object] = nothing
        self._settled = threading.Event()
        self._over = threading.Event()
        self._ready = False
        self._handling: set[int] = set()  # the threads that end before we do
        self._lock = threading.Lock()
        self._bell: Bell | None = None
        self._board: Scoreboard | None = None
        self._last_stats: Stats | None = None
        self._thread: threading.Thread | None = None

    def shut_down(self) -> None:
        """Stop gracefully and wait for the end. Before the start it is kept in mind.

        A worker, and a hook in the master's own thread, ask and do not wait.
        """
        if in_worker():
            current_master().heartbeat.ask_stop()
            return
        with self._lock:
            self.stop_asked = not self._over.is_set()  # what is over need not be stopped
            if self._bell:
                self._bell.ring()
        if threading.current_thread() is not self._thread and not self._in_handler():
            self._over.wait()

    def handing(self, serve: Callable[..., Any]) -> Callable[..., Any]:
        """``serve``, in whose thread nobody waits for the end: inline, the end waits for it."""

        def handle(*args: Any) -> Any:
            thread = threading.get_ident()
            self._handling.add(thread)
            try:
                return serve(*args)
            finally:
                self._handling.discard(thread)

        return handle

    def _in_handler(self) -> bool:
        return threading.get_ident() in self._handling

    def handed_over(self, addresses: Sequence[str]) -> None:
        """It is a daemon's now: here nothing is left to wait for."""
        self.addresses = addresses
        self._ready = True
        self._settled.set()
        self._over.set()

    def wait_ready(self, timeout: float | None) -> bool:
        """True when the first worker is ready; False if the time or the server ends before."""
        return self._settled.wait(timeout) and self._ready

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around all that may fail between the start and the end: whoever waits is told."""
        self._over.clear()
        self._settled.clear()
        self._thread = threading.current_thread()
        try:
            yield
        finally:
            self._thread = None
            self._ready = self.stop_asked = False
            self._settled.set()
            self._over.set()

    @contextmanager
    def ringing(self, bell: Bell, board: Scoreboard) -> Iterator[None]:
        with self._lock:
            self._bell, self._board = bell, board
        try:
            yield
        finally:
            from .stats import current

            with self._lock:  # nobody may ring a descriptor that is soon somebody else's
                self._bell = self._board = None
                self._last_stats = current(board)

    def stats(self) -> "Stats":
        """What the server is doing, or what it had done when it ended. RuntimeError before it
        has begun, and in a process that has only started it as a daemon."""
        if in_worker():
            return current_master().stats()
        from .stats import current

        with self._lock:
            if self._board:
                return current(self._board)
            if self._last_stats:
                return self._last_stats
        raise RuntimeError("stats() tells of a server that runs, or has run, in this process")

    def is_ready(self, addresses: Sequence[str]) -> None:
        self.addresses = addresses
        self._ready = True
        self._settled.set()
        self.when_ready(addresses)
