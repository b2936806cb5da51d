"""The examples are run as a reader would run them, and the README shows them as they are."""

import os
import re
import select
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import urllib.request
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import pytest
import trustme

from tests.conftest import PATIENCE, ROOT, Server, Starter, alive, eventually, read_all, title

EXAMPLES = ROOT / "examples"


def test_echo_answers_each_line(start: Starter) -> None:
    server = start.script(EXAMPLES / "echo.py", "127.0.0.1:0").all_ready(4)
    with server.connect() as client:
        for line in (b"one\n", b"two\n"):
            client.sendall(line)
            assert client.recv(100) == line


def test_ping_pong_is_a_bare_loop_with_code_after_it(start: Starter) -> None:
    server = start.script(EXAMPLES / "ping_pong.py", "0").ready()
    port = int(server.saw(r"ping 127.0.0.1:(\d+)")[0][1])
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(b"ping")
            assert re.fullmatch(rb"pong from worker [123]\n", read_all(client))
    assert server.quit() == 0
    assert server.count("leaves the loop") == 3


def test_hello_http_answers_from_several_processes(start: Starter) -> None:
    server = start.script(EXAMPLES / "hello_http.py", "0").all_ready(4)
    assert isinstance(server.address, tuple)
    url = "http://{}:{}/".format(*server.address)
    with urllib.request.urlopen(url, timeout=10) as reply:
        assert re.fullmatch(rb"Hello from process \d+\n", reply.read())


def test_threads_http_answers_while_as_many_as_it_has_threads_but_one_wait(
    start: Starter,
) -> None:
    server = start.script(EXAMPLES / "threads_http.py", "127.0.0.1:0").all_ready(2)
    with ExitStack() as stack:
        slow = [stack.enter_context(server.connect()) for _ in range(15)]
        for client in slow:
            client.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
        answer = server.ask(b"GET / HTTP/1.0\r\n\r\n")
        assert re.search(rb"worker [12] thread [1-8], generation 1\n", answer)
        answers = {read_all(client).rpartition(b"\r\n")[2] for client in slow}
        assert len(answers | {answer.rpartition(b"\r\n")[2]}) >= 15  # so many threads


def test_https_shows_the_certificate_that_it_was_given(start: Starter, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(0o600)
    server = start.script(EXAMPLES / "https.py", "127.0.0.1:0", "cert.pem", "key.pem").ready()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    assert _over_tls(server, trusting)
    assert server.count("WARNING") == 0


def test_https_makes_a_certificate_in_an_empty_directory_and_keeps_it(
    start: Starter, tmp_path: Path
) -> None:
    for _ in range(2):
        server = start.script(EXAMPLES / "https.py", "127.0.0.1:0").ready()
        trusting = ssl.create_default_context(cafile=tmp_path / "localhost.pem")
        assert _over_tls(server, trusting)
        assert server.count("WARNING") == 0
        assert server.quit() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["localhost.pem"]


def _over_tls(server: Server, trusting: ssl.SSLContext) -> bool:
    url = f"https://localhost:{server.address[1]}/"
    with urllib.request.urlopen(url, timeout=PATIENCE, context=trusting) as reply:
        said = rb"Hello 127\.0\.0\.1 from process \d+, by TLSv1\.3\n"
        return re.fullmatch(said, reply.read()) is not None


def test_compute_counts_primes_and_survives_nonsense(start: Starter) -> None:
    server = start.script(EXAMPLES / "compute.py", "127.0.0.1:0").ready()
    answer = server.ask(b"100\nnonsense\n-5\n")
    assert re.match(rb"25 .*\nsend a whole number .*\n0 ", answer)


def test_accept_loop_says_how_many_it_served(start: Starter) -> None:
    server = start.script(EXAMPLES / "accept_loop.py", "127.0.0.1:0").all_ready(4)
    for _ in range(7):
        assert server.ask(b"loud") == b"LOUD"
    assert server.quit() == 0
    assert sum(int(m[1]) for m in server.saw(r"served (\d+) connections", times=4)) == 7


def test_echo_uvloop_says_which_loop_it_has(start: Starter) -> None:
    loop = "uvloop" if find_spec("uvloop") else "asyncio"
    server = start.script(EXAMPLES / "echo_uvloop.py", "127.0.0.1:0").all_ready(2)
    server.saw(rf"worker \d has a loop of {loop}", times=2)
    with ExitStack() as stack:  # many at once, on two workers
        clients = [stack.enter_context(server.connect()) for _ in range(50)]
        for client in clients:
            client.sendall(b"hello\n")
        assert {client.recv(100) for client in clients} == {b"hello\n"}


def test_chat_asyncio_tells_the_others_in_the_room(start: Starter) -> None:
    server = start.script(EXAMPLES / "chat_asyncio.py", "127.0.0.1:0", "2").all_ready(2)
    with ExitStack() as stack:
        rooms: dict[bytes, list[socket.socket]] = {}

        def come() -> bool:
            client = stack.enter_context(server.connect())
            rooms.setdefault(client.recv(100).split(b",")[0], []).append(client)
            return len(rooms) == 2 and min(map(len, rooms.values())) > 1

        eventually(come)
        assert sorted(rooms) == [b"room 1 of 2", b"room 2 of 2"]
        for room, (speaker, *others) in rooms.items():
            speaker.sendall(room + b"\n")
            assert {other.recv(100) for other in others} == {room + b"\n"}
        server.signal(signal.SIGQUIT)
        for client in (client for room in rooms.values() for client in room):
            assert read_all(client) == b"the room is closed\n"
    assert server.wait() == 0


@pytest.mark.skipif(not find_spec("uvicorn"), reason="there is no uvicorn")
def test_asgi_uvicorn_answers_from_workers_that_we_replace_and_stop(start: Starter) -> None:
    server = start.script(EXAMPLES / "asgi_uvicorn.py", "127.0.0.1:0").all_ready(2)
    server.expect_error("killed by SIGKILL, not by us")

    def get() -> int:
        assert isinstance(server.address, tuple)
        with urllib.request.urlopen("http://{}:{}/".format(*server.address), timeout=10) as reply:
            return int(reply.read().rpartition(b" ")[2])

    victim = get()
    assert victim in server.workers()
    server.signal(signal.SIGKILL, victim)
    server.saw(f"pid={victim} reaped")
    server.saw("forked", times=3)
    assert get() != victim
    with server.connect() as begun:  # asked before the stop, and answered in it
        begun.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        server.signal(signal.SIGQUIT)
        assert begun.recv(1000).startswith(b"HTTP/1.1 200 OK")
    assert server.wait() == 0
    assert server.count("reaped: exit code 0") == 2


def test_make_serve_runs_with_nothing_installed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"):
        bare |= {name: os.environ[name]} if name in os.environ else {}
    command = ["make", "serve", f"ADDRESS=127.0.0.1:{port}", f"PYTHON={sys.executable}"]
    with subprocess.Popen(
        command, cwd=ROOT, env=bare, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as make:
        assert make.stdout
        said = [make.stdout.readline() for _ in range(2)]
        assert f"nc 127.0.0.1 {port}" in said[0] and "Ctrl-C" in said[1]
        assert any("ready, listening" in line for line in iter(make.stdout.readline, ""))
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(b"hello\n")
            assert client.recv(100) == b"hello\n"
        masters = [pid for pid in _family(make.pid) if title(pid).endswith("master")]
        os.kill(masters[0], signal.SIGINT)
        make.stdout.read()
        assert make.wait(20) == 0
    eventually(lambda: not alive(masters[0]))


def _family(pid: int) -> list[int]:
    from tests.conftest import children

    return [pid, *(one for child in children(pid) for one in _family(child))]


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="an installed package has no README")
def test_the_readme_shows_the_examples_as_they_are() -> None:
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n# examples/(\w+\.py)\n(.*?)```", readme, re.DOTALL)
    assert "echo.py" in [name for name, _ in blocks]
    for name, block in blocks:
        assert block.strip() in (EXAMPLES / name).read_text(), name


# A UNIX socket, datagrams, a queue, a daemon, several doors


def test_unix_socket_says_who_asks_and_removes_its_path(start: Starter, tmp_path: Path) -> None:
    server = start.script(EXAMPLES / "unix_socket.py", "who.sock").all_ready(2)
    assert (tmp_path / "who.sock").stat().st_mode & 0o777 == 0o600
    asker = start.script(EXAMPLES / "unix_socket.py", "who.sock", "hello", "you")
    assert asker.wait() == 0
    answer = re.fullmatch(r"process (\d+) of user (\d+), answered by (\d+): hello you", asker.log)
    assert answer, asker.log
    assert (int(answer[1]), int(answer[2])) == (asker.pid, os.getuid())
    assert int(answer[3]) in server.workers()
    assert server.quit() == 0
    assert not (tmp_path / "who.sock").exists()


def test_udp_time_answers_each_datagram(start: Starter) -> None:
    server = start.script(EXAMPLES / "udp_time.py", "127.0.0.1:0").all_ready(2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.connect(server.address)
        for _ in range(5):
            before = datetime.now(UTC)
            client.send(b"what time is it?")
            said, _, pid = client.recv(200).decode().partition(" from process ")
            assert before <= datetime.fromisoformat(said) <= datetime.now(UTC)
            assert int(pid) in server.workers()


def test_many_listeners_answers_at_every_door(start: Starter, tmp_path: Path) -> None:
    six = ["[::1]:0"] if _has_ipv6() else []
    doors = ["127.0.0.1:0", "127.0.0.1:0", *six, "unix:door.sock"]
    server = start.script(EXAMPLES / "many_listeners.py", *doors).all_ready(2)
    where = server.saw(r"ready, listening on (.*)")[0][1].split(", ")
    assert len(set(where)) == len(doors) and server.lines[: len(doors)] == where
    for address in where:
        host, _, port = address.rpartition(":")
        if host == "unix":
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(tmp_path / port))
            door = port
        else:
            client = socket.create_connection((host.strip("[]"), int(port)))
            door = f"('{host.strip('[]')}', {port}"
        with client:
            client.settimeout(PATIENCE)
            client.sendall(b"knock\n")
            answer = client.recv(200).decode()
        assert answer.startswith(door) and answer.endswith(": knock\n"), answer
    assert server.quit() == 0
    assert not (tmp_path / "door.sock").exists()


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_daemon_returns_to_the_shell_and_stops_by_its_pid_file(
    start: Starter, tmp_path: Path
) -> None:
    first = start.script(EXAMPLES / "daemon.py")
    pid = int(first.saw(r"started, pid (\d+); stop it: kill -QUIT \d+")[0][1])
    pidfd = os.pidfd_open(pid)
    try:
        assert first.wait() == 0
        assert (tmp_path / "ticker.pid").read_text() == f"{pid}\n"
        eventually(lambda: _log(tmp_path).count("begins") == 2)

        second = start.script(EXAMPLES / "daemon.py")
        second.saw(rf"not started: already running: pid {pid} holds .*/ticker.pid")
        assert second.wait() == 1

        os.kill(int((tmp_path / "ticker.pid").read_text()), signal.SIGQUIT)
        assert select.select([pidfd], [], [], PATIENCE)[0]
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    assert not first.anyone_left()
    assert not (tmp_path / "ticker.pid").exists()
    assert _log(tmp_path).count("put its things away") == 2


def _log(directory: Path) -> str:
    path = directory / "ticker.log"
    return path.read_text() if path.exists() else ""


def test_job_queue_does_each_job_once_and_one_whose_worker_was_killed_again(
    start: Starter, tmp_path: Path
) -> None:
    assert start.script(EXAMPLES / "job_queue.py", "jobs.db", "100").wait() == 0
    server = start.script(EXAMPLES / "job_queue.py", "jobs.db")
    server.expect_error("killed by SIGKILL, not by us")
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as jobs:
        number, killed = _killed_in_the_middle_of_a_job(jobs)
        eventually(lambda: _count(jobs, "result IS NULL") == 0)
        eventually(lambda: len(server.workers()) == 4)
        tries = dict(jobs.execute("SELECT id, tries FROM jobs").fetchall())
        assert tries == {n: 2 if n == number else 1 for n in range(1, 101)}
        who = jobs.execute("SELECT worker, count(result) FROM jobs GROUP BY worker").fetchall()
        assert len(who) >= 4 and sum(count for _, count in who) == 100
        again = jobs.execute("SELECT worker FROM jobs WHERE id = ?", (number,)).fetchone()
        assert again != (killed,)
        # The results are right, whoever worked them out.
        assert jobs.execute("SELECT count(DISTINCT result) FROM jobs").fetchone() == (100,)


def test_job_queue_finishes_the_job_at_hand_and_goes_on_after_a_restart(
    start: Starter, tmp_path: Path
) -> None:
    assert start.script(EXAMPLES / "job_queue.py", "jobs.db", "300").wait() == 0
    server = start.script(EXAMPLES / "job_queue.py", "jobs.db")
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as jobs:
        eventually(lambda: _count(jobs, "result IS NOT NULL") >= 10)
        assert server.quit() == 0
        assert _count(jobs, "tries > 0 AND result IS NULL") == 0  # nothing half done
        assert 10 <= _count(jobs, "result IS NOT NULL") < 300
        start.script(EXAMPLES / "job_queue.py", "jobs.db")
        eventually(lambda: _count(jobs, "result IS NOT NULL AND tries = 1") == 300)


def _killed_in_the_middle_of_a_job(jobs: sqlite3.Connection) -> tuple[int, int]:
    """Stop one that has a job, and look again: only now it cannot finish it any more."""
    found: list[tuple[int, int]] = []

    def kill() -> bool:
        at_work = "SELECT id, worker FROM jobs WHERE result IS NULL AND tries > 0 LIMIT 1"
        if (row := jobs.execute(at_work).fetchone()) is None:
            return False
        pid = row[1]
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "T")
        mine = "SELECT id, worker FROM jobs WHERE result IS NULL AND worker = ?"
        if (row := jobs.execute(mine, (pid,)).fetchone()) is None:
            os.kill(pid, signal.SIGCONT)
            return False
        found.append(row)
        os.kill(pid, signal.SIGKILL)
        return True

    eventually(kill)
    return found[0]


def _count(jobs: sqlite3.Connection, where: str) -> int:
    (count,) = jobs.execute(f"SELECT count(*) FROM jobs WHERE {where}").fetchone()
    return int(count)


# HTTP, as curl sees it


def curl(server: Server, path: str, *options: str) -> str:
    assert isinstance(server.address, tuple)
    url = "http://{}:{}{}".format(*server.address, path)
    command = ["curl", "-sS", "--max-time", "10", "--path-as-is", *options, url]
    return subprocess.check_output(command, text=True)


def test_hello_wsgi_answers_at_both_doors_and_logs(start: Starter, tmp_path: Path) -> None:
    script = EXAMPLES / "hello_wsgi.py"
    server = start.script(script, "127.0.0.1:0", "unix:hello.sock").all_ready(4)
    by_unix = ["--unix-socket", str(tmp_path / "hello.sock"), "-A", "me"]
    for path, options in (("/a%20b", []), ("/c?d", by_unix)):
        answer = re.fullmatch(r"Hello (\S.*) from process (\d+)\n", curl(server, path, *options))
        assert answer and int(answer[2]) in server.workers()
        assert answer[1] == {"/a%20b": "/a b", "/c?d": "/c"}[path]
    server.saw(r'^127\.0\.0\.1 - - \[.*\] "GET /a%20b HTTP/1\.1" 200 \d+ "-" "curl/')
    server.saw(r'^unix: - - \[.*\] "GET /c\?d HTTP/1\.1" 200 \d+ "-" "me"$')


def test_flask_app_takes_an_upload_and_streams_and_hears_its_proxy(start: Starter) -> None:
    pytest.importorskip("flask")
    server = start.script(EXAMPLES / "flask_app.py", "127.0.0.1:0").all_ready(4)
    client = curl(server, "/", "-H", "X-Forwarded-For: 1.2.3.4, 203.0.113.9")
    assert re.fullmatch(r"Hello 203\.0\.113\.9 from process \d+\n", client)
    for more in ([], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"]):
        upload = curl(server, "/count", "-F", f"file=@{ROOT / 'pyproject.toml'}", *more)
        assert upload.strip() == f'{{"file":{(ROOT / "pyproject.toml").stat().st_size}}}'
    assert curl(server, "/stream", "-i").count("\n") > 5
    assert curl(server, "/stream") == curl(server, "/stream", "--http1.0") == "0\n1\n2\n3\n4\n"


def test_files_are_sent_and_those_outside_are_not(start: Starter, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "big").write_bytes(content)
    (tmp_path / "secret").write_text("secret")
    server = start.script(EXAMPLES / "files.py", "127.0.0.1:0", "shown").all_ready(4)
    curl(server, "/big", "-o", str(tmp_path / "got"))
    assert (tmp_path / "got").read_bytes() == content
    assert ">big</a>" in curl(server, "/")
    for path in ("/../secret", "/%2e%2e/secret", "//secret", "/big/../../secret"):
        answer = curl(server, path, "-i")
        assert answer.startswith("HTTP/1.1 404 ") and not answer.endswith("secret"), path
    server.saw(r'"GET /big HTTP/1\.1" 200 3000000 ')


def test_shop_shows_what_it_does(start: Starter) -> None:
    server = start.script(EXAMPLES / "shop.py", "127.0.0.1:0", "127.0.0.1:0").ready()
    host, port = server.saw(r"status on ([\d.]+):(\d+)")[0].groups()
    assert curl(server, "/order") == "1 orders so far\n"
    shown = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", f"http://{host}:{port}/metrics"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert 'prefork_counter_total{name="orders"} 1\n' in shown
