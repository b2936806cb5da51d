"""Daemons, and the original's specs: where output goes, the pid file, and every signal."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import (
    PATIENCE,
    PRELUDE,
    ROOT,
    Server,
    Starter,
    alive,
    children,
    eventually,
    title,
)

pytestmark = pytest.mark.executed

WAITS = """
    import builtins

    def work(master):
        builtins.print("out of", master.slot)
        builtins.print("err of", master.slot, file=sys.stderr)
        while master.wait(60):
            pass
        builtins.print("code after the loop of", master.slot)
"""


class Daemon:
    """A daemon that a launcher made, from its pid to the proof that nothing of it remains."""

    def __init__(self, launcher: Server) -> None:
        self.launcher = launcher
        self.pid = int(launcher.saw(r"launched (\d+)")[0][1])
        self._pidfd = os.pidfd_open(self.pid)
        assert launcher.wait() == 0

    def tell(self, signum: int) -> None:
        signal.pidfd_send_signal(self._pidfd, signum)

    def stop(self, signum: int = signal.SIGQUIT) -> None:
        self.tell(signum)
        assert select.select([self._pidfd], [], [], PATIENCE)[0], "it did not stop"
        assert not self.launcher.anyone_left()

    def workers(self) -> list[int]:
        return [pid for pid in children(self.pid) if alive(pid)]

    def finish(self) -> None:
        if not select.select([self._pidfd], [], [], 0)[0]:
            self.stop()
        os.close(self._pidfd)


Launch = Callable[..., Daemon]


@pytest.fixture
def launch(start: Starter) -> Iterator[Launch]:
    daemons: list[Daemon] = []

    def one(program: str, *args: str) -> Daemon:
        daemons.append(Daemon(start(WAITS + program, *args)))
        return daemons[-1]

    yield one
    for daemon in daemons:
        daemon.finish()


# Where output goes


def test_by_default_prints_go_nowhere_and_the_log_and_the_pid_are_in_the_directory(
    launch: Launch, tmp_path: Path
) -> None:
    daemon = launch('    print("launched", Preforker(work, workers=2).start())')
    assert (tmp_path / "preforker.pid").read_text() == f"{daemon.pid}\n"
    for fd in range(3):
        assert os.readlink(f"/proc/{daemon.pid}/fd/{fd}") == "/dev/null"
    daemon.stop()
    log = (tmp_path / "preforker.log").read_text()
    assert re.search(rf"^\d{{4}}-\d\d-\d\d .* master pid={daemon.pid} ready$", log, re.MULTILINE)
    assert log.rstrip().endswith(f"master pid={daemon.pid} stopped")
    assert "out of" not in log
    assert sorted(os.listdir(tmp_path)) == ["app0.py", "preforker.log"]


def test_app_name_names_the_files_and_the_processes(launch: Launch, tmp_path: Path) -> None:
    daemon = launch('    print("launched", Preforker(work, workers=1, app_name="ours").start())')
    assert title(daemon.pid) == "ours master"
    assert (tmp_path / "ours.pid").exists() and (tmp_path / "ours.log").exists()


def test_stdout_and_stderr_go_to_files_of_their_own(launch: Launch, tmp_path: Path) -> None:
    daemon = launch("""
    p = Preforker(work, workers=2, stdout_path="out.txt", stderr_path="err.txt")
    print("launched", p.start())
    """)
    # Line by line, as they are printed: a worker that is killed leaves what it has said.
    eventually(lambda: (tmp_path / "out.txt").read_text().count("out of") == 2)
    eventually(lambda: (tmp_path / "err.txt").read_text().count("err of") == 2)
    daemon.stop()
    assert (tmp_path / "out.txt").read_text().count("code after the loop") == 2
    assert "out of" not in (tmp_path / "err.txt").read_text()


def test_one_file_may_serve_for_stdout_stderr_and_the_log(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "all").write_text("from before\n")
    daemon = launch("""
    p = Preforker(work, workers=3, log_path="all", stdout_path="all", stderr_path="all")
    print("launched", p.start())
    """)
    eventually(lambda: (tmp_path / "all").read_text().count("err of") == 3)
    daemon.stop()
    lines = (tmp_path / "all").read_text().splitlines()
    assert lines[0] == "from before"
    kinds = r"out of \d|err of \d|code after the loop of \d|\d{4}-.*|from before"
    assert all(re.fullmatch(kinds, line) for line in lines), lines
    assert sum("code after the loop" in line for line in lines) == 3


def test_a_logger_of_the_programs_own_is_used(launch: Launch, tmp_path: Path) -> None:
    daemon = launch("""
    import logging
    logger = logging.getLogger("mine")
    logger.addHandler(logging.FileHandler("mine.log"))
    logger.setLevel(logging.INFO)
    print("launched", Preforker(work, workers=1, logger=logger).start())
    """)
    daemon.stop()
    assert "ready" in (tmp_path / "mine.log").read_text()
    assert not (tmp_path / "preforker.log").exists()


def test_logging_that_goes_to_the_terminal_alone_does_not_leave_a_daemon_without_a_log(
    launch: Launch, tmp_path: Path
) -> None:
    daemon = launch("""
    import logging
    logging.basicConfig()
    print("launched", Preforker(work, workers=1).start())
    """)
    daemon.stop()
    assert f"master pid={daemon.pid} ready" in (tmp_path / "preforker.log").read_text()


def test_logging_that_goes_to_a_redirected_stream_is_all_that_the_program_wants(
    launch: Launch, tmp_path: Path
) -> None:
    daemon = launch("""
    import logging
    logging.basicConfig(level=logging.INFO)
    print("launched", Preforker(work, workers=1, stderr_path="err").start())
    """)
    daemon.stop()
    assert f"master pid={daemon.pid} ready" in (tmp_path / "err").read_text()
    assert not (tmp_path / "preforker.log").exists()


def test_in_the_foreground_the_same_paths_do_the_same_and_are_given_back(
    start: Starter, tmp_path: Path
) -> None:
    server = start(
        WAITS
        + """
    Preforker(work, workers=1, stdout_path="out", stderr_path="out", log_path="log").run()
    builtins.print("here again", flush=True)
    builtins.print("and here", file=sys.stderr)
    """
    )
    eventually(lambda: (tmp_path / "out").exists() and "err of" in (tmp_path / "out").read_text())
    eventually(lambda: "ready" in (tmp_path / "log").read_text())
    assert (tmp_path / "preforker.pid").read_text() == f"{server.pid}\n"
    assert server.quit() == 0
    assert server.lines == ["here again", "and here"]
    assert not (tmp_path / "preforker.pid").exists()


def test_files_are_for_the_user_and_his_group_alone(launch: Launch, tmp_path: Path) -> None:
    daemon = launch("""
    os.umask(0)
    p = Preforker(work, workers=1, stdout_path="out", log_path="log")
    print("launched", p.start())
    """)
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir() if p.suffix != ".py"}
    pid_files = {"preforker.pid": 0o644, "preforker.pid.lock": 0o600}
    assert modes == {"out": 0o640, "log": 0o640, **pid_files}
    daemon.stop()


def test_a_server_starts_as_a_daemon_too(launch: Launch, tmp_path: Path) -> None:
    daemon = launch("""
    with PreforkUnixStreamServer("sock", Echo, workers=2) as server:
        print("launched", server.start())
    print("closed here:", server.socket.fileno())
    """)
    daemon.launcher.saw("closed here: -1")
    with socket.socket(socket.AF_UNIX) as client:  # leaving the with did not unlink it
        client.connect(str(tmp_path / "sock"))
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
    assert "ready" in (tmp_path / "PreforkUnixStreamServer.log").read_text()
    daemon.stop()
    assert not (tmp_path / "sock").exists()


def test_a_launcher_that_is_interrupted_leaves_the_daemon_its_path(
    start: Starter, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "boot")
    launcher = start("""
    class Waits(PreforkUnixStreamServer):
        def after_fork(self, master):
            os.write(1, b"booting\\n")
            with open("boot") as gate: gate.read()

    try:
        with Waits("sock", Echo, workers=1, pid_path="pid", stdout_path="out") as server:
            server.start()
    except KeyboardInterrupt:
        print("interrupted, and", "closed" if server.socket.fileno() < 0 else "open")
    """)
    out = tmp_path / "out"
    eventually(lambda: out.exists() and "booting" in out.read_text())
    launcher.signal(signal.SIGINT)
    launcher.saw("interrupted, and closed")
    assert launcher.wait() == 0
    (tmp_path / "boot").write_text("go")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(tmp_path / "sock"))
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGQUIT)
    assert not launcher.anyone_left()
    assert not (tmp_path / "sock").exists()


def test_a_server_whose_daemon_failed_still_has_its_path_and_removes_it(
    start: Starter, tmp_path: Path
) -> None:
    launcher = start("""
    import prefork_server.daemon, errno

    def refuse():
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    class Fails(PreforkUnixStreamServer):
        def after_fork(self, master):
            raise LookupError("no table")

    with Fails("sock", Echo, workers=1) as server:
        for change in ("", "no fork"):
            if change:
                prefork_server.daemon.fork = refuse
            try:
                server.start()
            except BootError as error:
                print("told:", error, os.path.exists("sock"), server.socket.fileno() > 0)
    """)
    launcher.saw("told: .*LookupError: no table True True")
    launcher.saw("told: cannot fork: Resource temporarily unavailable True True")
    assert launcher.wait() == 0
    assert not (tmp_path / "sock").exists()


# Leaving the terminal


def test_a_daemon_has_no_terminal_and_the_same_directory_umask_and_environment(
    launch: Launch, tmp_path: Path
) -> None:
    daemon = launch("""
    os.umask(0o027)
    print("env", sorted(os.environ.items()))
    print("launched", Preforker(work, workers=1, stdout_path="out").start())
    """)
    stat = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    session, terminal = int(stat[3]), int(stat[4])
    assert session not in (daemon.pid, os.getsid(0)) and terminal == 0
    assert os.readlink(f"/proc/{daemon.pid}/cwd") == str(tmp_path)
    assert "Umask:\t0027" in Path(f"/proc/{daemon.pid}/status").read_text()
    daemon.stop()


def test_only_the_launcher_comes_back_from_start(launch: Launch, tmp_path: Path) -> None:
    daemon = launch("""
    import atexit
    def note(name):
        with open(name, "a") as file:
            file.write(f"{os.getpid()}\\n")
    atexit.register(note, "exits")
    try:
        print("launched", Preforker(work, workers=1).start())
    finally:
        note("returns")
    """)
    daemon.stop()
    for name in ("returns", "exits"):
        assert (tmp_path / name).read_text() == f"{daemon.launcher.pid}\n", name


def test_the_launcher_with_closed_standard_descriptors_gets_a_sound_daemon(
    start: Starter, tmp_path: Path
) -> None:
    script = tmp_path / "closed.py"
    script.write_text(
        PRELUDE
        + """
import builtins

class Prints(Echo):
    def handle(self):
        builtins.print("a print")
        super().handle()

with PreforkTCPServer(("127.0.0.1", 0), Prints, workers=1, stdout_path="out") as server:
    port = server.server_address[1]
    pid = server.start()
    with open("launched", "w") as file:
        builtins.print(pid, port, file=file)
"""
    )
    reader, writer = os.pipe()
    with open(reader, "rb") as gone:
        subprocess.run(
            ["sh", "-c", f"exec {sys.executable} {script} <&- >&- 2>&-"],
            cwd=tmp_path, check=True, pass_fds=[writer], timeout=PATIENCE,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )  # fmt: skip
        os.close(writer)
        pid, port = map(int, (tmp_path / "launched").read_text().split())
        try:
            for fd in range(3):
                assert "socket" not in os.readlink(f"/proc/{pid}/fd/{fd}")
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
                    client.sendall(b"hello")
                    assert client.recv(100) == b"hello"
            assert (tmp_path / "out").read_text() == "a print\n" * 3
        finally:
            os.kill(pid, signal.SIGQUIT)
        assert select.select([gone], [], [], PATIENCE)[0]


def test_what_only_the_master_may_hold_is_not_in_a_worker(launch: Launch, tmp_path: Path) -> None:
    daemon = launch("""
    with PreforkTCPServer(("127.0.0.1", 0), Echo, workers=2, pid_path="pid", log_path="log",
                          stdout_path="out") as server:
        print("launched", server.start())
    """)
    eventually(lambda: len(daemon.workers()) == 2)
    eventually(lambda: all("worker" in title(pid) for pid in daemon.workers()))

    def held(pid: int) -> list[str]:
        found = (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
        return sorted(re.sub(r":\[\d+\]|/memfd:.*", "", name) for name in found)

    first, second = map(held, daemon.workers())
    assert first == second
    assert str(tmp_path / "pid") in held(daemon.pid)
    assert str(tmp_path / "pid") not in first
    files = [name for name in first if name.startswith(str(tmp_path))]
    assert files == [str(tmp_path / "log"), str(tmp_path / "out")]
    # Both ends of its own bell and of the relay; the master's bell; the end of life; the test's.
    assert first.count("socket") == 1  # the listener
    assert first.count("pipe") == 7
    daemon.stop()


# The launcher's success and failure


def test_the_launcher_returns_only_when_a_worker_is_ready(start: Starter, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "boot")
    launcher = start(
        WAITS
        + """
    def after_fork(master):
        print("booting")
        with open("boot") as gate:
            gate.read()
    print("launched", Preforker(work, workers=1, after_fork=after_fork, stdout_path="out").start())
    """
    )
    eventually(
        lambda: (
            "booting" in (tmp_path / "out").read_text() if (tmp_path / "out").exists() else False
        )
    )
    assert launcher.process.poll() is None
    (tmp_path / "boot").write_text("go")
    Daemon(launcher).finish()


FAILURES = {  # what the boot does, the settings, and what the launcher says
    "raises": ("raise LookupError('no table')", "", "could boot, giving up: LookupError: no table"),
    "hangs": ("time.sleep(60)", "boot_timeout=0.3", "could boot, giving up: .*SIGKILL"),
    "killed": (
        "os.kill(os.getppid(), 9); time.sleep(60)",
        "graceful_timeout=0.2",
        "the daemon died before it was",
    ),
    "stopped": ("os.kill(os.getppid(), 15); time.sleep(60)", "", "it was stopped before it was"),
    "log": ("pass", "log_path='no/dir'", "log_path .*/no/dir: No such file or directory"),
    "pid": ("pass", "pid_path='.'", "pid_path .*: Is a directory"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_the_launcher_says_why_the_daemon_did_not_start(
    start: Starter, tmp_path: Path, failure: str
) -> None:
    boot, keyword, why = FAILURES[failure]
    launcher = start(
        WAITS
        + f"""
    def after_fork(master): {boot}
    print("launched", Preforker(work, workers=1, after_fork=after_fork, {keyword}).start())
    """
    )
    launcher.expect_error("Traceback")
    launcher.saw(rf"BootError: .*{why}")
    assert launcher.wait() == 1
    assert not launcher.anyone_left()
    assert not (tmp_path / "preforker.pid").exists() or failure == "killed"


def test_the_traceback_of_a_failed_boot_reaches_the_launcher(start: Starter) -> None:
    launcher = start(
        WAITS
        + """
    def bad(master):
        raise LookupError("no table")
    try:
        Preforker(work, workers=1, after_fork=bad).start()
    except BootError as error:
        print("REPORT", error.report.replace(chr(10), "|"))
    """
    )
    launcher.saw(r"REPORT Traceback .*in bad\|.*LookupError: no table")


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("KeyError('x')", "KeyError: 'x'"),
        ("AssertionError()", "AssertionError"),
        ("KeyboardInterrupt()", "KeyboardInterrupt"),
        ("LookupError(chr(0xdce4))", r"LookupError: \udce4"),
    ],
)
def test_an_error_of_the_programs_own_is_told_by_its_name(
    start: Starter, failure: str, said: str
) -> None:
    server = start(f"""
    import prefork_server.launch
    def run(self):
        raise {failure}
    prefork_server.launch.Launch.run = run
    with PreforkTCPServer(("127.0.0.1", 0), Echo) as server:
        try:
            server.start()
        except BootError as error:
            print("said", error, "Traceback" in error.report)
    """)
    server.saw(f"^said {re.escape(said)} True$")


@pytest.mark.parametrize("which", [1, 2])
def test_a_fork_that_fails_is_a_boot_error_and_leaks_nothing(start: Starter, which: int) -> None:
    server = start(
        """
    calls, fork = [], os.fork
    def refuse():
        calls.append(1)
        if len(calls) == int(sys.argv[1]):
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()
    os.fork = refuse
    with PreforkTCPServer(("127.0.0.1", 0), Echo) as server:
        before = sorted(os.listdir("/proc/self/fd"))
        try:
            server.start()
        except BootError as error:
            print("said", error)
        assert before == sorted(os.listdir("/proc/self/fd"))
    print("over")
    """,
        str(which),
    )
    server.saw("said cannot fork: Resource temporarily unavailable")
    server.saw("over")


def test_a_daemon_gets_ready_though_its_launcher_is_gone_and_sigpipe_is_fatal(
    start: Starter, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "gate")
    server = start("""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    out = os.dup(1)
    def after_fork(master):
        os.write(out, b"booting %d" % os.getppid() + bytes([10]))
        with open("gate") as gate:
            gate.read()
    def work(master):
        while master.wait(60):
            pass
    Preforker(work, workers=1, after_fork=after_fork).start()
    """)
    master = int(server.saw(r"booting (\d+)")[0][1])
    server.signal(signal.SIGKILL)
    server.wait()
    (tmp_path / "gate").write_text("go")
    eventually(lambda: " ready" in (tmp_path / "preforker.log").read_text())
    assert alive(master)
    os.kill(master, signal.SIGQUIT)
    assert not server.anyone_left()


@pytest.mark.parametrize("which", [1, 2])
def test_a_signal_right_after_a_fork_brings_nobody_back_into_the_callers_code(
    start: Starter, which: int
) -> None:
    server = start(
        """
    forks = []
    def interrupt():  # the first child of the launcher, or the child of that
        if len(forks) == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGINT)
    os.register_at_fork(before=lambda: forks.append(1), after_in_child=interrupt)
    launcher = os.getpid()
    with PreforkTCPServer(("127.0.0.1", 0), Echo, workers=1) as server:
        try:
            print("launched", server.start())
        except BootError as error:
            print("said", error)
        finally:
            print("back in the launcher", os.getpid() == launcher)
    """,
        str(which),
    )
    server.saw("back in the launcher True")
    if which == 2:
        server.saw("said KeyboardInterrupt")
    else:  # it has nothing to interrupt
        Daemon(server).finish()
    assert server.count("back in") == 1


def test_threads_that_run_at_start_are_named(start: Starter) -> None:
    server = start("""
    threading.Thread(target=time.sleep, args=(60,), name="poller", daemon=True).start()
    print("launched", Preforker(lambda master: master.wait(60), workers=1).start())
    """)
    server.saw(r"forking while other threads run \(poller\)")
    Daemon(server).finish()


def test_in_the_launcher_nothing_waits_and_the_addresses_are_known(start: Starter) -> None:
    server = start("""
    server = PreforkTCPServer([("127.0.0.1", 0), "unix:s.sock"], Echo, workers=1)
    before = server.addresses
    print("launched", server.start())
    assert server.addresses == before and server.wait_ready()
    server.shutdown()
    waits = Preforker(lambda master: master.wait(60), listen="127.0.0.1:0", workers=1)
    print("second", waits.start(), *waits.addresses)
    waits.shutdown()
    """)
    daemon = Daemon(server)
    second, port = server.saw(r"second (\d+) 127\.0\.0\.1:(\d+)")[0].groups()
    with socket.create_connection(("127.0.0.1", int(port)), PATIENCE):
        pass
    os.kill(int(second), signal.SIGQUIT)
    daemon.finish()


def test_an_address_in_use_is_told_to_the_launcher(start: Starter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        launcher = start(
            WAITS
            + f"""
    try:
        Preforker(work, listen="127.0.0.1:{port}").start()
    except BootError as error:
        print("told:", error)
        """
        )
        launcher.saw(rf"told: cannot listen on 127.0.0.1:{port}: Address already in use")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("Preforker(work, inline=True).start()", "inline=True is for the foreground"),
        (
            "threading.Thread(target=Preforker(work).start).start()",
            "start.. is for the main thread",
        ),
    ],
)
def test_start_where_it_cannot_be_is_refused(start: Starter, how: str, why: str) -> None:
    server = start(WAITS + "    " + how)
    server.expect_error("Traceback")
    server.saw(rf"ConfigError: {why}")


DIES = """
    def enough(*_):
        sys.exit("enough is enough")
    signal.signal(signal.SIGALRM, enough)  # a handler of the program's own
    p = Preforker(work, workers=1)
"""


def test_a_daemon_that_dies_after_it_was_ready_says_why_in_its_log(
    launch: Launch, tmp_path: Path
) -> None:
    daemon = launch(DIES + '    print("launched", p.start())')
    eventually(daemon.workers)
    os.kill(daemon.pid, signal.SIGALRM)
    assert select.select([daemon._pidfd], [], [], PATIENCE)[0], "it did not end"
    log = (tmp_path / "preforker.log").read_text()
    assert log.count("SystemExit: enough is enough") == 1
    assert re.search(rf" ERROR   master pid={daemon.pid} died\n  Traceback ", log)
    assert not daemon.launcher.anyone_left()


def test_in_the_foreground_the_caller_is_told_and_the_log_is_not(start: Starter) -> None:
    server = start(WAITS + DIES + "    p.run()").ready()
    eventually(server.workers)
    server.signal(signal.SIGALRM)
    assert server.wait() == 1
    assert server.count("enough is enough") == 1 and not server.count("died|Traceback")


# Every signal rule, on a daemon

TEMPLATE = '    print("launched", Preforker(work, workers=2, stdout_path="out").start())'


def test_quit_lets_workers_run_the_code_after_the_loop(launch: Launch, tmp_path: Path) -> None:
    daemon = launch(TEMPLATE)
    eventually(lambda: (tmp_path / "out").read_text().count("out of") == 2)
    daemon.stop(signal.SIGQUIT)
    assert (tmp_path / "out").read_text().count("code after the loop") == 2
    assert not (tmp_path / "preforker.pid").exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_term_and_int_stop_at_once_and_no_more_code_runs(
    launch: Launch, tmp_path: Path, signum: signal.Signals
) -> None:
    daemon = launch(TEMPLATE)
    eventually(lambda: (tmp_path / "out").read_text().count("out of") == 2)
    daemon.stop(signum)
    assert "code after the loop" not in (tmp_path / "out").read_text()
    assert not (tmp_path / "preforker.pid").exists()


def test_winch_ttin_and_ttou_change_how_many_there_are(launch: Launch) -> None:
    daemon = launch(TEMPLATE)
    for signum, wanted in (
        (signal.SIGTTIN, 3),
        (signal.SIGTTIN, 4),
        (signal.SIGTTOU, 3),
        (signal.SIGWINCH, 0),
        (signal.SIGTTIN, 1),
    ):
        daemon.tell(signum)
        eventually(lambda: len(daemon.workers()) == wanted)  # noqa: B023 - called here and now
    daemon.stop()


def test_a_killed_worker_of_a_daemon_is_replaced(launch: Launch) -> None:
    daemon = launch(TEMPLATE)
    eventually(lambda: len(daemon.workers()) == 2)
    victim = daemon.workers()[0]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in daemon.workers() and len(daemon.workers()) == 2)


def test_a_daemon_that_is_killed_leaves_no_worker_and_can_be_started_again(
    launch: Launch, tmp_path: Path
) -> None:
    first = launch(TEMPLATE)
    first.stop(signal.SIGKILL)
    assert (tmp_path / "preforker.pid").read_text() == f"{first.pid}\n"  # nobody could remove it
    second = launch(TEMPLATE)
    assert (tmp_path / "preforker.pid").read_text() == f"{second.pid}\n"


def test_what_hangs_at_the_end_of_a_daemon_has_graceful_timeout(launch: Launch) -> None:
    """As in a worker: an executor that a hook has made waits for its threads."""
    daemon = launch(
        """
    import concurrent.futures, threading

    def ready(addresses):
        pool = concurrent.futures.ThreadPoolExecutor(1)
        pool.submit(threading.Event().wait)

    print("launched", Preforker(work, workers=1, ready=ready, graceful_timeout=1).start())
    """
    )
    daemon.stop()
