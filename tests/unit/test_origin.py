"""What a process was started with: the command, the environment, the directory."""

import os
import sys
from pathlib import Path

import pytest

from prefork_server import origin

LINES = {  # of a script, and the words that stand before it when the kernel executes it
    "an interpreter": ("#!/opt/r1/bin/python3", ["/opt/r1/bin/python3"]),
    "an argument": ("#! /opt/r1/bin/python3 -I  ", ["/opt/r1/bin/python3", "-I"]),
    "several arguments, which are one": ("#!/py -X dev", ["/py", "-X dev"]),
    "a shell": ("#!/bin/sh\n'''exec' '/a b/python' \"$0\" \"$@\"\n'''", ["/a b/python"]),
}


def script(directory: Path, text: str, mode: int = 0o755) -> str:
    path = directory / "an app"
    path.write_text(f"{text}\npass\n")
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("line", LINES)
def test_a_script_that_has_chosen_its_interpreter_is_executed_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    text, made = LINES[line]
    path = script(tmp_path, text)
    monkeypatch.setattr(sys, "orig_argv", [*made, path, "--an-option", "a value"])
    monkeypatch.setattr(sys, "argv", [path, "--an-option", "a value"])
    assert origin._command() == (path, [path, "--an-option", "a value"])


@pytest.mark.parametrize(
    ("text", "mode", "before"),
    [
        ("#!/opt/r1/bin/python3", 0o755, ["python3"]),
        ("#!/usr/bin/env python3", 0o755, ["python3"]),
        ("#!/opt/r1/bin/python3", 0o755, ["/opt/r1/bin/python3", "-u"]),
        ("#!/opt/r1/bin/python3", 0o644, ["/opt/r1/bin/python3"]),
        ("#!", 0o755, ["python3"]),
        ("/bin/sh", 0o755, ["/bin/sh"]),
    ],
)
def test_a_script_that_an_interpreter_was_given_is_given_to_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, mode: int, before: list[str]
) -> None:
    words = [*before, script(tmp_path, text, mode), "x"]
    monkeypatch.setattr(sys, "orig_argv", words)
    monkeypatch.setattr(sys, "argv", words[len(before) :])
    assert origin._command() == (sys.executable, words)


@pytest.mark.parametrize(
    ("name", "line", "words", "argv"),
    [
        ("app", "#!/py -m", ["/py", "-m", "app", "x"], ["/site/app/__main__.py", "x"]),
        ("app", "#!/py -m", ["/py", "-m", "app", "x"], ["-m", "x"]),  # while it is looked for
        ("-m", "#!/bin/sh", ["/py", "-m", "app"], ["-m"]),
        ("-c", "#!/py", ["/py", "-c", "import app"], ["-c"]),
        ("hook.sh", "#!/bin/sh", ["/py", "app.py", "hook.sh"], ["app.py", "hook.sh"]),
    ],
)
def test_a_file_with_the_name_of_a_module_an_option_or_an_argument_is_not_executed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    line: str,
    words: list[str],
    argv: list[str],
) -> None:
    """Another user may have put it into the directory in which root starts a server."""
    os.rename(script(tmp_path, line), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "orig_argv", words)
    monkeypatch.setattr(sys, "argv", argv)
    assert origin._command() == (sys.executable, words)


def test_an_interpreter_that_was_started_by_a_relative_path_is_found_by_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "bin" / "other").touch()
    monkeypatch.chdir(tmp_path)
    for name, program in (("bin/python", "bin/python"), ("bin/other", sys.executable)):
        monkeypatch.setattr(sys, "orig_argv", [name, "-m", "app"])
        assert origin._command() == (program, [name, "-m", "app"])
    monkeypatch.setattr(sys, "orig_argv", [])  # an interpreter in another program
    assert origin._command() == (sys.executable, [])


def test_nothing_is_read_of_an_argument_that_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo", 0o700)  # an open for reading would wait
    monkeypatch.setattr(sys, "orig_argv", ["python3", str(tmp_path / "fifo")])
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "fifo")])
    assert origin._command() == (sys.executable, sys.orig_argv)


def test_the_directory_has_the_name_in_pwd_while_that_leads_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "link").symlink_to(there)
    monkeypatch.chdir(there)
    for name, found in (
        (str(tmp_path / "link"), str(tmp_path / "link")),
        (str(tmp_path), str(there)),
        (".", str(there)),
        ("/no/such/directory", str(there)),
        ("", str(there)),
    ):
        monkeypatch.setenv("PWD", name)
        assert origin.directory() == found
