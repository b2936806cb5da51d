"""The log, and where prints go: it is not silent, and it is the program's own where it has one."""

import errno
import logging
import os
import re
import stat
import sys
import threading
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from typing import Any, TextIO

from .errors import ConfigError
from .forks import drop, keep_from_forks, null
from .output import STANDARD, Output, flush_streams
from .settings import FilePath, absolute
from .text import one_record
from .trusted import check, is_at, opened

LOGGER = "prefork_server"
_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s"
_TIME = "%H:%M:%S"  # on a terminal; a file may be read on another day
_STANDARD = {"/dev/stdout": "/dev/fd/1", "/dev/stderr": "/dev/fd/2"}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/([0-9]{1,9})")


def logger_named(logger: logging.Logger | None) -> logging.Logger:
    """The logger, or ours, undone what ``dictConfig()`` and ``fileConfig()`` do to one that was
    there before: they disable it, or, if they name it, take our handlers from it."""
    logger = logger or logging.getLogger(LOGGER)
    logger.disabled = False
    with _turn:
        for handler in _lent.get(logger, (0, ()))[1]:
            logger.addHandler(handler)  # once, however often this is called
    return logger


@contextmanager
def speaking(
    logger: logging.Logger, path: FilePath | None = None, owners: Collection[int] = ()
) -> Iterator[None]:
    """Have the log go to the file ``path``, or else to stderr, if nobody has configured logging.

    A server that is silent when it kills is of no use. A program that has a handler,
    here or at a parent, sees no change; and when the server is over nothing remains.
    The file may belong to root, to this process's user, or to one of ``owners``.
    """
    with ExitStack() as stack:
        with _turn:
            if path or not is_configured(logger):
                # Two servers of one process do not say everything twice.
                shared = (each for each in logger.handlers if isinstance(each, _Stderr))
                handler = (
                    LogFile(absolute("log_path", path), owners)
                    if path
                    else next(shared, None) or _Stderr(logger)
                )
                form = _Form(_FORMAT, f"%Y-%m-%d {_TIME}" if path else _TIME)
                handler.setFormatter(form)
                stack.enter_context(lent(logger, handler))
            logger_named(logger)
        yield


_turn = threading.RLock()
# Held by every fork, too: a server may be started in a worker.
os.register_at_fork(
    before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_turn.release
)
_lent: dict[logging.Logger, tuple[int, list[logging.Handler]]] = {}  # and the level of before


@contextmanager
def lent(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    """Add a handler of ours, and hear INFO if the program has set no level.

    Several servers may do so at once, in their threads: what they share, the level or a
    handler, goes with the last of them.
    """
    with _turn:
        level, handlers = _lent.setdefault(logger, (logger.level, []))
        if level == logging.NOTSET:
            logger.setLevel(logging.INFO)
        handlers.append(handler)
        logger.addHandler(handler)
    try:
        yield
    finally:
        with _turn:
            handlers.remove(handler)
            if handler not in handlers:
                logger.removeHandler(handler)
                handler.close()
            if not handlers:
                del _lent[logger]
                logger.setLevel(level)


def is_configured(logger: logging.Logger) -> bool:
    """Whether the program has seen to it that somebody hears this logger, besides ours."""
    each: logging.Logger | None = logger
    while each:  # for each line of an access log, so without a generator
        for handler in each.handlers:
            if not isinstance(handler, _Unhindered):
                return True
        each = each.parent if each.propagate else None
    return False


def reached(logger: logging.Logger) -> Iterator[logging.Handler]:
    """The handlers that are given what this logger is told, its own and those of its parents."""
    each: logging.Logger | None = logger
    while each:
        yield from each.handlers
        each = each.parent if each.propagate else None


def outlives_the_terminal(logger: logging.Logger, kept: Collection[int]) -> bool:
    """Whether a handler is left where stdout and stderr (1 and 2) are gone, but those ``kept``."""
    return any(_stream_of(each) not in {0, 1, 2}.difference(kept) for each in reached(logger))


def _stream_of(handler: logging.Handler) -> int:
    """The descriptor that it writes to, 0 if its stream is closed, -1 if it has none."""
    if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
        try:
            return 0 if handler.stream is None else int(handler.stream.fileno())
        except (AttributeError, OSError):  # it only looks like a file
            return -1
        except ValueError:  # closed, or detached
            return 0
    return -1


class _Form(logging.Formatter):
    """No text in a record can look like another record, or steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return one_record(super().format(record))


class _Unhindered(logging.StreamHandler[TextIO]):
    """A handler that drops lines rather than wait: see ``output``."""

    @cached_property
    def _own(self) -> Output:
        return Output(-1, "lines of the log")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fd = self.stream.fileno()
        except (AttributeError, OSError, ValueError):  # it only looks like a file, or is closed
            super().emit(record)
            return
        try:
            line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        except Exception:  # user code: a message that cannot be made, a filter
            self.handleError(record)
            return
        output = STANDARD.get(fd)
        if output is None:
            output = self._own
            output.fd = fd  # another one after each rotation
        output.write(line)


class _Stderr(_Unhindered):
    """Standard error, while the program has configured nothing: a target that is imported in the
    worker may do so."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        source = logging.Logger.manager.loggerDict.get(record.name)
        if not is_configured(source if isinstance(source, logging.Logger) else self._logger):
            super().emit(record)


class LogFile(_Unhindered, logging.FileHandler):
    """The log file: appended to in whole lines, by the master and every worker."""

    def __init__(self, path: FilePath, owners: Collection[int] = ()) -> None:
        self._owners = owners
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        # A dictConfig() would close it: then a worker of another user may not open it again.
        logging._removeHandlerRef(weakref.ref(self))  # type: ignore[attr-defined]

    def _open(self) -> Any:
        fd = open_appending(self.baseFilename, "log_path", self._owners)
        return open(fd, "a", encoding="utf-8", errors="backslashreplace")


@contextmanager
def redirected(
    stdout_path: FilePath | None, stderr_path: FilePath | None, owners: Collection[int] = ()
) -> Iterator[None]:
    """Have what this process and its forks print go to these files; ``None``: where it went.

    One file may serve for both, and for the log. ``owners``: as of the log. Raises ConfigError.
    """
    with ExitStack() as stack:
        for name, fd, path in (("stdout", 1, stdout_path), ("stderr", 2, stderr_path)):
            if path is not None:
                stack.enter_context(_redirected(name, fd, path, owners))
        yield


@contextmanager
def _redirected(name: str, fd: int, path: FilePath, owners: Collection[int]) -> Iterator[None]:
    setting, path = f"{name}_path", absolute(f"{name}_path", path)
    outer = _redirections.get(fd)
    if outer and outer[2] is not threading.current_thread() and outer[2].is_alive():
        raise ConfigError(
            f"{setting} {path}: a server in another thread has {outer[1]}, and there is one for "
            "the whole process"
        )
    target = open_appending(path, setting, owners)
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
    _redirections[fd] = setting, path, threading.current_thread()
    try:
        yield
    finally:
        if outer:
            _redirections[fd] = outer
        else:
            del _redirections[fd]
        flush_streams()
        if by_line is not None:
            stream.reconfigure(  # type: ignore[union-attr]
                line_buffering=by_line, write_through=at_once
            )
        os.dup2(before, fd)
        drop(before)


_redirections: dict[int, tuple[str, str, threading.Thread]] = {}  # and whose it is


def leads_nowhere(fd: int) -> bool:
    """Whether the settings, or those of a daemon by default, drop what is printed there."""
    return fd in _redirections and _redirections[fd][1] == os.devnull


@contextmanager
def guarded(owners: Collection[int]) -> Iterator[None]:
    """Within, the ``logging.FileHandler`` objects of the program open their files by the rules of
    ``open_appending``: one that watches or rotates its file opens it with any line of the log.

    ``owners`` are the users of the workers; where there are none, nothing changes. Raises
    ConfigError if a file that is open already is not what its path names, or not one to write to.
    """
    with ExitStack() as stack:
        for handler in _file_handlers() if owners else ():
            try:
                opener = _Opener(handler, owners)
            except OSError as error:
                raise ConfigError(
                    f"the log file {_sentence(handler.baseFilename, error)}"
                ) from error
            stack.callback(opener.close)
            stack.callback(_openers.pop, handler, None)
            _openers[handler] = opener
            if hasattr(handler, "_builtin_open"):  # what FileHandler._open opens with
                stack.callback(setattr, handler, "_builtin_open", handler._builtin_open)
                handler._builtin_open = opener.open
        yield


class _Opener:
    """What opens the file of a handler in the place of ``open``. Where the path is not one to
    write to, the handler goes on with the file that it had. Raises OSError."""

    def __init__(self, handler: logging.FileHandler, owners: Collection[int]) -> None:
        self._owners, self._kept = owners, -1
        path, fd = handler.baseFilename, _descriptor(handler.stream)
        if fd < 0 or _own_descriptor(path) is not None:
            return
        check(fd, owners, device=True)
        if type(handler)._open is logging.FileHandler._open:  # else it may have opened another
            self._kept = _checked(path, os.O_WRONLY | os.O_APPEND, owners)
            if not is_at(path, fd):
                self.close()
                raise OSError(errno.ESTALE, "it is not the file that the handler has open")

    def open(self, path: str, mode: str, **options: Any) -> Any:
        return open(path, mode, **options, opener=self._fd)

    def _fd(self, path: str, flags: int) -> int:
        try:
            fd = _checked(path, flags, self._owners)
        except OSError:
            if self._kept < 0:
                raise
            return os.dup(self._kept)
        self.keep(fd)
        return fd

    def keep(self, fd: int) -> None:
        """From now on this file is the one that it had."""
        kept, self._kept = self._kept, os.dup(fd)
        if kept >= 0:
            os.close(kept)

    def close(self) -> None:
        if self._kept >= 0:
            os.close(self._kept)


_openers: "weakref.WeakKeyDictionary[logging.Handler, _Opener]" = weakref.WeakKeyDictionary()


def _file_handlers() -> Iterator[Any]:
    """All that there are, as logging.shutdown() finds them, since one may stand behind another;
    and ours."""
    references = logging._handlerList.copy()  # type: ignore[attr-defined]
    ours = (handler for _, handlers in _lent.values() for handler in handlers)
    for handler in (*(reference() for reference in references), *ours):
        if isinstance(handler, logging.FileHandler):
            yield handler


def reopen(give: Callable[[int], None] | None = None) -> list[str]:
    """Open anew, by their paths, where prints go and every file of ``logging``, in this process.

    ``give`` is called with the descriptor of each file that is new. Returns what could not be
    opened, or given, in sentences: there the old file stays in use.
    """
    failures: list[str] = []
    flush_streams()
    for fd, (setting, path, _) in _redirections.items():
        try:
            if not is_at(path, fd):
                new = _successor_of(fd, path, give)
                os.dup2(new, fd)  # no moment without a file, and no other code needs to know
                os.close(new)
        except OSError as error:
            failures.append(f"{setting} {_sentence(path, error)}")
    for handler in _file_handlers():
        if handler.stream:
            failures += _reopen_handler(handler, give)
    return failures


def _reopen_handler(
    handler: logging.FileHandler, give: Callable[[int], None] | None
) -> Iterator[str]:
    """Yields why it could not, if that is so."""
    path, old = handler.baseFilename, _descriptor(handler.stream)
    if old >= 0 and is_at(path, old):
        return
    spare = None  # the new stream until it is in use, the old one from then on
    opener = _openers.get(handler)
    try:
        if give or opener or isinstance(handler, LogFile):
            new = _successor_of(old, path, give)
            try:
                spare = _stream_of_its_kind(handler, new)
                if opener:
                    opener.keep(new)
            finally:
                os.close(new)
        elif set(handler.mode) & set("wx"):  # it was truncated, or made, when it was new
            spare = open(path, "a", encoding=handler.encoding, errors=handler.errors)  # noqa: SIM115
        else:
            spare = handler._open()
        spare = handler.setStream(spare)
    except Exception as error:  # user code: a class may open in a way of its own
        setting = "log_path " if isinstance(handler, LogFile) else ""
        yield f"{setting}{_sentence(path, error)}"
    if spare:
        with suppress(OSError, ValueError):  # a full disk
            spare.close()


def _successor_of(old: int, path: str, give: Callable[[int], None] | None) -> int:
    """The file that has the path of the open file ``old`` by now, made if there is none: a regular
    file of the same owner, of root or of this process's user. Raises OSError."""
    if (ours := _own_descriptor(path)) is not None:
        return os.dup(ours)
    owners = [os.fstat(old).st_uid] if old >= 0 else []
    fd = _checked(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, owners, device=False)
    try:
        # One that has something in it may be not for the workers' user.
        there = os.fstat(fd)
        if give and there.st_uid == os.geteuid() and there.st_size == 0:
            give(fd)
    except OSError:
        os.close(fd)
        raise
    return fd


def _stream_of_its_kind(handler: logging.FileHandler, fd: int) -> Any:
    """A stream to the open file, as the handler would have opened it."""
    codec: dict[str, Any] = {"encoding": handler.encoding, "errors": handler.errors}
    usual = type(handler)._open in (logging.FileHandler._open, LogFile._open)
    if usual or set(handler.mode) & set("wx"):  # truncated, or made, only when it was new
        return open(handler.baseFilename, "a", **codec, opener=lambda *_: os.dup(fd))
    # A class that opens in a way of its own does so by a path that leads to this very file.
    path = handler.baseFilename
    handler.acquire()
    try:
        handler.baseFilename = f"/proc/self/fd/{fd}"
        return handler._open()
    finally:
        handler.baseFilename = path
        handler.release()


def _descriptor(stream: Any) -> int:
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):  # it only looks like a file, or is closed
        return -1


def _sentence(path: str, error: Exception) -> str:
    return f"{path}: {error.strerror if isinstance(error, OSError) else repr(error)}"


def _own_descriptor(path: str) -> int | None:
    """The descriptor of this process that the path means, ``/dev/stdout`` and the like."""
    ours = _DESCRIPTOR.fullmatch(_STANDARD.get(path, path))
    return int(ours[1]) if ours else None


def open_appending(path: FilePath, setting: str, owners: Collection[int] = ()) -> int:
    """A descriptor for whole lines at the end of ``path``. Raises ConfigError.

    The file is regular or a device, has one name, and belongs to root, to this process's user or
    to one of ``owners``: who can write to the directory could have us write elsewhere. But
    ``/dev/stdout`` and the like are descriptors of ours, and duplicated: a socket cannot be
    opened anew, and a file would be written at two places.
    """
    path = absolute(setting, path)
    ours = _own_descriptor(path)
    try:
        if ours is not None:
            return os.dup(ours)
        if path == os.devnull:
            return null()
        return _checked(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, owners)
    except OverflowError:  # no number of a descriptor
        raise ConfigError(f"{setting} {path}: Bad file descriptor") from None
    except OSError as error:
        raise ConfigError(f"{setting} {path}: {error.strerror}") from None


def _checked(path: str, flags: int, owners: Collection[int], device: bool = True) -> int:
    """Raises OSError. The file is emptied, if ``flags`` say so, after it was looked at."""
    fd = opened(path, flags & ~os.O_TRUNC, 0o640)
    try:
        check(fd, owners, device)
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)
        os.set_blocking(fd, True)
    except OSError:
        os.close(fd)
        raise
    return fd


def give_away(
    path: FilePath, setting: str, give: Callable[[int], None], owners: Collection[int] = ()
) -> None:
    """Have ``give`` called with a descriptor of the file, if it is one that workers will open.

    Raises ConfigError.
    """
    path = absolute(setting, path)
    if _own_descriptor(path) is not None:
        return  # it is open already, and belongs to the process that opened it
    fd = open_appending(path, setting, owners)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            give(fd)
    except OSError as error:
        raise ConfigError(f"{setting} {path}: {error.strerror}") from None
    finally:
        os.close(fd)


def fill_standard_descriptors() -> None:
    """Open ``/dev/null`` where 0, 1 or 2 is closed, as at ``program >&-``.

    Otherwise the next socket would get their number, and what handlers print.
    """
    while (fd := null()) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
