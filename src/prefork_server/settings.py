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
    max_workers: int | None
    min_spare_workers: int | None
    max_spare_workers: int | None
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
    gc_freeze: bool
    status: str | None
    status_public: bool
    inline: bool


@final
@dataclass(frozen=True, kw_only=True, init=False, repr=False)
class Settings:
    """How a prefork server runs. Times are seconds.

    ``workers``
        how many to keep, 1 to 2048. Signals may take a running pool down to 0.
    ``max_workers``
        makes the pool adaptive: from ``workers``, which it keeps at least, it grows to so
        many while others are busy, and shrinks again. ``None``: it does not.
    ``min_spare_workers``, ``max_spare_workers``
        with fewer idle workers than the first it grows, with more than the second it
        shrinks. ``None``: 1, and as many as it keeps at least (or 2).
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
    ``gc_freeze``
        before the first fork, collect what is garbage and keep the collector of the workers
        from all else that is there: it would write to it, and so make a copy of it in each.
        Off the main thread, where the garbage is that of a larger program, it is not done.
    ``status``
        where a process beside the workers shows what they do, over HTTP, to people and to
        machines: ``"127.0.0.1:9100"``, or ``"unix:/path"`` (mode 0600). ``None``: nowhere.
    ``status_public``
        ``status`` may be an address that other machines reach, and may be asked for by any
        name. It has no passwords.
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
    max_workers: int | None = None
    min_spare_workers: int | None = None
    max_spare_workers: int | None = None
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
    gc_freeze: bool = True
    status: str | None = None
    status_public: bool = False
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
        self._check_spare()
        for name in ("timeout", "client_timeout"):
            if getattr(self, name) is not None:
                self._check_seconds(name, "; None means never")
        for name in ("boot_timeout", "graceful_timeout"):
            self._check_seconds(name, "")
        self._check_wear()
        app = self.app_name
        if not isinstance(app, str) or not (app.isprintable() and app.isascii()):
            raise ConfigError(f"app_name must be printable ASCII text, not {app!r}")
        if self.term not in ("now", "graceful"):
            raise ConfigError(f"term must be 'now' or 'graceful', not {self.term!r}")
        for name in ("gc_freeze", "inline", "status_public"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"{name} must be True or False, not {getattr(self, name)!r}")
        self._check_status()
        for setting in _PATHS:
            self._check_path(setting)
        self._check_identity()

    def _check_status(self) -> None:
        status = self.status
        if status is None:
            return
        if self.inline:
            raise ConfigError("status needs a process beside the worker, and inline=True has none")
        text = status if isinstance(status, str) else ""
        if text.startswith("unix:"):
            return
        host, _, port = text.rpartition(":")
        if not (host and port.isascii() and port.isdigit()):
            raise ConfigError(
                f"status must be host:port, as in 127.0.0.1:9100, or unix:/path, not {status!r}"
            )
        ours = host.startswith("127.") and host.replace(".", "").isdigit()
        if not (ours or host in ("localhost", "[::1]") or self.status_public):
            raise ConfigError(
                f"status={status!r} could be read by other machines: say status_public=True if "
                "that is meant, or 127.0.0.1"
            )

    def _check_spare(self) -> None:
        most, workers = self.max_workers, self.workers
        least, many = self.min_spare_workers, self.max_spare_workers
        if most is None:
            for name in ("min_spare_workers", "max_spare_workers"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"{name} is for an adaptive pool: set max_workers, too")
            return
        if type(most) is not int or not workers <= most <= MAX_WORKERS:
            raise ConfigError(
                f"max_workers must be a whole number, workers ({workers}) to {MAX_WORKERS}, or "
                f"None, not {most!r}"
            )
        if least is not None and (type(least) is not int or not 1 <= least <= most):
            raise ConfigError(
                f"min_spare_workers must be a whole number, 1 to max_workers ({most}), or None, "
                f"not {least!r}"
            )
        if many is not None and (type(many) is not int or not (least or 1) < many <= MAX_WORKERS):
            raise ConfigError(
                f"max_spare_workers must be a whole number above min_spare_workers "
                f"({least or 1}), {MAX_WORKERS} at most, or None, not {many!r}"
            )

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
        raise ConfigError(f"{setting} {path}: no working directory: {error.strerror}") from None


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
