"""Reload and recycling: the successor first, and nobody notices."""

import dataclasses
import os
import pty
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prefork_server import MasterHandle, Preforker
from tests.certificates import make_certificate
from tests.conftest import PATIENCE, ROOT, SOAK, Server, Starter, alive, eventually, read_all, soak
from tests.hammer import HTTPHammer

REQUESTS = soak(200, 20_000)  # of each kind of client, with each kind of socket

LOOP = """
    def work(master):
        master.logger.info("worker=%d of generation %d began", master.slot, master.generation)
        while master.wait(60):
            pass
        master.logger.info("worker=%d ended", master.slot)
"""

# What is in the file ``broken`` when a worker boots is what becomes of it.
BROKEN = (
    LOOP
    + """
    def after_fork(master):
        how = ""
        if os.path.exists("broken"):
            with open("broken") as file:
                how = file.read()
        if how == "raises":
            raise OSError("not mended yet")
        if how == "hangs":
            time.sleep(1000)
        if how == "exits":
            os._exit(7)

    boot_timeout = float(sys.argv[1])
    Preforker(work, workers=2, after_fork=after_fork, boot_timeout=boot_timeout).run()
"""
)

PAGE = """
    from prefork_server.http import HTTPRequestHandler, PreforkHTTPServer

    class Page(HTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b"x" * 5000)
"""

OTHER_PAGES = """
    from prefork_server import PreforkWSGIServer
    from http.server import BaseHTTPRequestHandler

    class Plain(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        do_GET = Page.do_GET
        def log_request(self, code): pass

    def page(environ, start_response):
        start_response("200 OK", [("Content-Length", "5000")])
        return [b"x" * 5000]
"""


def breakable(start: Starter, boot_timeout: float = 60) -> Server:
    server = start(BROKEN, str(boot_timeout))
    server.saw("of generation 1 began", times=2)
    return server


def hup(server: Server, generation: int) -> None:
    """Reload, and wait until it is done."""
    server.signal(signal.SIGHUP)
    server.saw(rf"generation {generation} serves$")


def most_at_once(server: Server) -> tuple[int, int]:
    """By the log: of those who were not told to go, and of all."""
    serving, there = set(), set()
    most_serving = most_there = 0
    for line in server.lines:
        if found := re.search(r" worker=\d+ pid=(\d+) (.*)", line):
            pid, what = found.groups()
            if what == "forked":
                serving.add(pid)
                there.add(pid)
            elif what.endswith("retiring"):
                serving.discard(pid)
            elif what.startswith("reaped"):
                serving.discard(pid)
                there.discard(pid)
            most_serving = max(most_serving, len(serving))
            most_there = max(most_there, len(there))
    return most_serving, most_there


# HUP


def test_hup_replaces_every_worker_and_each_successor_is_there_before(start: Starter) -> None:
    server = start(LOOP + "    Preforker(work, workers=3).run()").all_ready(3)
    before = server.workers()
    hup(server, 2)
    server.saw("SIGHUP: reloading 3 workers, generation 2")
    server.saw("replaced, retiring", times=3)
    server.saw("of generation 2 began", times=3)
    server.saw("reaped: exit code 0", times=3)
    assert not set(before) & set(server.workers()) and len(server.workers()) == 3
    serving = 0
    for line in server.lines[next(n for n, line in enumerate(server.lines) if "ready" in line) :]:
        serving += ("of generation" in line) - ("retiring" in line)
        assert "retiring" not in line or serving >= 0
    assert most_at_once(server)[0] == 4


def test_a_daemon_reloads_and_then_stops(start: Starter, tmp_path: Path) -> None:
    launcher = start.script(ROOT / "examples" / "daemon.py")
    pid = int(launcher.saw(r"started, pid (\d+)")[0][1])
    log = tmp_path / "ticker.log"
    os.kill(pid, signal.SIGHUP)
    eventually(lambda: "generation 2 serves" in log.read_text())
    os.kill(pid, signal.SIGQUIT)
    eventually(lambda: not alive(pid))
    assert log.read_text().count("has put its things away") == 4


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_text("")])
def test_a_reload_makes_the_pid_file_again_if_it_was_removed_or_emptied(
    start: Starter, harm: Callable[[Path], object]
) -> None:
    server = start(LOOP + "    Preforker(work, workers=1).run()").ready()
    path = start.directory / "preforker.pid"
    harm(path)
    hup(server, 2)
    assert path.read_text() == f"{server.pid}\n"
    assert server.quit() == 0
    assert not path.exists()


def test_the_master_calls_renew_and_reloads_though_it_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    calls = []

    def renew() -> None:
        calls.append(os.getpid())
        raise OSError("no such certificate")

    def work(master: MasterHandle) -> None:
        if master.generation == 2:
            os.kill(master.pid, signal.SIGQUIT)
        while master.wait(60):
            pass

    def reload(addresses: object) -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    preforker = Preforker(work, workers=1, ready=reload, pid_path=None)
    dataclasses.replace(preforker._launch, renew=renew).run()
    assert calls == [os.getpid()]
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert len(errors) == 1 and errors[0].endswith("renew failed")
    assert [r.generation for r in caplog.records if r.msg.endswith("forked")] == [1, 2]  # type: ignore[attr-defined]


def test_a_stop_in_the_middle_of_a_reload_is_a_stop(start: Starter) -> None:
    server = breakable(start)
    (start.directory / "broken").write_text("hangs")
    server.signal(signal.SIGHUP)
    server.saw("forked", times=3)
    server.signal(signal.SIGQUIT)
    server.saw("ended", times=2)
    server.signal(signal.SIGTERM)  # the third hangs
    assert server.wait() == 0


@pytest.mark.parametrize("signum", [signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH])
def test_how_many_are_wanted_may_change_in_a_reload(start: Starter, signum: int) -> None:
    wanted = {signal.SIGTTIN: 5, signal.SIGTTOU: 3, signal.SIGWINCH: 0}[signal.Signals(signum)]
    server = start(LOOP + "    Preforker(work, workers=4).run()").all_ready(4)
    server.signal(signal.SIGHUP)
    server.saw("generation 2")
    server.signal(signum)
    server.saw("generation 2 serves$")
    eventually(lambda: len(server.workers()) == wanted)
    server.signal(signal.SIGTTIN)
    eventually(lambda: len(server.workers()) == wanted + 1)


# A new generation that is no good


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raises", "reload failed, generation 1 serves on; worker=3 pid=.*: exit code 1"),
        ("exits", "reload failed, generation 1 serves on; worker=3 pid=.*: exit code 7"),
        ("hangs", "reload failed, generation 1 serves on; worker=3 pid=.*: killed by SIGKILL"),
    ],
)
def test_a_generation_that_cannot_boot_replaces_nobody_until_it_is_mended(
    start: Starter, how: str, said: str
) -> None:
    server = breakable(start, boot_timeout=2 if how == "hangs" else 60)
    server.expect_error("reload failed", "not ready for more than", "Traceback")
    (start.directory / "broken").write_text(how)
    before = server.workers()
    server.signal(signal.SIGHUP)
    server.saw(said)
    server.saw("reaped before it was ready", times=3)
    assert all(map(alive, before))
    assert server.count("ERROR.*reload failed") == 1
    assert server.count("OSError: not mended yet") == (how == "raises")
    assert server.count("time.sleep|line \\d+ in after_fork") <= (how == "hangs") + (
        how == "raises"
    )
    assert server.count("retiring") == 0
    (start.directory / "broken").unlink()
    hup(server, 3)
    server.saw("of generation 3 began", times=2)
    eventually(lambda: not any(map(alive, before)))


def test_one_that_was_broken_and_mends_itself_takes_over_at_its_next_try(start: Starter) -> None:
    server = breakable(start)
    server.expect_error("reload failed", "Traceback")
    (start.directory / "broken").write_text("raises")
    server.signal(signal.SIGHUP)
    server.saw("reaped before it was ready", times=2)
    (start.directory / "broken").unlink()
    server.saw("generation 2 serves$")


def test_a_generation_that_dies_after_it_was_ready_replaces_nobody(start: Starter) -> None:
    server = start("""
        def work(master):
            if master.generation == 2:
                raise ValueError("of generation 2")
            while master.wait(60):
                pass
        Preforker(work, workers=3).run()
    """).all_ready(3)
    server.expect_error("reload failed", "Traceback")
    before = server.workers()
    server.signal(signal.SIGHUP)
    server.saw("reload failed, generation 1 serves on; worker=4 pid=.*: exit code 1")
    server.saw("reaped: exit code 1; ", times=3)
    assert all(map(alive, before)) and server.count("retiring") == 0
    assert server.count("ValueError: of generation 2") == 1
    hup(server, 3)


def test_a_first_of_a_generation_that_is_killed_is_made_again(start: Starter) -> None:
    server = breakable(start)
    server.expect_error("reload failed, generation 1 serves on; .*: killed by SIGKILL, not by us")
    (start.directory / "broken").write_text("hangs")
    server.signal(signal.SIGHUP)
    canary = int(server.saw(r"worker=3 pid=(\d+) forked")[0][1])
    (start.directory / "broken").unlink()
    server.signal(signal.SIGKILL, canary)
    server.saw("generation 2 serves$")


def test_one_that_dies_before_its_successor_is_ready_is_replaced(start: Starter) -> None:
    server = breakable(start)
    server.expect_error("killed by SIGKILL, not by us", "reload failed")
    (start.directory / "broken").write_text("hangs")
    server.signal(signal.SIGHUP)
    canary = int(server.saw(r"worker=3 pid=(\d+) forked")[0][1])
    (start.directory / "broken").unlink()
    server.signal(signal.SIGKILL, next(pid for pid in server.workers() if pid != canary))
    server.saw("generation 2 began")
    server.signal(signal.SIGKILL, canary)
    server.saw("generation 2 serves$")
    assert server.count("replaced, retiring") == 1


def test_a_hundred_hups_in_a_second_are_a_few_reloads(start: Starter) -> None:
    server = start(LOOP + "    Preforker(work, workers=4).run()").all_ready(4)
    for _ in range(100):
        server.signal(signal.SIGHUP)
        time.sleep(0.01)
    server.saw("generation 2 serves$")
    last = re.findall(r"reloading 4 workers, generation (\d+)", server.log)[-1]
    server.saw(rf"generation {last} serves$")
    eventually(lambda: len(server.workers()) == 4)
    assert server.count("reloading") <= 4
    assert most_at_once(server)[0] <= 5


def test_a_hundred_hups_for_what_cannot_boot_leave_the_old_in_peace(start: Starter) -> None:
    server = breakable(start)
    server.expect_error("reload failed", "Traceback")
    before = server.workers()
    (start.directory / "broken").write_text("raises")
    for _ in range(100):
        server.signal(signal.SIGHUP)
        time.sleep(0.01)
    assert all(map(alive, before)) and server.count("retiring") == 0
    assert most_at_once(server) == (3, 3)
    (start.directory / "broken").unlink()
    server.signal(signal.SIGHUP)
    server.saw(r"generation \d+ serves$")
    server.saw("reaped: exit code 0", times=2)


# Recycling


def test_a_worker_that_has_served_enough_is_replaced_and_costs_nobody_anything(
    start: Starter,
) -> None:
    server = start("    serve(Echo, workers=2, max_requests=10)").all_ready(2)

    def recycled() -> bool:
        assert server.ask() == b"hello"
        return server.count("requests, replaced, retiring") >= 4

    eventually(recycled)
    counts = [int(m[1]) for m in server.saw(r"served (\d+) requests, replaced", times=4)]
    assert all(count >= 9 for count in counts)
    server.saw("reaped: exit code 0", times=4)
    assert server.count("WARNING") == server.count("ERROR") == 0
    assert most_at_once(server)[0] == 3


def test_over_http_requests_are_counted_and_not_connections(start: Starter) -> None:
    server = start(PAGE + "    serve(Page, PreforkHTTPServer, workers=1, max_requests=20)").ready()
    hammer = HTTPHammer(server.address, 1, keeping=True)
    with hammer:
        counts = [int(m[1]) for m in server.saw(r"served (\d+) requests, replaced", times=3)]
    assert min(counts) >= 18 and set(hammer.counts) == {"served"}


@pytest.mark.parametrize("kind", ["PreforkHTTPServer", "PreforkHTTPServer over TLS", "plain"])
def test_who_connects_and_asks_for_nothing_wears_no_worker_out(
    start: Starter, tmp_path: Path, kind: str
) -> None:
    context = make_certificate(tmp_path)
    tls = kind.endswith("TLS")
    server = start(
        PAGE
        + """
    from http.server import SimpleHTTPRequestHandler

    class Server(PreforkHTTPServer):
        defer_accept = 0

    more = {"certfile": "server.pem"} if sys.argv[2:] else {}
    handler = SimpleHTTPRequestHandler if sys.argv[1] == "plain" else Page
    serve(handler, Server, workers=1, max_requests=1, **more)
        """,
        kind.split()[0],
        *["tls"] * tls,
    ).ready()

    def visit(request: bytes) -> bytes:
        with server.connect() as plain:
            client = context.wrap_socket(plain, server_hostname="localhost") if tls else plain
            with client:
                if request:
                    client.sendall(request)
                elif isinstance(client, ssl.SSLSocket):
                    client = client.unwrap()  # when the server has said goodbye, too
                else:
                    client.shutdown(socket.SHUT_WR)
                return read_all(client)

    for _ in range(3):
        assert visit(b"") == b""
    assert visit(b"GET / HTTP/1.0\r\n\r\n")[9:12] == b"200"
    server.saw("served 1 requests, replaced")
    assert server.quit() == 0
    assert server.count("requests, replaced") == 1


def test_a_loop_of_ones_own_can_be_too_large(start: Starter) -> None:
    server = start("""
        import prefork_server.worker.heartbeat as wear
        wear._WEIGH_NS = 10**8

        def work(master):
            held = []
            while master.wait(0.01):
                held.append(os.urandom(1 << 20))

        Preforker(work, workers=2, max_worker_memory=64 << 20).run()
    """)
    server.saw(r"holds (6[4-9]|[7-9]\d|\d\d\d) MiB, replaced, retiring", times=3)
    assert most_at_once(server)[0] <= 3


def test_a_handler_that_leaks_is_recycled_before_it_takes_all_the_memory(start: Starter) -> None:
    server = start("""
        import prefork_server.worker.heartbeat as wear
        wear._WEIGH_NS = 10**8  # and not 5 seconds
        held = []

        class Leak(Echo):
            def handle(self):
                held.append(os.urandom(1 << 20))
                super().handle()

        serve(Leak, workers=2, max_worker_memory=64 << 20)
    """).all_ready(2)

    def found() -> int:
        assert server.ask() == b"hello"
        return server.count("MiB, replaced, retiring")

    eventually(lambda: found() >= 2, 2 * PATIENCE)
    assert all(64 <= int(m[1]) <= 512 for m in server.saw(r"holds (\d+) MiB, replaced"))
    assert most_at_once(server)[0] <= 3


def test_memory_that_cannot_be_told_is_a_warning_and_no_limit(start: Starter) -> None:
    server = start("""
        import prefork_server.worker.heartbeat as wear
        wear._WEIGH_NS = 10**8

        def unreadable():
            raise PermissionError(13, "Permission denied")

        wear.private_bytes = unreadable
        serve(Echo, workers=1, max_worker_memory=1)
    """).ready()
    server.saw("WARNING .*cannot tell its memory, which has no limit now: Permission denied")
    assert server.ask() == b"hello"
    assert server.count("forked") == 1


# What a client is told


def test_a_plain_handler_says_goodbye_with_the_answer_and_not_before(start: Starter) -> None:
    server = start("""
        from http.server import BaseHTTPRequestHandler
        from prefork_server import current_master
        from prefork_server.http import PreforkHTTPServer

        class Plain(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_expect_100(self):
                print("asked")
                while current_master().wait(60):
                    pass
                return super().handle_expect_100()

            def do_POST(self):
                self.rfile.read(2)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        serve(Plain, PreforkHTTPServer, workers=1)
    """).ready()
    with server.connect() as client:
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        server.saw("asked")
        server.signal(signal.SIGQUIT)
        interim = client.recv(1000)
        client.sendall(b"hi")
        answer = read_all(client)
    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer.startswith(b"HTTP/1.1 200 ") and b"\r\nConnection: close\r\n" in answer
    assert server.wait() == 0


# Under load


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["tcp", "unix", "tls", "wsgi", "wsgi over tls", "plain over tls"])
def test_no_request_is_lost_in_reloads_with_recycling_at_every_ten_and_a_stop(
    start: Starter, tmp_path: Path, kind: str
) -> None:
    trusting = make_certificate(tmp_path) if kind.endswith("tls") else None
    served = {"w": "page, PreforkWSGIServer", "p": "Plain, PreforkHTTPServer"}
    program = "    serve(SERVED, ADDRESS, workers=4, max_requests=10, certfile=CERTFILE)"
    for name, value in {
        "SERVED": served.get(kind[0], "Page, PreforkHTTPServer"),
        "ADDRESS": f'["unix:{tmp_path}/x.sock"]' if kind == "unix" else '("127.0.0.1", 0)',
        "CERTFILE": repr("server.pem" if trusting else None),
    }.items():
        program = program.replace(name, value)
    server = start(PAGE + OTHER_PAGES + program).all_ready(4)
    pause = 0 if SOAK else 0.01
    coming = HTTPHammer(server.address, 8, pause=pause, trusting=trusting)
    keeping = HTTPHammer(server.address, 8, pause=pause, keeping=True, trusting=trusting)
    with coming, keeping:
        for generation in range(2, 2 + soak(2, 10)):
            hup(server, generation)
        for hammer in (coming, keeping):
            hammer.ended("served", REQUESTS, patience=500)
        server.signal(signal.SIGQUIT)
        for hammer in (coming, keeping):
            hammer.ended("refused", 8)  # everybody knocked on until there was no door
    print(kind, coming.counts, keeping.counts, coming.longest, keeping.longest)
    print(server.count("forked"), "workers, at once", most_at_once(server))
    assert set(coming.counts) == set(keeping.counts) == {"served", "refused"}
    assert most_at_once(server)[0] <= 5
    assert server.wait() == 0


@pytest.mark.soak
def test_no_datagram_that_reached_the_socket_is_lost_in_a_reload(start: Starter) -> None:
    server = start("""
        class Shout(socketserver.BaseRequestHandler):
            def handle(self):
                word, answering = self.request
                answering.sendto(word.upper(), self.client_address)

        serve(Shout, PreforkUDPServer, workers=4, max_requests=10)
    """).all_ready(4)
    counts = {"served": 0}
    stop = threading.Event()

    def ask(name: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(server.address)
            client.settimeout(PATIENCE)
            while not stop.is_set():
                client.send(b"word %d %d" % (name, counts["served"]))
                client.recv(100)  # or TimeoutError
                counts["served"] += 1

    failed = []
    hook, threading.excepthook = threading.excepthook, failed.append
    try:
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for generation in range(2, 2 + soak(2, 10)):
            hup(server, generation)
        eventually(lambda: failed or counts["served"] >= REQUESTS, 500)
        stop.set()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = hook
    assert not failed and counts["served"] >= REQUESTS
    print(counts, server.count("forked"), "workers, at once", most_at_once(server))
    assert most_at_once(server)[0] <= 5


# The terminal


def in_a_terminal(start: Starter, program: str) -> tuple[Server, int]:
    controller, terminal = pty.openpty()
    take_it = "    import fcntl, termios\n    fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    server = start(take_it + program, stdin=terminal).all_ready(2)
    os.close(terminal)
    return server, controller


def test_in_the_foreground_of_a_terminal_hup_reloads_as_long_as_that_is_open(
    start: Starter,
) -> None:
    server, controller = in_a_terminal(start, "    serve(Echo, workers=2)")
    hup(server, 2)
    hup(server, 3)
    os.close(controller)
    server.saw(r"SIGHUP: stopping \d workers gracefully")
    assert server.wait() == 0


def test_who_outlived_its_terminal_unheard_reloads(start: Starter) -> None:
    # A session leader that takes no notice, as a shell that disowned us: the kernel's HUP is
    # for it and for its foreground, and we are in neither.
    controller, terminal = pty.openpty()
    server = start(
        """
        import fcntl, subprocess, termios
        if len(sys.argv) == 1:
            signal.signal(signal.SIGHUP, lambda *_: print("the shell was told"))
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            job = [sys.executable, __file__, "job"]
            job = subprocess.Popen(job, process_group=0, stdin=subprocess.DEVNULL)
            job.wait()
        else:
            print("job is", os.getpid())
            serve(Echo, workers=2)
        """,
        stdin=terminal,
    )
    os.close(terminal)
    job = int(server.saw(r"job is (\d+)")[0][1])
    server.ready()
    os.kill(job, signal.SIGHUP)
    server.saw("generation 2 serves$")
    os.close(controller)
    server.saw("the shell was told")
    time.sleep(4.5)  # time itself is what is tested: how long a shell may take to pass it on
    os.kill(job, signal.SIGHUP)
    server.saw("generation 3 serves$")
    os.kill(job, signal.SIGQUIT)
    assert server.wait() == 0
