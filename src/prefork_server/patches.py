"""Monkey patches of gevent and eventlet, which this package refuses to run with.

They put functions of their own in the place of the standard library's, and remove
``select.epoll``. A process in which they have done so forks, waits and makes threads in other
ways than a master and its workers are written for.
"""

import sys

_LIBRARIES = ("gevent", "eventlet")
_NEEDED = (
    *(("socket", "socket"), ("select", "epoll"), ("select", "poll"), ("time", "sleep")),
    *(("_thread", "start_new_thread"), ("os", "fork"), ("os", "waitpid")),
)


def patched() -> str:
    """What is patched, and what to do, in a sentence; empty if nothing is."""
    for library in filter(sys.modules.get, _LIBRARIES):
        for module, name in _NEEDED:
            found = getattr(sys.modules.get(module), name, None)
            owner = getattr(found, "__module__", None) or ""
            if found is None or owner.partition(".")[0] == library:
                return (
                    f"{library} has patched {module}.{name}, which prefork_server cannot run "
                    f"with: remove {library}'s monkey patch, and set threads, or write an asyncio "
                    "callback, for several connections at a time in a worker"
                )
    return ""
