"""The files in examples/deploy, used: the unit, the container, logs, the proxies."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, ROOT, Server, Starter, children, eventually, read_all
from tests.processes.test_command import INIT
from tests.processes.test_systemd import Init
from tests.unit.test_deploy import DEPLOY, PAGE, unit, words_of


@pytest.mark.executed
def test_the_unit_starts_reloads_upgrades_and_stops_on_the_socket_it_is_given(
    start: Starter, tmp_path: Path
) -> None:
    service = unit("prefork-echo.service")["Service"]
    shutil.copy(ROOT / "examples" / "echo.py", tmp_path)
    (tmp_path / "init.py").write_text(INIT)
    words = words_of(service["ExecStart"], "prefork-server")
    init = Init(str(tmp_path / "notify"))
    with init.socket, socket.create_server(("127.0.0.1", 0)) as listening:
        fd = listening.fileno()
        env = {
            **os.environ,
            "LISTEN_FDS": "1",
            "NOTIFY_SOCKET": init.address,
            "WATCHDOG_USEC": str(int(service["WatchdogSec"]) * 1_000_000),
        }
        given = [str(fd), "-m", "prefork_server", *words]
        server = start.script(tmp_path / "init.py", *given, env=env, pass_fds=[fd])

        def answers() -> bool:
            with socket.create_connection(listening.getsockname(), PATIENCE) as client:
                client.sendall(b"hello\n")
                client.shutdown(socket.SHUT_WR)
                return read_all(client) == b"hello\n"

        assert f"MAINPID={server.pid}" in init.hears("READY=1")
        init.hears("WATCHDOG=1")
        assert answers()
        reload = service["ExecReload"].replace("$MAINPID", str(server.pid))
        subprocess.run(reload.split(), check=True)
        init.hears("RELOADING=1")
        init.hears("READY=1")
        server.signal(signal.SIGUSR2)
        successor = int(server.saw(r"the successor pid=(\d+) serves, leaving")[0][1])
        assert server.wait() == 0 and answers()
        assert any(f"MAINPID={successor}" in said for said in init.heard) or init.hears(
            f"MAINPID={successor}"
        )
        server.signal(signal.Signals[service["KillSignal"]], successor)
        assert f"MAINPID={successor}" in init.hears("STOPPING=1")
        server.saw("SIGTERM: stopping 4 workers gracefully")
        assert not server.anyone_left(PATIENCE)
        # Who comes now waits for whoever is started next.
        with socket.create_connection(listening.getsockname(), PATIENCE):
            listening.accept()[0].close()


# In a container


def test_the_container_serves_as_process_1_and_stops_gracefully_at_term(
    start: Starter, tmp_path: Path
) -> None:
    if subprocess.call(["unshare", "--pid", "--fork", "true"], stderr=subprocess.DEVNULL):
        pytest.skip("needs the right to make a pid namespace")
    said = (DEPLOY / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (\S+) \.$", said, re.MULTILINE)[0]
    shutil.copy(ROOT / copied, tmp_path)
    environ = dict(re.findall(r"(\w+)=(\w+)", re.findall(r"^ENV (.*)$", said, re.MULTILINE)[0]))
    program, *words = json.loads(re.findall(r"^CMD (.*)$", said, re.MULTILINE)[0])
    assert program == "prefork-server" and environ.keys() == {"PORT", "WEB_CONCURRENCY"}
    with socket.create_server(("0.0.0.0", 0)) as free:
        environ["PORT"] = str(free.getsockname()[1])
    (tmp_path / "container.py").write_text(CONTAINER)
    server = start.script(tmp_path / "container.py", *words, env={**os.environ, **environ}).ready()
    server.saw(rf"listening on 0\.0\.0\.0:{environ['PORT']}$")
    server.saw("forked$", int(environ["WEB_CONCURRENCY"]))
    with urllib.request.urlopen(f"http://127.0.0.1:{environ['PORT']}/", timeout=10) as answer:
        assert answer.read().startswith(b"Hello / from process ")
    server.saw(r'^127\.0\.0\.1 - - \[.*\] "GET / HTTP/1\.1" 200 ')
    (process_1,) = children(server.pid)
    os.kill(process_1, signal.SIGTERM)
    server.saw("master pid=1 SIGTERM: stopping 4 workers gracefully")
    assert server.wait() == 0


CONTAINER = """
import os, sys
unshare = ["unshare", "--pid", "--fork", "--kill-child"]
command = [*unshare, sys.executable, "-W", "error", "-m", "prefork_server", *sys.argv[1:]]
os.execvp("unshare", command)
"""


# Logs


@pytest.fixture
def everybodys() -> Iterator[str]:
    """A directory to which every user has the way: to pytest's own they have not."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield directory


@pytest.mark.parametrize("user", [None, "nobody"])
def test_after_the_postrotate_of_logrotate_both_logs_are_new_files(
    start: Starter, tmp_path: Path, user: str | None, request: pytest.FixtureRequest
) -> None:
    if user and os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    said = (DEPLOY / "logrotate.conf").read_text()
    script = said.partition("postrotate\n")[2].partition("endscript")[0].strip()
    assert "/run/hello/pid" in script
    shutil.copy(ROOT / "examples" / "hello_wsgi.py", tmp_path)
    command = PAGE.partition("    prefork-server serve hello_wsgi.py -p")[1:]
    serve = "".join(command).partition("\n\n")[0].replace("\\\n", " ")
    logs = Path(request.getfixturevalue("everybodys") if user else tmp_path)
    serve = serve.replace("/run/hello", "run").replace("/var/log/hello", str(logs))
    words = words_of(serve, "prefork-server")
    (tmp_path / "run").mkdir()
    if user:  # preloaded, since the interpreter itself may be where nobody else can read
        words += ["--user", user, "--preload"]
    start.script(Path("-m"), "prefork_server", *words, "-b", "127.0.0.1:0")
    log, access = logs / "hello.log", logs / "access.log"
    eventually(lambda: log.exists() and "ready, listening on" in log.read_text())
    where = re.findall(r"ready, listening on (\S+)", log.read_text())[0]

    def ask(path: str) -> None:
        with urllib.request.urlopen(f"http://{where}{path}", timeout=10) as answer:
            answer.read()

    ask("/before")
    eventually(lambda: "GET /before" in access.read_text())
    for path in (log, access):
        os.rename(path, f"{path}.1")
        if user:  # logrotate's create, as the page has it for that
            path.touch(0o640)
            shutil.chown(path, user)
    script = script.replace("/run/hello", str(tmp_path / "run"))
    subprocess.run(["sh", "-ec", script], check=True)
    eventually(lambda: log.exists() and "rotation 1 done" in log.read_text())
    before = Path(f"{access}.1").read_text()
    ask("/after")
    eventually(lambda: "GET /after" in access.read_text())
    assert Path(f"{access}.1").read_text() == before and "GET /before" in before
    assert "keeps the old file" not in Path(f"{log}.1").read_text()


# Behind nginx


@contextmanager
def nginx(text: str, directory: Path) -> Iterator[None]:
    (directory / "nginx.conf").write_text(text)
    main = f"daemon off; pid {directory}/nginx.pid;" + (" user root;" if os.geteuid() == 0 else "")
    command = ["nginx", "-p", str(directory), "-e", "stderr", "-c", str(directory / "nginx.conf")]
    with subprocess.Popen([*command, "-g", main], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGQUIT)
            try:
                _, said = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode == 0, said


@pytest.mark.parametrize("over", ["unix", "tcp"])
def test_behind_nginx_the_clients_address_arrives_and_a_forged_one_does_not(
    start: Starter, tmp_path: Path, over: str
) -> None:
    if not shutil.which("nginx"):
        pytest.skip("there is no nginx")
    (tmp_path / "who.py").write_text(WHO)
    words = ["serve", "who.py", "-w", "2", "--forwarded-from"]
    if over == "unix":
        words += ["unix", "-b", "unix:http.sock"]
    else:
        words += ["127.0.0.1", "-b", "127.0.0.1:0"]
    server: Server = start.script(Path("-m"), "prefork_server", *words).ready()
    text = (DEPLOY / "nginx.conf").read_text()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = f"unix:{tmp_path}/http.sock" if over == "unix" else "{}:{}".format(*server.address)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in kinds)
    for old, new in (
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("server unix:/run/hello/http.sock;", f"server {where};"),
        ("http {\n", f"http {{\n{temporary}\n"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    with nginx(text, tmp_path):
        for _ in range(3):  # the second one on a connection that is kept
            fields = {"X-Forwarded-For": "1.2.3.4"}
            said = asked(port, fields)
            assert said == ["127.0.0.2", "http", f"127.0.0.1:{port}"]
    assert server.quit() == 0


def asked(port: int, fields: dict[str, str]) -> list[str]:
    """By a client whose address is not that of the proxy."""
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n{head}\r\n"
    client = _connected(port)
    with client:
        client.sendall(request.encode())
        answer = read_all(client).decode()
    assert answer.startswith("HTTP/1.1 200 "), answer
    return answer.partition("\r\n\r\n")[2].split()


def _connected(port: int) -> socket.socket:
    found: list[socket.socket] = []

    def connects() -> bool:  # nginx does not say when it listens
        try:
            address = ("127.0.0.1", port)
            found.append(socket.create_connection(address, PATIENCE, ("127.0.0.2", 0)))
        except ConnectionRefusedError:
            return False
        return True

    eventually(connects)
    return found[0]


WHO = """
def application(environ, start_response):
    names = ("REMOTE_ADDR", "wsgi.url_scheme", "HTTP_HOST")
    body = " ".join(environ[name] for name in names).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
