"""The master, as coroutines in a worker see it."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

from ..here import stand_here
from ..sockets.connection import Connection, set_slice
from ..worker.master_handle import MasterHandle

_BLOCKS = "{} would stop the loop, and with it everybody: await master.wait_retired(){}"


class AsyncMasterHandle(MasterHandle):
    """A ``MasterHandle`` for coroutines. The loop itself gives the signs of life.

    ``exit_stack`` is closed at the end of the worker, when nobody is served any more, by the
    task that ran ``after_fork``: put there what ``after_fork`` opens. It is closed after a
    cancelled stop, too, within what is left of ``graceful_timeout``.
    """

    def __init__(self, master: MasterHandle) -> None:
        vars(self).update(vars(master))
        self.exit_stack: AsyncExitStack = AsyncExitStack()
        self.retired: asyncio.Event = asyncio.Event()

    async def wait_retired(self) -> None:
        """Return when the master wants us to go: ``wants_me_alive()`` is False from there on."""
        await self.retired.wait()

    def is_over(self) -> bool:
        """Whether the worker is to go: then it is time to say goodbye."""
        return self.heartbeat.is_over()

    @property
    def listeners(self) -> list[socket.socket]:
        """The listening sockets, in the order of their addresses, for ``create_server(sock=...)``
        or a server of somebody else's. RuntimeError if there are none."""
        acceptor = self.accept_loop.acceptor
        acceptor.resign()  # the caller waits there by its own means
        for listener in acceptor.listeners.values():
            if listener.type == socket.SOCK_STREAM:
                set_slice(listener, 0)
        return list(acceptor.listeners.values())

    def wait(self, seconds: float) -> bool:
        """Not here: RuntimeError."""
        raise RuntimeError(_BLOCKS.format("master.wait()", ", or asyncio.sleep()"))

    def connections(self) -> Iterator[tuple[Connection, Any]]:
        """Not here: RuntimeError."""
        raise RuntimeError(_BLOCKS.format("master.connections()", ", and give the loop a callback"))


def at_home_in_loop(master: MasterHandle) -> AsyncMasterHandle:
    """The same, for coroutines: what ``current_master()`` gives from now on."""
    at_home = AsyncMasterHandle(master)
    stand_here(at_home)
    return at_home
