"""Lost state: what a handler sets on the server, which one worker sees, is told once.

A handler that counts in ``self.server.hits`` counts in its own process. What it changes
inside of a list or a dictionary is not seen here, only what it sets.
"""

import os
import sys
import zlib
from typing import TYPE_CHECKING, Any

from .scoreboard import TOLD, Scoreboard
from .text import printable

if TYPE_CHECKING:
    from .worker.master_handle import MasterHandle

_PAGE = "https://github.com/prefork-server/prefork-server/blob/main/docs/state.md"


def tell_of_lost_state(server: Any, master: "MasterHandle") -> None:
    """Log, once for each name in all workers, what is set on this server from now on, in this
    process, by other code than ours and the standard library's."""
    told: set[str] = set()
    kind: Any = type(server)
    set_it = kind.__setattr__

    def set_and_tell(self: Any, name: str, value: object) -> None:
        set_it(self, name, value)
        setter = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
        foreign = setter not in sys.stdlib_module_names and setter != __package__
        if self is server and foreign and name not in told:
            told.add(name)
            if _is_news(name, master.heartbeat.board):
                message = "%s is set in worker %d only, and the other workers do not see it: %s"
                extra = {"event": "lost_state", "worker": master.slot, "pid": os.getpid()}
                told_by = printable(name), master.slot, _PAGE
                master.logger.warning(message, *told_by, extra=extra)

    kind.__setattr__ = set_and_tell  # the class is this worker's own


def _is_news(name: str, board: Scoreboard) -> bool:
    """Whether no worker has told of this name, nor of one that shares its bit."""
    at, bit = board.at(0, TOLD), 1 << zlib.crc32(name.encode("utf-8", "backslashreplace")) % 62
    before = board.words[at]
    board.words[at] = before | bit  # two at once may both tell
    return not before & bit
