"""Become the workers' user, for good.

The master keeps what it was started with: at a stop, a reload and a rotation it needs its
sockets, the pid file and the logs. Who wants no root master has the init system start it
as somebody else, and hand it the sockets.
"""

import grp
import os
import pwd
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from .errors import BootError, ConfigError
from .forks import close_passed_on, null
from .settings import Settings

_Login: TypeAlias = tuple[str, str]  # the name and the home directory of a user
_Ids: TypeAlias = tuple[int | None, int | None, tuple[int, ...], _Login | None]
_PR_SET_NO_NEW_PRIVS = 38  # prctl(2)


@dataclass(frozen=True)
class Identity:
    """What a worker becomes before any code of the user runs in it. ``None``: what it was."""

    uid: int | None
    gid: int | None
    groups: tuple[int, ...]
    umask: int | None
    login: _Login | None = None  # of ``uid``; ``None``: no user is named

    @property
    def drops(self) -> bool:
        """Whether a process that assumes it has another user or group than this process."""
        return self.uid not in (None, os.geteuid()) or self.gid not in (None, os.getegid())

    def leave(self, but: Collection[int] = ()) -> None:
        """In a child of the master, before ``assume``: give up what the master was started with,
        if this identity drops privileges.

        The session and its terminal, the standard input, the descriptors above 2 except ``but``,
        the environment's HOME, USER and LOGNAME, and the right to gain privileges by executing
        a set-user-ID program. Raises OSError.
        """
        if not self.drops:
            return
        os.setsid()  # TIOCSTI and /dev/tty need the controlling terminal, which is gone with this
        nothing = null()
        if 0 not in but:  # inetd passes a listening socket there
            os.dup2(nothing, 0)
        for fd in (1, 2):
            if os.isatty(fd):  # to read what is typed, or to write escape sequences
                os.dup2(nothing, fd)
        os.close(nothing)
        close_passed_on(but)
        if self.login:
            name, os.environ["HOME"] = self.login
            for variable in ("USER", "LOGNAME"):
                if name:
                    os.environ[variable] = name
                else:  # the number has no entry in the user database
                    os.environ.pop(variable, None)
        _gain_no_privileges()

    def assume(self) -> None:
        """In a worker: from here on it is somebody else, and cannot go back.

        Raises BootError where root lacks a capability, and RuntimeError if it is not who it should
        be: then it must not go on.
        """
        if self.umask is not None:
            os.umask(self.umask)
        if self.gid is not None:
            # Groups first, and the user last: each step needs the right to take the next.
            # Without setgroups() it would keep root's (SEI CERT POS36-C).
            with _needing("CAP_SETGID", f"group {self.gid}"):
                os.setgroups(self.groups)
                os.setresgid(self.gid, self.gid, self.gid)
        if self.uid is not None:
            with _needing("CAP_SETUID", f"user {self.uid}"):
                os.setresuid(self.uid, self.uid, self.uid)
        self._verify()

    def own(self, fd: int) -> None:
        """Give a file to it, so that a worker can open it again. Raises OSError."""
        if self.uid is not None or self.gid is not None:
            os.fchown(
                fd, -1 if self.uid is None else self.uid, -1 if self.gid is None else self.gid
            )

    def _verify(self) -> None:
        uid, gid = self.uid, self.gid
        groups = gid is None or set(os.getgroups()) == set(self.groups)
        if not groups or {*os.getresgid()} != {gid if gid is not None else os.getgid()}:
            raise RuntimeError(f"the groups are not those of {self}")
        if uid is None:
            return
        if {*os.getresuid()} != {uid}:
            raise RuntimeError(f"the user is not that of {self}")
        if uid == 0:
            return
        try:  # what could be undone was not done (SEI CERT POS37-C)
            os.setuid(0)
        except PermissionError:
            return
        raise RuntimeError("privileges were dropped, and could be had again")


@contextmanager
def _needing(capability: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = f"cannot become {what}: {error.strerror}: root lacks the capability {capability}"
        raise BootError(text) from error


def _gain_no_privileges() -> None:
    """Set PR_SET_NO_NEW_PRIVS. Without ``ctypes`` it is not set. Raises OSError."""
    try:
        import ctypes  # loaded in the master, see ``imports``
    except ImportError:
        return
    zero = ctypes.c_ulong(0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"PR_SET_NO_NEW_PRIVS: {os.strerror(code)}")


def identity_of(settings: Settings) -> Identity | None:
    """Whom the settings name; ``None`` if nobody, and no umask.

    Raises ConfigError for a user or group that does not exist, or that this process may
    not become.
    """
    user, group, umask = settings.user, settings.group, settings.umask
    if user is None and group is None:
        return None if umask is None else Identity(None, None, (), umask)
    uid, gid, groups, login = (None, None, (), None) if user is None else _user(user, group)
    if group is not None:
        gid = _group(group)
        groups = tuple(dict.fromkeys((gid, *groups)))
    if os.geteuid() != 0:
        if (uid is None or {*os.getresuid()} == {uid}) and {*os.getresgid()} == {gid}:
            return None if umask is None else Identity(None, None, (), umask)
        raise ConfigError(
            f"user {user!r}, group {group!r}: only root can become somebody else, "
            f"and this process has the uid {os.geteuid()}"
        )
    return Identity(uid, gid, groups, umask, login)


def _user(user: str | int, group: str | int | None) -> _Ids:
    try:
        entry = pwd.getpwnam(user) if isinstance(user, str) else pwd.getpwuid(user)
    except KeyError:
        if isinstance(user, str):
            raise ConfigError(f"there is no user {user!r}") from None
        if group is None:
            raise ConfigError(
                f"nobody has the uid {user}, so nothing says its group: give one, too"
            ) from None
        return user, None, (), ("", "/")
    # Those that a login would have.
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return entry.pw_uid, entry.pw_gid, groups, (entry.pw_name, entry.pw_dir)


def _group(group: str | int) -> int:
    if isinstance(group, int):
        return group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f"there is no group {group!r}") from None
