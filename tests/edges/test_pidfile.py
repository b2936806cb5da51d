"""The pid file: the lock on it decides, whatever is written there."""

import errno
import os
import threading
from pathlib import Path

import pytest

from prefork_server import lockfile
from prefork_server.errors import BootError, ConfigError
from prefork_server.forks import fork
from prefork_server.pidfile import claimed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "our.pid"


def test_it_holds_our_pid_and_is_removed(path: Path) -> None:
    with claimed(path):
        assert path.read_text() == f"{os.getpid()}\n"
        assert path.stat().st_mode & 0o777 == 0o644
    assert not path.exists()


def test_no_path_is_no_file(tmp_path: Path) -> None:
    with claimed(None):
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", ["", "ours", "1\n", "garbage", "9" * 500, "-1", "\0"])
def test_what_a_dead_holder_left_keeps_nobody_from_starting(path: Path, left: str) -> None:
    path.write_text(f"{os.getpid()}\n" if left == "ours" else left)
    with claimed(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_second_is_refused_and_told_who_has_it(path: Path) -> None:
    with claimed(path):
        with pytest.raises(BootError, match=rf"already running: pid {os.getpid()} holds {path}"):
            claimed(path).__enter__()
        assert path.read_text() == f"{os.getpid()}\n"
    with claimed(path):
        pass


def test_a_holder_that_has_not_written_yet_is_waited_for(path: Path) -> None:
    lock = lockfile.locked(str(path))
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"99999999\n")  # what the one before left
    timer = threading.Timer(
        0.1,
        lambda: (
            os.pwrite(fd, b"%d\n" % os.getpid(), 0),
            os.ftruncate(fd, len(str(os.getpid())) + 1),
        ),
    )
    timer.start()
    with pytest.raises(BootError, match=f"pid {os.getpid()} holds"):
        claimed(path).__enter__()
    timer.join()
    os.close(fd)
    os.close(lock)


def test_a_holder_that_nobody_can_see_is_another_process(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with claimed(path):
        path.write_text("99999999\n")
        with pytest.raises(BootError, match="another process holds"):
            claimed(path).__enter__()


def test_links_fifos_directories_and_sockets_are_refused_and_untouched(path: Path) -> None:
    import socket

    victim = path.with_name("victim")
    victim.write_text("precious")
    path.symlink_to(victim)
    with pytest.raises(ConfigError, match=r"pid_path .*our.pid: .*symbolic"):
        claimed(path).__enter__()
    path.unlink()
    os.link(victim, path)
    with pytest.raises(ConfigError, match="hard link"):
        claimed(path).__enter__()
    assert victim.read_text() == "precious"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="not a regular file"):
        claimed(path).__enter__()
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        claimed(path).__enter__()
    path.rmdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        with pytest.raises(ConfigError, match="No such device"):
            claimed(path).__enter__()
    with pytest.raises(ConfigError, match="No such file or directory"):
        claimed(path.parent / "no" / "pid").__enter__()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_refused(path: Path) -> None:
    path.write_text("")
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigError, match="it belongs to another user, uid 12345"):
        claimed(path).__enter__()
    os.rename(path, path.with_suffix(".pid.lock"))
    cure = r"cannot lock it: .*/our.pid.lock: it belongs to another user, uid 12345: remove it"
    with pytest.raises(ConfigError, match=cure):
        claimed(path).__enter__()


def test_a_full_disk_is_a_sentence_and_leaves_no_file(path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(ConfigError, match=r"pid_path .*: File too large"):
            claimed(path).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.exists()


def test_a_file_system_without_locks_is_a_sentence(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("prefork_server.lockfile.fcntl.flock", refuse)
    with pytest.raises(ConfigError, match=r"pid_path .*our.pid: cannot lock it: No locks avail"):
        claimed(path).__enter__()


def test_one_that_was_replaced_is_not_ours_to_remove(path: Path) -> None:
    with claimed(path):
        path.unlink()
        path.write_text("another's\n")
    assert path.read_text() == "another's\n"


def test_one_that_was_removed_with_its_directory_is_nobodys_loss(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    with claimed(directory / "pid"):
        (directory / "pid").unlink()
        (directory / "pid.lock").unlink()
        directory.rmdir()


def test_it_is_found_again_after_a_change_of_directory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    with claimed(path.name):
        os.chdir("/")
    assert not path.exists()


def test_one_that_was_removed_or_replaced_can_be_made_again_and_then_is_ours(path: Path) -> None:
    with claimed(path) as claim:
        claim.renew()  # nothing to do
        path.unlink()
        claim.renew()
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(BootError, match=f"already running: pid {os.getpid()}"):
            claimed(path).__enter__()
        path.with_name("another").write_text("1\n")
        path.with_name("another").rename(path)
        claim.renew()
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


@pytest.mark.parametrize("removed", [".pid", ".pid.lock"])
def test_each_of_the_two_files_alone_keeps_a_second_from_starting(path: Path, removed: str) -> None:
    with claimed(path) as claim:
        path.with_suffix(removed).unlink()
        with pytest.raises(BootError, match="already running"):
            claimed(path).__enter__()
        claim.renew()
        assert path.read_text() == f"{os.getpid()}\n"
        assert path.with_suffix(".pid.lock").stat().st_mode & 0o777 == 0o600
        with pytest.raises(BootError, match=f"already running: pid {os.getpid()}"):
            claimed(path).__enter__()
    assert not path.exists() and not path.with_suffix(".pid.lock").exists()


def test_files_that_another_process_has_by_now_stay_its_own(path: Path) -> None:
    with claimed(path) as claim:
        for each in (path, path.with_suffix(".pid.lock")):
            each.unlink()
        with claimed(path), pytest.raises(BootError, match="already running"):
            claim.renew()
        assert not path.exists()
        claim.renew()
        assert path.exists()


def test_a_fork_does_not_hold_the_lock(path: Path) -> None:
    with claimed(path):
        reader, writer = os.pipe()
        pid = fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)  # until the test is over
            os._exit(0)
        os.close(reader)
    with claimed(path):
        pass
    os.close(writer)
    os.waitpid(pid, 0)
