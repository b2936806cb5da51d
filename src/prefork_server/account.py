"""What a worker tells of itself, on the scoreboard, and what it is told of the others."""

import threading
from typing import TYPE_CHECKING

from .scoreboard import ERRORS, IN_HAND, Scoreboard
from .signals import Bell
from .text import users_part
from .wear import Wear

if TYPE_CHECKING:
    from .stats import Stats

_failing = threading.Lock()  # of a worker's threads: the master never holds it at a fork


class Account:
    """A ``MasterHandle``, as far as it tells and is told."""

    slot: int
    _board: Scoreboard
    _words: "memoryview[int]"
    _own_words: "memoryview[int]"
    _grows: int
    _master_bell: Bell
    _foreign: bool
    _wear: Wear

    def note(self, text: str) -> None:
        """Say what is being done, for ``stats()`` and the status page: 64 bytes, what is more
        is cut. It is forgotten when this request is over. No secrets: others may read it."""
        if not self._foreign:
            self._board.set_note(self.slot, text)

    def stats(self) -> "Stats":
        """What the whole server is doing, and has done."""
        from .stats import current

        return current(self._board)

    def _tell_busy(self) -> None:
        """In an adaptive pool. The last one who was idle has the master get more."""
        if not self._foreign:
            self._board.set_idle(self.slot, False)
            if self._words[self._grows] and self._board.nobody_idle():
                self._master_bell.ring()

    def _tell_idle(self) -> None:
        if not self._foreign:
            self._board.set_idle(self.slot, True)

    def _failed(self, error: object) -> None:
        """A handler has raised, in whichever thread. Of its traceback the user's part is left."""
        if isinstance(error, BaseException):
            users_part(error)
        if not self._foreign:
            if isinstance(error, MemoryError):
                self._wear.ran_out()
            with _failing:
                self._mark(ERRORS, self._board.get(self.slot, ERRORS) + 1)

    def _hold(self, count: int) -> None:
        """So many connections are served besides the accept loop."""
        self._mark(IN_HAND, count)

    def _mark(self, field: int, value: int) -> None:
        self._own_words[self._board.at(self.slot, field)] = value
