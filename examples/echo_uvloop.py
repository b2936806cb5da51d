"""Echo to thousands of clients at once: each worker holds many, in an event loop of its own.

    python examples/echo_uvloop.py [127.0.0.1:9000]

The loop is uvloop's where that is installed (pip install uvloop), or else asyncio's; the log
says which, and so does each worker.
"""

import asyncio
import sys

from prefork_server.aio import AsyncMasterHandle, PreforkAsyncioServer


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def after_fork(master: AsyncMasterHandle) -> None:
    kind = type(asyncio.get_running_loop())
    master.logger.info("worker %d has a loop of %s", master.slot, kind.__module__)


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9000"
    with PreforkAsyncioServer(address, echo, workers=2, after_fork=after_fork) as server:
        server.serve_forever()
