"""Processes of other users of the machine, and of the workers' user, in the way of root.

Each attacker here is a process of its own, of user nobody, that does what it does in real life.
"""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from prefork_server import ConfigError
from prefork_server.cli.holder import memories
from prefork_server.cli.look import look
from prefork_server.cli.options import parse
from prefork_server.lockfile import write_lock
from prefork_server.logfiles import open_appending
from prefork_server.pidfile import claimed
from prefork_server.reports import STACKS
from tests.conftest import PATIENCE, ROOT, Server, Starter, eventually, unmeasured
from tests.processes.test_control import asked

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

NOBODY = 65534

# What an attacker is given: a process of user nobody that has loaded what it needs before.
ATTACKER = f"""
import ctypes, fcntl, os, resource, select, signal, socket, sys, time
sys.path.insert(0, {str(ROOT / "src")!r})
from prefork_server.lockfile import write_lock
from prefork_server.reports import Reports
from prefork_server.scoreboard import *
from prefork_server.signals import SHOW
os.setgroups([]); os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: as after an exec

def call(name, *words):
    if getattr(libc, name)(*words) < 0:
        print("refused:", name, flush=True)
        sys.exit(0)

def holds(path, number=None):
    pid_file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.write(pid_file, b"%d\\n" % (number or os.getpid()))
    write_lock(pid_file)

def serves(where):
    board = Scoreboard(4)
    board.set(0, STATE, SERVING)
    holds(where + "/x.pid")
    return board

def own_root(where, name, made):
    # A file of any name at the root of a mount namespace of its own.
    uid, gid = os.getuid(), os.getgid()
    call("unshare", 0x10000000 | 0x00020000)
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write(f"0 {{uid}} 1")
    open("/proc/self/gid_map", "w").write(f"0 {{gid}} 1")
    call("mount", b"none", b"/", None, 0x4000 | 0x40000, None)
    root = os.path.join(where, "root")
    os.mkdir(root)
    call("mount", b"tmpfs", root.encode(), b"tmpfs", 0, None)
    made(os.path.join(root, name))
    os.chdir(root)
    call("syscall", 155, b".", b".")
    call("umount2", b".", 2)
    os.chdir("/")

def up():
    print("up", flush=True)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that all may search, unlike ``tmp_path``."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture
def theirs(place: Path) -> Path:
    """A directory of user nobody."""
    path = place / "theirs"
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)
    return path


Attack = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def attack(place: Path) -> Iterator[Attack]:
    """Run the code as user nobody, until it has said that it is up."""
    running = []

    def attack(code: str, *words: object) -> subprocess.Popen[str]:
        attacker = subprocess.Popen(
            [sys.executable, "-c", ATTACKER + textwrap.dedent(code), *map(str, words)],
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env=unmeasured(),
            start_new_session=True,
        )
        running.append(attacker)
        assert attacker.stdout
        said = attacker.stdout.readline().strip()
        if said.startswith("refused"):
            pytest.skip(f"no user and mount namespaces for other users here: {said}")
        assert said == "up"
        return attacker

    yield attack
    for attacker in running:
        with suppress(ProcessLookupError):
            os.killpg(attacker.pid, signal.SIGKILL)
        attacker.communicate()


DROPPED = f"""
import os, socket, sys  # of an interpreter that others need not be able to read
os.setgroups([]); os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
"""


def done_as_nobody(code: str, *words: object) -> None:
    """Run it to its end."""
    subprocess.run(
        [sys.executable, "-c", DROPPED + code, *map(str, words)],
        check=True,
        cwd="/",
        env=unmeasured(),
        timeout=PATIENCE,
    )


# Locks

LOCKED = """
    fd = os.open(sys.argv[1], os.O_RDONLY)
    fcntl.flock(fd, fcntl.{how})
    fcntl.lockf(fd, fcntl.LOCK_SH)
    up()
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["LOCK_SH", "LOCK_EX"])
def test_a_pid_file_that_a_reader_has_locked_keeps_no_server_from_starting(
    place: Path, attack: Attack, how: str
) -> None:
    path = place / "x.pid"
    path.write_text("99999999\n")
    path.chmod(0o644)
    attack(LOCKED.format(how=how), path)
    with claimed(path):
        assert path.read_text() == f"{os.getpid()}\n"
    assert sorted(os.listdir(place)) == []


def test_a_new_pid_file_cannot_be_locked_by_a_reader(place: Path, attack: Attack) -> None:
    path = place / "x.pid"
    attack(
        """
        up()
        while True:
            try:
                fd = os.open(sys.argv[1], os.O_RDONLY)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # it can hold no more
                time.sleep(0.001)
        """,
        path,
    )
    for _ in range(100):
        with claimed(path) as claim:
            claim.renew()


def test_a_directory_that_a_reader_has_locked_keeps_no_socket_from_its_path(
    start: Starter, place: Path, attack: Attack
) -> None:
    start.directory = place
    attack(LOCKED.format(how="LOCK_EX"), place)
    server = start(f"serve(Echo, PreforkUnixStreamServer, '{place}/sock', workers=1)").ready()
    assert server.ask() == b"hello"
    (place / "sock").unlink()
    server.signal(signal.SIGHUP)
    server.saw("is there again")
    assert server.ask() == b"hello"
    assert not (place / "sock.lock").exists()
    assert server.quit() == 0


def test_a_lock_file_of_another_user_is_an_error_that_names_it(place: Path) -> None:
    place.chmod(0o1777)
    done_as_nobody("os.mkfifo(sys.argv[1]); open(sys.argv[2], 'w')", *(place / n for n in "ab"))
    for name, reason in (("a", "it is not a regular file"), ("b", "it belongs to another user")):
        (place / name).rename(place / "x.pid.lock")
        with pytest.raises(ConfigError, match=rf"/x.pid.lock: {reason}.*: remove it"):
            claimed(place / "x.pid").__enter__()


@pytest.mark.executed
def test_an_upgrade_hands_both_locks_over_while_readers_lock_what_they_can(
    start: Starter, place: Path, attack: Attack
) -> None:
    start.directory = place
    program = "serve(Echo, workers=1, pid_path='x.pid')"
    server = start(program).ready()
    attack(
        """
        up()
        while True:
            for name in ("x.pid", "x.pid.lock", "."):
                try:
                    fd = os.open(os.path.join(sys.argv[1], name), os.O_RDONLY)
                    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:  # it can hold no more
                    time.sleep(0.001)
        """,
        place,
    )
    second = start(program)
    second.saw(f"already running: pid {server.pid} holds")
    second.expect_error("Traceback")
    second.wait()
    server.signal(signal.SIGUSR2)
    successor = int(server.saw(r"started a successor, pid=(\d+)")[0][1])
    server.saw("serves, leaving")
    server.wait()
    third = start(program)
    third.saw(f"already running: pid {successor} holds")
    third.expect_error("Traceback")
    third.wait()
    os.kill(successor, signal.SIGKILL)
    assert not server.anyone_left()
    fourth = start(program).ready()
    assert fourth.quit() == 0
    assert not (place / "x.pid").exists() and not (place / "x.pid.lock").exists()


# Logs

HANDLERS = {
    "log_path": "log_path='theirs/app.log'",
    "stdout_path": "stdout_path='theirs/app.log'",
    "FileHandler": "logging.FileHandler('theirs/app.log')",
    "WatchedFileHandler": "logging.handlers.WatchedFileHandler('theirs/app.log')",
    "RotatingFileHandler": "logging.handlers.RotatingFileHandler('theirs/app.log', maxBytes=9**9)",
    "behind a MemoryHandler": "logging.handlers.MemoryHandler(0, 0, "
    "(target := logging.FileHandler('theirs/app.log')))",
    "Own": "Own('theirs/app.log')",
}
PLANTED = {
    "symbolic link": "os.symlink(sys.argv[2], sys.argv[1])",
    "hard link": None,
    "FIFO": "os.mkfifo(sys.argv[1])",
    "socket": "socket.socket(socket.AF_UNIX).bind(sys.argv[1])",
    "directory": "os.mkdir(sys.argv[1])",
}


def logging_server(start: Starter, how: str) -> Server:
    setting, handler = (HANDLERS[how], "") if "_path=" in HANDLERS[how] else ("", HANDLERS[how])
    return start(f"""
        import logging, logging.handlers

        class Own(logging.FileHandler):
            def _open(self):
                return open(self.baseFilename, self.mode, encoding=self.encoding)

        class Say(socketserver.BaseRequestHandler):
            def handle(self):
                current_master().logger.info("a line of a worker")
                os.write(1, b"a print of a worker\\n")
                self.request.sendall(b"%d" % os.getpid())

        handler = {handler or None}
        if handler:
            logging.getLogger("prefork_server").addHandler(handler)
            logging.getLogger("prefork_server").setLevel(logging.INFO)

        class Server(PreforkTCPServer):
            def ready(self, addresses):
                os.write(2, f"ready, listening on {{addresses[0]}}\\n".encode())

        serve(Say, Server, workers=1, user="nobody", {setting})
    """)


@pytest.mark.parametrize("how", HANDLERS)
def test_what_the_workers_user_puts_in_the_place_of_a_log_is_not_written_to(
    start: Starter, place: Path, theirs: Path, how: str
) -> None:
    start.directory = place
    victim = place / "victim"
    victim.write_text("precious")
    victim.chmod(0o666)
    server = logging_server(start, how)
    server.expect_error("keeps the old file", "rotation . failed", "reaped: killed")
    server.saw("^ready, listening on")
    log, old = theirs / "app.log", theirs / "app.log.1"
    done_as_nobody("os.rename(*sys.argv[1:])", log, old)
    for number, (planted, code) in enumerate(PLANTED.items(), 1):
        if code:
            done_as_nobody(code, log, victim)
        else:
            os.link(victim, log)  # by root, as any user could without fs.protected_hardlinks
        before = old.stat().st_size
        server.signal(signal.SIGUSR1)
        server.ask()  # the worker follows between two requests
        if how == "stdout_path":
            server.saw(f"rotation {number} failed")
        else:
            failed = f"rotation {number} failed"
            eventually(lambda failed=failed: failed in old.read_text())  # type: ignore[misc]
            assert "app.log: " in old.read_text()[before:], planted
        worker = server.workers()[0]
        os.kill(worker, signal.SIGKILL)
        eventually(lambda gone=worker: server.workers() not in ([], [gone]))  # type: ignore[misc]
        before = old.stat().st_size
        server.ask()
        what = "a print" if how == "stdout_path" else "a line of a worker"
        assert what in old.read_text()[before:], planted
        assert victim.read_text() == "precious", planted
        log.rmdir() if planted == "directory" else log.unlink()
    assert server.quit() == 0
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("how", ["log_path", "FileHandler", "stdout_path"])
def test_a_log_that_leads_elsewhere_by_a_directory_is_not_followed_by_root(
    start: Starter, place: Path, theirs: Path, how: str
) -> None:
    start.directory = place
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    done_as_nobody("os.symlink(*sys.argv[1:])", elsewhere, theirs / "sub")
    server = logging_server_at(start, how, "theirs/sub/app.log")
    server.expect_error("Traceback")
    server.saw("'sub' is a symbolic link that another user could have put there")
    assert server.wait() != 0
    assert how == "FileHandler" or not os.listdir(elsewhere)


def test_a_directory_that_becomes_a_link_is_not_followed_in_a_rotation(
    start: Starter, place: Path, theirs: Path
) -> None:
    start.directory = place
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    done_as_nobody("os.mkdir(sys.argv[1])", theirs / "sub")
    server = logging_server_at(start, "log_path", "theirs/sub/app.log")
    server.saw("^ready, listening on")
    code = "d, e = sys.argv[1:]; os.rename(d, d + '.1'); os.symlink(e, d)"
    done_as_nobody(code, theirs / "sub", elsewhere)
    server.signal(signal.SIGUSR1)
    old = theirs / "sub.1" / "app.log"
    eventually(lambda: "and by the master" in old.read_text())
    assert not os.listdir(elsewhere)
    assert server.quit() == 0


def logging_server_at(start: Starter, how: str, path: str) -> Server:
    text = HANDLERS[how]
    HANDLERS["elsewhere"] = text.replace("theirs/app.log", path)
    try:
        return logging_server(start, "elsewhere")
    finally:
        del HANDLERS["elsewhere"]


def test_a_link_of_root_among_the_directories_is_followed(place: Path) -> None:
    (place / "real").mkdir()
    (place / "link").symlink_to("real")
    (place / "again").symlink_to(place / "link" / ".." / "link")
    os.close(open_appending(place / "again" / "log", "log_path"))
    assert (place / "real" / "log").exists()
    (place / "round").symlink_to(place / "round")
    with pytest.raises(ConfigError, match="Too many levels of symbolic links"):
        open_appending(place / "round" / "log", "log_path")


@pytest.mark.parametrize("setting", ["log_path", "stdout_path", "stderr_path"])
def test_a_log_of_another_user_in_a_directory_that_all_may_write_to_is_refused(
    place: Path, setting: str
) -> None:
    place.chmod(0o1777)
    done_as_nobody("open(sys.argv[1], 'w')", place / "log")
    with pytest.raises(ConfigError, match=f"{setting} .*/log: it belongs to another user"):
        open_appending(place / "log", setting)
    os.close(open_appending(place / "log", setting, owners=[NOBODY]))


def test_a_handler_of_the_program_with_a_planted_link_is_refused_at_the_start(
    start: Starter, place: Path, theirs: Path
) -> None:
    start.directory = place
    (place / "victim").touch()
    done_as_nobody("os.symlink(*sys.argv[1:])", place / "victim", theirs / "app.log")
    server = logging_server(start, "FileHandler")
    server.expect_error("Traceback")
    server.saw("ConfigError: the log file .*/app.log: Too many levels of symbolic links")
    assert server.wait() != 0
    assert not (place / "victim").read_text()


# The command

LOOKS = ["status", "stacks", "reload", "stop"]


def told(verb: str, path: Path) -> subprocess.CompletedProcess[str]:
    within = ["--within", "1"] if verb in ("reload", "stop") else []
    said: subprocess.CompletedProcess[str] = asked(path.parent, verb, *within, str(path))
    assert "Traceback" not in said.stderr
    assert all(c.isprintable() or c == "\n" for c in said.stdout + said.stderr)
    return said


@pytest.mark.parametrize("flags", ["os.O_RDONLY", "os.O_RDWR"])
def test_a_file_that_is_called_like_a_memory_is_neither_read_nor_written(
    place: Path, theirs: Path, attack: Attack, flags: str
) -> None:
    victim = place / "victim"
    victim.write_text("precious" * 1000)
    victim.chmod(0o644 if flags == "os.O_RDONLY" else 0o666)
    attack(
        f"""
        board = serves(sys.argv[1])
        where, victim = sys.argv[1:]
        def made(name):
            open(name, "w").close()
            call("mount", victim.encode(), name.encode(), None, 4096, None)
        own_root(where, "memfd:prefork-stacks (deleted)", made)
        fd = os.open("/memfd:prefork-stacks (deleted)", {flags})
        up()
        time.sleep(60)
        """,
        theirs,
        victim,
    )
    before = victim.stat()
    said = told("stacks", theirs / "x.pid")
    assert (said.returncode, said.stdout) == (2, "")
    assert "shows no stacks" in said.stderr
    assert "is no pid file" not in told("status", theirs / "x.pid").stderr
    after = victim.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_atime_ns) == (
        *(before.st_size, before.st_mtime_ns, before.st_atime_ns),
    )


@pytest.mark.parametrize("name", ["scoreboard", "stacks"])
def test_a_fifo_that_is_called_like_a_memory_is_not_waited_for(
    theirs: Path, attack: Attack, name: str
) -> None:
    attack(
        f"""
        board = serves(sys.argv[1])
        name = "memfd:prefork-{name} (deleted)"
        own_root(sys.argv[1], name, os.mkfifo)
        fd = os.open("/" + name, os.O_RDONLY | os.O_NONBLOCK)
        up()
        time.sleep(60)
        """,
        theirs,
    )
    for verb in ("status", "stacks"):
        assert told(verb, theirs / "x.pid").returncode == (2 if verb == "stacks" else 0)


@pytest.mark.parametrize("verb", LOOKS)
def test_a_memory_whose_owner_can_cut_it_is_none(theirs: Path, attack: Attack, verb: str) -> None:
    attack(
        """
        holds(sys.argv[1] + "/x.pid")
        real = Scoreboard(4)
        board, stacks = os.memfd_create(NAME), os.memfd_create("prefork-stacks")
        os.write(board, bytes(real._map))
        size = os.fstat(board).st_size
        real.close()
        signal.signal(signal.SIGQUIT, lambda *_: None)
        signal.signal(signal.SIGHUP, lambda *_: None)
        up()
        while True:
            os.ftruncate(board, 0)
            time.sleep(0.0001)
            os.ftruncate(board, size)
            time.sleep(0.0001)
        """,
        theirs,
    )
    for _ in range(3):
        said = told(verb, theirs / "x.pid")
        assert said.returncode == (1 if verb == "stop" else 2)


@pytest.mark.parametrize("verb", LOOKS)
@pytest.mark.parametrize("locks", [False, True])
def test_a_process_of_root_that_a_pid_file_of_another_user_names_is_not_signalled(
    theirs: Path, attack: Attack, verb: str, locks: bool
) -> None:
    done_as_nobody("open(sys.argv[1], 'w')", theirs / "log")
    log = (theirs / "log").open("a")
    victim = subprocess.Popen(["sleep", "1000"], stderr=log)
    log.close()
    try:
        code = """
            fd = os.open(sys.argv[1], os.O_RDWR)
            os.write(fd, sys.argv[2].encode() + b"\\n")
            if sys.argv[3] == "False":
                write_lock(fd)
            os.rename(sys.argv[1], sys.argv[1].replace("log", "x.pid"))
            up()
            time.sleep(60)
        """
        attack(code, theirs / "log", victim.pid, locks)
        with (theirs / "x.pid").open("r+") as lock:
            if locks:  # a lock of root on a file of another user
                write_lock(lock.fileno())
            said = told(verb, theirs / "x.pid")
        assert said.returncode == 2
        assert f"is held, but not by pid {victim.pid}, whose number is in it" in said.stderr
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


@pytest.mark.parametrize("verb", LOOKS)
def test_another_name_of_the_pid_file_of_a_server_is_no_pid_file(
    start: Starter, place: Path, theirs: Path, verb: str
) -> None:
    start.directory = place
    server = start("serve(Echo, workers=1, pid_path='x.pid')").ready()
    os.link(place / "x.pid", theirs / "x.pid")  # as any user could without protected_hardlinks
    assert told(verb, theirs / "x.pid").stderr.endswith("x.pid is no pid file\n")
    (theirs / "x.pid").unlink()
    assert server.ask() == b"hello"
    assert told("status", place / "x.pid").returncode == 0


HOSTILE = """
    board = serves(sys.argv[1])
    libc.prctl(15, b"\\xff\\x1b[2J\\n)", 0, 0, 0)  # PR_SET_NAME
    reports = Reports()
    escape = b"\\x1b]0;owned\\x07\\x9b2J\\xe2\\x80\\xae\\r\\n  File x"
    board.set_notice(GENERAL, b'{"counters": {"\\\\u001b[2J": 1}}')
    board.set_host(1, "\\x1b[2J")
    board.set_note(1, "\\x1b[2J\\u202e")
    for slot, pid in enumerate((os.fork(), int(sys.argv[2]), 1, 1 << 40, -1), 1):
        if pid == 0:
            signal.signal(SHOW, lambda *_: os.write(reports.stacks, escape * 9000))
            while True:
                signal.pause()
        board.set(slot % 5, PID, pid)
        board.set(slot % 5, SINCE, 1)
    board.set(0, PID, os.getpid())
    for signum in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(signum, lambda *_: None)
    up()
    while True:
        fcntl.flock(reports.stacks, fcntl.LOCK_EX)
        signal.pause()
"""


def test_what_a_hostile_server_shows_has_no_escape_and_an_end(theirs: Path, attack: Attack) -> None:
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        attack(
            HOSTILE,
            theirs,
            bystander.pid,
        )
        for verb in LOOKS:
            said = told(verb, theirs / "x.pid")
            assert len(said.stdout) < 1 << 18
            if verb == "stacks":
                assert "\\x1b]0;owned" in said.stdout
                assert f"pid={bystander.pid} booting\n  (it is gone)" in said.stdout
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_numbers_of_descriptors_and_of_locks_are_looked_at_with_an_end(
    theirs: Path, attack: Attack
) -> None:
    attack(
        """
        board = serves(sys.argv[1])
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        epoll = select.epoll()
        try:
            for fd in range(300):
                epoll.register(os.memfd_create("prefork-scoreboard") and os.eventfd(0))
            for _ in range(20_000):
                os.dup(epoll.fileno())
        except OSError:
            pass
        up()
        time.sleep(60)
        """,
        theirs,
    )
    for verb in ("status", "stacks"):
        told(verb, theirs / "x.pid")


def test_a_status_page_that_never_ends_or_says_anything_at_all_is_misuse(
    theirs: Path, attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefork_server.cli.look._ANSWER", 1.0)
    attack(
        """

        answers = [b"[" * 100_000, b'{"age": 1e999}', b"9" * 100_000, b"[]", None]
        server = socket.socket(socket.AF_UNIX)
        server.bind(sys.argv[1] + "/sock")
        server.listen()
        up()
        for answer in answers:
            client, _ = server.accept()
            client.recv(1000)
            if answer is not None:
                client.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n" + answer)
                client.close()
        while True:
            client.send(b"H")
            time.sleep(0.05)
        """,
        theirs,
    )
    for _ in range(5):
        with pytest.raises(Exception, match=r"shows no status of this version|timed out"):
            look(parse(["status", f"unix:{theirs}/sock"]))


def test_a_looker_that_keeps_the_turn_keeps_no_other_from_looking(
    start: Starter, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prefork_server.cli.look._TURN", 0.1)
    start.directory = place
    server = start("serve(Echo, workers=2, pid_path='x.pid')").all_ready(2)
    with memories(server.pid, STACKS) as found:
        ((paper, _),) = found
        fcntl.flock(paper, fcntl.LOCK_EX)
        assert look(parse(["stacks", str(place / "x.pid")])) == 0
    assert capsys.readouterr().out.count("in _prefork_work") == 2


def test_a_memory_of_stacks_that_is_nearly_full_is_used_again(
    start: Starter, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start.directory = place
    server = start("""
        class Far(socketserver.BaseRequestHandler):
            def handle(self):
                for fd in os.listdir("/proc/self/fd"):
                    with contextlib.suppress(OSError):
                        if "prefork-stacks" in os.readlink(f"/proc/self/fd/{fd}"):
                            size = os.fstat(int(fd)).st_size
                            print("sealed", size, os.write(int(fd), b"x" * 1000))
                            os.lseek(int(fd), size - 10, os.SEEK_SET)
                self.request.sendall(b"moved")
        import contextlib
        serve(Far, workers=2, pid_path='x.pid')
    """).all_ready(2)
    for _ in range(2):
        assert server.ask() == b"moved"
        assert look(parse(["stacks", str(place / "x.pid")])) == 0
        assert capsys.readouterr().out.count("in _prefork_work") == 2
