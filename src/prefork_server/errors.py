"""What can go wrong, by name.

The message carries the value and the rule, the attributes are for programs.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

_CURES = {
    errno.EMFILE: "raise the limit of open files, ulimit -n",
    errno.ENFILE: "the machine has too many open files",
    errno.EAGAIN: "raise the limit of processes, ulimit -u",
    errno.ENOMEM: "there is no memory: look at ulimit -v",
    errno.EFBIG: "raise the limit of the size of files, ulimit -f",
    errno.ENOSYS: "the kernel or its sandbox has no such call",
    errno.EPERM: "a sandbox does not permit the call",
}


class PreforkError(Exception):
    """Everything this package raises on purpose is one of these."""


class ConfigError(PreforkError, ValueError):
    """A setting or an address cannot be used. Raised before anything is bound or forked."""


class BindError(PreforkError, OSError):
    """An address cannot be listened on.

    It is an ``OSError`` too, with the ``errno`` of its reason, since programs
    written for ``socketserver`` catch that.
    """

    def __init__(self, address: str, reason: OSError, cure: str = "") -> None:
        text = reason.strerror or str(reason)
        super().__init__(reason.errno, text)
        self.address = address
        self.reason = reason
        self._sentence = f"cannot listen on {address}: {text}{cure and f' ({cure})'}"

    def __str__(self) -> str:
        return self._sentence


class BootError(PreforkError):
    """The server did not start: no worker of the first generation got ready, or another
    master has the pid file. From ``start()`` it says why the daemon did not.

    ``report`` is the traceback of the last worker that failed, or ``""`` where there was
    none (it was killed, or hung until ``boot_timeout``).
    """

    def __init__(self, cause: str, report: str = "") -> None:
        super().__init__(cause)
        self.report = report


@contextmanager
def refusals_told() -> Iterator[None]:
    """Within, what the system refuses (a limit, a sandbox) is a BootError, with the cure."""
    try:
        yield
    except OSError as error:
        if isinstance(error, PreforkError):
            raise
        cure = _CURES.get(error.errno or 0, "")
        what = f"{error.strerror or error}{cure and f' ({cure})'}"
        raise BootError(f"the system refuses what a server needs: {what}") from error
