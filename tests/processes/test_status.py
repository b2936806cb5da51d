"""The status service of real servers: what it shows, to whom, and what it costs."""

import json
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import threading
from contextlib import ExitStack, suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import (
    PATIENCE,
    ROOT,
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
from tests.processes.test_control import asked
from tests.processes.test_http_clients import browsed

SHOWN = """
    orders = SharedCounter("orders")

    class Shown(socketserver.BaseRequestHandler):
        def handle(self):
            word = self.request.recv(100)
            orders.add()
            current_master().note("<i>&amp;" + word.decode())
            if word == b"raise":
                raise ValueError("</pre><script>alert(1)</script>")
            if word == b"hold":
                self.request.sendall(b"held")
                self.request.recv(100)
            if word == b"exit":
                sys.exit(0)
            if word == b"hang":
                eval(compile("time.sleep(1000)", "<script>", "exec"))
            self.request.sendall(word)
"""


def at(server: Server) -> tuple[str, int]:
    """Where its status is."""
    host, port = server.saw(r"status on ([\d.]+):(\d+)")[0].groups()
    return host, int(port)


def got(
    where: tuple[str, int] | str, path: str = "/", method: str = "GET", **fields: str
) -> tuple[HTTPResponse, str]:
    family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(where)
        connection = HTTPConnection("localhost")
        connection.sock = sock
        connection.request(method, path, headers={"Connection": "close", **fields})
        answer = connection.getresponse()
        return answer, answer.read().decode()


def figures(where: tuple[str, int] | str) -> Any:
    return json.loads(got(where, "/stats.json")[1])


def all_idle(where: tuple[str, int] | str, workers: int) -> None:
    """Wait until so many workers are ready, and nobody is served."""
    eventually(lambda: [w["state"] for w in figures(where)["workers"]] == ["idle"] * workers)


# What is shown


def test_a_page_figures_and_metrics_tell_the_same(start: Starter) -> None:
    server = start(f"""{SHOWN}
    serve(Shown, workers=2, timeout=0.5, status="127.0.0.1:0", app_name="<b>shop")
    """)
    server.expect_error("handler failed", "^Traceback", "silent for more than", "SIGKILL", "^Val")
    where = at(server.ready())
    all_idle(where, 2)
    server.ask(b"raise")
    server.ask(b"hang")
    all_idle(where, 2)
    with server.connect() as client:
        client.sendall(b"hold")
        client.recv(100)
        answer, page = got(where)
        told = figures(where)
        metrics = got(where, "/metrics")[1]
    assert answer.status == 200
    assert len(told["workers"]) == 2 == page.count('<tr class="worker ')
    assert (told["requests"], told["errors"], told["crashes"]) == (3, 1, 1)
    assert told["counters"] == {"orders": 3}
    assert [worker["note"] for worker in told["workers"] if worker["note"]] == ["<i>&amp;hold"]
    assert all(worker["memory"] for worker in told["workers"] if worker["state"] != "booting")
    assert "&lt;i&gt;&amp;amp;hold" in page
    assert "<h1>&lt;b&gt;shop</h1>" in page
    assert "killed by SIGKILL: silent for more than 0.5s" in page
    assert "File &quot;&lt;script&gt;&quot;, line 1 in &lt;module&gt;" in page
    assert page.count("<script>") == page.count("<style>") == 1
    samples = {s.name: s.value for f in text_string_to_metric_families(metrics) for s in f.samples}
    assert samples["prefork_requests_total"] == 3
    assert samples["prefork_counter_total"] == 3
    assert samples["prefork_worker_memory_bytes"] > 1 << 18


def test_only_what_is_there_is_answered_only_to_get_and_never_kept(start: Starter) -> None:
    where = at(start(f"{SHOWN}\n    serve(Shown, workers=1, status='127.0.0.1:0')").ready())
    kinds = {
        "/": "text/html; charset=utf-8",
        "/?x": "text/html; charset=utf-8",
        "/metrics": "text/plain; version=0.0.4; charset=utf-8",
        "/stats.json": "application/json",
        "/healthz": "text/plain; charset=utf-8",
        "/readyz": "text/plain; charset=utf-8",
    }
    for path, kind in kinds.items():
        answer, body = got(where, path)
        assert (answer.status, answer.headers["Content-Type"]) == (200, kind)
        head, nothing = got(where, path, "HEAD")
        assert head.status == 200
        assert len(body) > 0 == len(nothing)
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = got(where)[0].headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    for path in ("/index.html", "/..", "/stats", "/metrics/"):
        assert got(where, path)[0].status == 404, path
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "BREW"):
        answer, _ = got(where, method=method)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    for host in ("example.org", f"rebound.example.org:{where[1]}"):
        assert got(where, Host=host)[0].status == 421
    assert got(where, "/healthz", Host=f"127.0.0.1:{where[1]}")[0].status == 200
    with socket.create_connection(where, PATIENCE) as client:  # a check that says no Host
        client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b" 200 OK\r\n" in read_all(client)


def test_a_unix_socket_is_for_its_user_alone_and_gone_at_the_end(
    start: Starter, tmp_path: Path
) -> None:
    server = start(f"{SHOWN}\n    serve(Shown, workers=1, status='unix:status.sock')").ready()
    path = tmp_path / "status.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert figures(str(path))["state"] == "serving"
    assert got(str(path), Host="whatever")[0].status == 200
    assert server.quit() == 0
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_the_service_is_the_workers_user_and_the_path_is_its_own(
    start: Starter, tmp_path: Path
) -> None:
    server = start(f"""{SHOWN}
    serve(Shown, workers=1, status="unix:status.sock", user="nobody")
    """).ready()
    nobody = pwd.getpwnam("nobody")
    path = tmp_path / "status.sock"
    assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (nobody.pw_uid, 0o600)
    (service,) = (pid for pid in server.workers() if "service" in title(pid))
    uids = re.search(r"Uid:\s+(.*)", Path(f"/proc/{service}/status").read_text())
    assert uids
    assert set(uids[1].split()) == {str(nobody.pw_uid)}
    assert got(str(path), "/readyz")[0].status == 200
    all_idle(str(path), 1)


def test_an_address_in_use_is_told_before_anything_is_forked(start: Starter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        server = start(f"{SHOWN}\n    serve(Shown, workers=1, status='{where}')")
        server.expect_error("^Traceback")
        assert server.wait() == 1
    assert server.saw(rf"BindError: cannot listen on {re.escape(where)}")
    assert not server.count("forked")


def test_each_door_has_it(start: Starter, tmp_path: Path) -> None:
    doors = {
        "Preforker": "Preforker(lambda m: [None for _ in m.connections()], listen=['127.0.0.1:0'],"
        " workers=1, pid_path=None, status='unix:status.sock').run()",
        "PreforkAsyncioServer": "PreforkAsyncioServer('127.0.0.1:0', print, workers=1,"
        " status='unix:status.sock').serve_forever()",
        "mix-in": "Mixed(('127.0.0.1', 0), Echo).serve_forever()",
    }
    for door, call in doors.items():
        server = start(f"""
    from prefork_server.aio import PreforkAsyncioServer
    class Mixed(PreforkMixIn, socketserver.TCPServer):
        settings = Settings(workers=1, status="unix:status.sock")
    {call}
        """)
        server.ready()
        assert len(figures(str(tmp_path / "status.sock"))["workers"]) == 1, door
        assert server.quit() == 0
    (tmp_path / "echo.py").write_text((ROOT / "examples" / "echo.py").read_text())
    runner = tmp_path / "runner.py"
    runner.write_text("import sys; from prefork_server.cli import main; sys.exit(main())\n")
    words = ("serve", "echo.py:Echo", "-b", "127.0.0.1:0", "-w", "1", "--status", "127.0.0.1:0")
    server = start.script(runner, *words)
    where = at(server.ready())
    assert len(figures(where)["workers"]) == 1
    page = got(where)[1]
    assert "<h1>echo</h1>" in page


# Whether all is well


def test_it_is_ready_from_the_first_ready_worker_to_the_beginning_of_the_stop(
    start: Starter, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "gate")
    server = start(f"""{SHOWN}
    class Server(PreforkTCPServer):
        def after_fork(self, master):
            open("gate").close()
    serve(Shown, Server, workers=1, status="unix:status.sock")
    """)
    path = str(tmp_path / "status.sock")

    def checked(which: str) -> int:
        return got(path, which)[0].status

    server.saw("worker=1 pid=.* forked")
    assert (checked("/healthz"), checked("/readyz")) == (200, 503)
    assert figures(path)["state"] == "booting"
    open(tmp_path / "gate", "w").close()
    server.ready()
    assert (checked("/healthz"), checked("/readyz")) == (200, 200)
    with server.connect() as client:
        client.sendall(b"hold")
        client.recv(100)
        server.signal(signal.SIGQUIT)
        server.saw("stopping 1 workers gracefully")
        assert (checked("/healthz"), checked("/readyz")) == (200, 503)
        assert got(path)[0].status == 200
    assert server.wait() == 0


@pytest.mark.executed
def test_during_an_upgrade_it_is_ready_all_the_time(start: Starter) -> None:
    server = start(f"""{SHOWN}
    serve(Shown, workers=1, status="127.0.0.1:0", pid_path="x.pid")
    """)
    where = at(server.ready())
    server.signal(signal.SIGUSR2)
    while not server.count("the successor pid=.* serves"):
        assert got(where, "/readyz")[0].status == 200
    assert server.wait() == 0
    successor = figures(where)["pid"]
    assert successor != server.pid
    server.signal(signal.SIGQUIT, successor)
    assert not server.anyone_left(PATIENCE)


# What it costs


def test_silent_clients_and_endless_lines_keep_nobody_out(start: Starter) -> None:
    server = start(f"{SHOWN}\n    serve(Shown, workers=1, status='127.0.0.1:0')")
    where = at(server.ready())
    with ExitStack() as closing:
        for number in range(100):
            client = closing.enter_context(socket.create_connection(where, PATIENCE))
            client.sendall(b"GET / HTTP/1.1\r\nX: "[: number % 19])
        assert got(where)[0].status == 200
        with socket.create_connection(where, PATIENCE) as endless, suppress(OSError):
            for _ in range(10):
                endless.sendall(b"GET /" + b"x" * (1 << 20))
        with socket.create_connection(where, PATIENCE) as endless:
            endless.sendall(b"GET /" + b"x" * 5000)
            assert b" 414 " in read_all(endless).split(b"\r\n")[0]
        for _ in range(300):  # more than are kept
            closing.enter_context(socket.create_connection(where, PATIENCE))
        assert server.ask(b"hello") == b"hello"

    def well() -> bool:
        with suppress(OSError):  # those who are gone are counted until it has seen that
            return got(where, "/healthz")[0].status == 200
        return False

    eventually(well)
    assert server.count("service=status pid=.* forked") == 1


@pytest.mark.soak
def test_many_reloads_leave_as_many_descriptors_and_one_service(start: Starter) -> None:
    reloads = soak(4, 50)
    program = f"{SHOWN}\n    serve(Shown, workers=1, status='127.0.0.1:0')"
    server = start(program, env=unmeasured())
    where = at(server.ready())

    def alone() -> bool:
        return len(server.workers()) == 2  # a worker and the service

    eventually(alone)
    before = len(open_files(server.pid))
    for generation in range(2, 2 + reloads):
        server.signal(signal.SIGHUP)
        while not server.count(f"generation {generation} serves"):
            server.ask(b"hello")  # then it has been of use
    eventually(alone)
    eventually(lambda: len(open_files(server.pid)) <= before)
    told = figures(where)
    assert told["generation"] == 1 + reloads
    assert [death["why"] for death in told["last_deaths"]] == ["replaced"] * min(reloads, 20)
    (service,) = (pid for pid in children(server.pid) if "service" in title(pid))
    inside = os.listdir(f"/proc/{service}/fd")
    assert len(inside) < 25


# The command


def test_the_command_shows_the_same_by_the_file_and_by_the_address(
    start: Starter, tmp_path: Path
) -> None:
    server = start(f"""{SHOWN}
    serve(Shown, workers=2, status="unix:status.sock", pid_path="x.pid")
    """)
    server.ready()
    server.ask(b"exit")
    server.saw("reaped: exit code 0")
    all_idle(str(tmp_path / "status.sock"), 2)
    # From outside counters are seen as the master last told of them, at most a second ago.
    eventually(lambda: "counter orders: 1" in asked(tmp_path, "status", "x.pid").stdout)
    by_address = asked(tmp_path, "status", "unix:status.sock")
    by_file = asked(tmp_path, "status", "x.pid")
    for said in (by_address, by_file):
        assert (said.returncode, said.stderr) == (0, "")
        lines = said.stdout.splitlines()
        assert lines[0].startswith(f"pid {server.pid}: serving, generation 1, 2 workers of 2")
        assert lines[1].split()[:3] == ["slot", "pid", "state"]
        assert "counter orders: 1" in lines
        assert re.search(r"ago worker=\d pid=\d+ died: exit code 0.*; age=.* requests=1", lines[-1])
    assert len(by_address.stdout.splitlines()) == len(by_file.stdout.splitlines())


def test_the_command_says_what_is_wrong_where_no_status_is(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"

        def mislead() -> None:
            for body in (b"{}", b"[1]", b'{"workers": 3}', b"\x1b[2J", b"", b"null"):
                client, _ = taken.accept()
                with client:
                    client.recv(4096)
                    client.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + body)

        thread = threading.Thread(target=mislead)
        thread.start()
        for _ in range(6):
            said = asked(tmp_path, "status", where)
            assert (said.returncode, said.stdout) == (2, "")
            assert said.stderr == f"prefork-server: {where} shows no status of this version\n"
        thread.join()
    said = asked(tmp_path, "status", where)
    assert (said.returncode, said.stderr) == (
        2,
        f"prefork-server: {where}: Connection refused\n",
    )
    assert asked(tmp_path, "status", "unix:").returncode == 2


# In a browser


@pytest.mark.timeout(150)
def test_a_browser_sees_a_row_for_each_worker_and_a_number_that_changes(
    start: Starter, tmp_path: Path
) -> None:
    if not (chromium := shutil.which("chromium")):
        pytest.skip("there is no chromium here")
    server = start(f"{SHOWN}\n    serve(Shown, workers=3, status='127.0.0.1:0')").ready()
    all_idle(at(server), 3)
    where = "http://{}:{}/".format(*at(server))
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            server.ask(b"hello")

    loading = threading.Thread(target=load)
    loading.start()
    try:
        seen = browsed(chromium, where, tmp_path)
    finally:
        over.set()
        loading.join()
    assert seen.count('<tr class="worker ') == 3
    assert "requests/s</span>" in seen, "its script has compared two looks"
    points = re.search(r'<polyline points="([^"]+)"', seen)
    assert points
    heights = {point.partition(",")[2] for point in points[1].split()}
    assert len(heights) > 1
    assert re.search(r'id="lost" role="status"></span>', seen)
