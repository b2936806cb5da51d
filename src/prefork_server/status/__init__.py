"""The status service: one worker beside the others that shows what they do, over HTTP.

The core imports this where ``status`` is set, and only there.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ..job import Service
from ..listeners import listen, parse_all
from ..settings import Settings
from ..worker.master_handle import MasterHandle


@contextmanager
def listening(settings: Settings, app_name: str) -> Iterator[Service]:
    """Bind where ``settings.status`` says, for one who shows ``app_name`` there."""
    # What speaks HTTP is loaded here, in the master: the service may be a user by then who must
    # not read it, and whoever replaces it is there at once.
    from .server import serve

    listener = listen(parse_all(str(settings.status))[0])

    def show(master: MasterHandle) -> None:
        serve(master, settings, app_name, listener)

    try:
        yield Service("status", show, [listener])
    finally:
        listener.close()
