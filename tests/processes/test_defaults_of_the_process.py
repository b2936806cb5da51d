"""What a program sets for all of its process: a default timeout of sockets, patched functions."""

import os
import select
import signal
import socket
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Starter, eventually, read_all, unmeasured
from tests.processes.test_systemd import Init
from tests.processes.test_upgrade import stopped, upgraded

pytestmark = pytest.mark.executed

SECONDS = 0.05  # the default timeout; each wait below is longer
TIMEOUT = f"""
    socket.setdefaulttimeout({SECONDS})

    class Line(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(self.rfile.readline() + b" %d" % os.getppid())
"""


def test_a_default_timeout_changes_nothing_in_a_start_an_upgrade_a_status_and_a_notification(
    start: Starter, tmp_path: Path
) -> None:
    init = Init(str(tmp_path / "notify"))
    with init.socket:
        server = start(
            f"""{TIMEOUT}
    class Slow(PreforkTCPServer):
        def after_fork(self, master):
            time.sleep({10 * SECONDS})
    serve(Line, Slow, ["127.0.0.1:0", "unix:sock"], workers=2, pid_path="pid",
          status="unix:status")
            """,
            env={**unmeasured(), "NOTIFY_SOCKET": init.address},
        ).ready()
        init.hears("READY=1")
        assert slowly_asked(server.connect()) == b"hello\n %d" % server.pid
        successor = upgraded(server, server.pid)
        assert f"MAINPID={successor}" in init.hears("READY=1")
        for name in ("sock", "status"):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(PATIENCE)
            client.connect(str(tmp_path / name))
            if name == "sock":
                assert slowly_asked(client) == b"hello\n %d" % successor
            else:
                answer = slowly_asked(client, b"GET /healthz HTTP/1.0\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 200 ")
        server.signal(signal.SIGHUP, successor)
        server.saw("generation 2 serves")
        init.hears("RELOADING=1")
        stopped(server, successor)
        init.hears("STOPPING=1")


def slowly_asked(client: socket.socket, data: bytes = b"hello\n") -> bytes:
    """The answer to a client that waits for longer than the default timeout in between."""
    with client:
        for piece in (data[:3], data[3:]):
            assert not select.select([client], [], [], 4 * SECONDS)[0], "it was not waited for"
            client.sendall(piece)
        return read_all(client)


def test_a_launcher_waits_for_its_daemon_for_longer_than_a_default_timeout(
    start: Starter, tmp_path: Path
) -> None:
    launcher = start(f"""{TIMEOUT}
    class Slow(PreforkTCPServer):
        def after_fork(self, master):
            time.sleep({10 * SECONDS})

    with Slow(["unix:sock"], Line, workers=1, log_path="log") as server:
        print("started", server.start())
    """)
    pid = int(launcher.saw(r"^started (\d+)$")[0][1])
    assert launcher.wait() == 0
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(tmp_path / "sock"))
    assert slowly_asked(client) == b"hello\n %d" % pid
    os.kill(pid, signal.SIGQUIT)
    assert not launcher.anyone_left(PATIENCE)


@pytest.mark.parametrize("kind", ["PreforkUDPServer", "PreforkUnixDatagramServer"])
def test_datagrams_are_waited_for_and_answered_for_longer_than_a_default_timeout(
    start: Starter, tmp_path: Path, kind: str
) -> None:
    unix = "Unix" in kind
    server = start(f"""{TIMEOUT}
    class Echo(socketserver.DatagramRequestHandler):
        def handle(self):
            self.wfile.write(self.rfile.read())

    serve(Echo, {kind}, {"'sock'" if unix else "('127.0.0.1', 0)"}, workers=2)
    """).ready()
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        if unix:
            client.bind(str(tmp_path / "client"))
        client.connect(str(tmp_path / "sock") if unix else server.address)
        for word in (b"1", b"2"):
            assert not select.select([client], [], [], 4 * SECONDS)[0]
            client.send(word)
            assert client.recv(10) == word
    eventually(lambda: len(server.workers()) == 2)
    assert server.quit() == 0


GEVENT = """
import select, time

def sleep(seconds): ...
sleep.__module__ = "gevent.hub"

def patch_all():
    del select.epoll
    time.sleep = sleep
"""
PATCHED = {
    "a target": """
        from prefork_server.cli import main
        sys.exit(main(["serve", "served", "-b", "unix:sock"]))
    """,
    "a target that is imported once": """
        from prefork_server.cli import main
        sys.exit(main(["serve", "served", "-b", "unix:sock", "--preload"]))
    """,
    "a program": """
        import served
        PreforkUnixStreamServer("sock", Echo, workers=1).serve_forever()
    """,
    "a program that knows nothing of us": """
        from prefork_server.cli import main
        sys.exit(main(["run", "stranger.py"]))
    """,
}


@pytest.mark.parametrize("kind", PATCHED)
def test_a_monkey_patch_is_one_sentence_and_nothing_is_bound(
    start: Starter, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "gevent").mkdir()
    (tmp_path / "gevent" / "__init__.py").touch()
    (tmp_path / "gevent" / "monkey.py").write_text(GEVENT)
    patch = "from gevent import monkey\nmonkey.patch_all()\n"
    (tmp_path / "served.py").write_text(f"{patch}def application(environ, start_response): ...\n")
    (tmp_path / "stranger.py").write_text(
        f"{patch}import socketserver\n"
        "socketserver.UnixStreamServer('other', None).serve_forever()\n"
    )
    server = start(PATCHED[kind], env=unmeasured())
    server.saw("gevent has patched select.epoll, which prefork_server cannot run with")
    server.expect_error("Traceback")
    assert server.wait() in (1, 2)
    assert not (tmp_path / "sock").exists()
    assert not server.count("ready")
