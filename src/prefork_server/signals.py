"""Signals, turned from interruptions into a queue that a loop can read.

A handler notes the number and returns: it logs nothing, locks nothing and raises
nothing. Only its number counts, so a burst of one signal is one, and
no flood of others can push a QUIT out.
"""

import faulthandler
import fcntl
import os
import select
import signal
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from .forks import is_own_fork

HEARD = (  # by the master
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTERM,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGWINCH,
)
WHERE = signal.SIGRTMIN + 1  # to a worker: write down where you are
SHOW = signal.SIGRTMIN + 3  # to a worker, from the command: show where you are
AGAIN = signal.SIGRTMIN + 4  # to a worker, from the command: what was shown may be overwritten
ORPHANED = signal.SIGRTMIN + 2  # to a worker, from the kernel: the master is gone

# A crash while these are blocked leaves no word.
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
_STACK_SIZE = 1 << 18  # bytes; all signals at once, each with the largest registers there are

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers


class Bell:
    """A pipe that wakes whoever sleeps on its ``fileno()``. It carries no message.

    It may be full, which is as good as rung.
    """

    def __init__(self) -> None:
        self.rope: int
        self._heard, self.rope = os.pipe()
        os.set_blocking(self._heard, False)
        os.set_blocking(self.rope, False)

    def fileno(self) -> int:
        return self._heard

    def ring(self) -> None:
        try:
            os.write(self.rope, b"!")
        except BlockingIOError:
            pass  # full: it wakes all the same
        except OSError:
            pass  # closed: the sleeper is gone

    def hush(self) -> None:
        """Forget the ringing so far; the sleeper looks at everything after this."""
        with suppress(BlockingIOError):
            for _ in range(32):  # what a pipe holds, twice: who writes on and on keeps nobody up
                if len(os.read(self._heard, 4096)) < 4096:
                    break

    def only_ring(self) -> None:
        """In a fork: another process sleeps here, and writes here in its signal handlers."""
        os.close(self._heard)
        _open_anew(self.rope)

    def close(self) -> None:
        os.close(self._heard)
        os.close(self.rope)


def _open_anew(fd: int) -> None:
    """In a fork: have the write end of a pipe on a file description of its own.

    O_NONBLOCK belongs to the description. A worker that cleared it on a shared one could make
    the master wait in its next write, for ever: the pipe may be full.
    """
    with suppress(OSError):  # no /proc, or its reader is gone
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
        os.dup2(own, fd, inheritable=False)
        os.close(own)


class Relay:
    """A pipe that wakes one idle worker, whichever, so that it looks at the listeners anew.

    Each byte wakes one, which reads it. No eventfd: it cannot be opened anew, so master and
    workers would share the flag by which a write to it waits.
    """

    def __init__(self) -> None:
        self.fd: int
        self.fd, self._end = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._end, False)

    def wake_one(self) -> None:
        with suppress(BlockingIOError):  # full: all are woken already
            os.write(self._end, b"!")

    def woken(self) -> None:
        with suppress(BlockingIOError):  # a sibling was faster
            os.read(self.fd, 1)

    def leave_to_master(self) -> None:
        """In a fork: the master goes on writing here."""
        _open_anew(self._end)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._end)


class Inbox:
    """Where the master sleeps: until a signal, a ring, or the death of a watched worker."""

    def __init__(self) -> None:
        self.bell: Bell = Bell()
        self._noted: dict[int, None] = {}  # a set that keeps the order
        self._epoll = select.epoll()
        self._epoll.register(self.bell.fileno(), select.EPOLLIN)

    def wait(self, seconds: float) -> list[int]:
        """Sleep, at most so long, and return the signals that came, in their order."""
        if not self._noted:
            self._epoll.poll(seconds)
        self.bell.hush()
        noted, self._noted = self._noted, {}
        return list(noted)

    def watch(self, fd: int) -> None:
        """Wake up when this descriptor is readable, until ``unwatch``."""
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        with suppress(FileNotFoundError):  # it could not be watched
            self._epoll.unregister(fd)

    def note(self, signum: int, frame: FrameType | None = None) -> None:
        self._noted[signum] = None

    @contextmanager
    def hearing(self, signums: Iterable[int]) -> Iterator[None]:
        """Take these signals over, and give them back as the program had them.

        Off the main thread Python can set no handler: then none is taken over.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        make_room_for_signals()  # the program may have enabled faulthandler
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            signums = set(signums) - {signal.SIGHUP}  # started with nohup: it is to stay
        handlers: dict[int, Handler] = dict.fromkeys(signums, self.note)
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            # Inherited from whoever started us; the system would reap our workers itself.
            handlers[signal.SIGCHLD] = signal.SIG_DFL
        with handled(handlers):
            # A full pipe is harmless: it wakes, and the numbers are noted.
            rope = take_wakeups(self.bell.rope)
            mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, signums)
            try:
                yield
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                take_wakeups(rope)

    def leave_to_master(self) -> None:
        """In a fork: an inherited epoll is the parent's, and is closed, never edited."""
        self._epoll.close()
        self.bell.only_ring()

    def close(self) -> None:
        self._epoll.close()
        self.bell.close()


@contextmanager
def handled(handlers: Mapping[int, Handler]) -> Iterator[None]:
    """Have these handlers, and give the signals back as they were. On the main thread only."""
    before = {signum: (signal.getsignal(signum), _taken.get(signum)) for signum in handlers}
    for signum, handler in handlers.items():
        take(signum, handler)
    try:
        yield
    finally:
        for signum, (theirs, taken) in before.items():
            _restore(signum, theirs)
            _taken.pop(signum, None)
            if taken:
                _taken[signum] = taken


def take(signum: int, handler: Handler) -> None:
    """Have this handler, in this process and its workers: in every other fork, one that a handler
    makes for instance, the signal does what it did before. On the main thread only."""
    before, known = signal.signal(signum, handler), _taken.get(signum)
    _taken[signum] = handler, known[1] if known and known[0] == before else before


def take_wakeups(fd: int) -> int:
    """``signal.set_wakeup_fd``, with the same promise; returns the descriptor of before."""
    global _wakeups
    before = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    _wakeups = fd, _wakeups[1] if _wakeups[0] == before else before
    return before


def take_crashes(report: int, dumps: Mapping[int, int]) -> None:
    """Have ``faulthandler`` write the stacks to ``report`` at a crash, and at each of the signals
    of ``dumps`` to its descriptor; with the same promise."""
    global _told_crashes
    _told_crashes = faulthandler.is_enabled()
    faulthandler.enable(report)
    for signum, fd in dumps.items():
        faulthandler.register(signum, fd, chain=False)
        _dumps.add(signum)


_taken: dict[int, tuple[Handler, Handler | None]] = {}  # our handler, and the one of before
_wakeups = -1, -1  # our descriptor, and the one of before
_told_crashes: bool | None = None  # whether faulthandler did, before it told us
_dumps: set[int] = set()


def _restore(signum: int, handler: Handler | None) -> None:
    # None: it was set by C code, and Python cannot give it back.
    signal.signal(signum, signal.SIG_DFL if handler is None else handler)


def _give_back() -> None:
    """In a fork that is not ours: what the program has set itself since then stays."""
    global _told_crashes, _wakeups
    if is_own_fork():
        return
    for signum in _dumps:
        faulthandler.unregister(signum)
    for signum, (ours, before) in _taken.items():
        if signal.getsignal(signum) == ours:
            _restore(signum, before)
    if _wakeups[0] >= 0:  # uvloop may have its own there by now, which is the worker's
        with suppress(OSError, ValueError):  # the program has closed it
            signal.set_wakeup_fd(_wakeups[1])
    if _told_crashes is not None:
        faulthandler.disable()
        if _told_crashes:
            with suppress(RuntimeError, AttributeError, OSError, ValueError):  # no stderr
                faulthandler.enable()
    _taken.clear()
    _dumps.clear()
    _told_crashes, _wakeups = None, (-1, -1)


os.register_at_fork(after_in_child=_give_back)


@contextmanager
def all_blocked() -> Iterator[set[int]]:
    """No signal arrives within; what came meanwhile arrives afterwards. Gives the mask before."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _CRASHES)
    try:
        yield set(map(int, mask))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def when_it_ends(pipe: int, signum: int) -> bool:
    """Have the kernel send us ``signum`` when the last writer of this pipe is gone, wherever we
    are then; whether that is so already. Nobody writes there, and we close ``pipe``.

    It is opened anew, since who gets the signal belongs to the open description. Without /proc a
    thread waits for the end, and sends the signal when it gets its turn. After a change of user
    it is to be asked for anew.
    """
    global _awaited
    try:
        fd = os.open(f"/proc/self/fd/{pipe}", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        threading.Thread(target=_wait_for_end, args=(pipe, signum), daemon=True).start()
        return False
    os.close(pipe)
    _awaited = fd, signum
    return ask_anew()


_awaited: tuple[int, int] | None = None


def ask_anew() -> bool:
    """Ask for that signal again, as the present user; returns the same. In a user namespace, as a
    rootless container has it, its root may not have the kernel signal another user."""
    if _awaited is None:
        return False
    fd, signum = _awaited
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, int(signum))
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    end = select.poll()
    end.register(fd, 0)  # POLLHUP is always told
    return bool(end.poll(0))


def _wait_for_end(pipe: int, signum: int) -> None:
    os.read(pipe, 1)
    os.kill(os.getpid(), signum)


def end_within(seconds: float) -> None:
    """Have the kernel end this process then, wherever it hangs: the default action of SIGALRM needs
    no Python to run."""
    take(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, seconds)


def make_room_for_signals() -> None:
    """Give this thread a larger alternate signal stack than faulthandler's.

    Python's own handlers run there too, once faulthandler is enabled, and its 16 KiB are
    full after five different signals that arrive together (measured with AVX-512: 3.5 KiB
    each); the sixth was a segmentation fault in 20 of 20 tries. Without ``ctypes`` it stays
    as it is.
    """
    global _stack
    try:
        import ctypes
    except ImportError:
        return
    area = ctypes.create_string_buffer(_STACK_SIZE)
    # A stack_t, see sigaltstack(2). ctypes.Structure would import a module (3.14).
    stack = struct.pack("PiN", ctypes.addressof(area), 0, _STACK_SIZE)
    if ctypes.CDLL(None).sigaltstack(stack, None) == 0:
        _stack = area  # in use from now on


_stack: Any = None
