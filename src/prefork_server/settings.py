"""The settings, checked once, at the door: before anything is bound or forked.

It knows nothing of the system. Limits of a protocol are not here: they are
attributes of its handler or server class, as in the standard library.
"""

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from itertools import takewhile
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, TypedDict, Unpack, final

from .errors import ConfigError

MAX_WORKERS = 2048
"""The scoreboard is mapped once, since what is mapped cannot grow after a fork.
It has room for twice as many: a worker that retires keeps its slot until it is
gone, and its successor needs one too."""

MAX_THREADS = 99
"""faulthandler writes the stacks of a hundred threads, and the main thread is one of them."""

FilePath: TypeAlias = str | os.PathLike[str]

_PATHS = ("pid_path", "log_path", "stdout_path", "stderr_path")
_MAX_ID = (1 << 32) - 2  # -1 means "as it is" to the system calls
_MEANT_AS_OCTAL = (22, 27, 37, 66, 77, 117, 137, 177)  # in octal nobody wants what these are
_MOST = 1 << 60  # what a word of the scoreboard holds, with room
_A_YEAR = 366 * 24 * 60 * 60  # NaN and infinity are not less than this, 64 bits of ns are more


class SettingsKeywords(TypedDict, total=False):
    """The settings as keyword arguments, for ``**keywords: Unpack[SettingsKeywords]``."""

    workers: int
    threads: int
    timeout: float | None
    boot_timeout: float
    graceful_timeout: float
    client_timeout: float | None
    max_requests: int
    max_worker_memory: int | None
    app_name: str
    pid_path: FilePath | None
    log_path: FilePath | None
    stdout_path: FilePath | None
    stderr_path: FilePath | None
    user: str | int | None
    group: str | int | None
    umask: int | None
    term: Literal["now", "graceful"]
    inline: bool


@final
@dataclass(frozen=True, kw_only=True, init=False, repr=False)
class Settings:
    """How a prefork server runs. Times are seconds.

    ``workers``
        how many to keep, 1 to 2048. Signals may take a running pool down to 0.
    ``threads``
        how many connections a worker serves at once, 1 to 99: each in a thread of its own
        of so many that are there from the start. For servers, whose handlers we call.
    ``timeout``
        the longest a worker may go without a sign of life (``wants_me_alive()``,
        ``wait()``, or reading from and writing to a connection); past it the
        worker is killed and replaced. ``None``: never.
    ``boot_timeout``
        from fork to ready, which a worker is after ``after_fork`` and just
        before its work.
    ``graceful_timeout``
        how long a worker that was told to finish may take before it is killed.
    ``client_timeout``
        the longest a client may be silent while a handler reads from or writes
        to it; then ``TimeoutError`` in the handler. ``None``: for ever.
    ``max_requests``
        a worker is replaced after so many connections (over HTTP requests, over UDP
        datagrams), give or take a tenth so that not all are at once. 0: never.
    ``max_worker_memory``
        a worker is replaced that holds more bytes than this for itself alone, which it
        measures every 5 seconds. ``None``: never. In both cases it serves until its
        successor is ready.
    ``app_name``
        in process titles and default file names; empty means the door's own default.
    ``pid_path``
        the file with the master's pid, locked while it runs: a second start is refused.
        ``None``: none, which off the main thread it always is.
    ``log_path``
        where the log goes; ``None``: to the handlers of the logger, or else to stderr.
    ``stdout_path``, ``stderr_path``
        where prints go, the master's and the workers'; ``None``: where they went.
    ``user``, ``group``
        whom the workers become, for good, before any code of yours runs in them: names, or
        numbers. Only root may say another than itself. A group that is not said is the
        user's. The master stays what it is; log files and UNIX sockets are given to them.
    ``umask``
        that of the workers, 0 to 0o777. ``None``: the one there is.
    ``term``
        what TERM means: ``"now"``, or ``"graceful"``, as whoever runs containers and
        services means it. A second one hurries.
    ``inline``
        for a debugger or a profiler: one worker, in this process and thread, with no fork
        and no ``timeout``.

    Relative paths are meant from the directory at the start. What is said here wins over
    the defaults of a door, and a copy (``dataclasses.replace``) says the same and its changes.

    Raises ``ConfigError``, a ``ValueError``, for a value that breaks its rule, and for a
    setting that does not exist, which names the nearest.
    """

    _said: InitVar[Mapping[str, Any]] = MappingProxyType({})  # the first: see __init__
    workers: int = 10
    threads: int = 1
    timeout: float | None = 30.0
    boot_timeout: float = 60.0
    graceful_timeout: float = 30.0
    client_timeout: float | None = 30.0
    max_requests: int = 0
    max_worker_memory: int | None = None
    app_name: str = ""
    pid_path: FilePath | None = None
    log_path: FilePath | None = None
    stdout_path: FilePath | None = None
    stderr_path: FilePath | None = None
    user: str | int | None = None
    group: str | int | None = None
    umask: int | None = None
    term: Literal["now", "graceful"] = "now"
    inline: bool = False

    def __init__(self, **said: Unpack[SettingsKeywords]) -> None:
        given: dict[str, Any] = {**said}
        if "_said" in given:
            # dataclasses.replace() names what it is to change, then all that there is in the
            # order of the class, said or not: only what comes before this is new.
            changed = takewhile(lambda item: item[0] != "_said", given.items())
            given = {**given["_said"], **dict(changed)}
        known = [field.name for field in dataclasses.fields(self)]
        for name in given:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
                raise ConfigError(f"there is no setting {name}: {hint}")
        vars(self).update(given, _said=given)  # what is not said has its default from the class
        self._check()

    def __repr__(self) -> str:
        said = vars(self)["_said"].items()
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in said)})"

    def _check(self) -> None:
        for name, most in (("workers", MAX_WORKERS), ("threads", MAX_THREADS)):
            number = getattr(self, name)
            if type(number) is not int or not 1 <= number <= most:
                raise ConfigError(f"{name} must be a whole number, 1 to {most}, not {number!r}")
        for name in ("timeout", "client_timeout"):
            if getattr(self, name) is not None:
                self._check_seconds(name, "; None means never")
        for name in ("boot_timeout", "graceful_timeout"):
            self._check_seconds(name, "")
        self._check_wear()
        name = self.app_name
        if not isinstance(name, str) or not (name.isprintable() and name.isascii()):
            raise ConfigError(f"app_name must be printable ASCII text, not {name!r}")
        if self.term not in ("now", "graceful"):
            raise ConfigError(f"term must be 'now' or 'graceful', not {self.term!r}")
        if type(self.inline) is not bool:
            raise ConfigError(f"inline must be True or False, not {self.inline!r}")
        for setting in _PATHS:
            self._check_path(setting)
        self._check_identity()

    def _check_wear(self) -> None:
        requests, memory = self.max_requests, self.max_worker_memory
        if type(requests) is not int or not 0 <= requests <= _MOST:
            raise ConfigError(
                f"max_requests must be a whole number, 0 (never) to {_MOST}, not {requests!r}"
            )
        if memory is not None and (type(memory) is not int or not 0 < memory <= _MOST):
            raise ConfigError(
                f"max_worker_memory must be a whole number of bytes, 1 to {_MOST}, or None, "
                f"not {memory!r}"
            )

    def _check_identity(self) -> None:
        for name in ("user", "group"):
            value = getattr(self, name)
            number = type(value) is int and 0 <= value <= _MAX_ID
            named = isinstance(value, str) and value and value.isprintable()
            if not (value is None or number or named):
                raise ConfigError(f"{name} must be a name or a number from 0, not {value!r}")
        umask = self.umask
        if umask is not None and (type(umask) is not int or not 0 <= umask <= 0o777):
            raise ConfigError(f"umask must be a number, 0 to 0o777, not {umask!r}")
        if umask in _MEANT_AS_OCTAL:
            raise ConfigError(f"umask {umask} is {umask:#o}: write 0o{umask} if that is meant")
        if self.inline and (self.user, self.group, umask) != (None, None, None):
            raise ConfigError("user, group and umask are for workers, and inline=True has none")

    def _check_path(self, name: str) -> None:
        path = getattr(self, name)
        if path is None:
            return
        text = os.fspath(path) if isinstance(path, os.PathLike) else path
        if not isinstance(text, str) or not text or "\0" in text:
            raise ConfigError(f"{name} must be a path, or None, not {path!r}")
        pid_path = self.pid_path
        if (
            name != "pid_path"
            and pid_path
            and absolute(name, text) == absolute("pid_path", pid_path)
        ):
            raise ConfigError(f"pid_path must be a file of its own, and {name} is {path!r}, too")

    def _check_seconds(self, name: str, hint: str) -> None:
        value = getattr(self, name)
        if type(value) not in (int, float) or not 0 < value <= _A_YEAR:
            raise ConfigError(
                f"{name} must be a number of seconds above 0 and at most {_A_YEAR}, a year, "
                f"not {value!r}{hint}"
            )


def absolute(setting: str, path: FilePath) -> str:
    """The same path for whoever changes directory later. Raises ConfigError."""
    try:
        return os.path.abspath(path)
    except OSError as error:  # the working directory was removed
        raise ConfigError(f"{setting} {path}: no working directory: {error.strerror}") from error


def file_name(app_name: str, suffix: str) -> str:
    """A default file name, in the current directory: ``./preforker.pid``."""
    return f"./{app_name.replace('/', '_')}{suffix}"


def settle(given: Settings | None, keywords: Mapping[str, Any], **defaults: Any) -> Settings:
    """The settings of a door: its defaults, what ``given`` says, and the keywords, in this order.

    Raises ConfigError.
    """
    if given is not None and not isinstance(given, Settings):
        raise ConfigError(f"settings must be a Settings object, not {given!r}")
    said = vars(given)["_said"] if given else {}
    return Settings(**{**defaults, **said, **keywords})
