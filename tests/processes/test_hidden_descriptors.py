"""Verbs of a server's own user, where the kernel hides ``/proc/PID/fd`` from that user."""

import os
import sys
from pathlib import Path

import pytest

from prefork_server.cli import control, look, main
from prefork_server.scoreboard import path_of
from tests.conftest import Starter

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]

USER = 65534
PROGRAM = f"""
    server = PreforkTCPServer("127.0.0.1:0", Echo, workers=1, pid_path="run/pid")
    os.setgroups([])
    os.setgid({USER})
    os.setuid({USER})  # from here on /proc/self/fd is root's
    server.serve_forever()
"""


def given(user: int, *words: str) -> tuple[int, str]:
    """The exit code, and what the command says, of a process of this user."""
    assert control and look  # loaded: the user may not read them
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(write, 1)
            os.dup2(write, 2)
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
            code = main(words)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        except SystemExit as error:
            os._exit(int(error.code or 0))
        finally:
            os._exit(70)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def test_the_user_of_a_server_that_hides_its_descriptors_may_give_it_verbs(
    start: Starter, open_path: Path
) -> None:
    start.directory = open_path
    (open_path / "run").mkdir()
    os.chown(open_path / "run", USER, USER)
    server = start(PROGRAM).ready()
    pid_file = str(open_path / "run" / "pid")
    assert os.stat(f"/proc/{server.pid}/fd").st_uid == 0
    for user in (USER, 0):
        code, said = given(user, "status", pid_file)
        assert code == 0 and f"pid {server.pid}: serving, " in said, said
    assert given(USER, "reload", pid_file) == (0, "")
    server.saw("generation 2 serves")
    assert given(USER, "scale", "2", pid_file) == (0, "")
    code, said = given(USER - 1, "reload", pid_file)
    assert code == 2 and f"pid {server.pid}, which holds {pid_file}, is another user's" in said
    code, said = given(USER, "stacks", pid_file)
    assert code == 2 and "hides what it has, by its capabilities: ask as root" in said
    assert given(USER, "stop", pid_file) == (0, "")
    assert server.wait() == 0
    assert not os.path.exists(path_of(server.pid))


def test_a_name_that_another_user_has_taken_hinders_no_server(
    start: Starter, open_path: Path
) -> None:
    start.directory = open_path
    (open_path / "run").mkdir()
    os.chown(open_path / "run", USER, USER)
    taken = """
    from prefork_server.scoreboard import path_of
    with open(path_of(os.getpid()), "x") as file:
        print("taken", file.name)
    """
    server = start(f"{taken}{PROGRAM}").ready()
    path = server.saw("^taken (.*)")[0][1]
    try:
        code, said = given(USER, "reload", str(open_path / "run" / "pid"))
        assert code == 2 and "ask as root" in said
        assert given(0, "stop", str(open_path / "run" / "pid")) == (0, "")
        assert server.wait() == 0
        assert os.stat(path).st_size == 0
    finally:
        os.unlink(path)
