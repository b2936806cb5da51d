"""The log and what is printed: into files that are what they should be, in whole lines."""

import io
import logging
import os
import socket
from pathlib import Path

import pytest

from prefork_server import ConfigError, Preforker
from prefork_server.logfiles import (
    give_away,
    open_appending,
    outlives_the_terminal,
    redirected,
    speaking,
)


@pytest.mark.parametrize(
    "kind", ["directory", "link", "dangling link", "fifo", "socket", "nowhere"]
)
def test_a_path_that_is_no_file_is_refused_before_anything_is_forked(
    tmp_path: Path, kind: str
) -> None:
    path, victim = tmp_path / "log", tmp_path / "victim"
    victim.write_text("precious")
    match kind:
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to(victim)
        case "dangling link":
            path.symlink_to(tmp_path / "new")
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))
        case "nowhere":
            path = tmp_path / "no" / "log"
    for setting in ("log_path", "stdout_path", "stderr_path"):
        preforker = Preforker(lambda master: None, pid_path=None, **{setting: path})  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=f"{setting} {path}: "):
            preforker.run()
    assert victim.read_text() == "precious" and not (tmp_path / "new").exists()


def test_a_fifo_with_a_reader_is_refused_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(ConfigError, match="neither a file nor a device"):
        open_appending(tmp_path / "fifo", "log_path")
    os.close(reader)


def test_a_file_with_a_second_name_is_not_given_away(tmp_path: Path) -> None:
    (tmp_path / "theirs").touch()
    os.link(tmp_path / "theirs", tmp_path / "log")
    given: list[int] = []
    with pytest.raises(ConfigError, match=r"log_path .*/log: it is a hard link to another file"):
        give_away(tmp_path / "log", "log_path", given.append)
    (tmp_path / "theirs").unlink()
    give_away(tmp_path / "log", "log_path", given.append)
    assert len(given) == 1


def test_a_device_is_as_good_as_a_file() -> None:
    os.close(open_appending("/dev/null", "stdout_path"))


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_a_descriptor_of_ours_is_duplicated_whatever_it_is(name: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = open_appending(name.format(ours.fileno()), "log_path")
        os.write(fd, b"a line\n")
        os.close(fd)
        assert theirs.recv(100) == b"a line\n"
    for closed in (fd, 999_999_999, 99_999_999_999):
        with pytest.raises(ConfigError, match=r"log_path .*: (Bad file desc|No such file)"):
            open_appending(name.format(closed), "log_path")


def test_dev_stdout_and_dev_stderr_are_where_those_go(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("test_logfiles_3")
    with redirected(None, "/dev/stdout"), speaking(logger, "/dev/stderr"):
        os.write(2, b"both ")
        logger.info("of them")
    with redirected(tmp_path / "out", None), speaking(logger, "/dev/stdout"):
        logger.info("elsewhere")
    said = capfd.readouterr()
    assert said.out.startswith("both ") and said.out.endswith("of them\n") and not said.err
    assert "elsewhere" in (tmp_path / "out").read_text()


@pytest.mark.parametrize("setting", ["pid_path", "log_path", "stdout_path"])
def test_a_directory_that_was_removed_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    other = {} if setting == "pid_path" else {"pid_path": None}
    with pytest.raises(ConfigError, match=rf"{setting} x: no working directory: No such file"):
        Preforker(lambda master: None, **{**other, setting: "x"}).run()  # type: ignore[arg-type]


def test_what_is_there_is_kept_and_a_new_file_is_not_for_others(tmp_path: Path) -> None:
    path = tmp_path / "log"
    before = os.umask(0)
    try:
        for _ in range(2):
            fd = open_appending(path, "log_path")
            os.write(fd, b"a line\n")
            os.close(fd)
    finally:
        os.umask(before)
    assert path.read_text() == "a line\n" * 2
    assert path.stat().st_mode & 0o777 == 0o640


def test_the_log_file_is_one_handler_more_and_goes_again(tmp_path: Path) -> None:
    logger = logging.getLogger("test_logfiles")
    own = logging.NullHandler()
    logger.addHandler(own)
    with speaking(logger, tmp_path / "log"):
        logger.info("within")
    logger.info("after")
    assert logger.handlers == [own] and logger.level == logging.NOTSET
    assert (
        "within" in (tmp_path / "log").read_text() and "after" not in (tmp_path / "log").read_text()
    )


def test_two_servers_share_stderr_and_the_level_and_the_last_takes_them_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("test_logfiles_3")
    logger.propagate = False
    first, second, third = speaking(logger), speaking(logger), speaking(logger, tmp_path / "log")
    for each in (first, second, third):
        each.__enter__()
    logger.info("of three")
    first.__exit__(None, None, None)
    logger.info("of two")
    second.__exit__(None, None, None)
    logger.info("of one")
    third.__exit__(None, None, None)
    logger.info("of none")
    assert [line[-8:] for line in capsys.readouterr().err.splitlines()] == ["of three", "  of two"]
    assert [line[-6:] for line in (tmp_path / "log").read_text().splitlines()] == [
        " three",
        "of two",
        "of one",
    ]
    assert logger.handlers == [] and logger.level == logging.NOTSET


def test_the_log_file_of_one_server_is_not_all_that_another_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("test_logfiles_4")
    logger.propagate = False
    with speaking(logger, tmp_path / "log"), speaking(logger):
        logger.info("of two")
    assert "of two" in capsys.readouterr().err


def test_a_daemon_keeps_every_handler_but_those_on_stdout_and_stderr(tmp_path: Path) -> None:
    parent, logger = logging.getLogger("test_logfiles_5"), logging.getLogger("test_logfiles_5.a")
    parent.propagate = False
    assert not outlives_the_terminal(logger, ())
    with open(os.dup(1), "w") as closed, open(1, "w", closefd=False) as out:
        parent.addHandler(logging.StreamHandler(closed))
        parent.addHandler(logging.StreamHandler(out))
        closed.close()
        assert not outlives_the_terminal(logger, [2])
        assert outlives_the_terminal(logger, [1])
        for kept in (
            logging.StreamHandler(io.StringIO()),
            logging.FileHandler(tmp_path / "log", delay=True),
            logging.NullHandler(),
        ):
            logger.addHandler(kept)
            assert outlives_the_terminal(logger, ())
            logger.removeHandler(kept)
            assert not outlives_the_terminal(logger, ())
    parent.handlers.clear()


def test_text_that_cannot_be_written_is_escaped_and_not_lost(tmp_path: Path) -> None:
    logger = logging.getLogger("test_logfiles_2")
    logger.propagate = False  # to what cannot write it either
    with speaking(logger, tmp_path / "log"):
        logger.info("half a pair: \ud800")
    assert "half a pair: \\ud800" in (tmp_path / "log").read_text()


def test_output_comes_back_even_if_the_second_file_cannot_be(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(ConfigError, match="stderr_path"),
        redirected(tmp_path / "out", tmp_path / "no" / "err"),
    ):
        raise AssertionError("never reached")
    os.write(1, b"still here")
    assert capfd.readouterr().out == "still here"


@pytest.mark.parametrize("path", ["", "a\0b", 7, b"bytes"])
def test_a_path_that_is_none_is_one_sentence(path: object) -> None:
    with pytest.raises(ConfigError, match="log_path must be a path, or None, not "):
        Preforker(lambda master: None, log_path=path)  # type: ignore[arg-type]


@pytest.mark.parametrize("written", ["same", "./same", "../{here}/same", "{cwd}/same"])
@pytest.mark.parametrize("other", ["log_path", "stdout_path", "stderr_path"])
def test_the_pid_file_is_nobody_elses(other: str, written: str) -> None:
    path = written.format(here=Path.cwd().name, cwd=Path.cwd())
    with pytest.raises(ConfigError, match=f"pid_path must be a file of its own, and {other}"):
        Preforker(lambda master: None, pid_path="same", **{other: path})  # type: ignore[arg-type]


def test_a_log_file_of_ours_and_a_logger_of_the_programs_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="log_path is the file of our own logger"):
        Preforker(lambda master: None, log_path="log", logger=logging.getLogger("mine"))
