"""Leave the terminal, and tell the launcher when ready.

Nothing else changes: not the directory, nor the umask, nor the environment.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from .errors import BootError
from .forks import drop, fork, keep_from_forks
from .logfiles import flush_streams

_READY = b"ready "


def daemonize(serve: Callable[[Callable[[], None]], None]) -> int:
    """Call ``serve(ready)`` in a new process, and return its pid when that calls ``ready()``.

    The process has a session of its own, no terminal, and ``/dev/null`` for its standard
    streams; it ends when ``serve`` returns, and never comes back here. Raises BootError,
    with what it said last, if it ends before it is ready.
    """
    flush_streams()  # what is in a buffer now would be written twice
    reader, writer = os.pipe()
    try:
        child = fork()
    except OSError as error:
        os.close(reader)
        os.close(writer)
        raise BootError(f"cannot fork: {error.strerror}") from error
    if child == 0:
        try:
            os.close(reader)
            os.setsid()
            # No leader of its session: it can never acquire a terminal again.
            if fork() == 0:
                _be_daemon(serve, keep_from_forks(writer))
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with suppress(ChildProcessError):  # where SIGCHLD is ignored the system reaps it
        os.waitpid(child, 0)
    with open(reader, "rb") as pipe:
        said = pipe.read()
    if said.startswith(_READY):
        return int(said.removeprefix(_READY))
    cause, _, report = said.decode("utf-8", "replace").partition("\n")
    raise BootError(cause or "the daemon died before it was ready", report)


def _be_daemon(serve: Callable[[Callable[[], None]], None], launcher: int) -> NoReturn:
    status = 1
    said = False

    def say(words: bytes) -> None:
        nonlocal said
        if not said:
            said = True
            with suppress(BrokenPipeError):  # the launcher did not wait for us
                os.write(launcher, words)
            drop(launcher)

    try:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        if null > 2:
            os.close(null)
        serve(lambda: say(_READY + b"%d" % os.getpid()))
        say(b"it was stopped before it was ready")
        status = 0
    except BaseException as error:
        report = getattr(error, "report", "")
        say(f"{error or type(error).__name__}\n{report}".encode())
    finally:
        # The atexit handlers and the frames below are the launcher's.
        flush_streams()
        os._exit(status)
