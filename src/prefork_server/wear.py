"""When a worker is worn out, and due to be replaced: it has served enough, or holds too much,
or found no memory.

It only says so, on the scoreboard, and goes on: when it is to go is the master's to say.
"""

import logging
import os
import time
from collections.abc import Callable

from .scoreboard import DUE, MEMORY, NEVER, OUT_OF_MEMORY, SECOND, TOO_LARGE, WORN
from .settings import Settings

_WEIGH_NS = 5 * SECOND  # from one look at the memory to the next


class Wear:
    """``mark(field, value)`` writes to the scoreboard, ``ring()`` has the master read it."""

    def __init__(
        self,
        settings: Settings,
        logger: logging.Logger,
        mark: Callable[[int, int], None],
        ring: Callable[[], None],
    ) -> None:
        self._logger = logger
        self._mark = mark
        self._ring = ring
        self.served_enough_at: int = _about(settings.max_requests) or NEVER
        """How many requests are enough: then call ``served_enough()``."""
        self._limit = settings.max_worker_memory
        self.weighs: bool = self._limit is not None or settings.status is not None
        # Not at once: one that is too large from its first day on is replaced by its like.
        self._weigh_ns = time.monotonic_ns() + _WEIGH_NS if self._limit else 0

    def served_enough(self) -> None:
        self._be_due(WORN)

    def ran_out(self) -> None:
        """A handler had a MemoryError. What it leaves half done, and what else it may have
        failed for, nobody knows."""
        self._be_due(OUT_OF_MEMORY)

    def weigh(self) -> None:
        """Between two requests: look at the memory, if it is time to."""
        now_ns = time.monotonic_ns()
        if now_ns < self._weigh_ns:
            return
        self._weigh_ns = now_ns + _WEIGH_NS
        try:
            held = private_bytes()
        except OSError as error:
            limited, self.weighs, self._limit = self._limit is not None, False, None
            self._logger.log(
                logging.WARNING if limited else logging.DEBUG,
                "a worker cannot tell its memory, which has no limit now: %s",
                error.strerror,
                extra={"event": "not_weighed", "pid": os.getpid()},
            )
            return
        self._mark(MEMORY, held)
        if self._limit is not None and held > self._limit:
            self._be_due(TOO_LARGE)

    def _be_due(self, why: int) -> None:
        self._mark(DUE, why)
        self._ring()


def _about(count: int) -> int:
    """Give or take a tenth, so that not all are worn out at once. Not from ``random``, whose
    state may be the program's."""
    tenth = count // 10
    return count - tenth + int.from_bytes(os.urandom(8)) % (2 * tenth + 1)


def private_bytes() -> int:
    """What would be free again if this process ended (USS): neither what it shares since the
    fork, nor libraries. Raises OSError where the kernel does not tell."""
    with open("/proc/self/smaps_rollup", "rb") as lines:
        pages = [line.split() for line in lines if line.startswith(b"Private_")]
    return sum(int(words[1]) for words in pages) * 1024
