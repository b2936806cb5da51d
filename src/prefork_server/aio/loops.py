"""Which event loop the workers run, and the epoll that it sleeps on.

Asked for in the master, which only imports it; made in a worker, after the fork. A loop
that two processes share would take each other's events.
"""

import asyncio
import selectors
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..clock import Clock
from ..errors import ConfigError

LoopName = Literal["auto", "asyncio", "uvloop"]


@dataclass(frozen=True)
class LoopKind:
    """``make()`` gives a new loop, and the descriptor of its epoll."""

    name: str
    make: Callable[[], tuple[asyncio.AbstractEventLoop, int]]


def choose(wanted: LoopName) -> LoopKind:
    """``auto``: uvloop where it can be imported. Raises ConfigError."""
    if wanted not in ("auto", "asyncio", "uvloop"):
        raise ConfigError(f"loop must be 'auto', 'asyncio' or 'uvloop', not {wanted!r}")
    if wanted == "asyncio":
        return LoopKind("asyncio", _make_asyncio)
    try:
        import uvloop
    except ImportError as error:
        if wanted == "uvloop":
            raise ConfigError(f"loop='uvloop', and it cannot be imported: {error}") from error
        return LoopKind("asyncio, since there is no uvloop", _make_asyncio)

    def make_uvloop() -> tuple[asyncio.AbstractEventLoop, int]:
        loop = uvloop.new_event_loop()
        return loop, loop._get_backend_id()  # type: ignore[attr-defined]

    return LoopKind("uvloop", make_uvloop)


def _make_asyncio() -> tuple[asyncio.AbstractEventLoop, int]:
    selector = selectors.EpollSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = Clock.monotonic  # type: ignore[method-assign] # as our own deadlines have it
    return loop, selector.fileno()
