"""Workers become whom the settings name, for good; the master stays who it is."""

import grp
import json
import os
import pty
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from prefork_server import ConfigError, Settings
from prefork_server.forks import fork
from prefork_server.privileges import identity_of
from tests.conftest import PATIENCE, PRELUDE, ROOT, Starter, alive, eventually, read_all, unmeasured
from tests.unit.test_privileges import NOBODY

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

WHO = """
    import json

    class Who(socketserver.StreamRequestHandler):
        def handle(self):
            mask = os.umask(0)
            os.umask(mask)
            said = {"uids": os.getresuid(), "gids": os.getresgid(), "groups": os.getgroups(),
                    "umask": mask}
            for name, undo in (("uid", lambda: os.setuid(0)), ("gid", lambda: os.setgid(0)),
                               ("groups", lambda: os.setgroups([0])),
                               ("kill", lambda: os.kill(self.server.master.pid, 0))):
                try:
                    undo()
                    said["back"] = name
                except PermissionError:
                    pass
            self.wfile.write(json.dumps(said).encode())
"""


def ids(said: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said)
    return found


@as_root
def test_workers_are_the_user_with_its_groups_and_cannot_go_back(start: Starter) -> None:
    server = start(f"{WHO}\n    serve(Who, workers=2, user='nobody', umask=0o027)").ready()
    said = ids(server.ask(b""))
    assert said["uids"] == [NOBODY.pw_uid] * 3
    assert said["gids"] == [NOBODY.pw_gid] * 3
    assert said["groups"] == os.getgrouplist("nobody", NOBODY.pw_gid)
    assert said["umask"] == 0o027
    assert "back" not in said
    assert os.stat(f"/proc/{server.pid}").st_uid == 0  # the master is what it was


@as_root
def test_a_group_of_its_own_stands_before_those_of_the_user(start: Starter) -> None:
    server = start(f"{WHO}\n    serve(Who, workers=1, user='nobody', group='daemon')").ready()
    said = ids(server.ask(b""))
    daemon = grp.getgrnam("daemon").gr_gid
    assert said["gids"] == [daemon] * 3
    assert set(said["groups"]) == {daemon, *os.getgrouplist("nobody", NOBODY.pw_gid)}


@as_root
def test_numbers_that_nobody_has_need_a_group(start: Starter) -> None:
    server = start(f"{WHO}\n    serve(Who, workers=1, user=54321, group=54322)").ready()
    said = ids(server.ask(b""))
    assert said["uids"] == [54321] * 3 and said["groups"] == [54322]
    with pytest.raises(ConfigError, match=r"nobody has the uid 54321, .*: give one, too"):
        identity_of(Settings(user=54321))


@as_root
def test_the_hook_after_the_fork_runs_as_the_user_and_those_before_do_not(start: Starter) -> None:
    server = start("""
        class Server(PreforkTCPServer):
            def before_fork(self):
                print("before", os.getuid())
            def after_fork(self, master):
                print("after", os.getuid())

        serve(Echo, Server, workers=1, user="nobody")
    """).ready()
    assert server.saw(r"^before (\d+)$")[0][1] == "0"
    assert server.saw(r"^after (\d+)$")[0][1] == str(NOBODY.pw_uid)
    assert server.ask(b"hello") == b"hello"


@as_root
def test_a_worker_that_hangs_or_dies_is_replaced_by_one_that_dropped_too(start: Starter) -> None:
    server = start("""
        class Hang(socketserver.StreamRequestHandler):
            def handle(self):
                if self.rfile.readline() == b"hang\\n":
                    time.sleep(1000)
                self.wfile.write(b"%d" % os.getuid())

        serve(Hang, workers=1, user="nobody", timeout=1)
    """).ready()
    server.expect_error("silent for more than 1s at .* in handle", "killed by SIGKILL")
    assert server.ask(b"hang\n") == b""
    assert server.ask(b"who\n") == b"%d" % NOBODY.pw_uid


@as_root
def test_a_server_with_no_master_left_ends_though_its_workers_are_others(start: Starter) -> None:
    server = start("serve(Echo, workers=2, user='nobody')").all_ready(2)
    server.signal(9)
    assert not server.anyone_left()


@as_root
def test_the_path_of_a_unix_server_and_its_logs_are_the_users(
    start: Starter, tmp_path: Path
) -> None:
    os.chmod(tmp_path, 0o755)
    server = start("""
        class Server(PreforkUnixStreamServer):
            def ready(self, addresses):
                print("up")

        serve(Echo, Server, "sock", workers=1, user="nobody", log_path="log",
              stdout_path="/dev/stdout", pid_path="pid")
    """)
    server.saw("^up$")
    for name in ("sock", "log"):
        assert os.stat(tmp_path / name).st_uid == NOBODY.pw_uid, name
    assert stat.S_IMODE(os.stat(tmp_path / "sock").st_mode) == 0o600
    assert os.stat(tmp_path / "pid").st_uid == 0  # root's scripts believe what is in there
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "sock"))
        client.sendall(b"hello")
        assert client.recv(10) == b"hello"


def test_a_worker_that_cannot_drop_does_not_run_the_program(start: Starter) -> None:
    server = start("""
        import prefork_server.privileges
        def broken(self):
            raise PermissionError(1, "not today")
        prefork_server.privileges.Identity.assume = broken
        try:
            serve(Echo, workers=1, umask=0o077)
        except BootError as error:
            print("failed:", error)
    """)
    assert server.wait() == 0
    assert "not today" in server.saw("^failed: (.*)")[0][1]
    server.expect_error("reaped before it was ready", "Traceback")


def test_a_umask_that_lets_everybody_write_is_warned_of(start: Starter) -> None:
    server = start("serve(Echo, workers=1, umask=0)").ready()
    server.saw("WARNING .*umask 0o0 lets everybody write to what the workers make")


ALONE = """
    import fcntl, json, termios

    def refused(call, *args):
        try:
            return f"done: {call(*args)!r}"
        except OSError as error:
            return type(error).__name__

    class Alone(socketserver.StreamRequestHandler):
        def handle(self):
            null = os.stat(os.devnull).st_rdev
            passed = int(self.rfile.readline())
            said = {
                "leads": os.getsid(0) == os.getpid(),
                "no_new_privs": "NoNewPrivs:\t1" in open("/proc/thread-self/status").read(),
                "stdin": os.fstat(0).st_rdev == null,
                "tty": refused(os.open, "/dev/tty", os.O_RDWR),
                "typed": [refused(fcntl.ioctl, fd, termios.TIOCSTI, b"x") for fd in (0, 1, 2)],
                "taken": [refused(fcntl.ioctl, fd, termios.TIOCSCTTY, 0) for fd in (1, 2)],
                "read": [refused(os.read, fd, 9) for fd in (1, 2)],
                "passed": refused(os.read, passed, 9),
                "environ": [os.environ.get(n) for n in ("HOME", "USER", "LOGNAME", "SHELL")],
            }
            os.write(1, b"\\x1b[2J printed on the\\r terminal\\n")
            self.wfile.write(json.dumps(said).encode())
"""


@as_root
@pytest.mark.parametrize("user", ["user='nobody'", "user=54321, group=54322"])
def test_a_worker_that_drops_has_nothing_of_the_terminal_and_the_starter_but_to_print(
    start: Starter, tmp_path: Path, user: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret")
    ours, terminal = pty.openpty()
    passed = os.open(secret, os.O_RDONLY)
    pid = 0
    try:
        script = tmp_path / "program.py"
        program = f"serve(Alone, workers=1, {user})\nprint('over')"
        script.write_text(PRELUDE + textwrap.dedent(ALONE) + program)
        pid = fork()
        if pid == 0:
            os.set_inheritable(passed, True)
            os.login_tty(terminal)  # the controlling terminal, at 0, 1 and 2, open for reading
            environ = {**unmeasured(), "PYTHONPATH": str(ROOT / "src"), "SHELL": "/bin/own"}
            os.execve(sys.executable, [sys.executable, str(script)], environ)
        os.close(terminal)
        seen = Seen(ours)
        port = int(seen.until(rb"listening on 127.0.0.1:(\d+)")[1])
        os.write(ours, b"typed by root\n")
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            client.sendall(b"%d\n" % passed)
            said = ids(read_all(client))
        seen.until(rb"\\x1b\[2J printed on the\\r terminal\r\n")
        home = ["/", None, None] if "54321" in user else [NOBODY.pw_dir, "nobody", "nobody"]
        assert said == {
            "leads": True,
            "no_new_privs": True,
            "stdin": True,
            "tty": "OSError",
            "typed": ["OSError"] * 3,
            "taken": ["OSError"] * 2,
            "read": ["OSError"] * 2,
            "passed": "OSError",
            "environ": [*home, "/bin/own"],
        }
        os.write(ours, b"\x03")  # Ctrl-C, which the terminal sends to the master alone
        seen.until(rb"SIGINT: stopping 1 workers now")
        seen.until(rb"\nover")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        pid = 0
    finally:
        os.close(passed)
        os.close(ours)  # and with it the session of the program
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class Seen:
    """What has come to a terminal."""

    def __init__(self, fd: int) -> None:
        self.fd, self.text = fd, b""

    def until(self, pattern: bytes) -> re.Match[bytes]:
        while not (found := re.search(pattern, self.text)):
            assert select.select([self.fd], [], [], PATIENCE)[0], self.text
            self.text += os.read(self.fd, 4096)
        return found


@as_root
def test_a_worker_in_a_session_of_its_own_ends_with_a_master_that_is_killed(
    start: Starter,
) -> None:
    server = start("serve(Echo, workers=2, user='nobody', graceful_timeout=2)").all_ready(2)
    workers = server.workers()
    eventually(lambda: [os.getsid(pid) for pid in workers] == workers)
    with server.connect() as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        server.signal(signal.SIGKILL)
    eventually(lambda: not any(alive(pid) for pid in workers))


@as_root
def test_a_listener_that_was_passed_on_stays_open_in_a_worker_that_drops(start: Starter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        server = start(
            """
            with PreforkTCPServer(("127.0.0.1", 0), Echo, bind_and_activate=False,
                                  settings=Settings(workers=1, user="nobody")) as server:
                server.socket.close()
                server.socket = socket.socket(fileno=int(sys.argv[1]))
                server.serve_forever()
            """,
            str(listener.fileno()),
            pass_fds=[listener.fileno()],
        ).ready()
        assert server.ask(b"hello") == b"hello"


@as_root
def test_the_process_that_looks_at_a_target_has_no_terminal_either(open_path: Path) -> None:
    (open_path / "target.py").write_text("""
import json, os
null = os.stat(os.devnull).st_rdev
said = [os.getsid(0) == os.getpid(), *(os.fstat(fd).st_rdev == null for fd in (0, 1, 2))]
said += [os.environ["HOME"], "NOTIFY_SOCKET" in os.environ]
os.write(1, b"printed")
raise RuntimeError("<%s>" % json.dumps(said))
""")
    ours, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "prefork_server", "serve", "target.py", "-u", "nobody", "--check"],
        cwd=open_path,
        env={**unmeasured(), "PYTHONPATH": str(ROOT / "src"), "NOTIFY_SOCKET": "/nowhere"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        seen = Seen(ours)
        told = seen.until(rb"prefork-server: .*RuntimeError: <(.*)>")[1]
        assert process.wait(PATIENCE) == 3
        assert b"printed" not in seen.text
    os.close(ours)
    assert json.loads(told) == [True, True, True, True, NOBODY.pw_dir, False]
