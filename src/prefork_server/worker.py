"""The worker process: everything that runs after the fork, and only there.

``become_worker`` never returns: the frames that called it belong to the master.
In here the master is a ``MasterHandle``, which user code calls ``master``.
"""

import faulthandler
import fcntl
import logging
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from .acceptor import Acceptor, Relay
from .connection import Connection, Vigil
from .job import Job, nothing
from .logfiles import flush_streams
from .reports import Reports, leave_report
from .scoreboard import (
    ASKS_STOP,
    DEADLINE,
    DRAIN,
    DRAIN_ONCE,
    LEAVING,
    NEVER,
    READY,
    REQUESTS,
    SINCE,
    WISH,
    Scoreboard,
    in_ns,
)
from .signals import ORPHANED, WHERE, Bell, make_room_for_signals
from .titles import Title

_ANSWER = 0.5  # seconds for the master to say what it wants
_QUIET = 0.1  # seconds without anybody in the queue: then it is empty

# Of the signals that mean something to the master, or that a terminal sends to all
# its processes: in a worker they do nothing. Not SIG_IGN, which programs started
# from a handler would inherit.
_NOT_FOR_WORKERS = (
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGWINCH,
)


@dataclass(frozen=True)
class Shared:
    """What the master made before the fork, for both of them."""

    board: Scoreboard
    reports: Reports
    relay: Relay
    bell: Bell  # wakes the master
    title: Title
    life: int  # the read end of a pipe that ends when the master does
    master_pid: int


def become_worker(slot: int, job: Job, shared: Shared, mask: set[int]) -> NoReturn:
    """Live and die as the worker in ``slot``. All signals are blocked when this is called,
    ``mask`` were it before."""
    status = 1
    try:
        status = _live(slot, job, shared, mask)
    finally:
        # Not sys.exit(): the atexit handlers and the frames below belong to the master.
        os._exit(status)


def _live(slot: int, job: Job, shared: Shared, mask: set[int]) -> int:
    global _here
    report = shared.reports.open_in_worker(slot)
    faulthandler.enable(report)
    faulthandler.register(WHERE, report, chain=False)
    make_room_for_signals()
    bell = Bell()
    _here = master = MasterHandle(slot, job, shared, bell)
    for signum in _NOT_FOR_WORKERS:
        signal.signal(signum, nothing)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, master._go)
    signal.signal(ORPHANED, master._orphaned)
    signal.set_wakeup_fd(bell.rope, warn_on_full_buffer=False)
    heard = {signal.SIGQUIT, signal.SIGTERM, ORPHANED, WHERE, *_NOT_FOR_WORKERS}
    signal.pthread_sigmask(signal.SIG_SETMASK, mask - heard)
    _follow(shared, master)
    shared.title.show_worker(slot)
    try:
        job.hooks.after_fork(master)
        master._be_ready()
        job.work(master)
        return 0
    except SystemExit as asked:
        if asked.code is None or isinstance(asked.code, int):
            return (asked.code or 0) & 0xFF
        leave_report(report, str(asked.code))
        return 1
    except BaseException:
        # User code failed. The master logs what it reads here, once, however many fail alike.
        leave_report(report, traceback.format_exc())
        return 1
    finally:
        flush_streams()


def _follow(shared: Shared, master: "MasterHandle") -> None:
    """Have the kernel tell us when the master is gone, wherever we are then.

    Nobody writes to the pipe of life, and only the master holds its writing end. So
    the one thing that ever happens there is its end, and it comes as a signal. The
    pipe is opened anew, since who gets the signal belongs to the open description.
    """
    fd = os.open(f"/proc/self/fd/{shared.life}", os.O_RDONLY | os.O_NONBLOCK)
    os.close(shared.life)
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, int(ORPHANED))
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    end = select.poll()
    end.register(fd, 0)  # POLLHUP is always told
    if end.poll(0):  # it was gone before we were listening
        master._orphaned()


class MasterHandle:
    """The master, as a worker sees it.

    ``slot`` is the number of this worker, from 1; its successor has it again.
    ``pid`` is the master's. ``logger`` is where the server logs. ``inline`` says that
    there is none, and the worker is this process.
    """

    inline = False

    def __init__(self, slot: int, job: Job, shared: Shared, bell: Bell) -> None:
        settings = job.settings
        self.slot = slot
        self.pid: int = shared.master_pid
        self.logger: logging.Logger = job.logger
        self._board = shared.board
        self._title = shared.title
        self._master_bell = shared.bell
        self._bell = bell
        self._foreign = False
        self._graceful = settings.graceful_timeout
        self._patience_ns = NEVER if settings.timeout is None else in_ns(settings.timeout)
        # Often enough that one late beat is no silence, and no oftener than once a second.
        self._pause = min(1.0, (settings.timeout or 3.0) / 3)
        self._words = shared.board.words
        self._own_words = self._words  # what we write to; see _disown
        at = shared.board.at
        self._deadline = at(slot, DEADLINE)
        self._wish = at(slot, WISH)
        self._leaving = at(slot, LEAVING)
        self._ready = at(slot, READY)
        self._requests = at(slot, REQUESTS)
        self._since = at(slot, SINCE)
        self._asks_stop = at(slot, ASKS_STOP)
        vigil = Vigil(self._beat, self._is_over, bell.fileno(), bell.hush, self._pause)
        self._acceptor: Acceptor | None = None
        if job.listeners:
            listeners = [listener.socket for listener in job.listeners]
            self._acceptor = Acceptor(
                listeners, shared.relay, vigil, settings.client_timeout, self.logger
            )

    def __repr__(self) -> str:
        return f"<MasterHandle pid={self.pid}, in worker={self.slot} pid={os.getpid()}>"

    # For user code

    def wants_me_alive(self, within: float | None = None) -> bool:
        """Tell the master we are alive; return whether it wants us to go on.

        Ask at least once every ``timeout`` seconds, or be killed and replaced.
        ``within`` says that the next time may be so many seconds away, just this once.
        Once it has returned False it never returns True again.
        """
        if within is None:
            allowed_ns = self._patience_ns
        elif within > 0:
            allowed_ns = min(in_ns(min(within, 1e9)), NEVER)
        else:
            raise ValueError(f"within is a number of seconds above 0, not {within!r}")
        self._own_words[self._deadline] = time.monotonic_ns() + allowed_ns
        return not self._is_over()

    def wait(self, seconds: float) -> bool:
        """Sleep, at most so long; return whether the master wants us to go on.

        Returns at once, False, when it does not. The sleep counts as life, however long.
        """
        poll = select.poll()
        poll.register(self._bell.fileno(), select.POLLIN)
        end = time.monotonic() + seconds
        while self.wants_me_alive():
            left = end - time.monotonic()
            if left <= 0:
                return True
            if poll.poll(min(left, self._pause) * 1000):
                self._bell.hush()
        return False

    def connections(self) -> Iterator[tuple[Connection, Any]]:
        """Accept, one connection after the other, until the master wants us to go.

        Each step counts as life. Close the connections you get, or keep them and serve
        them in your own way. On a graceful stop the queue is served first. Raises
        ``RuntimeError`` where there is nothing to listen on.
        """
        acceptor = self._accepting()
        for listener in self._waiting():
            taken = acceptor.accept(listener)
            if taken:
                self._took(taken[1])
                yield taken

    def retire(self) -> None:
        """Finish what is at hand, then go: ``wants_me_alive()`` is False from here on.

        The master replaces this worker at once, and kills it if it is not gone after
        ``graceful_timeout``.
        """
        self._go()
        self._master_bell.ring()

    # For the front rooms

    def _accepting(self) -> Acceptor:
        if self._acceptor is None:
            raise RuntimeError("there is nothing to accept from: give Preforker(..., listen=[...])")
        return self._acceptor

    def _hang_up(self) -> None:
        if self._acceptor:
            self._acceptor.close()
            self._acceptor.hang_up()

    def _waiting(self, each_time: Callable[[], object] = nothing) -> Iterator[socket.socket]:
        """Each listener on which somebody waits, until it is time to go."""
        acceptor = self._accepting()
        while True:
            each_time()
            if self._foreign:
                os._exit(0)  # a handler forked, and its child came back into our loop
            self._be_idle()
            if not self.wants_me_alive():
                break
            # Whoever is woken for a connection takes it before it obeys anything: the
            # kernel has told nobody else.
            listener = acceptor.wait(self._pause)
            if listener is not None:
                yield listener
        wish = self._words[self._wish] or self._asked_to_go()
        if wish in (DRAIN, DRAIN_ONCE):
            yield from self._drain(acceptor, _QUIET if wish == DRAIN else 0.0)
        self._be_idle()
        acceptor.close()

    def _asked_to_go(self) -> int:
        """Who goes of its own accord waits for a word of the master: a QUIT to the whole group
        may reach us before it, and then the queue is to be served. Without a master: 0."""
        answer = select.poll()
        answer.register(self._bell.fileno(), select.POLLIN)
        end = time.monotonic() + _ANSWER
        while not self.inline and not self._words[self._wish] and os.getppid() == self.pid:
            self._master_bell.ring()
            answer.poll(_ANSWER * 100)
            self._bell.hush()
            if time.monotonic() > end:
                break  # it is stopped, or busy with a hook
        return self._words[self._wish]

    def _drain(self, acceptor: Acceptor, quiet: float) -> Iterator[socket.socket]:
        """The server stops: serve who is inside, since nobody else will, until none has come
        for ``quiet`` seconds."""
        now = quiet_since = time.monotonic()
        end = now + self._graceful / 2  # so that what is served last has time, too
        while now < end:
            self._beat()
            listener = acceptor.wait(max(0.0, quiet_since + quiet - now))
            if listener is not None:
                yield listener
            now = time.monotonic()
            if listener is not None or acceptor.resting:
                quiet_since = now
            elif now >= quiet_since + quiet:
                break

    def _took(self, peer: Any) -> None:
        words = self._own_words
        now_ns = time.monotonic_ns()
        words[self._deadline] = now_ns + self._patience_ns  # the handler has all of it
        words[self._since] = now_ns
        words[self._requests] += 1
        self._title.show_busy(words[self._requests])
        self._board.set_peer(self.slot, peer)

    def _be_idle(self) -> None:
        if self._own_words[self._since]:
            self._own_words[self._since] = 0
            self._title.show_idle()

    def _be_ready(self) -> None:
        self._beat()
        self._own_words[self._ready] = time.monotonic_ns()
        self._master_bell.ring()

    def _ask_stop(self) -> None:
        """Ask the master to stop the whole server. Returns at once."""
        self._words[self._asks_stop] = 1  # from a fork of the worker, too
        self._master_bell.ring()

    # How it works

    def _beat(self) -> None:
        self._own_words[self._deadline] = time.monotonic_ns() + self._patience_ns

    def _is_over(self) -> bool:
        return bool(self._words[self._wish] or self._words[self._leaving])

    def _go(self, *_: object) -> None:
        """As a handler of QUIT, and by our own wish."""
        self._own_words[self._leaving] = 1

    def _orphaned(self, *_: object) -> None:
        """The master is gone: finish, and be gone too before long.

        There is nobody to kill us any more if this is where we hang. So the kernel does:
        the default action of SIGALRM needs no Python to run.
        """
        self._go()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, self._graceful)

    def _disown(self) -> None:
        """In a fork of the worker: it may read the scoreboard, but what it writes, nobody sees."""
        self._foreign = True
        self._own_words = memoryview(bytearray(self._words)).cast("q")


_here: MasterHandle | None = None


def current_master() -> MasterHandle:
    """The master, in any code that runs in a worker. Elsewhere: RuntimeError."""
    if _here is None:
        raise RuntimeError("current_master() is there in a worker process only")
    return _here


def in_worker() -> bool:
    """Whether this process is a worker, and somewhere else is its master."""
    return _here is not None and not _here.inline


@contextmanager
def standing_in(master: MasterHandle) -> Iterator[None]:
    """This process works with ``master``, though it is no fork of one."""
    global _here
    outer, _here = _here, master
    try:
        yield
    finally:
        _here = outer


def _in_fork_of_worker() -> None:
    if _here is not None:
        _here._disown()


os.register_at_fork(after_in_child=_in_fork_of_worker)
