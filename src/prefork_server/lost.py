"""In Python's development mode (``-X dev``): tell of state that is set in one worker only.

A handler that counts in ``self.server.hits`` counts in its own process. What it changes
inside of a list or a dictionary is not seen here, only what it sets.
"""

import os
import sys
from typing import TYPE_CHECKING, Any

from .text import printable

if TYPE_CHECKING:
    from .handle import MasterHandle


def tell_of_lost_state(server: Any, master: "MasterHandle") -> None:
    """Log, once for each name, what is set on this server from now on, in this process, by
    other code than ours and the standard library's."""
    told: set[str] = set()
    kind: Any = type(server)
    set_it = kind.__setattr__

    def set_and_tell(self: Any, name: str, value: object) -> None:
        set_it(self, name, value)
        setter = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
        foreign = setter not in sys.stdlib_module_names and setter != __package__
        if self is server and foreign and name not in told:
            told.add(name)
            message = "%s is set in worker %d only; see docs/state.md"
            extra = {"event": "lost_state", "worker": master.slot, "pid": os.getpid()}
            master.logger.warning(message, printable(name), master.slot, extra=extra)

    kind.__setattr__ = set_and_tell  # the class is this worker's own
