"""Speak with whoever started us, in systemd's protocols: sd_notify(3) and sd_listen_fds(3).

What they need stands in the environment, and is taken out of it once, before any worker is
forked: a program that a handler starts must not speak for us, or take our sockets for its
own. Without these variables nothing happens.
"""

import os
import socket
import stat
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Final

from .clock import Clock
from .errors import ConfigError
from .scoreboard import NEVER, SECOND

OF_THE_SERVICE: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_FIRST: Final = 3  # SD_LISTEN_FDS_START
_MOST: Final = 1024  # descriptors; more are no number that anybody meant
_STATUS_NS: Final = SECOND  # a status at most so often

# What the journal says, in the words of sd_notify.
_WORDS: Final = {
    "ready": "READY=1",
    "reloading": "RELOADING=1",
    "reloaded": "READY=1",
    "reload_failed": "READY=1",
    "upgrade_failed": "READY=1",  # whom the successor said to be the main process is gone
    "stopping": "STOPPING=1",
}


class Notifier:
    """Tells the init system how the server is, if it has asked to be told.

    ``period_ns`` is how often it wants to hear from the master's loop, at least. While
    ``awaited()``, a predecessor may still serve on instead, and nothing is said of being ready.
    """

    def __init__(
        self,
        environ: MutableMapping[str, str] = os.environ,
        awaited: Callable[[], bool] = lambda: False,
    ) -> None:
        self._awaited = awaited
        address = environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        ours = pid in ("", str(os.getpid())) and usec.isascii() and usec.isdigit()
        # Half the time in which the service is taken for hung, as sd_watchdog_enabled(3) has it.
        half_ns = int(usec) * 1000 // 2 if ours and len(usec) < 18 else 0
        self.period_ns: int = half_ns if self._address and half_ns else NEVER
        self._beat_ns = self._told_ns = 0
        self._status = ""

    def hear(self, event: str, pid: int) -> None:
        """An event of the journal's; ``pid`` is the master's whom it is about."""
        if event == "ready" and self._awaited():
            return
        if self._address and event in _WORDS:
            lines = [_WORDS[event], f"MAINPID={pid}"]
            if event == "reloading":
                lines.append(f"MONOTONIC_USEC={Clock.monotonic_ns() // 1000}")
            self._tell(*lines)

    def pulse(self, now_ns: int, status: Callable[[], str]) -> None:
        """The master's loop goes round; ``status`` says what there is to know of it."""
        if not self._address:
            return
        if now_ns - self._beat_ns >= self.period_ns:
            self._beat_ns = now_ns
            self._tell("WATCHDOG=1")
        if now_ns - self._told_ns >= _STATUS_NS:
            self._told_ns = now_ns
            text = status()
            if text != self._status:
                self._status = text
                self._tell(f"STATUS={text}")

    def _tell(self, *lines: str) -> None:
        with (
            suppress(OSError),  # nobody listens any more; or there are no descriptors left
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
        ):
            sock.settimeout(0.1)  # its queue may be full, and workers are not to wait for it
            sock.sendto("\n".join(lines).encode(), self._address)


def handed_over(environ: MutableMapping[str, str] = os.environ) -> dict[int, str]:
    """The sockets that were handed to this process, by descriptor, with their names.

    Taken at the first call; none after it. Raises ConfigError where what is handed over is
    not what the environment says.
    """
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    count, pid = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    if not count or pid != str(os.getpid()):
        return {}  # they were for another process, which forgot to say so to its children
    if not (count.isascii() and count.isdigit() and 0 < int(count) <= _MOST):
        raise ConfigError(f"LISTEN_FDS must be a number of sockets, 1 to {_MOST}, not {count!r}")
    found = {}
    for index in range(int(count)):
        fd = _FIRST + index
        try:
            is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
        except OSError as error:
            raise ConfigError(f"LISTEN_FDS is {count}, but {fd}: {error.strerror}") from None
        if not is_socket:
            raise ConfigError(f"LISTEN_FDS is {count}, but descriptor {fd} is not a socket")
        os.set_inheritable(fd, False)
        found[fd] = names[index] if index < len(names) else ""
    return found
