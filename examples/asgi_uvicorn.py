"""An ASGI application, by uvicorn, on sockets that we bind, in workers that we look after.

    pip install uvicorn
    python examples/asgi_uvicorn.py [127.0.0.1:9000]

What uvicorn's own --workers does not do: a worker whose loop hangs is found within
``timeout``, its stack is in the log, and it is replaced; signals and the pid file are the
master's. Accepting is uvicorn's: whoever is awake takes all that wait, so long connections
are spread less evenly than by PreforkAsyncioServer.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import uvicorn

from prefork_server.aio import AsyncMasterHandle, run_asyncio

Message = MutableMapping[str, Any]


async def app(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Yours, of any framework: ``from myproject.asgi import application as app``."""
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"Hello from process %d\n" % os.getpid()})


class Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are the master's, and what it wants it says by ``wait_retired()``."""
        yield


async def main(master: AsyncMasterHandle) -> None:
    server = Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve(sockets=master.listeners))
    retired = asyncio.create_task(master.wait_retired())
    await asyncio.wait({serving, retired}, return_when=asyncio.FIRST_COMPLETED)
    if not serving.done():
        await asyncio.sleep(0.1)  # it accepts while it can: who is in the queue is served
    server.should_exit = True  # finish what is being answered, close the rest
    await serving


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9000"
    run_asyncio(main, listen=address, workers=2, app_name="asgi", pid_path=None)
