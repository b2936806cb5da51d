"""A new master on the same sockets: the old one leaves when it serves, and stays if not."""

import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipapp
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from prefork_server.inheritance import VARIABLE, Inheritance
from tests.conftest import (
    PATIENCE,
    ROOT,
    SOAK,
    Server,
    Starter,
    children,
    eventually,
    open_files,
    read_all,
    soak,
    title,
    unmeasured,
)
from tests.hammer import HTTPHammer
from tests.processes.test_systemd import Init

pytestmark = pytest.mark.executed

PROGRAM = """
    import pathlib
    version = pathlib.Path("version").read_text()

    class Tell(socketserver.StreamRequestHandler):
        def handle(self):
            self.rfile.readline()
            self.wfile.write(f"{version} {self.server.master.pid} {os.getpid()}".encode())

    class Server(PreforkTCPServer):
        pass
"""
BOTH = (
    f"{PROGRAM}    serve(Tell, Server, ['127.0.0.1:0', 'unix:sock'], workers=2, pid_path='pid')\n"
)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    (tmp_path / "version").write_text("1")
    return tmp_path / "version"


def said(server: Server, path: str | None = None) -> list[str]:
    """Version, pid of the master, pid of the worker."""
    if path is None:
        return server.ask(b"\n").decode().split()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(path)
        client.sendall(b"\n")
        return read_all(client).decode().split()


def upgraded(server: Server, pid: int, times: int = 1) -> int:
    """Send USR2 to the master ``pid``, wait for its end, and return its successor."""
    pidfd = os.pidfd_open(pid)
    try:
        server.signal(signal.SIGUSR2, pid)
        found = server.saw(r"the successor pid=(\d+) serves, leaving", times)[-1]
        assert select.select([pidfd], [], [], PATIENCE)[0]
    finally:
        os.close(pidfd)
    return int(found[1])


def stopped(server: Server, pid: int) -> None:
    """End the master ``pid``, which is no child of ours."""
    server.signal(signal.SIGQUIT, pid)
    assert not server.anyone_left(PATIENCE)


def test_the_successor_has_the_sockets_the_paths_and_the_pid_file(
    start: Starter, version: Path, tmp_path: Path
) -> None:
    server = start(BOTH).ready()
    sock = str(tmp_path / "sock")
    before = os.stat(sock).st_ino
    assert said(server)[:2] == ["1", str(server.pid)]
    version.write_text("2")
    successor = upgraded(server, server.pid)
    assert server.process.wait(PATIENCE) == 0
    for _ in range(20):
        assert said(server)[:2] == ["2", str(successor)]
        assert said(server, sock)[:2] == ["2", str(successor)]
    assert (tmp_path / "pid").read_text() == f"{successor}\n"
    assert os.stat(sock).st_ino == before
    stopped(server, successor)
    assert not (tmp_path / "pid").exists() and not (tmp_path / "sock").exists()


@pytest.mark.soak
def test_an_upgrade_can_be_followed_by_others_and_leaks_no_descriptor(
    start: Starter, version: Path, tmp_path: Path
) -> None:
    server = start(BOTH).all_ready(2)
    pid, count = server.pid, len(open_files(server.pid))
    for number in range(1, 1 + soak(2, 10)):
        version.write_text(str(number + 1))
        pid = upgraded(server, pid, number)
        eventually(lambda pid=pid: (tmp_path / "pid").read_text() == f"{pid}\n")  # type: ignore[misc]
        assert said(server)[:2] == [str(number + 1), str(pid)]
        eventually(lambda pid=pid: len(open_files(pid)) == count)  # type: ignore[misc]
    stopped(server, pid)
    assert not (tmp_path / "pid").exists()


@contextmanager
def hammered(server: Server, path: str) -> Iterator[list[list[str]]]:
    """Four clients over TCP and four over the path, a connection for each request."""
    over, answers, failures = threading.Event(), [], []

    def hammer(path: str | None) -> None:
        while not over.wait(0 if SOAK else 0.02):
            try:
                answers.append(said(server, path))
            except OSError as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=hammer, args=(p,)) for p in (None, path) * 4]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert all(len(answer) == 3 for answer in answers), "cut short"


@pytest.mark.soak
def test_no_request_is_lost_in_an_upgrade_under_fire(
    start: Starter, version: Path, tmp_path: Path
) -> None:
    server = start(BOTH).ready()
    with hammered(server, str(tmp_path / "sock")) as answers:
        version.write_text("2")
        successor = upgraded(server, server.pid)
        assert server.process.wait(PATIENCE) == 0
        version.write_text("3")
        last = upgraded(server, successor, 2)
        eventually(lambda: answers[-1][0] == "3")
    assert {answer[0] for answer in answers} == {"1", "2", "3"}
    print(len(answers), "answers")
    assert len(answers) > 100
    stopped(server, last)


BROKEN = {
    "syntax": ("", r"ended before it was ready: exit code 1"),
    "settings": (
        "Settings(workers=0)",
        r"ended before it was ready: exit code 1",
    ),
    "address": (
        "a = socket.create_server(('127.0.0.1', 0)); PreforkTCPServer(a.getsockname(), Tell)",
        r"ended before it was ready: exit code 1",
    ),
    "boot": (
        "Server.after_fork = lambda self, master: 1 / 0",
        r"ended before it was ready: exit code 1: BootError: .*ZeroDivisionError",
    ),
    "hang": ("time.sleep(1000)", r"ended since it was not ready within 5s: killed by signal 9"),
    # A worker is of use after a second, a look finds that out within another, and the old master
    # waits for two more.
    "crash": (
        "Server.ready = lambda self, _: threading.Timer(2.5, os._exit, (7,)).start()",
        r"ended right after it was ready: exit code 7",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_successor_that_is_broken_leaves_the_old_master_serving(
    start: Starter, version: Path, tmp_path: Path, fault: str
) -> None:
    statement, sentence = BROKEN[fault]
    boot_timeout = 5 if fault == "hang" else 60
    server = start(f"""{PROGRAM}
    if version == "broken":
        {statement or "pass"}
    serve(Tell, Server, ["127.0.0.1:0", "unix:sock"], workers=2, pid_path="pid",
          boot_timeout={boot_timeout})
    """)
    server.ready()
    program = start.directory / "app0.py"
    text = program.read_text()
    with hammered(server, str(tmp_path / "sock")) as answers:
        if fault == "syntax":
            program.write_text(text + "\n    )")
        else:
            version.write_text("broken")
        server.expect_error("Traceback", "upgrade failed", "reaped before it was ready", "No such")
        server.signal(signal.SIGUSR2)
        server.saw(rf"upgrade failed, this master serves on: the successor pid=\d+ {sentence}")
        count = len(answers)
        eventually(lambda: len(answers) > count + 20)
    assert server.process.poll() is None
    eventually(lambda: (tmp_path / "pid").read_text() == f"{server.pid}\n")
    assert said(server)[1] == str(server.pid)
    program.write_text(text)  # mended, it works
    version.write_text("2")
    successor = upgraded(server, server.pid)
    assert said(server)[:2] == ["2", str(successor)]
    stopped(server, successor)


def test_there_is_one_upgrade_at_a_time(start: Starter, version: Path) -> None:
    server = start(f"""{PROGRAM}
    if version == "2":
        os.write(1, b"booting\\n")
        pathlib.Path("go").read_text()  # a FIFO
    serve(Tell, Server, workers=1)
    """)
    os.mkfifo(version.parent / "go")
    server.ready()
    version.write_text("2")
    server.signal(signal.SIGUSR2)
    server.saw("^booting$")
    server.expect_error("no upgrade: one is under way")
    for number in range(1, 4):
        server.signal(signal.SIGUSR2)
        server.saw(r"no upgrade: one is under way, pid=\d+", number)
    (version.parent / "go").write_text("")
    server.saw("master pid=.* ready", 2)
    successor = int(server.saw(r"started a successor, pid=(\d+)")[0][1])
    server.saw("serves, leaving")
    stopped(server, successor)


def in_probation(server: Server, version: Path) -> int:
    """Upgrade until the pid file names the successor, whose predecessor is still there."""
    version.write_text("2")
    server.signal(signal.SIGUSR2)
    successor = int(server.saw(r"started a successor, pid=(\d+)")[0][1])
    path = version.parent / "pid"
    eventually(lambda: path.read_text() == f"{successor}\n")
    return successor


@pytest.mark.parametrize("others", [(), (signal.SIGHUP, signal.SIGUSR1, signal.SIGTTIN)])
def test_an_upgrade_before_the_predecessor_has_left_is_remembered(
    start: Starter, version: Path, others: tuple[signal.Signals, ...]
) -> None:
    server = start(BOTH).ready()
    with hammered(server, str(version.parent / "sock")):
        second = in_probation(server, version)
        version.write_text("3")
        for number in (1, 2):  # which is one upgrade
            server.signal(signal.SIGUSR2, second)
            server.saw(rf"pid={second} .*remembered: .* when its predecessor has left", number)
        for signum in others:
            server.signal(signum, second)
        assert server.process.wait(PATIENCE) == 0
        third = int(server.saw(r"the successor pid=(\d+) serves, leaving", 2)[1][1])
        eventually(lambda: said(server)[:2] == ["3", str(third)])
    if others:
        server.saw(rf"pid={second} .*generation 2 serves")
        server.saw(rf"pid={second} .*rotation 1 done")
    assert server.count("started a successor") == 2
    assert (version.parent / "pid").read_text() == f"{third}\n"
    stopped(server, third)


def test_an_upgrade_of_a_master_that_is_starting_is_remembered(
    start: Starter, version: Path
) -> None:
    os.mkfifo(version.parent / "go")
    server = start(f"""{PROGRAM}
    class Slow(Server):
        def after_fork(self, master):
            if version == "1":
                os.write(1, b"booting\\n")
                pathlib.Path("go").read_text()  # a FIFO
    serve(Tell, Slow, workers=1)
    """)
    server.saw("^booting$")
    server.signal(signal.SIGUSR2)
    server.saw("remembered: this master upgrades when it serves")
    version.write_text("2")
    (version.parent / "go").write_text("")
    successor = int(server.saw(r"the successor pid=(\d+) serves, leaving")[0][1])
    eventually(lambda: said(server)[:2] == ["2", str(successor)])
    stopped(server, successor)


def test_an_upgrade_that_is_remembered_ends_with_a_stop(start: Starter, version: Path) -> None:
    server = start(BOTH).ready()
    second = in_probation(server, version)
    server.expect_error("upgrade failed")
    server.signal(signal.SIGUSR2, second)
    server.saw("remembered")
    server.signal(signal.SIGQUIT, second)
    server.saw(rf"pid={second} SIGUSR2: no upgrade: this master is stopping")
    server.saw("upgrade failed, this master serves on")
    assert said(server)[:2] == ["1", str(server.pid)]
    assert server.count("started a successor") == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGQUIT])
def test_a_stop_during_an_upgrade_ends_both(
    start: Starter, version: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    server = start(f"""{PROGRAM}
    if version == "2":
        os.write(1, b"booting\\n")
        time.sleep(1000)
    serve(Tell, Server, ["127.0.0.1:0", "unix:sock"], workers=1, pid_path="pid")
    """)
    server.ready()
    version.write_text("2")
    server.signal(signal.SIGUSR2)
    server.saw("^booting$")
    server.signal(signum)
    assert server.wait() == 0
    assert not server.anyone_left()
    assert not (tmp_path / "pid").exists() and not (tmp_path / "sock").exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_as_soon_as_an_upgrade_has_begun_ends_both(
    start: Starter, version: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    """Between its fork and its program the successor has the old master's signal handlers."""
    server = start(BOTH).ready()
    server.signal(signal.SIGUSR2)
    server.saw("started a successor")
    server.signal(signum)
    assert server.wait() == 0
    assert not server.anyone_left(PATIENCE)
    assert not (tmp_path / "pid").exists() and not (tmp_path / "sock").exists()


def test_a_stop_is_not_outlived_by_a_successor_that_hears_nothing(
    start: Starter, version: Path
) -> None:
    server = start(f"""{PROGRAM}
    if version == "2":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        os.write(1, b"booting\\n")
        time.sleep(1000)
    serve(Tell, Server, workers=1)
    """).ready()
    version.write_text("2")
    server.signal(signal.SIGUSR2)
    server.saw("^booting$")
    server.signal(signal.SIGQUIT)
    assert server.wait() == 0
    assert not server.anyone_left(PATIENCE)


def test_a_successor_that_is_stopped_in_its_probation_harms_nobody(
    start: Starter, version: Path, tmp_path: Path
) -> None:
    server = start(BOTH).ready()
    with hammered(server, str(tmp_path / "sock")):
        version.write_text("2")
        server.signal(signal.SIGUSR2)
        server.saw("master pid=.* ready", 2)
        successor = int(server.saw(r"started a successor, pid=(\d+)")[0][1])
        eventually(lambda: (tmp_path / "pid").read_text() == f"{successor}\n")  # it said READY
        server.expect_error("upgrade failed")
        server.signal(signal.SIGQUIT, successor)
        server.saw(
            "upgrade failed, this master serves on: .* right after it was ready: exit code 0"
        )
    assert said(server, str(tmp_path / "sock"))[0] == "1"
    assert (tmp_path / "pid").read_text() == f"{server.pid}\n"


def test_one_that_takes_its_time_to_stop_in_its_probation_inherits_nothing(
    start: Starter, version: Path, tmp_path: Path
) -> None:
    server = start(BOTH).ready()
    version.write_text("2")
    server.signal(signal.SIGUSR2)
    server.saw("master pid=.* ready", 2)
    successor = int(server.saw(r"started a successor, pid=(\d+)")[0][1])
    server.expect_error("upgrade failed")
    with ExitStack() as stack:
        # One of these is its, and says nothing.
        clients = [stack.enter_context(server.connect()) for _ in range(8)]
        for client in clients:
            client.sendall(b"begun")
        eventually(lambda: any(" busy " in title(pid) for pid in children(successor)))
        server.signal(signal.SIGQUIT, successor)
        server.saw("SIGQUIT: stopping")
        time.sleep(2.5)  # longer than the old master waits for a successor that is to fail
        for client in clients:
            client.sendall(b"\n")
            assert read_all(client)
    server.saw("upgrade failed, this master serves on: .* exit code 0: it was told to stop")
    assert said(server, str(tmp_path / "sock"))[0] == "1"
    assert (tmp_path / "pid").read_text() == f"{server.pid}\n"


def test_a_graceful_stop_just_after_the_successor_was_ready_cuts_nobody(
    start: Starter, version: Path
) -> None:
    server = start(BOTH).ready()
    version.write_text("2")
    server.signal(signal.SIGUSR2)
    successor = int(server.saw(r"started a successor, pid=(\d+)")[0][1])
    with ExitStack() as stack:
        server.saw("master pid=.* ready", 2)
        clients = [stack.enter_context(server.connect()) for _ in range(8)]
        for client in clients:
            client.sendall(b"begun")
        eventually(lambda: any(" busy " in title(pid) for pid in children(successor)))
        server.signal(signal.SIGQUIT)
        server.saw("SIGQUIT: stopping", 2)
        for client in clients:
            client.sendall(b"\n")
            assert read_all(client)
    assert server.wait() == 0
    assert not server.anyone_left(PATIENCE)


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_pid_file_that_is_removed_around_an_upgrade_is_the_successors_again(
    start: Starter, version: Path, tmp_path: Path, when: str
) -> None:
    server = start(BOTH).ready()
    path = tmp_path / "pid"
    if when == "before":
        path.unlink()
        successor = upgraded(server, server.pid)
    else:
        server.signal(signal.SIGUSR2)
        server.saw("master pid=.* ready", 2)
        path.unlink()
        server.signal(signal.SIGHUP)  # to the old one, whose number it must not be any more
        successor = int(server.saw(r"the successor pid=(\d+) serves, leaving")[0][1])
        server.process.wait(PATIENCE)
        server.signal(signal.SIGHUP, successor)
    eventually(lambda: path.exists() and path.read_text() == f"{successor}\n")
    stopped(server, successor)
    assert not path.exists()


def test_a_master_that_is_killed_leaves_everything_to_its_successor(
    start: Starter, version: Path, tmp_path: Path
) -> None:
    server = start(f"""{PROGRAM}
    if version == "2":
        os.write(1, b"booting\\n")
        pathlib.Path("go").read_text()  # a FIFO
    serve(Tell, Server, ["127.0.0.1:0", "unix:sock"], workers=2, pid_path="pid")
    """)
    os.mkfifo(tmp_path / "go")
    server.ready()
    version.write_text("2")
    server.signal(signal.SIGUSR2)
    server.saw("^booting$")
    server.signal(signal.SIGKILL)
    server.process.wait(PATIENCE)
    (tmp_path / "go").write_text("")
    server.saw("master pid=.* ready", 2)
    successor = int(server.saw(r"started a successor, pid=(\d+)")[0][1])
    assert said(server)[:2] == ["2", str(successor)]
    eventually(lambda: (tmp_path / "pid").read_text() == f"{successor}\n")
    stopped(server, successor)
    assert not (tmp_path / "pid").exists() and not (tmp_path / "sock").exists()


def test_what_the_new_program_does_not_listen_on_is_closed(
    start: Starter, version: Path, tmp_path: Path
) -> None:
    server = start(f"""{PROGRAM}
    addresses = ["127.0.0.1:0", "unix:sock"] if version == "1" else ["127.0.0.1:0", "unix:new"]
    serve(Tell, Server, addresses, workers=1, pid_path=f"pid{{version}}")
    """).ready()
    assert said(server, str(tmp_path / "sock"))[0] == "1"
    version.write_text("2")
    successor = upgraded(server, server.pid)
    assert said(server)[0] == said(server, str(tmp_path / "new"))[0] == "2"
    eventually(lambda: not (tmp_path / "sock").exists() and not (tmp_path / "pid1").exists())
    assert (tmp_path / "pid2").read_text() == f"{successor}\n"
    stopped(server, successor)


def test_what_the_new_program_does_not_listen_on_stays_while_it_may_fail(
    start: Starter, version: Path, tmp_path: Path
) -> None:
    server = start(f"""{PROGRAM}
    serve(Tell, Server, [f"unix:sock{{version}}"], workers=1, pid_path=f"pid{{version}}")
    """).ready()
    version.write_text("2")
    server.signal(signal.SIGUSR2)
    server.saw("master pid=.* ready", 2)
    server.expect_error("upgrade failed")
    server.signal(signal.SIGKILL, int(server.saw(r"started a successor, pid=(\d+)")[0][1]))
    server.saw("upgrade failed, this master serves on")
    assert said(server, str(tmp_path / "sock1"))[0] == "1"
    assert (tmp_path / "pid1").read_text() == f"{server.pid}\n"


def test_a_server_of_a_foreign_class_and_datagrams_go_over_too(
    start: Starter, version: Path, tmp_path: Path
) -> None:
    server = start(f"""{PROGRAM}
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Hello(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(version.encode())
        def log_message(self, *args):
            pass

    class Foreign(PreforkMixIn, HTTPServer):
        settings = Settings(workers=1)

    with Foreign(("127.0.0.1", 0), Hello) as server:
        assert server.server_port == server.socket.getsockname()[1]
        server.serve_forever()
    """).ready()
    assert server.ask(b"GET / HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\n1")
    version.write_text("2")
    successor = upgraded(server, server.pid)
    assert server.ask(b"GET / HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\n2")
    stopped(server, successor)


def test_datagrams_are_answered_all_the_time(start: Starter, version: Path) -> None:
    server = start(f"""{PROGRAM}
    class Tell(socketserver.DatagramRequestHandler):
        def handle(self):
            self.wfile.write(self.rfile.read() + b" " + version.encode())

    serve(Tell, PreforkUDPServer, workers=2)
    """).ready()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.connect(server.address)
        version.write_text("2")
        server.signal(signal.SIGUSR2)
        number, versions = 0, []
        while server.process.poll() is None or number < 100:
            number += 1
            client.send(b"%d" % number)
            found, answered = client.recv(100).split()
            assert found == b"%d" % number
            versions.append(answered)
        assert versions[0] == b"1" and versions[-1] == b"2"
    stopped(server, int(server.saw(r"the successor pid=(\d+) serves")[0][1]))


def test_a_daemon_is_upgraded_without_a_launcher(
    start: Starter, version: Path, tmp_path: Path
) -> None:
    launcher = start(f"""{PROGRAM}
    with Server("unix:sock" if False else ["127.0.0.1:0", "unix:sock"], Tell, workers=1,
                pid_path="pid", log_path="log") as server:
        print("started", server.start())
    """)
    pid = int(launcher.saw(r"^started (\d+)$")[0][1])
    assert launcher.wait() == 0
    version.write_text("2")
    os.kill(pid, signal.SIGUSR2)
    log = tmp_path / "log"
    eventually(lambda: "serves, leaving" in log.read_text())
    found = re.search(r"the successor pid=(\d+) serves", log.read_text())
    assert found
    successor = int(found[1])
    assert said(launcher, str(tmp_path / "sock"))[:2] == ["2", str(successor)]
    assert os.getsid(successor) != successor and title(successor).endswith("master")
    os.kill(successor, signal.SIGQUIT)
    assert not launcher.anyone_left(PATIENCE)
    assert "stopped" in log.read_text() and not (tmp_path / "pid").exists()


def test_the_environment_and_the_directory_are_those_of_the_start(
    start: Starter, version: Path, tmp_path: Path
) -> None:
    server = start(
        f"""{PROGRAM}
    print(version, sorted(os.environ.items()) == sorted(os.environ.items()), os.getcwd(),
          os.environ.get("KEPT"), os.environ.get("ADDED"), {VARIABLE!r} in os.environ, sys.argv[1:])
    os.environ["ADDED"] = "by the program"
    class Server(PreforkTCPServer):
        def ready(self, addresses):
            os.chdir("/")
            print("gone")
    serve(Tell, Server, workers=1)
    """,
        "one",
        "two words",
        env={**os.environ, "KEPT": "yes", "LISTEN_PID": "1", "LISTEN_FDS": "1"},
    )
    server.saw("^gone$")
    version.write_text("2")
    successor = upgraded(server, server.pid)
    first, second = (m[1] for m in server.saw(r"^[12] True (.*)$", 2))
    assert first == f"{tmp_path} yes None False ['one', 'two words']"
    assert second == f"{tmp_path} yes None False ['one', 'two words']"
    assert f"{VARIABLE}=" not in "".join(os.environ)
    stopped(server, successor)


def test_what_the_program_starts_before_its_server_has_nothing_of_the_predecessors(
    start: Starter, version: Path, tmp_path: Path
) -> None:
    server = start(f"""{PROGRAM}
    os.system("ls -l /proc/self/fd > fds; env > env")
    serve(Tell, Server, ["127.0.0.1:0", "unix:sock"], workers=1, pid_path="pid")
    """).ready()
    version.write_text("2")
    successor = upgraded(server, server.pid)
    assert "socket:" not in (tmp_path / "fds").read_text()
    assert VARIABLE not in (tmp_path / "env").read_text()
    stopped(server, successor)


def test_an_upgrade_without_descriptors_is_refused_and_the_workers_after_it_serve(
    start: Starter, version: Path
) -> None:
    server = start(BOTH).all_ready(2)
    taken = open_files(server.pid)
    free = [fd for fd in range(max(taken) + 4) if fd not in taken]
    limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    for count in range(2):  # of the three that it takes
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (free[count], limits[1]))
        server.signal(signal.SIGUSR2)
        server.saw("no upgrade: cannot start it: Too many open files", times=count + 1)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
    server.signal(signal.SIGHUP)
    server.saw("generation 2 serves")
    assert said(server)[0] == "1"
    assert server.quit() == 0


def test_a_successor_whose_workers_crash_at_once_inherits_nothing(
    start: Starter, version: Path, tmp_path: Path
) -> None:
    server = start(f"""{PROGRAM}
    class Broken(Server):
        def service_actions(self):
            raise RuntimeError("the new version is broken")
    serve(Tell, Server if version == "1" else Broken, workers=2, pid_path="pid", boot_timeout=4)
    """).ready()
    version.write_text("2")
    server.expect_error("upgrade failed", "reaped", "Traceback")
    server.signal(signal.SIGUSR2)
    server.saw("upgrade failed, this master serves on: .* since it was not ready within 4s")
    for _ in range(4):
        assert said(server)[:2] == ["1", str(server.pid)]
    assert (tmp_path / "pid").read_text() == f"{server.pid}\n"
    assert server.quit() == 0


def test_a_program_that_goes_into_the_background_by_itself_is_not_upgraded_to(
    start: Starter, version: Path, tmp_path: Path
) -> None:
    server = start(f"""{PROGRAM}
    if version == "2" and os.fork():
        os._exit(0)
    serve(Tell, Server, ["127.0.0.1:0", "unix:sock"], workers=1, pid_path="pid")
    """).ready()
    server.expect_error("upgrade failed")
    version.write_text("2")
    server.signal(signal.SIGUSR2)
    server.expect_error("Traceback")
    server.saw("upgrade failed, this master serves on: .* exit code 0")
    server.saw("BootError: an upgrade of a program that has gone into the background by itself")
    for _ in range(4):
        assert (
            said(server)[:2] == said(server, str(tmp_path / "sock"))[:2] == ["1", str(server.pid)]
        )
    assert (tmp_path / "pid").read_text() == f"{server.pid}\n"
    assert server.quit() == 0


def test_a_path_that_is_anothers_by_now_is_not_the_successors_to_remove(
    start: Starter, version: Path, tmp_path: Path
) -> None:
    server = start(BOTH).ready()
    successor = upgraded(server, server.pid)
    (tmp_path / "sock").unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "sock"))
        stopped(server, successor)
        assert (tmp_path / "sock").exists()


def test_what_a_handler_starts_inherits_none_of_our_descriptors_before_and_after(
    start: Starter, version: Path
) -> None:
    server = start(f"""{PROGRAM}
    import subprocess

    def inherited():
        look = [sys.executable, "-c", "import os; print(*os.listdir('/proc/self/fd'))"]
        return subprocess.check_output(look, close_fds=False).decode().strip()

    class Lists(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(inherited().encode())

    if version == "1":
        print("at the start", inherited())
    serve(Lists, address=["127.0.0.1:0", "unix:sock"], workers=2, pid_path="pid")
    """).ready()
    at_the_start = server.saw("^at the start (.*)$")[0][1]
    assert server.ask(b"").decode() == at_the_start
    version.write_text("2")
    successor = upgraded(server, server.pid)
    assert server.ask(b"").decode() == at_the_start
    stopped(server, successor)


WAYS = {
    "a script by a relative path": ["app/__main__.py"],
    "a module": ["-m", "app"],
    "an installed command": ["bin/app"],
    "a directory": ["app"],
    "an archive": ["app.pyz"],
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_way_it_was_started_a_release_moves_a_link_and_the_new_code_serves(
    start: Starter, tmp_path: Path, way: str
) -> None:
    for version in ("1", "2"):
        release = tmp_path / f"release{version}"
        (release / "app").mkdir(parents=True)
        (release / "app" / "__init__.py").touch()
        (release / "app" / "__main__.py").write_text(f"""
import socketserver
from prefork_server import PreforkTCPServer

class Tell(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"{version}")

def main():
    with PreforkTCPServer("127.0.0.1:0", Tell, workers=1) as server:
        server.serve_forever()

if __name__ == "__main__":
    main()
""")
        (release / "bin").mkdir()
        (release / "bin" / "app").write_text(
            "import sys\nsys.path.insert(0, '.')\nfrom app.__main__ import main\nsys.exit(main())\n"
        )
        zipapp.create_archive(release / "app", release / "app.pyz")
    current = tmp_path / "current"
    current.symlink_to(tmp_path / "release1")
    first, *words = WAYS[way]
    environ = {**unmeasured(), "PWD": str(current)}
    server = start.script(Path(first), *words, cwd=current, env=environ).ready()
    assert server.ask(b"") == b"1"
    os.symlink(tmp_path / "release2", tmp_path / "next")
    os.rename(tmp_path / "next", current)
    successor = upgraded(server, server.pid)
    assert server.ask(b"") == b"2"
    stopped(server, successor)


def test_systemd_is_told_that_the_old_master_is_the_main_process_again(
    start: Starter, version: Path, tmp_path: Path
) -> None:
    init = Init(str(tmp_path / "notify"))
    with init.socket:
        server = start(BOTH, env={**os.environ, "NOTIFY_SOCKET": init.address}).ready()
        assert f"MAINPID={server.pid}" in init.hears("READY=1")
        server.expect_error("upgrade failed")
        server.signal(signal.SIGUSR2)
        server.saw("master pid=.* ready", 2)
        successor = int(server.saw(r"started a successor, pid=(\d+)")[0][1])
        assert f"MAINPID={successor}" in init.hears("READY=1")
        server.signal(signal.SIGKILL, successor)
        assert f"MAINPID={server.pid}" in init.hears("READY=1")
        server.saw("upgrade failed, this master serves on")


def test_systemd_is_told_who_is_the_main_process_now(
    start: Starter, version: Path, tmp_path: Path
) -> None:
    init = Init(str(tmp_path / "notify"))
    with init.socket:
        server = start(BOTH, env={**os.environ, "NOTIFY_SOCKET": init.address}).ready()
        assert f"MAINPID={server.pid}" in init.hears("READY=1")
        successor = upgraded(server, server.pid)
        init.hears(f"MAINPID={successor}")
        stopped(server, successor)
        assert f"MAINPID={successor}" in init.hears("STOPPING=1")


@pytest.mark.parametrize(
    "will",
    [
        "",
        "no json",
        "[]",
        "{}",
        '{"parent": 1, "talk": 99999, "sockets": [], "lock": null}',
        '{"parent": "x", "talk": "y", "sockets": [], "lock": null}',
    ],
)
def test_a_variable_that_is_no_will_of_ours_is_taken_out_and_changes_nothing(will: str) -> None:
    environ = {VARIABLE: will}
    inheritance = Inheritance(environ)
    assert environ == {}
    assert not inheritance.is_successor() and inheritance.settled()
    assert inheritance.take("SOCK_STREAM 127.0.0.1:80") is None
    assert inheritance.take_lock("/run/x.pid") is None


def test_a_will_of_another_process_is_not_for_us() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        will = f'{{"parent": 1, "talk": {theirs.fileno()}, "sockets": [], "lock": null}}'
        assert not Inheritance({VARIABLE: will}).is_successor()
        theirs.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)  # and it is open as before


def test_one_installed_version_hands_over_to_another(start: Starter, tmp_path: Path) -> None:
    for number in ("1", "2"):
        source, installed = tmp_path / f"source{number}", tmp_path / f"installed{number}"
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "tests", "__pycache__"))
        init = source / "src" / "prefork_server" / "__init__.py"
        text = re.sub(r'__version__ = ".*"', f'__version__ = "{number}.0"', init.read_text())
        init.write_text(text)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        options = ["--no-deps", "--no-build-isolation", "--target", str(installed), str(source)]
        subprocess.run([*pip, *options], check=True, env=unmeasured())
    current = tmp_path / "current"
    current.symlink_to(tmp_path / "installed1")
    (tmp_path / "app.py").write_text(f"""
import sys
sys.path.insert(0, {str(current)!r})
import prefork_server, socketserver

class Tell(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(f"{{prefork_server.__version__}} {{prefork_server.__file__}}".encode())

with prefork_server.PreforkTCPServer("127.0.0.1:0", Tell, workers=1) as server:
    server.serve_forever()
""")
    server = start.script(tmp_path / "app.py", env=unmeasured()).ready()
    assert server.ask(b"") == f"1.0 {current}/prefork_server/__init__.py".encode()
    current.unlink()
    current.symlink_to(tmp_path / "installed2")
    successor = upgraded(server, server.pid)
    assert server.ask(b"").startswith(b"2.0 ")
    stopped(server, successor)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_no_request_is_lost_in_reloads_upgrades_rotations_and_recycling_together(
    start: Starter, tmp_path: Path, kind: str
) -> None:
    address = '"unix:sock"' if kind == "unix" else '"127.0.0.1:0"'
    server = start(f"""
    from prefork_server.http import HTTPRequestHandler, PreforkHTTPServer

    class Page(HTTPRequestHandler):
        def do_GET(self):
            body = b"%d" % os.getpid()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    class Server(PreforkHTTPServer):
        def ready(self, addresses):
            os.write(2, f"ready, listening on {{addresses[0]}}\\n".encode())

    serve(Page, Server, [{address}], workers=4, max_requests=10, pid_path="pid", log_path="log")
    """)
    server.saw("^ready, listening on")
    where = str(tmp_path / "sock") if kind == "unix" else server.address
    upgrades, reloads, rotations = soak(1, 5), soak(1, 2), soak(2, 4)
    pid, log = server.pid, tmp_path / "log"

    def told(pattern: str) -> re.Match[str]:
        """Wait until one of the logs says so."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            texts = [path.read_text() for path in tmp_path.glob("log*")]
            found.extend(match for text in texts if (match := re.search(pattern, text)))
            return bool(found)

        eventually(look, 60)
        return found[0]

    pause = 0 if SOAK else 0.02
    coming = HTTPHammer(where, 8, pause=pause)
    keeping = HTTPHammer(where, 8, pause=pause, keeping=True)
    with coming, keeping:
        for _ in range(upgrades):
            for generation in range(2, 2 + reloads):
                server.signal(signal.SIGHUP, pid)
                told(f"master pid={pid} generation {generation} serves")
            for number in range(1, 1 + rotations):
                os.rename(log, tmp_path / f"log.{pid}.{number}")
                server.signal(signal.SIGUSR1, pid)
                told(f"master pid={pid} rotation {number} done")
            server.signal(signal.SIGUSR2, pid)
            successor = told(rf"master pid={pid} the successor pid=(\d+) serves")[1]
            told(f"master pid={pid} stopped")
            pid = int(successor)
        for hammer in (coming, keeping):
            hammer.ended("served", soak(300, 20_000), patience=600)
    print(kind, coming.counts, keeping.counts, coming.longest, keeping.longest)
    assert set(coming.counts) == set(keeping.counts) == {"served"}
    assert (tmp_path / "pid").read_text() == f"{pid}\n"
    stopped(server, pid)
    assert not any(" ERROR " in path.read_text() for path in tmp_path.glob("log*"))
