"""The verbs that speak to a running server: what they wait for, and what they say if it fails."""

import os
import pty
import pwd
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from prefork_server.lockfile import write_lock
from prefork_server.scoreboard import LAYOUT, PID, Scoreboard
from tests.conftest import PATIENCE, ROOT, Server, Starter, alive, eventually, read_all, unmeasured
from tests.zygote import run_program

THINGS = """
import ctypes, os, signal, socketserver, threading, time

os.write(1, b"imported\\n")

class Held(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"held\\n")
        word = self.rfile.readline()
        if word == b"gil\\n":
            libc = ctypes.PyDLL(None)  # whose functions keep the GIL
            self.wfile.write(b"now\\n")
            while not os.path.exists("free"):
                libc.usleep(200_000)  # here
        if word == b"deaf\\n":
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            self.wfile.write(b"now\\n")
            self.rfile.readline()
        if word == b"raise\\n":
            os._exit(3)
        self.wfile.write(b"%d" % os.getpid())
"""


def asked(directory: Path, *words: str, within: float = PATIENCE) -> subprocess.CompletedProcess:
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return run_program(["-m", "prefork_server", *words], env=environ, cwd=directory, timeout=within)


@pytest.fixture
def serve(start: Starter, tmp_path: Path) -> Callable[..., Server]:
    """``serve`` as a user would, with a pid file ``x.pid``, and all workers ready."""

    def serve(*options: str, workers: int = 2, things: str = THINGS) -> Server:
        (tmp_path / "things.py").write_text(things)
        script = ROOT / "src/prefork_server/__main__.py"
        runner = tmp_path / "runner.py"
        runner.write_text(
            f"import sys; sys.path[0] = {str(script.parent.parent)!r}\n"
            "from prefork_server.cli import main\nsys.exit(main())\n"
        )
        server = start.script(
            runner,
            *("serve", "things.py:Held", "-b", "127.0.0.1:0", "-p", "x.pid"),
            *("-w", str(workers), *options),
        )
        server.saw("^imported", times=1 + workers)  # a child looks at it first
        return server.ready()

    return serve


def held(server: Server) -> socket.socket:
    client = server.connect()
    assert client.recv(5) == b"held\n"
    return client


def let_go(client: socket.socket, word: bytes = b"go\n") -> int:
    client.sendall(word)
    return int(read_all(client))


# What they wait for


def test_reload_returns_when_nobody_of_the_old_generation_is_left(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve()
    old = server.workers()
    said = asked(tmp_path, "reload", "x.pid")
    assert (said.returncode, said.stderr) == (0, "")
    assert server.saw("generation 2 serves")
    assert not any(map(alive, old))
    assert len(server.workers()) == 2


def test_a_reload_waits_for_who_is_served_and_gives_up_when_it_is_told_to(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(workers=1)
    with held(server) as client:
        said = asked(tmp_path, "reload", "--within", "1.5", "x.pid")
        assert said.returncode == 1
        assert said.stderr == (f"prefork-server: reloading pid {server.pid}: not done after 1.5s\n")
        let_go(client)


def test_a_reload_that_fails_is_told_at_once(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    server.expect_error("reload failed", "Traceback")
    (tmp_path / "things.py").write_text("raise RuntimeError('broken')")
    for _ in range(2):  # the second while the first is still tried again
        said = asked(tmp_path, "reload", "x.pid")
        assert (said.returncode, said.stderr) == (
            1,
            f"prefork-server: the reload failed: the log of pid {server.pid} says why\n",
        )
    assert len(server.workers()) >= 2
    (tmp_path / "things.py").write_text(THINGS)
    assert asked(tmp_path, "reload", "x.pid").returncode == 0
    with held(server) as client:
        assert let_go(client) in server.workers()


@pytest.mark.executed
def test_upgrade_returns_when_the_successor_has_everything(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve()
    said = asked(tmp_path, "upgrade", "x.pid")
    assert (said.returncode, said.stderr) == (0, "")
    server.saw("leaving")
    successor = int((tmp_path / "x.pid").read_text())
    assert successor != server.pid
    assert f"pid {successor}: serving" in asked(tmp_path, "status", "x.pid").stdout
    assert asked(tmp_path, "stop", "x.pid").returncode == 0
    server.wait()


@pytest.mark.executed
def test_upgrade_in_the_first_seconds_of_a_successor_is_another_one(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve()
    server.signal(signal.SIGUSR2)
    second = int(server.saw(r"started a successor, pid=(\d+)")[0][1])
    eventually(lambda: (tmp_path / "x.pid").read_text() == f"{second}\n")
    said = asked(tmp_path, "upgrade", "x.pid")
    assert (said.returncode, said.stderr) == (0, "")
    server.saw(rf"pid={second} .*remembered: this master upgrades when its predecessor has left")
    assert (tmp_path / "x.pid").read_text() not in (f"{server.pid}\n", f"{second}\n")
    assert asked(tmp_path, "stop", "x.pid").returncode == 0
    assert not server.anyone_left(PATIENCE)


@pytest.mark.executed
def test_upgrade_of_a_master_that_is_starting_waits_until_it_serves(
    start: Starter, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "gate")
    server = start("""
        def slow(master):
            if not os.path.exists("started"):
                print("booting")
                open("gate").close()  # a FIFO

        def work(master):
            master.wait(1000)

        Preforker(work, workers=1, after_fork=slow, pid_path="pid").run()
    """)
    server.saw("^booting$")
    command = [sys.executable, "-m", "prefork_server", "upgrade", "pid"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=tmp_path, env=env) as upgrade:
        server.saw("remembered: this master upgrades when it serves")
        (tmp_path / "started").touch()
        (tmp_path / "gate").write_text("")
        assert upgrade.communicate(timeout=PATIENCE) == (None, b"")
        assert upgrade.returncode == 0
    assert (tmp_path / "pid").read_text() != f"{server.pid}\n"
    assert asked(tmp_path, "stop", "pid").returncode == 0
    assert not server.anyone_left(PATIENCE)


@pytest.mark.executed
def test_stop_in_the_first_seconds_of_a_successor_stops_both(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve()
    server.expect_error("upgrade failed")
    server.signal(signal.SIGUSR2)
    server.saw("master pid=.* ready", 2)
    eventually(lambda: (tmp_path / "x.pid").read_text() != f"{server.pid}\n")
    said = asked(tmp_path, "stop", "x.pid")
    assert (said.returncode, said.stderr) == (0, "")
    assert server.wait() == 0
    assert not server.anyone_left()


@pytest.mark.executed
def test_an_upgrade_that_fails_is_told_and_the_old_one_serves(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve()
    server.expect_error("upgrade failed", "Traceback")
    (tmp_path / "things.py").write_text("raise RuntimeError('broken')")
    said = asked(tmp_path, "upgrade", "x.pid")
    assert (said.returncode, said.stderr) == (
        1,
        f"prefork-server: the upgrade failed, pid {server.pid} serves on: its log says why\n",
    )
    with held(server) as client:
        let_go(client)


@pytest.mark.executed
def test_a_second_upgrade_is_refused_while_one_is_under_way(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve()
    os.mkfifo(tmp_path / "gate")
    (tmp_path / "things.py").write_text("open('gate').close()\n" + THINGS)
    server.signal(signal.SIGUSR2)
    successor = server.saw(r"started a successor, pid=(\d+)")[0][1]
    said = asked(tmp_path, "upgrade", "x.pid")
    assert (said.returncode, said.stderr) == (
        1,
        f"prefork-server: an upgrade is under way, pid {successor}\n",
    )
    assert f"upgrading to pid {successor}" in asked(tmp_path, "status", "x.pid").stdout
    server.signal(signal.SIGINT)  # and the successor with it
    server.wait()
    gate = os.open(tmp_path / "gate", os.O_RDWR)  # there its child still waits, or will
    assert not server.anyone_left(PATIENCE)
    os.close(gate)


def test_reopen_returns_when_every_worker_has_followed(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(workers=3)
    with held(server) as client:
        said = asked(tmp_path, "reopen", "--within", "0.5", "x.pid")
        assert said.returncode == 1
        assert not server.count("rotation 1 done")
        let_go(client)
    assert asked(tmp_path, "reopen", "x.pid").returncode == 0
    assert server.saw("rotation 2, logs reopened")


def test_reopen_fails_where_somebody_keeps_the_old_file(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    own = "import logging\nlogging.getLogger('own').addHandler(logging.FileHandler('own'))\n"
    server = serve(things=own + THINGS)  # which the master never imports
    server.expect_error("keeps the old file", "rotation 1 failed")
    os.rename(tmp_path / "own", tmp_path / "own.1")
    (tmp_path / "own").mkdir()
    said = asked(tmp_path, "reopen", "x.pid")
    assert (said.returncode, said.stderr) == (
        1,
        f"prefork-server: old files are still in use: the log of pid {server.pid} says by whom\n",
    )
    server.saw("rotation 1 failed: old files are kept by 2 of 2 workers$")
    (tmp_path / "own").rmdir()
    assert asked(tmp_path, "reopen", "x.pid").returncode == 0


def test_scale_returns_when_there_are_so_many(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    for number in (7, 3, 0, 1):
        said = asked(tmp_path, "scale", str(number), "x.pid")
        assert (said.returncode, said.stderr) == (0, "")
        said = asked(tmp_path, "status", "x.pid")
        assert f" of {number} wanted" in said.stdout
        eventually(lambda number=number: len(server.workers()) == number)


def test_beyond_its_limits_scale_is_misuse() -> None:
    for number in ("-1", "2049", "many", "1.5"):
        said = asked(Path("/"), "scale", number, "x.pid")
        assert said.returncode == 2
        assert len(said.stderr.splitlines()) == 1
    assert "0 to 2048, not '1.5'" in said.stderr


@pytest.mark.parametrize(
    ("verb", "what"),
    [
        (["reload"], "reloading pid {}"),
        (["upgrade"], "upgrading pid {}"),
        (["reopen"], "reopening the logs of pid {}"),
        (["scale", "2"], "scaling pid {} to 2"),
    ],
)
@pytest.mark.executed
def test_on_a_terminal_a_verb_says_for_how_long_it_has_waited(
    serve: Callable[..., Server], tmp_path: Path, verb: list[str], what: str
) -> None:
    server = serve(workers=1)
    os.mkfifo(tmp_path / "gate")
    if verb[0] == "scale":  # the second worker waits there, as the others do for the client
        (tmp_path / "things.py").write_text("open('gate').close()\n" + THINGS)
    ours, theirs = pty.openpty()
    with ExitStack() as closing:
        closing.callback(os.close, ours)
        client = closing.enter_context(held(server))
        waiting = subprocess.Popen(
            [sys.executable, "-m", "prefork_server", *verb, "x.pid"],
            stderr=theirs,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )
        closing.callback(waiting.wait)
        closing.callback(waiting.kill)
        os.close(theirs)
        seen = b""
        while b"s " not in seen:
            seen += os.read(ours, 4096)
        let_go(client)
        closing.callback(os.close, os.open(tmp_path / "gate", os.O_RDWR))
        assert waiting.wait(PATIENCE) == 0
        while not seen.endswith(b"\n"):
            seen += os.read(ours, 4096)
    first, *more = seen.decode().removesuffix("\r\n").split("\r")
    assert first == ""
    seconds = []
    for line in more:  # one line, over and over
        said, _, passed = line.rpartition(": ")
        assert said == what.format(server.pid)
        seconds.append(int(passed.removesuffix("s ")))
    assert seconds == sorted(seconds) and seconds[0] >= 1
    if verb == ["upgrade"]:
        server.saw("leaving")
        assert asked(tmp_path, "stop", "x.pid").returncode == 0
        server.wait()


# What is shown


def test_status_says_what_each_worker_does(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve()
    with held(server) as client:
        port = client.getsockname()[1]
        assert asked(tmp_path, "scale", "2", "x.pid").returncode == 0  # both are ready
        said = asked(tmp_path, "status", "x.pid")
        assert said.returncode == 0
        first, heads, *rows, queue = said.stdout.splitlines()
        assert queue == f"0 waiting at 127.0.0.1:{server.address[1]}"
        assert first == (
            f"pid {server.pid}: serving, generation 1, 2 workers of 2 wanted, 1 busy, 1 idle, "
            "1 requests, 0 errors, 0 crashes"
        )
        assert heads.split()[-6:] == ["busy", "memory", "busy", "for", "peer", "note"]
        assert {int(row.split()[1]) for row in rows} == set(server.workers())
        busy = r" *\d +\d+ +busy +1 +\d+\.\ds +1 +0 +\d+% +- +\d+\.\ds +127\.0\.0\.1:"
        assert sum(bool(re.match(busy + f"{port}  -$", row)) for row in rows) == 1
        assert sum(" idle " in row and bool(re.search("-  -  +-$", row)) for row in rows) == 1
        let_go(client)


def test_status_is_refreshed_on_a_terminal_until_ctrl_c(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve()
    ours, theirs = pty.openpty()
    with ExitStack() as closing:
        closing.callback(os.close, ours)
        watcher = subprocess.Popen(
            [sys.executable, "-m", "prefork_server", "status", "--watch", "x.pid"],
            stdout=theirs,
            stderr=theirs,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )
        os.close(theirs)
        seen = b""
        while seen.count(b"\x1b[H") < 2:
            seen += os.read(ours, 4096)
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(PATIENCE) == 0
    assert seen.count(b"pid %d: serving" % server.pid) >= 1


def test_stacks_show_each_worker_even_one_that_keeps_the_gil_in_c(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve()
    with held(server) as gil, held(server) as waiting:
        gil.sendall(b"gil\n")
        assert gil.recv(4) == b"now\n"
        said = asked(tmp_path, "stacks", "x.pid")
        (tmp_path / "free").touch()
        assert (said.returncode, said.stderr) == (0, "")
        place = 1 + next(n for n, line in enumerate(THINGS.splitlines()) if line.endswith("# here"))
        assert said.stdout.count(f'things.py", line {place} in handle') == 1
        assert said.stdout.count("in handle\n") == 2
        assert "become_worker" not in said.stdout
        assert len(re.findall(r"^worker=\d pid=\d+ busy$", said.stdout, re.MULTILINE)) == 2
        read_all(gil)
        let_go(waiting)


def test_who_does_not_answer_is_named_and_the_others_are_shown(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve()
    with held(server) as deaf, held(server) as waiting:
        deaf.sendall(b"deaf\n")
        assert deaf.recv(4) == b"now\n"
        said = asked(tmp_path, "stacks", "x.pid")
        assert said.returncode == 1
        assert said.stdout.count("(it has not answered within 2s)") == 1
        assert said.stdout.count("in handle\n") == 1
        let_go(deaf)
        let_go(waiting)


def test_many_who_look_at_stacks_leave_no_word_in_what_a_worker_dies_of(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(workers=1)
    server.expect_error("reaped: exit code 3")
    answers = []
    with held(server) as client:
        lookers = [
            threading.Thread(target=lambda: answers.append(asked(tmp_path, "stacks", "x.pid")))
            for _ in range(4)
        ]
        for looker in lookers:
            looker.start()
        for looker in lookers:
            looker.join()
        assert [answer.stdout.count("in handle\n") for answer in answers] == [1] * 4
        client.sendall(b"raise\n")
        read_all(client)
    server.saw("exit code 3")
    assert "Current thread" not in server.log


def test_a_hang_after_stacks_is_told_with_its_place_alone(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve("-t", "3", workers=1)
    server.expect_error("silent for more than", "reaped: killed")
    with held(server) as client:
        client.sendall(b"gil\n")
        assert client.recv(4) == b"now\n"
        assert asked(tmp_path, "stacks", "x.pid").returncode == 0
        server.saw("killing")
    server.saw("reaped")
    assert server.count("^  Current thread") == 1


# Who is meant


VERBS = (["reload"], ["upgrade"], ["reopen"], ["scale", "3"], ["status"], ["stacks"])


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_nobody_is_asked_where_no_server_runs(verb: list[str], tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    said = asked(tmp_path, *verb, "x.pid")
    assert (said.returncode, said.stderr) == (
        2,
        "prefork-server: x.pid: No such file or directory\n",
    )
    path.write_text(f"{os.getpid()}\n")
    said = asked(tmp_path, *verb, "x.pid")
    assert said.returncode == 2
    assert "nobody holds x.pid" in said.stderr
    with path.open("r+") as lock:  # of a process that most of these signals would end
        write_lock(lock.fileno())
        said = asked(tmp_path, *verb, "x.pid")
    assert (said.returncode, said.stderr) == (
        2,
        f"prefork-server: pid {os.getpid()} is no server, or none yet\n",
    )


@pytest.mark.parametrize("verb", [*VERBS, ["stop"]], ids=lambda verb: verb[0])
def test_who_only_stands_in_a_file_that_somebody_locks_is_not_signalled(
    verb: list[str], tmp_path: Path
) -> None:
    stranger = subprocess.Popen(["sleep", "1000"])
    try:
        with (tmp_path / "x.pid").open("w") as lock:
            write_lock(lock.fileno())
            print(stranger.pid, file=lock, flush=True)
            said = asked(tmp_path, *verb, "x.pid")
        assert (said.returncode, said.stderr) == (
            2,
            f"prefork-server: x.pid is held, but not by pid {stranger.pid}, "
            "whose number is in it: if the server runs in a container, ask inside it\n",
        )
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("number", ["0", "-5", "2147483648", "9" * 30, "four"])
def test_a_number_that_is_no_pid_is_misuse(number: str, tmp_path: Path) -> None:
    with (tmp_path / "x.pid").open("w") as lock:
        write_lock(lock.fileno())
        print(number, file=lock, flush=True)
        said = asked(tmp_path, "stop", "x.pid")
    assert said.returncode == 2
    first_line = f"x.pid is held, and names no process: its first line is {number[:20]!r}\n"
    assert said.stderr == f"prefork-server: {first_line}"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
@pytest.mark.parametrize("hides", [False, True], ids=["shown", "hidden"])
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_another_users_server_is_left_alone(
    verb: list[str], hides: bool, serve: Callable[..., Server], tmp_path: Path
) -> None:
    if hides and subprocess.call(["unshare", "--mount", "true"], stderr=subprocess.DEVNULL):
        pytest.skip("no mount namespace can be had here")
    server = serve()
    nobody = pwd.getpwnam("nobody")
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n"
        "from prefork_server.cli import main, control, look, holder, options\n"
        f"options.parse({[*verb, 'x.pid']!r})  # it may not read Python's own files afterwards\n"
        f"os.setgroups([]); os.setgid({nobody.pw_gid}); os.setuid({nobody.pw_uid})\n"
        f"sys.exit(main({[*verb, 'x.pid']!r}))"
    )
    tmp_path.chmod(0o755)  # what lies above may be closed to others: it is there already
    proc = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -t proc -o hidepid=2 none /proc; exec "$@"',
        "-",
    ]
    said = subprocess.run(
        [*(proc if hides else []), sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=unmeasured(),
        timeout=PATIENCE,
        check=False,
    )
    assert said.stderr == (
        f"prefork-server: pid {server.pid}, which holds x.pid, is another user's\n"
    )
    assert said.returncode == 2


def test_a_server_started_with_nohup_is_not_reloaded_and_not_waited_for(
    start: Starter, tmp_path: Path
) -> None:
    server = start("""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        serve(Echo, pid_path="x.pid")
    """).ready()
    eventually(lambda: "serving" in asked(tmp_path, "status", "x.pid").stdout)
    said = asked(tmp_path, "reload", "x.pid")
    assert said.returncode == 1
    assert "started with nohup" in said.stderr
    assert server.ask() == b"hello"


def test_a_server_that_stops_meanwhile_ends_the_wait(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(workers=1)
    with held(server) as client, ExitStack() as closing:
        waiting = subprocess.Popen(
            [sys.executable, "-m", "prefork_server", "reload", "x.pid"],
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )
        closing.enter_context(waiting)
        server.saw("generation 2 serves")
        server.signal(signal.SIGQUIT)
        assert waiting.wait(PATIENCE) == 1
        assert waiting.stderr
        assert f"pid {server.pid} is stopping" in waiting.stderr.read()
        let_go(client)
    server.wait()


def test_a_server_of_another_version_is_told_apart(tmp_path: Path) -> None:
    board = Scoreboard(2)
    try:
        board.set(0, LAYOUT, 7)
        with (tmp_path / "x.pid").open("w") as lock:
            write_lock(lock.fileno())
            print(os.getpid(), file=lock, flush=True)
            said = asked(tmp_path, "status", "x.pid")
    finally:
        board.close()
    assert said.returncode == 2
    assert "is of another version: it has a scoreboard of layout 0x7, and not" in said.stderr


def test_a_board_of_another_layout_or_size_is_not_read() -> None:
    board = Scoreboard(2)
    try:
        assert board.get(0, PID) == os.getpid()
        board.set(0, LAYOUT, 7)
        fd = os.open(f"/proc/self/fd/{_named('prefork-scoreboard')}", os.O_RDONLY)
        try:
            with pytest.raises(ValueError, match="of layout 0x7, and not"):
                Scoreboard.read_only(fd)
        finally:
            os.close(fd)
    finally:
        board.close()
    fd = os.memfd_create("short")
    try:
        for size in (0, 100, 385):
            os.ftruncate(fd, size)
            with pytest.raises(ValueError, match=f"a scoreboard of {size} bytes"):
                Scoreboard.read_only(fd)
    finally:
        os.close(fd)


def _named(name: str) -> str:
    links = {n: f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")}
    return next(
        n for n, link in links.items() if os.path.lexists(link) and name in os.readlink(link)
    )


def test_a_reader_that_has_heard_enough_is_no_traceback(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    serve()
    reader, writer = os.pipe()
    os.close(reader)
    try:
        told = subprocess.run(
            [sys.executable, "-m", "prefork_server", "status", "x.pid"],
            stdout=writer,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"},
            timeout=PATIENCE,
            check=False,
        )
    finally:
        os.close(writer)
    assert (told.returncode, told.stderr) == (1, b"")
