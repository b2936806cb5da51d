"""Leave the terminal, and tell the launcher when ready.

Nothing else changes: not the directory, nor the umask, nor the environment.
"""

import os
import signal
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from . import exits
from .errors import BootError, PreforkError
from .forks import drop, fork, keep_from_forks, null
from .output import flush_streams
from .signals import all_blocked
from .text import one_record, printable

_READY = "ready"
_LONGEST = 65536  # bytes that a socket pair takes without waiting
_END = "\0"  # of a word: no error, no path and no address holds it

Serve = Callable[[Callable[..., None]], None]


def daemonize(serve: Serve) -> tuple[int, list[str]]:
    """Call ``serve(ready)`` in a new process; when that calls ``ready(*words)`` return its
    pid, and the words.

    The process has a session of its own, no terminal, and ``/dev/null`` for its standard
    streams; it ends when ``serve`` returns, and never comes back here. Raises BootError,
    with what it said last, if it ends before it is ready.
    """
    flush_streams()  # what is in a buffer now would be written twice
    # No pipe: where SIGPIPE has its default action, a launcher that is gone would be fatal.
    ours, theirs = socket.socketpair()
    ours.setblocking(True)  # whatever socket.setdefaulttimeout() says, as for each socket of ours
    with ours:
        # A handler of the program's that raised between fork and try would have the child
        # come back into the caller's code.
        with theirs, all_blocked() as mask:
            child = _fork()
            if child == 0:
                ours.close()
                _leave_terminal(serve, theirs, mask)
        with suppress(ChildProcessError):  # where SIGCHLD is ignored the system reaps it
            os.waitpid(child, 0)
        with ours.makefile("r", encoding="utf-8", errors="replace", newline="") as pipe:
            kind, *words = pipe.read().split(_END)
    if kind == _READY:
        return int(words[0]), words[1:]
    raise BootError(kind or "the daemon died before it was ready", *words[:1])


def go_on(serve: Serve) -> NoReturn:
    """The same in a process that is a daemon already, since its predecessor was one."""
    launcher, theirs = socket.socketpair()
    launcher.close()  # whoever started it asked the predecessor
    with all_blocked() as mask:
        _be_daemon(serve, theirs, mask)


def _fork() -> int:
    try:
        return fork()
    except OSError as error:
        raise BootError(f"cannot fork: {error.strerror}") from None


def _leave_terminal(serve: Serve, launcher: socket.socket, mask: set[int]) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)  # the program's event loop sleeps there, in the launcher
        os.setsid()
        # No leader of its session: it can never acquire a terminal again.
        if fork() == 0:
            _be_daemon(serve, launcher, mask)
    except OSError as error:
        _say(launcher, f"cannot fork: {error.strerror}")
    finally:
        os._exit(0)


def _be_daemon(serve: Serve, launcher: socket.socket, mask: set[int]) -> NoReturn:
    status = 1
    said = False

    def say(*words: str) -> None:
        nonlocal said
        if not said:
            said = True
            _say(launcher, *words)
            drop(launcher.detach())

    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        exits.begin()
        keep_from_forks(launcher.fileno())
        nothing = null()
        for fd in (0, 1, 2):
            os.dup2(nothing, fd)
        if nothing > 2:
            os.close(nothing)
        serve(lambda *words: say(_READY, str(os.getpid()), *words))
        say("it was stopped before it was ready")
        status = 0
    except BaseException as error:
        ours = isinstance(error, PreforkError)
        name = "" if ours else type(error).__name__
        report = getattr(error, "report", "") if ours else traceback.format_exc()
        text = printable(": ".join(filter(None, (name, str(error)))))
        say(text, one_record(f"{report}"))
    finally:
        exits.end(status)  # the frames below are the launcher's


def _say(launcher: socket.socket, *words: str) -> None:
    with suppress(OSError):  # it did not wait for us, or it was stopped and reads nothing
        said = _END.join(words).encode("utf-8", "backslashreplace")[:_LONGEST]
        launcher.send(said, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
