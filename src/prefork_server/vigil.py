"""What waiting for a client means in a worker: in slices, with a sign of life each.

It knows no scoreboard and no signal: a ``Vigil`` is all it is given of the worker.
"""

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    _Socket = socket.socket
else:
    _Socket = object

FAREWELL = 1.0  # seconds a retiring worker waits for a client that has asked for nothing


class Vigil:
    """What waiting means in this worker: one for all its connections.

    ``beat`` gives a sign of life, ``is_over`` says whether the worker is to go,
    ``bell`` is a descriptor that is readable when it may have become so,
    ``hush`` silences that, ``pause`` is the length of a slice in seconds.
    """

    __slots__ = ("beat", "bell", "hush", "is_over", "pause")

    def __init__(
        self,
        beat: Callable[[], None],
        is_over: Callable[[], bool],
        bell: int,
        hush: Callable[[], None],
        pause: float,
    ) -> None:
        self.beat: Callable[[], None] = beat
        self.is_over: Callable[[], bool] = is_over
        self.bell: int = bell
        self.hush: Callable[[], None] = hush
        self.pause: float = pause


class Waiting(_Socket):
    """Waiting for a client by the rules of a ``Vigil``: what all our connections share."""

    __slots__ = ()

    _allowance: float
    _asked: bool  # whether the client spoke last
    _hasty: int  # the thread that never waits to read
    _patience: float | None
    _vigil: Vigil

    def settimeout(self, value: float | None, /) -> None:
        if value is not None and not value >= 0:
            raise ValueError(f"a timeout is a number of seconds, 0 or more, or None, not {value!r}")
        self._patience = None if value is None else float(value)

    def gettimeout(self) -> float | None:
        return self._patience

    @property
    def timeout(self) -> float | None:
        return self._patience

    def setblocking(self, flag: bool, /) -> None:
        self.settimeout(None if flag else 0)

    def getblocking(self) -> bool:
        return self._patience != 0

    def allow(self, seconds: float) -> None:
        """From now on the client may keep us waiting for so long in all, however often it
        speaks in between; ``inf``: for ever. What we do ourselves meanwhile does not count."""
        self._allowance = seconds

    def is_over(self) -> bool:
        """Whether the worker is to go: then it is time to say goodbye."""
        return self._vigil.is_over()

    def beat(self) -> None:
        """A sign of life, where none is given by reading or writing."""
        self._vigil.beat()

    def allow_more(self, seconds: float) -> None:
        """So much longer, for what it has read or sent."""
        self._allowance += seconds

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Within, to read raises ``BlockingIOError`` instead, in this thread: the handlers in
        others may be answering from it."""
        self._hasty = threading.get_ident()
        try:
            yield
        finally:
            self._hasty = 0

    def __getstate__(self) -> object:
        raise TypeError("cannot pickle a connection")

    def _wait(self, event: int, reading: bool, last: float | None = None) -> bool:
        """Wait until the socket may be used, at the latest until ``last``, if that is not
        one patience from now. False: the worker is to go, and nothing came."""
        vigil = self._vigil
        fd = self.fileno()
        poll = select.poll()
        poll.register(fd, event)
        poll.register(vigil.bell, select.POLLIN)
        over = False
        began = now = time.monotonic()
        if last is None:
            last = self._last(now)
        while True:
            vigil.beat()
            if not over and vigil.is_over():
                over = True
                poll.unregister(vigil.bell)  # it has nothing more to say, and may ring on
                if reading and not self._asked:
                    last = min(last, now + FAREWELL)
            pause = max(0.0, min(vigil.pause, last - now))
            ready = [found for found, _ in poll.poll(pause * 1000)]
            if fd in ready:
                self._allowance -= time.monotonic() - began
                return True
            now = time.monotonic()
            if now >= last:
                if over and reading and not self._asked:
                    return False
                raise TimeoutError("timed out")
            if ready:
                vigil.hush()

    def _last(self, now: float) -> float:
        patience = float("inf") if self._patience is None else self._patience
        return now + min(patience, self._allowance)
