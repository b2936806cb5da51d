"""The path of a UNIX socket that somebody removes, or takes, while the server runs."""

import os
import pwd
import signal
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from prefork_server.paths import give, identity
from tests.conftest import Server, Starter, alive, eventually, read_all

# It says who serves, and goes on when it is told to.
HELD = """
    from prefork_server import PreforkAsyncioServer
    class Held(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"%d\\n" % os.getpid())
            self.rfile.readline()
            self.wfile.write(b"bye")

    async def held(reader, writer):
        writer.write(b"%d\\n" % os.getpid())
        await reader.readline()
        writer.write(b"bye")
        writer.close()

    def work(master):
        for connection, peer in master.connections():
            with connection:
                connection.sendall(b"%d\\n" % os.getpid())
                connection.recv(10)
                connection.sendall(b"bye")
"""
DOORS = {
    "handler": "serve(Held, PreforkUnixStreamServer, 'sock', workers=1)",
    "loop": "Preforker(work, listen=['unix:sock'], workers=1, pid_path=None).run()",
    "coroutine": "PreforkAsyncioServer('unix:sock', held, workers=1).serve_forever()",
}


def knocks(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(str(path))
    return client


def let_go(client: socket.socket) -> bytes:
    client.sendall(b"go\n")
    return read_all(client)


def pid_of(client: socket.socket) -> int:
    return int(client.recv(20))


@pytest.mark.parametrize("door", DOORS)
def test_a_path_that_was_removed_is_made_again_at_hup_and_nobody_is_lost(
    start: Starter, tmp_path: Path, door: str
) -> None:
    server = start(f"{HELD}\n    {DOORS[door]}").ready()
    path = tmp_path / "sock"
    with knocks(path) as served:
        old = pid_of(served)
        server.signal(signal.SIGSTOP, old)
        with knocks(path) as queued:  # whom its worker is yet to accept
            path.unlink()
            server.signal(signal.SIGHUP)
            server.saw("the path of unix:.*/sock was removed, and is there again")
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with knocks(path) as late:
                new = pid_of(late)
                assert new != old
                assert let_go(late) == b"bye"
            server.signal(signal.SIGCONT, old)
            assert let_go(served) == b"bye"
            assert pid_of(queued) == old
            assert let_go(queued) == b"bye"
        eventually(lambda: not alive(old))
    assert server.quit() == 0
    assert not path.exists()


def test_a_datagram_in_the_queue_of_a_removed_path_is_served_too(
    start: Starter, tmp_path: Path
) -> None:
    server = start("""
        class Echo(socketserver.BaseRequestHandler):
            def handle(self):
                data, sock = self.request
                sock.sendto(b"%d" % os.getpid(), self.client_address)

        serve(Echo, PreforkUnixDatagramServer, "sock", workers=1)
    """).ready()
    path = tmp_path / "sock"
    (old,) = server.workers()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.bind(str(tmp_path / "client"))
        server.signal(signal.SIGSTOP, old)
        client.sendto(b"early", str(path))
        path.unlink()
        server.signal(signal.SIGHUP)
        server.saw("is there again")
        client.sendto(b"late", str(path))
        assert int(client.recv(20)) != old
        server.signal(signal.SIGCONT, old)
        assert int(client.recv(20)) == old


@pytest.mark.parametrize("kind", ["server", "file"])
def test_what_another_has_put_there_is_left_to_him(
    start: Starter, tmp_path: Path, kind: str
) -> None:
    server = start(f"{HELD}\n    {DOORS['handler']}").ready()
    server.expect_error("the path was removed, and nobody finds us there: cannot listen on")
    path = tmp_path / "sock"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        if kind == "server":
            other.bind(str(path))
            other.listen()
        else:
            path.touch()
        his = identity(str(path))
        server.signal(signal.SIGHUP)
        server.saw("ERROR .*nobody finds us there: cannot listen on unix:.*/sock")
        server.saw("generation 2 serves")
        assert server.count("nobody finds us there") == 1
        assert server.quit() == 0
        assert identity(str(path)) == his


@pytest.mark.executed
def test_a_successor_makes_the_path_again_and_who_waits_at_the_old_one_is_served(
    start: Starter, tmp_path: Path
) -> None:
    server = start(f"{HELD}\n    {DOORS['handler']}").ready()
    path = tmp_path / "sock"
    with knocks(path) as served:
        old = pid_of(served)
        with knocks(path) as queued:
            path.unlink()
            server.signal(signal.SIGUSR2)
            server.saw("serves, leaving")
            with knocks(path) as late:
                assert pid_of(late) not in (old, *server.workers())
                assert let_go(late) == b"bye"
            assert let_go(served) == b"bye"
            assert pid_of(queued) == old
            assert let_go(queued) == b"bye"
    successor = int(server.saw(r"started a successor, pid=(\d+)")[0][1])
    server.signal(signal.SIGQUIT, successor)
    server.wait()
    assert not server.anyone_left()
    assert not path.exists()


@pytest.mark.executed
def test_an_upgrade_that_fails_leaves_a_path_that_hup_makes_again(
    start: Starter, tmp_path: Path
) -> None:
    server = start(f"""{HELD}
    if os.path.exists("broken"):
        def ready(self, addresses): os._exit(7)
        PreforkUnixStreamServer.ready = ready
    {DOORS["handler"]}""").ready()
    server.expect_error("upgrade failed")
    path = tmp_path / "sock"
    path.unlink()
    (tmp_path / "broken").touch()
    server.signal(signal.SIGUSR2)
    server.saw("upgrade failed")
    # Its worker lives for a moment longer, and until then has the path.
    orphan = int(server.saw(r"worker=1 pid=(\d+) forked", times=2)[1][1])
    eventually(lambda: not alive(orphan))
    server.signal(signal.SIGHUP)
    server.saw("is there again")
    server.saw("generation 2 serves")
    with knocks(path) as client:
        assert pid_of(client) in server.workers()
        assert let_go(client) == b"bye"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_path_that_is_made_again_is_the_users(start: Starter) -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        start.directory = Path(directory)
        server: Server = start(f"""{HELD}
    serve(Held, PreforkUnixStreamServer, "sock", workers=1, user="nobody")""").ready()
        path = Path(directory) / "sock"
        path.unlink()
        server.signal(signal.SIGHUP)
        server.saw("is there again")
        assert path.stat().st_uid == pwd.getpwnam("nobody").pw_uid
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with knocks(path) as client:
            pid_of(client)
            assert let_go(client) == b"bye"
        assert server.quit() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("plant", [os.symlink, os.link])
def test_what_was_put_in_the_place_of_a_path_is_not_given_away(
    tmp_path: Path, plant: object
) -> None:
    path, theirs = tmp_path / "sock", tmp_path / "theirs"
    theirs.touch()
    with socket.socket(socket.AF_UNIX) as ours:
        ours.bind(str(path))
        was = identity(str(path))
        assert was
        path.unlink()
        assert callable(plant)
        plant(theirs, path)
        give(str(path), was, 1, 1)
        assert theirs.stat().st_uid == 0
        assert path.lstat().st_uid == 0
