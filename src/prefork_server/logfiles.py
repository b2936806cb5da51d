"""The log, and where prints go: it is not silent, and it is the program's own where it has one."""

import logging
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO

from .errors import ConfigError
from .forks import drop, keep_from_forks
from .settings import FilePath, absolute

LOGGER = "prefork_server"
_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s"
_TIME = "%H:%M:%S"  # on a terminal; a file may be read on another day
_STANDARD = {"/dev/stdout": "/dev/fd/1", "/dev/stderr": "/dev/fd/2"}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/([0-9]{1,9})")


def logger_named(logger: logging.Logger | None) -> logging.Logger:
    return logger or logging.getLogger(LOGGER)


@contextmanager
def speaking(logger: logging.Logger, path: FilePath | None = None) -> Iterator[None]:
    """Have the log go to the file ``path``, or else to stderr, if nobody has configured logging.

    A server that is silent when it kills is of no use. A program that has a handler,
    here or at a parent, sees no change; and when the server is over nothing remains.
    """
    if path is None and logger.hasHandlers():
        yield
        return
    handler = LogFile(absolute("log_path", path)) if path else logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT, f"%Y-%m-%d {_TIME}" if path else _TIME))
    level = logger.level
    if level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        if path:
            handler.close()


class LogFile(logging.FileHandler):
    """The log file: appended to in whole lines, by the master and every worker."""

    def _open(self) -> Any:
        fd = open_appending(self.baseFilename, "log_path")
        return open(fd, "a", encoding="utf-8", errors="backslashreplace")


@contextmanager
def redirected(stdout_path: FilePath | None, stderr_path: FilePath | None) -> Iterator[None]:
    """Have what this process and its forks print go to these files; ``None``: where it went.

    One file may serve for both, and for the log. Raises ConfigError.
    """
    with ExitStack() as stack:
        for name, fd, path in (("stdout", 1, stdout_path), ("stderr", 2, stderr_path)):
            if path is not None:
                stack.enter_context(_redirected(name, fd, path))
        yield


@contextmanager
def _redirected(name: str, fd: int, path: FilePath) -> Iterator[None]:
    target = open_appending(path, f"{name}_path")
    stream: TextIO | None = getattr(sys, name)
    if stream is None:  # it was closed when Python started
        setattr(sys, name, open(fd, "w", buffering=1, closefd=False))  # noqa: SIM115
    flush_streams()
    before = keep_from_forks(os.dup(fd))
    os.dup2(target, fd)
    os.close(target)
    # In whole lines, since others write there too. Under PYTHONUNBUFFERED print() would write
    # each word by itself.
    by_line: bool | None = getattr(stream, "line_buffering", None)
    at_once: bool = getattr(stream, "write_through", False)
    if by_line is not None:
        stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]
    try:
        yield
    finally:
        flush_streams()
        if by_line is not None:
            stream.reconfigure(  # type: ignore[union-attr]
                line_buffering=by_line, write_through=at_once
            )
        os.dup2(before, fd)
        drop(before)


def open_appending(path: FilePath, setting: str) -> int:
    """A descriptor for whole lines at the end of ``path``. Raises ConfigError.

    No link is followed: who can write to the directory could have us write elsewhere. But
    ``/dev/stdout`` and the like are descriptors of ours, and duplicated: a socket cannot be
    opened anew, and a file would be written at two places.
    """
    path = absolute(setting, path)
    ours = _DESCRIPTOR.fullmatch(_STANDARD.get(path, path))
    # O_NONBLOCK is for a FIFO, where open() would wait for a reader.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        if ours:
            return os.dup(int(ours[1]))
        fd = os.open(path, flags, 0o640)
    except OSError as error:
        raise ConfigError(f"{setting} {path}: {error.strerror}") from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISCHR(mode):
        os.close(fd)
        raise ConfigError(f"{setting} {path}: it is neither a file nor a device")
    os.set_blocking(fd, True)
    return fd


def flush_streams() -> None:
    """Before a fork, which would write what is in a buffer again, and before ``os._exit``,
    which would not write it at all."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or its reader is gone
            stream.flush()


def fill_standard_descriptors() -> None:
    """Open ``/dev/null`` where 0, 1 or 2 is closed, as at ``program >&-``.

    Otherwise the next socket would get their number, and what handlers print.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
