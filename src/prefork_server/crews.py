"""Have a worker serve several connections at a time: what it is to its own code then.

The same handle and the same acceptor, which are about a thread each from now on.
"""

import os
import select
import socket
import socketserver
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .acceptor import Acceptor, Guest
from .errors import ConfigError
from .handle import MasterHandle, announced_ns
from .leave import QUIET
from .settings import Settings
from .threads import Crew

_BLINK = 0.02  # seconds for a hand to be free, even for who would not wait for a client

WORKS = "a work function does by itself what it does"


def check_threads(server: Any, settings: Settings) -> None:
    """Raises ConfigError where we cannot serve in threads: ``server`` is a class that has a way
    of its own, or in words something whose handlers are not ours to call."""
    why = server
    if isinstance(server, type):
        way = getattr(server, "process_request", None)
        if way is socketserver.BaseServer.process_request:
            return
        why = (
            f"{server.__name__} has a process_request() of its own, as ThreadingMixIn and "
            "ForkingMixIn have"
        )
    if settings.threads > 1:
        raise ConfigError(
            f"threads={settings.threads} is for servers that serve one connection at a time "
            f"otherwise, and {why}"
        )


def manned(master: MasterHandle, count: int, resume: Callable[[Guest], object]) -> Crew:
    """Start so many threads in this worker, and have what ``master`` does be about them.
    ``resume`` is what they do with a guest."""
    crew = Crew(master, count, resume)
    acceptor = crew.acceptor
    # The same objects, with more to them: hooks and handlers have them already.
    master.__class__, acceptor.__class__ = _CrewsHandle, _CrewsAcceptor
    master._crew = acceptor._crew = crew  # type: ignore[attr-defined]
    master._vigil = acceptor.vigil = crew.vigil
    acceptor._turns, acceptor._next_turns = _Turns(), _Turns()
    crew.start()
    return crew


class _Turns(deque[Any]):
    """Whose turn it is. Two may look at once, of whom one finds nobody left."""

    def popleft(self) -> Any:
        try:
            return super().popleft()
        except IndexError:
            return None


class _CrewsHandle(MasterHandle):
    """The master, as the threads of a crew see it: what they say is about each of them."""

    _crew: Crew

    def wants_me_alive(self, within: float | None = None) -> bool:
        """As ever; called in one of the threads, it is about that thread alone."""
        allowed_ns = self._patience_ns if within is None else announced_ns(within)
        self._crew.beat(time.monotonic_ns() + allowed_ns, within is not None)
        return not self._is_over()

    def _beat(self) -> None:
        self._crew.beat()

    def _took(self, peer: Any, asked: bool = True) -> None:
        with self._crew.lock:
            self._crew.took()
            super()._took(peer, asked)
            self._crew.keep_word()

    def _took_again(self, guest: Guest) -> None:
        with self._crew.lock:
            super()._took_again(guest)
            self._crew.keep_word()
        self._crew.meets(guest.peer)
        self._crew.beat()

    def _introduced(self, peer: Any) -> None:
        super()._introduced(peer)
        self._crew.meets(peer)

    def _be_idle(self, now_ns: int = 0) -> None:
        with self._crew.lock:
            if self._crew.all_free():
                super()._be_idle()  # by a time from before the lock a request would end too early

    def _tell_busy(self) -> None:
        pass  # it can take more until no hand is free: see Crew._tell

    def _tell_idle(self) -> None:
        pass

    def _disown(self) -> None:
        super()._disown()
        self._crew.lock = threading.Lock()  # in a fork, whose threads may have held it

    def _from_deserted(self) -> Iterator[socket.socket]:
        crew, end = self._crew, time.monotonic() + self._graceful / 2
        for ready in super()._from_deserted():
            while not crew.free and time.monotonic() < end:
                crew.wait_for_free(max(crew.turn(self._pause), _BLINK))
            if not crew.free:
                return
            yield ready

    def _take_leave(self, acceptor: Acceptor) -> Iterator[socket.socket | Guest]:
        crew = self._crew
        crew.be_over()
        yield from super()._take_leave(acceptor)
        # Whoever is with a thread may be kept again, and then has a moment to ask.
        end = time.monotonic() + QUIET
        while crew.is_busy() or (acceptor.has_guests and time.monotonic() < end):
            if crew.is_busy():
                end = time.monotonic() + QUIET
            if self._rotation != self._words[self._newest_rotation]:
                self._follow_rotation()
            ready = acceptor.wait(min(self._pause, QUIET))
            if ready is not None:
                yield ready


class _CrewsAcceptor(Acceptor):
    """It looks at nobody unless there is a hand for him. Its guests are kept by the threads."""

    serial = False
    _crew: Crew
    _blind = False  # when it waited last it looked at nobody, since no hand was free

    def wait(self, seconds: float, now_ns: int | None = None) -> socket.socket | Guest | None:
        crew = self._crew
        seconds = crew.turn(seconds)
        self._blind = not crew.free
        if self._blind:
            crew.wait_for_free(max(seconds, _BLINK))
            return None
        return super().wait(seconds)

    def _settle_last(self, now_ns: int) -> None:
        """To the end of the line, and its siblings run first. It does not step aside as one that
        holds a single connection does: whom it took may be gone in a moment."""
        if self._taken is None or self._taken.fileno() != -1:
            os.sched_yield()
            self._enlist()
        self._taken, self._taken_ns = None, 0

    def keep(
        self, guest: Guest, until_ns: int, ready: bool = False, event: int = select.EPOLLIN
    ) -> None:
        guest.until_ns = until_ns
        crew, fd = self._crew, guest.request.fileno()
        # Told once: else it would be told of again while a thread reads it.
        event |= select.EPOLLONESHOT
        with crew.lock:
            if ready:
                self._next_turns.append(guest)
            else:
                self._guests[fd] = guest
                self._soonest_ns = min(self._soonest_ns, until_ns)
                if self._watched.get(fd) is guest:
                    self._epoll.modify(fd, event)
                else:
                    self._watched[fd] = guest
                    self._epoll.register(fd, event)
        if ready or until_ns < crew.wakes_ns:
            crew.wake()

    def _find_silent(self, now_ns: int) -> None:
        with self._crew.lock:
            super()._find_silent(now_ns)

    @property
    def resting(self) -> bool:
        return self._blind or super().resting

    @property
    def has_guests(self) -> bool:
        return self._crew.is_busy() or super().has_guests
