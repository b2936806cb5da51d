"""Worker shutdown: drain the accept queue, then close parked connections."""

import os
import select
import socket
import time
from collections.abc import Iterator, Sequence

from .acceptor import Acceptor, Guest
from .account import Account
from .handshakes import handshakes
from .listeners import Listener
from .scoreboard import DRAIN, DRAIN_ONCE
from .signals import Bell
from .vigil import FAREWELL

QUIET = 0.1  # seconds without a connection in the queue: then it is empty
HANDSHAKES = 1.0  # seconds at most for the TCP handshakes that were under way
ANSWER = 0.5  # seconds for the master to say what it wants
DRAINS = (DRAIN, DRAIN_ONCE)


class Drain:
    """Decides when a worker of a server that stops has accepted its last connection.

    It is told what was seen, and when, in seconds of a monotonic clock. It asks nothing and
    waits for nothing.

    A client is connected, as far as it knows, when the SYN-ACK reaches it; the connection is
    in the accept queue a round trip after its SYN came. To close the listening socket before
    that resets the client. So the queue is drained when ``quiet`` seconds have passed without a
    connection, and no handshake is under way. Handshakes are waited for ``HANDSHAKES`` seconds
    at most, since some are of clients that are gone, or that do not speak. ``quiet`` 0: new
    clients cannot be kept out, so the queue is drained when it was empty once.

    A parked connection that is ``awaited`` has ``FAREWELL`` seconds from the beginning, or
    from the last word of any of them, but twice that time at most: over TLS, a client speaks
    two or three times before its request is there.
    """

    def __init__(self, now: float, quiet: float) -> None:
        self.look_at: float = now + quiet  # when to look again, if nothing happens before
        self.asks: bool = quiet > 0  # whether handshakes are to be looked for
        self._quiet = quiet
        self._begun = now
        self._farewell = now + FAREWELL

    def came(self, now: float, parked: bool = False) -> None:
        """A connection was accepted, or could not be yet; or a parked one has spoken."""
        self.look_at = now + self._quiet
        if parked and self._quiet:
            self._farewell = min(now, self._begun + FAREWELL) + FAREWELL

    def is_over(self, now: float, handshake: bool, awaited: bool) -> bool:
        """At ``look_at``, with nothing in the queue. Bare SYNs are dropped, so when there was
        no handshake once, none is looked for again."""
        if self.asks:
            self.asks = handshake and now < self._begun + HANDSHAKES
            # One that has just ended is in the queue: look there once more.
            self.look_at = now + QUIET if self.asks else now
            return False
        self.look_at = now + QUIET
        return not awaited or now >= self._farewell


class Leave(Account):
    """A ``MasterHandle``, as far as it is about to go."""

    inline: bool
    pid: int
    _bell: Bell
    _graceful: float
    _listeners: Sequence[Listener]
    _pause: float
    _tells: bool
    _wish: int

    def _beat(self) -> None:
        raise NotImplementedError

    def _be_idle(self, now_ns: int = 0) -> None:
        raise NotImplementedError

    def _take_leave(self, acceptor: Acceptor) -> Iterator[socket.socket | Guest]:
        """Those who are still to be served: all who wait, or only whom we keep."""
        if self._tells:
            self._tells = False
            self._board.set_idle(self.slot, False)
        wish = self._words[self._wish] or self._asked_to_go()
        if wish not in DRAINS:
            self._be_idle()
            yield from self._from_deserted()
            acceptor.close()
            yield from self._see_off(acceptor)
            wish = self._words[self._wish]
        if wish in DRAINS:
            yield from self._drain(acceptor, QUIET if wish == DRAIN else 0.0)
        self._be_idle()
        acceptor.close()

    def _from_deserted(self) -> Iterator[socket.socket]:
        """Who waits where nobody else will look: those after us have other sockets there."""
        end = time.monotonic() + self._graceful / 2
        waiting = select.poll()
        for listener in self._listeners:
            if listener.deserted:
                waiting.register(listener.socket, select.POLLIN)
                while waiting.poll(0) and time.monotonic() < end:
                    self._beat()
                    yield listener.socket
                    self._be_idle()
                waiting.unregister(listener.socket)

    def _see_off(self, acceptor: Acceptor) -> Iterator[socket.socket | Guest]:
        """The others take who comes. Whom we keep, and may be about to ask, we serve to his
        limit, unless the server stops."""
        end = time.monotonic() + self._graceful / 2
        while acceptor.has_guests and time.monotonic() < end:
            self._beat()
            ready = acceptor.wait(self._pause)
            if ready is not None:
                yield ready
            self._be_idle()
            if self._words[self._wish] in DRAINS:
                break

    def _asked_to_go(self) -> int:
        """Who goes of its own accord waits for a word of the master: a QUIT to the whole group
        may reach us before it, and then the queue is to be served. Without a master: 0."""
        answer = select.poll()
        answer.register(self._bell.fileno(), select.POLLIN)
        end = time.monotonic() + ANSWER
        while not self.inline and not self._words[self._wish] and os.getppid() == self.pid:
            self._master_bell.ring()
            answer.poll(ANSWER * 100)
            self._bell.hush()
            if time.monotonic() > end:
                break  # it is stopped, or busy with a hook
        return self._words[self._wish]

    def _drain(self, acceptor: Acceptor, quiet: float) -> Iterator[socket.socket | Guest]:
        """The server stops: serve all that is in the queue, since no other process will."""
        now = time.monotonic()
        end = now + self._graceful / 2  # so that what is served last has time, too
        drain = Drain(now, quiet)
        sockets = [listener.socket for listener in self._listeners]
        while now < end:
            self._beat()
            ready = acceptor.wait(max(0.0, drain.look_at - now))
            if ready is not None:
                yield ready
                self._be_idle()
            now = time.monotonic()
            if ready is not None or acceptor.resting:
                drain.came(now, isinstance(ready, Guest))
            elif now >= drain.look_at:
                handshake = drain.asks and handshakes(sockets)
                if drain.is_over(now, handshake, acceptor.awaits_somebody):
                    break
