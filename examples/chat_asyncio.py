"""A chat: what one says, all others hear -- who are connected to the same worker.

    python examples/chat_asyncio.py [127.0.0.1:9000] [workers]

Workers share no memory, so a room is one worker's. Each newcomer is told which, and how many
there are. With one worker (the default) everybody is in it; to let more of them talk to each
other takes a broker (Redis, PostgreSQL's NOTIFY ...), opened in ``after_fork``.
"""

import asyncio
import sys

from prefork_server import current_master
from prefork_server.aio import AsyncMasterHandle, PreforkAsyncioServer

room: set[asyncio.StreamWriter] = set()
workers = int(sys.argv[2]) if len(sys.argv) > 2 else 1


def tell(line: bytes, but: asyncio.StreamWriter | None = None) -> None:
    for writer in room - {but}:
        writer.write(line)


async def chat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    slot = current_master().slot
    writer.write(b"room %d of %d, %d here\n" % (slot, workers, len(room)))
    room.add(writer)
    try:
        while line := await reader.readline():
            tell(line, but=writer)
    finally:
        room.discard(writer)
        writer.close()


async def close_the_room(master: AsyncMasterHandle) -> None:
    """A client that only listens would keep the worker until ``graceful_timeout``."""
    await master.wait_retired()
    tell(b"the room is closed\n")
    for writer in set(room):
        writer.close()


async def after_fork(master: AsyncMasterHandle) -> None:
    tasks = await master.exit_stack.enter_async_context(asyncio.TaskGroup())
    tasks.create_task(close_the_room(master))


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9000"
    with PreforkAsyncioServer(address, chat, workers=workers, after_fork=after_fork) as server:
        server.serve_forever()
