"""The public ``master``: what a worker may say to the master process, and ask of it.

It speaks through the scoreboard and one byte in a pipe, and hears through the scoreboard and a
signal. All of that is in ``heartbeat`` and ``accept_loop``; this puts them together.
"""

import logging
import os
import select
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..clock import Clock
from ..sockets.connection import Connection
from .accept_loop import AcceptLoop
from .heartbeat import Heartbeat

if TYPE_CHECKING:
    from ..stats import Stats


class MasterHandle:
    """The master, as a worker sees it.

    ``slot`` is the number of this worker, from 1: no other worker has it while this one lives.
    The one that replaces it after its death has it again; a successor that is there before that,
    as in a reload, has another. ``generation`` is 1, and one more with each reload. ``pid`` is the
    master's. ``logger`` is where the server logs. ``inline`` says that there is none, and
    the worker is this process.
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        loop: AcceptLoop | None,
        pid: int,
        report: int = -1,
        inline: bool = False,
    ) -> None:
        self.slot: int = heartbeat.slot
        self.generation: int = heartbeat.generation
        self.pid: int = pid
        self.logger: logging.Logger = heartbeat.logger
        self.inline: bool = inline
        self.heartbeat: Heartbeat = heartbeat
        self.report: int = report  # the descriptor of what a worker leaves behind
        self._loop = loop

    def __repr__(self) -> str:
        return f"<MasterHandle pid={self.pid}, in worker={self.slot} pid={os.getpid()}>"

    def wants_me_alive(self, within: float | None = None) -> bool:
        """Tell the master we are alive; return whether it wants us to go on.

        Ask at least once every ``timeout`` seconds, or be killed and replaced.
        ``within`` says that the next time may be so many seconds away, just this once.
        With ``threads`` all this is about the thread that asks.
        Once it has returned False it never returns True again.
        """
        heartbeat = self.heartbeat
        heartbeat.announce(within)
        heartbeat.follow_rotation()
        if not self._loop:  # which does it in between
            heartbeat.weigh()
        return not heartbeat.is_over()

    def wait(self, seconds: float) -> bool:
        """Sleep, at most so long; return whether the master wants us to go on.

        Returns at once, False, when it does not. The sleep counts as life, however long.
        """
        heartbeat = self.heartbeat
        poll = select.poll()
        poll.register(heartbeat.wake_fd, select.POLLIN)
        end = Clock.monotonic() + seconds
        while self.wants_me_alive():
            left = end - Clock.monotonic()
            if left <= 0:
                return True
            if poll.poll(min(left, heartbeat.pause) * 1000):
                heartbeat.hush()
        return False

    def connections(self) -> Iterator[tuple[Connection, Any]]:
        """Accept, one connection after the other, until the master wants us to go.

        Each step counts as life. Close the connections you get, or keep them and serve
        them in your own way. On a graceful stop the queue is served first. Raises
        ``RuntimeError`` where there is nothing to listen on.
        """
        return self.accept_loop.connections()

    def retire(self) -> None:
        """Finish what is at hand, then go: ``wants_me_alive()`` is False from here on.

        The master replaces this worker at once, unless so many are on their way out already (four
        times as many as are wanted, and at least 32), and kills it if it is not gone after
        ``graceful_timeout``.
        """
        self.heartbeat.retire()

    def note(self, text: str) -> None:
        """Say what is being done, for ``stats()`` and the status page: 64 bytes, what is more
        is cut. It is forgotten when this request is over. No secrets: others may read it."""
        self.heartbeat.note(text)

    def stats(self) -> "Stats":
        """What the whole server is doing, and has done."""
        return self.heartbeat.stats()

    @property
    def accept_loop(self) -> AcceptLoop:
        """Of servers in this worker. RuntimeError where there is nothing to listen on."""
        if self._loop is None:
            raise RuntimeError("there is nothing to accept from: give Preforker(..., listen=[...])")
        return self._loop

    def disown(self) -> None:
        """In a fork of the worker: it may read the scoreboard, and what it writes is not read."""
        self.heartbeat.disown()
        if self._loop:
            self._loop.disown()

    def close(self) -> None:
        """Nothing more is answered here."""
        if self._loop:
            self._loop.close()
