"""How a worker takes its leave: whom it still serves, and for how long."""

import os
import select
import socket
import time
from collections.abc import Iterator, Sequence

from .acceptor import Acceptor, Guest
from .account import Account
from .listeners import Listener
from .scoreboard import DRAIN, DRAIN_ONCE
from .signals import Bell
from .vigil import FAREWELL

QUIET = 0.1  # seconds without anybody in the queue: then it is empty
ANSWER = 0.5  # seconds for the master to say what it wants
DRAINS = (DRAIN, DRAIN_ONCE)


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
        """The server stops: serve who is inside, since nobody else will, until none has come
        for ``quiet`` seconds."""
        now = quiet_since = time.monotonic()
        end = now + self._graceful / 2  # so that what is served last has time, too
        farewell = now + FAREWELL
        while now < end:
            self._beat()
            ready = acceptor.wait(max(0.0, quiet_since + quiet - now))
            if ready is not None:
                yield ready
                self._be_idle()
            now = time.monotonic()
            if ready is not None or acceptor.resting:
                quiet_since = now
            elif now >= quiet_since + quiet:
                if now >= farewell or not acceptor.awaits_somebody:
                    break
                quiet_since = now + QUIET - quiet
