"""What one worker serves in its loop: connections that it accepts, and endpoints for datagrams.

Whose turn it is to accept is in ``turns``.
"""

import asyncio
import os
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any, cast

from ..acceptor import _accept
from ..clock import Clock
from ..handshakes import handshakes
from ..scoreboard import DRAIN
from ..worker.accept_loop import DRAINS, QUIET, Drain
from ..worker.heartbeat import ANSWER
from .handle import AsyncMasterHandle
from .life import Life, cancelled
from .turns import LoopAcceptor, Shares

_Plain: Any = socket.socket.__base__
_GLANCE = 0.005  # seconds between two looks at what only the kernel or the master knows


class Held(socket.socket):
    """A connection that counts until its descriptor is closed, whoever closes it, and why.

    Protocols need not know of it, and a TLS handshake that fails is counted like any other.
    """

    __slots__ = ("gone",)

    gone: "Callable[[Held], object]"
    # Plain numbers: loops ask, and as enums they are a quarter of what a connection costs uvloop.
    family: Any = _Plain.family
    type: Any = _Plain.type

    def close(self) -> None:
        super().close()
        self.gone(self)

    def detach(self) -> int:  # what uvloop calls, which closes the descriptor by itself
        fd = super().detach()
        self.gone(self)
        return fd


class Doors:
    """All that one worker serves, from the first connection to the last.

    A connection is accepted, admitted (which may mean a handshake), and visited: that is the
    callback. It is held until its descriptor is closed, and a visit may outlive that.
    """

    def __init__(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol] | None,
        client_connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object] | None,
        most: int,
        limit: int,
        ssl_context: ssl.SSLContext | None,
        handshake: float,
        shares: Shares,
    ) -> None:
        self._factory = protocol_factory or self._stream
        self._client_connected = client_connected
        self._most = most
        self._limit = limit
        self._tls: dict[str, Any] = {}
        if ssl_context:
            self._tls = {"ssl": ssl_context, "ssl_handshake_timeout": handshake}
        self._shares = shares
        self._fair = 0.0
        self._held: dict[Held, asyncio.Task[None] | asyncio.BaseTransport] = {}
        self._visits: set[asyncio.Task[None]] = set()
        self._endpoints: list[asyncio.BaseTransport] = []
        self._acceptor: LoopAcceptor
        self._watched: list[int] = []  # none until all is in its place
        self._broken: OSError | None = None
        self._closed = False

    async def serve(self, master: AsyncMasterHandle, life: Life) -> None:
        self._master, self._life, self._loop = master, life, life.loop
        self._heartbeat = master.heartbeat
        self._given = master.accept_loop.acceptor
        self._nobody = asyncio.Event()
        sockets = master.listeners
        self._streams = [one for one in sockets if one.type == socket.SOCK_STREAM]
        self._datagrams = [one for one in sockets if one.type == socket.SOCK_DGRAM]
        try:
            await self._open()
            await master.wait_retired()
            wish = await self._word_of_master()
            if wish in DRAINS:
                await self._drain(QUIET if wish == DRAIN else 0.0)
            for each in master.accept_loop.listeners:
                while each.deserted and each.socket in self._streams and self._take(each.socket):
                    pass
            self._close()
            self._look()
            await self._nobody.wait()
            if self._broken:
                raise self._broken
        finally:
            self._close()
            await self._say_goodbye()

    # Open

    async def _open(self) -> None:
        loop, given = self._loop, self._given
        watched: dict[int, tuple[Callable[..., object], tuple[Any, ...]]] = {
            listener.fileno(): (self._knocked, (listener,)) for listener in self._streams
        }
        watched[given.relay.fd] = (self._sent_for, ())
        for fd, (callback, args) in watched.items():
            loop.add_reader(fd, callback, *args)
        # A duplicate: it is closed with this object. The loop has put them there, perhaps only
        # when it next sleeps, and not exclusively: so we take them out again, and put them in.
        epoll = select.epoll.fromfd(os.dup(self._life.epoll))
        for fd in watched:
            while not _taken_out(epoll, fd):
                await asyncio.sleep(0)
        self._acceptor = LoopAcceptor(given, self._streams, epoll)
        self._kinds = {one: (int(one.family), int(one.type), one.proto) for one in self._streams}
        self._watched = list(watched)
        self._shares.words[self._master.slot] = 1
        self._life.each_beat = self._look_around
        for listener in self._datagrams:
            # All processes share O_NONBLOCK of the open socket, and all of them want it.
            endpoint, _ = await loop.create_datagram_endpoint(
                cast("Callable[[], asyncio.DatagramProtocol]", self._factory), sock=listener.dup()
            )
            self._endpoints.append(endpoint)

    def _look_around(self) -> None:
        """Idle workers enlist anew from time to time, which shows them what a sibling who was
        woken did not take."""
        if not self._closed:
            self._fair = self._shares.fair()
            self._enlist()

    def _enlist(self) -> None:
        if not (self._closed or self._acceptor.resting or len(self._held) >= self._most):
            try:
                self._acceptor.enlist()
            except OSError as error:
                self._break(error)

    # Accept

    def _knocked(self, listener: socket.socket) -> None:
        if not (self._watched and self._take(listener)):
            return
        if len(self._held) >= self._most:
            self._acceptor.resign()  # until one of them ends
            self._heartbeat.tell_busy()
        elif (excess := self._excess()) > 0:
            self._acceptor.make_way_by(excess)
            self._rest()
        else:
            self._acceptor.go_to_the_end(listener)

    def _take(self, listener: socket.socket) -> bool:
        """Whether somebody was there."""
        try:
            fd, peer = _accept(listener)
        except OSError as error:
            self._failed(error)
            return False
        connection = Held(*self._kinds[listener], fd)
        connection.gone = self._gone
        connection.setblocking(False)
        self._acceptor.took(None)
        self._held[connection] = self._loop.create_task(self._admit(connection, peer))
        self._heartbeat.begin_held(len(self._held))
        self._tell_share()
        return True

    def _failed(self, error: OSError) -> None:
        try:
            self._acceptor.failed(error)
        except OSError as broken:
            self._break(broken)
        if self._acceptor.resting:
            self._rest()

    def _break(self, error: OSError) -> None:
        """A listener is no more. Whoever is inside is served, and then it is raised."""
        self._broken = self._broken or error
        self._master.retire()

    def _tell_share(self) -> None:
        if not self._closed:
            self._shares.words[self._master.slot] = len(self._held) + 1

    def _excess(self) -> float:
        """How many more it holds than is its share. Negative, perhaps by what was so lately."""
        held = len(self._held)
        if held > self._fair:
            self._fair = self._shares.fair()
        return held - self._fair

    def _rest(self) -> None:
        self._loop.call_later(self._acceptor.rest_left(), self._back_from_rest)

    def _back_from_rest(self) -> None:
        if not self._closed:
            self._acceptor.rested()
            self._enlist()

    def _sent_for(self) -> None:
        """By the master, who has seen a sibling die, or by a sibling."""
        self._given.relay.woken()
        if self._watched:
            self._enlist()

    # Serve

    async def _admit(self, connection: Held, peer: Any) -> None:
        try:
            protocol = self._factory()
        except BaseException as error:  # user code
            if isinstance(error, SystemExit):
                self._heartbeat.exited(error)
            else:
                self._life.report("protocol_factory failed", peer, error)
            connection.close()
            return
        try:
            transport, _ = await self._loop.connect_accepted_socket(
                lambda: protocol, connection, **self._tls
            )
        except OSError as error:  # gone, or no TLS; the loop closes it, if it has begun with it
            self._life.gone(peer, error)
            if connection in self._held:
                connection.close()
        else:
            if connection in self._held:
                self._held[connection] = transport

    def _stream(self) -> asyncio.BaseProtocol:
        reader = asyncio.StreamReader(limit=self._limit, loop=self._loop)
        return asyncio.StreamReaderProtocol(reader, self._greet, loop=self._loop)

    def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visit = self._loop.create_task(self._visit(reader, writer))
        self._visits.add(visit)
        visit.add_done_callback(self._left)

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Nothing that happens in a connection ends the worker, or another connection."""
        peer = writer.get_extra_info("peername")
        try:
            result = self._client_connected(reader, writer)  # type: ignore[misc]
            if asyncio.iscoroutine(result):
                await result
        except asyncio.CancelledError:
            writer.close()
            raise
        except BaseException as error:
            # User code. SystemExit asks for a new worker, after this one's manners.
            if isinstance(error, SystemExit):
                self._heartbeat.exited(error)
            elif _is_by_client(error, reader, writer):
                self._life.gone(peer, error)
            else:
                self._life.report("client_connected_cb failed", peer, error)
            writer.close()
        finally:
            if self._heartbeat.foreign:
                os._exit(0)  # it forked, and its child would come back into our loop

    def _left(self, visit: "asyncio.Task[None]") -> None:
        self._visits.discard(visit)
        self._look()

    def _gone(self, connection: Held) -> None:
        if self._held.pop(connection, None):
            self._tell_share()
            self._heartbeat.end_held(len(self._held))
            if len(self._held) == self._most - 1:
                self._enlist()
                if not self._closed:
                    self._heartbeat.tell_free()
            self._look()

    def _look(self) -> None:
        if self._closed and not self._held and not self._visits:
            self._nobody.set()

    # The end

    async def _word_of_master(self) -> int:
        """As ``Heartbeat.ask_wish``, without stopping the loop."""
        heartbeat, end = self._heartbeat, Clock.monotonic() + ANSWER
        while heartbeat.awaits_wish() and Clock.monotonic() <= end:
            await asyncio.sleep(_GLANCE)
        return heartbeat.wish

    async def _drain(self, quiet: float) -> None:
        """The server stops: take all that is in the queue, since no other process will."""
        now = Clock.monotonic()
        end = now + self._life.graceful / 2
        drain = Drain(now, quiet)
        datagrams = select.poll()
        for listener in self._datagrams:
            datagrams.register(listener, select.POLLIN)
        while now < end:
            full = len(self._held) >= self._most or self._acceptor.resting
            took = not full and sum(map(self._take, self._streams)) > 0
            took = bool(datagrams.poll(0)) or took  # the loop takes those
            now = Clock.monotonic()
            if took or full:
                drain.came(now)
            elif now >= drain.look_at:
                handshake = drain.asks and handshakes(self._streams)
                if drain.is_over(now, handshake, awaited=False):
                    break
            await asyncio.sleep(0 if took else _GLANCE)

    def _close(self) -> None:
        """Take no more."""
        if self._closed:
            return
        self._closed = True
        self._shares.words[self._master.slot] = 0
        self._heartbeat.take_no_more()
        if self._watched:
            self._acceptor.resign()
            for fd in self._watched:
                self._loop.remove_reader(fd)
            self._acceptor.relay.wake_one()  # perhaps it was us whom the kernel has just told
            self._acceptor.hang_up()
        for listener in self._datagrams:
            listener.close()
        for endpoint in self._endpoints:
            endpoint.close()

    async def _say_goodbye(self) -> None:
        if self._visits:
            self._life.warn("cancelling %d callbacks that go on", len(self._visits))
        half = self._life.left() / 2
        await cancelled(set(self._visits), half)
        for user in list(self._held.values()):
            user.cancel() if isinstance(user, asyncio.Task) else user.close()
        self._look()
        try:
            async with asyncio.timeout(half / 2):
                await self._nobody.wait()
        except TimeoutError:
            pass  # who has not read what we wrote, or has not ended, does not keep us


def _taken_out(epoll: select.epoll, fd: int) -> bool:
    try:
        epoll.unregister(fd)
    except FileNotFoundError:
        return False
    return True


def _is_by_client(
    error: BaseException, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    """Whether it only says that the client is gone."""
    if isinstance(error, asyncio.IncompleteReadError):
        return reader.at_eof()
    return isinstance(error, ConnectionError) and writer.transport.is_closing()
