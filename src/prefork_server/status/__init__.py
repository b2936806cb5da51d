"""The status service: one worker beside the others that shows what they do, over HTTP.

The core imports this where ``status`` is set, and only there; what speaks HTTP is imported in
the service itself, after the fork.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ..handle import MasterHandle
from ..job import Service
from ..listeners import listen, parse
from ..settings import Settings


@contextmanager
def listening(settings: Settings, app_name: str) -> Iterator[Service]:
    """Bind where ``settings.status`` says, for one who shows ``app_name`` there."""
    listener = listen(parse(str(settings.status)))

    def boot(master: MasterHandle) -> None:
        from . import server  # noqa: F401 - before it is ready

    def show(master: MasterHandle) -> None:
        from .server import serve

        serve(master, settings, app_name, listener)

    try:
        yield Service("status", show, [listener], boot)
    finally:
        listener.close()
