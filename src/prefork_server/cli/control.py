"""``stop``: by the pid file of a server, and not before it is gone."""

import fcntl
import os
import select
import signal
import stat
import sys
import time

from .options import PROG, Misuse, Options


def stop(options: Options) -> int:
    """0 when the server has ended, 1 if it has not within the time. Raises Misuse if none
    runs there."""
    path = options.values["pid_file"]
    within = options.values["within"]
    pidfd, pid = _holder(path)
    try:
        now = options.values["now"]
        signal.pidfd_send_signal(pidfd, signal.SIGINT if now else signal.SIGQUIT)
        gone = _wait(pidfd, pid, within)
    except ProcessLookupError:
        gone = True  # it went by itself
    except PermissionError as error:
        raise Misuse(f"pid {pid}, which holds {path}, is another user's") from error
    finally:
        os.close(pidfd)
    if not gone:
        sys.stderr.write(f"{PROG}: pid {pid} is still there after {within:g}s\n")
    return 0 if gone else 1


def _wait(pidfd: int, pid: int, within: float | None) -> bool:
    watch = select.poll()
    watch.register(pidfd, select.POLLIN)
    terminal = sys.stderr.isatty()
    start = time.monotonic()
    while not watch.poll(200):
        passed = time.monotonic() - start
        if within is not None and passed >= within:
            return False
        if terminal:
            sys.stderr.write(f"\rstopping pid {pid}: {passed:.0f}s ")
            sys.stderr.flush()
    if terminal:
        sys.stderr.write(f"\rpid {pid} has stopped   \n")
    return True


def _holder(path: str) -> tuple[int, int]:
    """A descriptor of the process that holds the file, and its pid.

    The lock says that somebody runs, and the number who. It is looked at again when we have
    hold of the process: meanwhile the number could have become a stranger's.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Misuse(f"{path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Misuse(f"{path} is no pid file")
        pid = _number(path, fd)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise Misuse(f"{path} names pid {pid}: {error.strerror}") from error
        try:
            if _number(path, fd) != pid:
                raise Misuse(f"{path} has changed hands just now")
        except Misuse:
            os.close(pidfd)
            raise
        return pidfd, pid
    finally:
        os.close(fd)


def _number(path: str, fd: int) -> int:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        fcntl.flock(fd, fcntl.LOCK_UN)  # ours alone: nobody else has this descriptor
        raise Misuse(f"nobody holds {path}: the server does not run")
    text = os.pread(fd, 20, 0).partition(b"\n")[0]
    if not text.isdigit() or int(text) <= 1:
        raise Misuse(f"{path} is held, and its number is {text!r}")
    return int(text)
