"""What any thread of the master's process may do: stop the server, and wait for it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .job import nothing
from .signals import Bell
from .worker import current_inline, current_master, in_worker


class Remote:
    """What any thread of the master's process may do: stop the server, and wait for it."""

    def __init__(self) -> None:
        self.stop_asked: bool = False
        self.addresses: Sequence[str] = ()
        self.when_ready: Callable[[], object] = nothing
        self._settled = threading.Event()
        self._over = threading.Event()
        self._ready = False
        self._lock = threading.Lock()
        self._bell: Bell | None = None
        self._thread: threading.Thread | None = None

    def shut_down(self) -> None:
        """Stop gracefully and wait for the end. Before the start it is kept in mind.

        A worker, and a hook in the master's own thread, ask and do not wait.
        """
        if in_worker():
            current_master()._ask_stop()
            return
        with self._lock:
            self.stop_asked = not self._over.is_set()  # what is over need not be stopped
            if self._bell:
                self._bell.ring()
        thread = threading.current_thread()
        # Inline, the end waits for the threads of handlers: they must not wait for it.
        of_handler = current_inline() and thread is not threading.main_thread()
        if thread is not self._thread and not of_handler:
            self._over.wait()

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
    def ringing(self, bell: Bell) -> Iterator[None]:
        with self._lock:
            self._bell = bell
        try:
            yield
        finally:
            with self._lock:  # nobody may ring a descriptor that is soon somebody else's
                self._bell = None

    def is_ready(self, addresses: Sequence[str]) -> None:
        self.addresses = addresses
        self._ready = True
        self._settled.set()
        self.when_ready()
