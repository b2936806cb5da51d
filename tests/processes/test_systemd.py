"""The protocols of systemd, over real datagrams and real descriptors that the test makes."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefork_server.scoreboard import SECOND
from prefork_server.systemd import Notifier
from tests.conftest import PATIENCE, ROOT, Starter


class Init:
    """The end of the socket that systemd has."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(PATIENCE)
        self.socket.bind(address.replace("@", "\0"))
        self.heard: list[str] = []

    def hears(self, line: str) -> list[str]:
        """Wait for a message with this line in it, and return all of its lines."""
        while True:
            said = self.socket.recv(4096).decode().split("\n")
            self.heard.append(" ".join(said))
            if line in said:
                return said


@pytest.fixture(params=["path", "abstract"])
def init(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Init]:
    abstract = f"@prefork-server-test-{os.getpid()}"
    init = Init(abstract if request.param == "abstract" else str(tmp_path / "notify"))
    with init.socket:
        yield init


def environment(init: Init, **more: str) -> dict[str, str]:
    return {**os.environ, "NOTIFY_SOCKET": init.address, **more}


def test_it_is_told_when_the_server_is_ready_how_it_is_and_when_it_stops(
    start: Starter, init: Init
) -> None:
    server = start("serve(Echo, workers=2)", env=environment(init)).ready()
    assert f"MAINPID={server.pid}" in init.hears("READY=1")
    init.hears("STATUS=0/2 workers busy, generation 1")
    with server.connect() as client:
        client.sendall(b"hello")
        assert client.recv(10) == b"hello"
        init.hears("STATUS=1/2 workers busy, generation 1")
    init.hears("STATUS=0/2 workers busy, generation 1")
    server.signal(signal.SIGHUP)
    stamp = next(line for line in init.hears("RELOADING=1") if line.startswith("MONOTONIC_USEC="))
    assert abs(int(stamp.partition("=")[2]) - time.monotonic_ns() // 1000) < PATIENCE * 1_000_000
    init.hears("READY=1")
    init.hears("STATUS=0/2 workers busy, generation 2")
    server.signal(signal.SIGQUIT)
    init.hears("STOPPING=1")
    assert server.wait() == 0
    assert not any("WATCHDOG" in said for said in init.heard)


def test_the_watchdog_is_fed_while_the_loop_goes_round(start: Starter, init: Init) -> None:
    env = environment(init, WATCHDOG_USEC="200000")
    began = time.monotonic()
    server = start("serve(Echo, workers=1, timeout=None)", env=env).ready()
    for _ in range(12):
        init.hears("WATCHDOG=1")
    assert time.monotonic() - began > 1, "it is told at half the period, and not all the time"
    assert sum(said.startswith("READY=1") for said in init.heard) == 1
    server.signal(signal.SIGSTOP)
    init.socket.settimeout(0.5)
    try:
        with pytest.raises(TimeoutError):
            while True:
                init.socket.recv(4096)
    finally:
        server.signal(signal.SIGCONT)
    init.socket.settimeout(PATIENCE)
    init.hears("WATCHDOG=1")


def test_what_a_handler_starts_cannot_speak_for_the_server(start: Starter, init: Init) -> None:
    server = start(
        """
        class Tell(socketserver.StreamRequestHandler):
            def handle(self):
                names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
                self.wfile.write(repr([os.environ.get(name) for name in names]).encode())

        serve(Tell, workers=1)
        """,
        env=environment(init, WATCHDOG_USEC="60000000", WATCHDOG_PID="1"),
    ).ready()
    assert server.ask(b"") == b"[None, None, None]"


def test_a_daemon_says_its_own_pid(start: Starter, init: Init, tmp_path: Path) -> None:
    launcher = start(
        """
        def work(master):
            while master.wait(100):
                pass
        print("started", Preforker(work, workers=1).start())
        """,
        env=environment(init),
    )
    pid = int(launcher.saw(r"^started (\d+)$")[0][1])
    assert f"MAINPID={pid}" in init.hears("READY=1")
    os.kill(pid, signal.SIGQUIT)
    init.hears("STOPPING=1")


def test_nobody_who_listens_is_nobodys_loss(tmp_path: Path) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "nobody")}
    notifier = Notifier(environ)
    assert environ == {}
    notifier.hear("ready", 1)
    notifier.pulse(SECOND, lambda: "fine")


def test_without_descriptors_it_is_silent_and_the_server_lives(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        notifier.hear("ready", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_one_who_does_not_read_is_not_waited_for(tmp_path: Path) -> None:
    init = Init(str(tmp_path / "notify"))
    with init.socket:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            with pytest.raises(BlockingIOError):  # its queue is full
                for _ in range(100_000):
                    other.sendto(b"x", init.address)
        Notifier({"NOTIFY_SOCKET": init.address}).pulse(SECOND, lambda: "fine")
        init.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                assert init.socket.recv(100) == b"x"


def ask_what_is_handed_over(fds: list[int], environ: dict[str, str]) -> str:
    """In a process of its own, whose descriptors from 3 on are these."""
    program = f"""
import os, sys
for n, fd in enumerate({fds}):
    os.dup2(fd, 60 + n)
for n in range(len({fds})):
    os.dup2(60 + n, 3 + n)
    os.close(60 + n)
os.environ.update({environ})
if os.environ.get("LISTEN_PID") == "ours":
    os.environ["LISTEN_PID"] = str(os.getpid())
from prefork_server.systemd import handed_over
from prefork_server import ConfigError
try:
    found = handed_over()
    print(found, [os.get_inheritable(fd) for fd in found], handed_over(),
          [name for name in os.environ if name.startswith("LISTEN_")])
except ConfigError as error:
    print("ConfigError:", error)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        pass_fds=fds,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return out.stdout.strip()


def test_sockets_that_are_handed_over_have_their_names_and_go_no_further() -> None:
    with socket.create_server(("127.0.0.1", 0)) as a, socket.socket(socket.AF_UNIX) as b:
        environ = {"LISTEN_PID": "ours", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:"}
        said = ask_what_is_handed_over([a.fileno(), b.fileno()], environ)
    assert said == "{3: 'http', 4: ''} [False, False] {} []"


@pytest.mark.parametrize(
    "environ",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_PID": "ours"}],
)
def test_what_was_handed_to_another_is_left_alone(environ: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert ask_what_is_handed_over([sock.fileno()], environ) == "{} [] {} []"


def test_a_pipe_and_a_number_that_is_not_open_are_no_sockets() -> None:
    reader, writer = os.pipe()
    try:
        said = ask_what_is_handed_over([reader], {"LISTEN_PID": "ours", "LISTEN_FDS": "1"})
        assert said == "ConfigError: LISTEN_FDS is 1, but descriptor 3 is not a socket"
    finally:
        os.close(reader)
        os.close(writer)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        said = ask_what_is_handed_over(
            [sock.fileno()], {"LISTEN_PID": "ours", "LISTEN_FDS": "1000"}
        )
    assert said.startswith("ConfigError: LISTEN_FDS is 1000, but ")
