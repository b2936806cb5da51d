"""A service: one worker beside the others, with work and listeners of its own."""

import os
import pwd
import re
import signal
import socket
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Server, Starter, alive, children, eventually, read_all, title

OK = """
    import dataclasses
    from contextlib import contextmanager
    from prefork_server.job import Service
    from prefork_server.listeners import listen, parse

    def say_ok(master):
        for connection, _ in master.connections():
            with connection:
                word = connection.recv(100)
                if word == b"hang":
                    time.sleep(1000)
                connection.sendall(b"ok %d %s" % (os.getpid(), word))

    def serve_beside(server, work=say_ok, address="127.0.0.1:0"):
        @contextmanager
        def service():
            listener = listen(parse(address))
            try:
                yield Service("status", work, [listener])
            finally:
                listener.close()
        with server:
            dataclasses.replace(server._prefork_launch(), service=service).run()
"""

SLOW = """
    class Slow(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(100)
            print("begun")
            self.request.recv(100)
            self.request.sendall(b"%d" % os.getpid())
"""


def beside(server: Server, word: bytes = b"hello") -> tuple[int, bytes]:
    """Ask the service: its pid, and what it heard."""
    host, _, port = server.saw(r", status on (\S+)")[0][1].rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE) as client:
        client.sendall(word)
        ok, pid, heard = read_all(client).split(b" ")
    assert ok == b"ok"
    return int(pid), heard


def workers(server: Server) -> list[int]:
    return [pid for pid in children(server.pid) if alive(pid) and "worker" in title(pid)]


def test_a_service_answers_beside_the_workers_and_its_line_says_who_it_is(start: Starter) -> None:
    server = start(
        f"{OK}{SLOW}\n    serve_beside(PreforkTCPServer('127.0.0.1:0', Slow, workers=2))"
    )
    pid, _ = beside(server.ready())
    assert "service status" in title(pid)
    assert server.count(rf"INFO +service=status pid={pid} forked") == 1
    eventually(lambda: len(workers(server)) == 2)
    first = next(line for line in server.lines if "forked" in line)
    assert f"service=status pid={pid}" in first, "it is forked first"
    # It has its own listeners alone, and the workers have none of its.
    mine = os.listdir(f"/proc/{pid}/fd")
    sockets = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in mine} & sockets_of(server.pid)
    assert len(sockets) == 1
    for worker in workers(server):
        assert len(sockets_of(worker) & sockets_of(server.pid)) == 1
        assert not sockets_of(worker) & sockets
    assert server.quit() == 0


def sockets_of(pid: int) -> set[str]:
    links = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    return {link for link in links if link.startswith("socket:")}


def test_a_service_that_is_killed_or_hangs_is_replaced(start: Starter) -> None:
    server = start(
        f"{OK}{SLOW}\n"
        "    serve_beside(PreforkTCPServer('127.0.0.1:0', Slow, workers=1, timeout=0.5))"
    )
    server.expect_error("service=status pid=.* (killed by SIGKILL|silent for more than 0.5s)")
    before, _ = beside(server.ready())
    os.kill(before, signal.SIGKILL)
    server.saw(r"service=status pid=\d+ forked", times=2)
    after, _ = beside(server)
    assert after != before
    host, _, port = server.saw(r", status on (\S+)")[0][1].rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE) as client:
        client.sendall(b"hang")
        server.saw(rf"service=status pid={after} silent for more than 0.5s at .*say_ok, killing")
    assert beside(server)[0] not in (before, after)


def test_ttou_and_winch_leave_the_service_alone(start: Starter) -> None:
    server = start(
        f"{OK}{SLOW}\n    serve_beside(PreforkTCPServer('127.0.0.1:0', Slow, workers=2))"
    )
    pid, _ = beside(server.ready())
    for _ in range(2):
        server.signal(signal.SIGTTOU)
        server.saw("no longer wanted, retiring", times=1)
    eventually(lambda: not workers(server))
    assert beside(server)[0] == pid
    server.signal(signal.SIGTTIN)
    eventually(lambda: len(workers(server)) == 1)
    server.signal(signal.SIGWINCH)
    eventually(lambda: not workers(server))
    assert beside(server)[0] == pid


def test_a_service_answers_until_the_last_worker_is_gone_and_holds_no_stop_up(
    start: Starter,
) -> None:
    server = start(
        f"{OK}{SLOW}\n    serve_beside(PreforkTCPServer('127.0.0.1:0', Slow, workers=2))"
    )
    pid, _ = beside(server.ready())
    with server.connect() as client:
        client.sendall(b"begin")
        server.saw("begun")
        server.signal(signal.SIGQUIT)
        server.saw("stopping 2 workers gracefully")
        eventually(lambda: len(workers(server)) == 1)
        assert beside(server) == (pid, b"hello")
        client.sendall(b"done")
        assert read_all(client)
    assert server.wait() == 0
    last = [line for line in server.lines if "reaped" in line][-1]
    assert f"service=status pid={pid} reaped: exit code 0" in last


def test_a_silent_client_of_the_service_holds_no_stop_up(start: Starter) -> None:
    server = start(
        f"{OK}{SLOW}\n    serve_beside(PreforkTCPServer('127.0.0.1:0', Slow, workers=1))"
    )
    pid, _ = beside(server.ready())
    host, _, port = server.saw(r", status on (\S+)")[0][1].rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE):
        eventually(lambda: "busy" in title(pid))
        server.expect_error("service=status .* not gone 1s after it was told to")
        assert server.quit() == 0
    assert server.count("stopped") == 1


def test_now_means_the_service_too(start: Starter) -> None:
    server = start(
        f"{OK}{SLOW}\n    serve_beside(PreforkTCPServer('127.0.0.1:0', Slow, workers=2))"
    )
    beside(server.ready())
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.count(r"service=status pid=\d+ reaped: killed by SIGTERM") == 1


def test_a_service_that_cannot_boot_ends_nothing_and_meets_the_back_off(start: Starter) -> None:
    server = start(f"""{OK}{SLOW}
    def broken(master):
        raise ValueError("no page today")

    serve_beside(PreforkTCPServer("127.0.0.1:0", Slow, workers=1), work=broken)
    """)
    server.expect_error("service=status pid=.* reaped: exit code 1", "^Traceback")
    server.ready()
    server.saw(r"service=status pid=\d+ reaped: exit code 1", times=2)
    server.saw("ValueError: no page today")
    assert int(server.ask(b"")) in workers(server)
    server.saw(r"service=status pid=\d+ forked", times=3)  # a second later
    times = [seconds(m.string) for m in server.saw(r"service=status pid=\d+ forked", times=3)]
    assert 0.75 <= times[2] - times[1] <= 10
    assert server.quit() == 0


def seconds(line: str) -> float:
    found = re.match(r"(\d+):(\d+):(\d+\.\d+)", line)
    assert found
    hours, minutes, rest = found.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def test_a_first_generation_that_fails_ends_the_service_too(start: Starter) -> None:
    server = start(f"""{OK}
    class Broken(PreforkTCPServer):
        def after_fork(self, master):
            raise ValueError("no database")

    serve_beside(Broken("127.0.0.1:0", Echo, workers=2))
    """)
    server.expect_error("no database", "^Traceback", "reaped before it was ready")
    assert server.wait() == 1
    assert not server.anyone_left()


def test_a_reload_replaces_the_service_by_one_that_is_ready_before_it_goes(start: Starter) -> None:
    server = start(
        f"{OK}{SLOW}\n    serve_beside(PreforkTCPServer('127.0.0.1:0', Slow, workers=1))"
    )
    before, _ = beside(server.ready())
    server.signal(signal.SIGHUP)
    gone = f"service=status pid={before} reaped: exit code 0"
    while not server.count(gone):
        assert beside(server)[1] == b"hello"
    assert beside(server)[0] != before
    server.saw("generation 2 serves")


@pytest.mark.executed
def test_an_upgrade_hands_the_service_over_and_it_keeps_answering(
    start: Starter, tmp_path: Path
) -> None:
    server = start(
        f"""{OK}{SLOW}
    serve_beside(PreforkTCPServer("127.0.0.1:0", Slow, workers=1, pid_path="pid"))
    """
    )
    before, _ = beside(server.ready())
    server.signal(signal.SIGUSR2)
    gone = f"service=status pid={before} reaped: exit code 0"
    while not server.count(gone):
        assert beside(server)[1] == b"hello"
    successor = int(server.saw(r"the successor pid=(\d+) serves")[0][1])
    assert beside(server)[0] in children(successor)
    assert server.wait() == 0
    assert (tmp_path / "pid").read_text().split()[0] == str(successor)
    server.signal(signal.SIGQUIT, successor)
    assert not server.anyone_left(PATIENCE)


def test_the_logs_are_opened_anew_by_the_service_too(start: Starter, tmp_path: Path) -> None:
    server = start(f"""{OK}{SLOW}
    serve_beside(PreforkTCPServer('127.0.0.1:0', Slow, workers=1, stdout_path="out"))
    """)
    server.ready()
    os.rename(tmp_path / "out", tmp_path / "old")
    server.signal(signal.SIGUSR1)
    server.saw("rotation 1 done")
    pid, _ = beside(server)
    assert os.readlink(f"/proc/{pid}/fd/1") == str(tmp_path / "out")


def test_a_service_off_the_main_thread_and_none_inline(start: Starter) -> None:
    reader, writer = os.pipe()
    server = start(
        f"""{OK}{SLOW}
    server = PreforkTCPServer("127.0.0.1:0", Slow, workers=1)
    thread = threading.Thread(target=serve_beside, args=(server,))
    thread.start()
    server.wait_ready()
    print("ready, indeed")
    os.read(0, 1)
    server.shutdown()
    thread.join()
    serve_beside(PreforkTCPServer("127.0.0.1:0", Slow, inline=True))
    """,
        stdin=reader,
    )
    server.saw("ready, indeed")
    assert beside(server)[1] == b"hello"
    os.write(writer, b"!")
    server.saw("ready, listening on .*, inline")
    assert server.count(", status on") == 1
    for fd in (reader, writer):
        os.close(fd)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")
def test_a_service_becomes_the_workers_user(start: Starter, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    server = start(f"""{OK}{SLOW}
    serve_beside(PreforkTCPServer("127.0.0.1:0", Slow, workers=1, user="nobody"))
    """)
    pid, _ = beside(server.ready())
    uids = next(
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "Uid" in line
    )
    assert set(uids.split()[1:]) == {str(pwd.getpwnam("nobody").pw_uid)}
