"""Opening a file so that no other user decides which file it is, and so that nothing waits.

A master that is root opens files in directories that the workers' user can write to. There a
symbolic link, a hard link, a FIFO, or a file of another user may have any of the names.
"""

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress

_MOST_LINKS = 40  # followed for one path; as many as the kernel follows


def opened(path: str, flags: int, mode: int = 0o600) -> int:
    """A descriptor of the file. Raises OSError.

    No symbolic link at the end of the path is followed, a FIFO is not waited for. Root follows
    a link among the directories only where root alone could have put it.
    """
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    if flags & (os.O_CREAT | os.O_EXCL) == os.O_CREAT:
        # With O_CREAT the kernel refuses a file of another user that is there already in a
        # sticky directory, as /tmp is (fs.protected_regular).
        while True:
            with suppress(FileNotFoundError):
                return opened(path, flags & ~os.O_CREAT)
            with suppress(FileExistsError):
                return opened(path, flags | os.O_EXCL, mode)
    if os.geteuid() != 0:
        return os.open(path, flags, mode)
    above, name = os.path.split(path)
    directory = _directory(above)
    try:
        return os.open(name, flags, mode, dir_fd=directory)
    finally:
        os.close(directory)


def check(fd: int, owners: Iterable[int] = (), device: bool = False) -> os.stat_result:
    """What the open file is, if it may be written to: regular (or a ``device`` like /dev/null),
    with one name, of root, of this process's user or of ``owners``. Raises OSError."""
    there = os.fstat(fd)
    if not stat.S_ISREG(there.st_mode) and not (device and stat.S_ISCHR(there.st_mode)):
        raise _refusal(
            "it is neither a file nor a device" if device else "it is not a regular file"
        )
    if there.st_uid not in (0, os.geteuid(), *owners):
        raise _refusal(f"it belongs to another user, uid {there.st_uid}")
    if stat.S_ISREG(there.st_mode) and there.st_nlink > 1:
        raise _refusal("it is a hard link to another file")
    return there


def is_at(path: str, fd: int) -> bool:
    """Whether the path names the open file, and is no link to it."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except OSError:  # it is gone, or in a directory that this process may not search
        return False


def _refusal(sentence: str) -> OSError:
    return OSError(errno.EPERM, sentence)


def _directory(path: str) -> int:
    """A descriptor of the directory, reached name by name."""
    names = path.split("/")[::-1]
    here = os.open("/" if path.startswith("/") else ".", os.O_PATH | os.O_DIRECTORY)
    roots, links = True, 0
    try:
        while names:
            name = names.pop()
            if name in ("", "."):
                continue
            # What lies below a directory of another user can be moved by that user, too.
            roots = roots and _is_roots(os.fstat(here))
            there = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=here)
            if stat.S_ISLNK(os.fstat(there).st_mode):
                try:
                    if not roots or os.fstat(there).st_uid != 0:
                        sentence = "is a symbolic link that another user could have put there"
                        raise _refusal(f"{name!r} {sentence}: write the path that it leads to")
                    links += 1
                    if links > _MOST_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    target = os.readlink("", dir_fd=there)
                finally:
                    os.close(there)
                names += target.split("/")[::-1]
                if not target.startswith("/"):
                    continue
                there = os.open("/", os.O_PATH | os.O_DIRECTORY)
            os.close(here)
            here = there
    except OSError:
        os.close(here)
        raise
    return here


def _is_roots(there: os.stat_result) -> bool:
    """Whether only root can change or replace what root has put into this directory."""
    others = there.st_mode & stat.S_IWOTH or (there.st_mode & stat.S_IWGRP and there.st_gid != 0)
    return there.st_uid == 0 and (not others or bool(there.st_mode & stat.S_ISVTX))
