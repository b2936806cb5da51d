"""After the first fork nothing is imported in the master or a worker, but by the program."""

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from prefork_server.cli.serve import _enter
from tests.certificates import make_certificate
from tests.conftest import PATIENCE, ROOT, Server, Starter, read_all, unmeasured

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

# Not the prelude of other tests, whose `import *` loads all that there is.
HEAD = """\
import os, socketserver, sys
from prefork_server import Preforker, PreforkMixIn, PreforkTCPServer, PreforkUDPServer, Settings
from prefork_server import PreforkUnixStreamServer

def serve(handler, server_class=PreforkTCPServer, address=("127.0.0.1", 0), **settings):
    with server_class(address, handler, **settings) as server:
        server.serve_forever()
"""

# One line for each module that is looked for: those that are loaded already are not.
AUDIT = """
def audit(event, words):
    if event == "import":
        os.write(1, f"IMPORT {os.getpid()} {words[0]}\\n".encode())
    elif event == "os.fork":
        os.write(1, f"FORK {os.getpid()}\\n".encode())

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):  # what importlib.import_module() looks for
        os.write(1, f"IMPORT {os.getpid()} {name}\\n".encode())

sys.addaudithook(audit)
sys.meta_path.insert(0, Finder)
"""

HANDLER = """
class Line(socketserver.StreamRequestHandler):
    def handle(self):
        word = self.rfile.readline().strip()
        if word == b"hang":
            os.read(os.pipe()[0], 1)  # for ever
        if word == b"raise":
            self.no_such_attribute + 1 / (2 - 1)
        self.server.master.note("stats")
        self.server.master.stats()
        self.wfile.write(word)

class Datagram(socketserver.DatagramRequestHandler):
    def handle(self):
        word = self.rfile.read()
        if word == b"raise":
            no_such_name
        self.wfile.write(word)

def application(environ, start_response):
    if environ["PATH_INFO"] == "/hang":
        os.read(os.pipe()[0], 1)  # for ever
    if environ["PATH_INFO"] == "/raise":
        raise ValueError("of my own")
    start_response("200 OK", [])
    return [environ["wsgi.input"].read() or environ["PATH_INFO"][1:].encode()]

async def callback(reader, writer):
    word = (await reader.readline()).strip()
    if word == b"hang":
        os.read(os.pipe()[0], 1)  # for ever
    if word == b"raise":
        no_such_name
    writer.write(word)
    writer.close()
"""

STANDARD = """
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Theirs(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/hang":
                os.read(os.pipe()[0], 1)  # for ever
            if self.path == "/raise":
                {}["of my own"]
            if self.path == "/error":
                return self.send_error(404)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path[1:].encode() + str(self.headers).encode()[:0])
        do_POST = do_GET

    class Ours(PreforkMixIn, HTTPServer):
        settings = Settings(workers=2, timeout=1)
"""

SAID = "workers=2, timeout=1"
KINDS = {
    "tcp": f"serve(Line, {SAID}, status='unix:status.sock')",
    "tcp with PROXY headers": f"serve(Line, {SAID}, proxy_protocol_from=['127.0.0.1'])",
    "threads": f"serve(Line, {SAID}, threads=2, stdout_path='/dev/stdout')",
    "unix": f"""
        path = os.path.abspath('line.sock')
        serve(Line, PreforkUnixStreamServer, path, {SAID}, max_requests=3)
    """,
    "udp": f"serve(Datagram, PreforkUDPServer, {SAID})",
    "mix-in and HTTP": f"{STANDARD}\n    Ours(('127.0.0.1', 0), Theirs).serve_forever()",
    "wsgi": f"""
        from prefork_server.http import serve
        serve(application, '127.0.0.1:0', {SAID}, access_log=True, forwarded_from=['127.0.0.1'])
    """,
    "https": f"""
        from prefork_server.http import serve
        serve(application, '127.0.0.1:0', {SAID}, certfile='server.pem')
    """,
    "asyncio": f"""
        from prefork_server.aio import PreforkAsyncioServer
        PreforkAsyncioServer('127.0.0.1:0', callback, loop='asyncio', {SAID}).serve_forever()
    """,
    "uvloop": f"""
        from prefork_server.aio import PreforkAsyncioServer
        PreforkAsyncioServer('127.0.0.1:0', callback, loop='uvloop', {SAID}).serve_forever()
    """,
    "preforker": f"""
        def work(master):
            for connection, peer in master.connections():
                with connection:
                    word = connection.recv(100).strip()
                    if word == b"hang":
                        os.read(os.pipe()[0], 1)  # for ever
                    if word == b"raise":
                        no_such_name
                    connection.sendall(word)
        Preforker(work, listen='127.0.0.1:0', pid_path='pid', max_workers=4, {SAID}).run()
    """,
}
COMMAND = """
    from prefork_server.cli import main
    sys.exit(main(["serve", *{!r}, "-w", "2", "-t", "1", "-b", "127.0.0.1:0"]))
"""
KINDS |= {
    f"command, {' '.join(words)}": COMMAND.format(words)
    for words in (
        ("served.py:Line", "--proxy-protocol-from", "127.0.0.1"),
        ("served.py:application", "--access-log", "--forwarded-from", "127.0.0.1"),
        ("served.py:application", "--certfile", "server.pem"),
        ("served.py:callback", "--loop", "asyncio"),
        ("served.py:callback",),
        ("served.py:application", "--preload"),
    )
}
KINDS_OF_ROOT = {
    f"command, {' '.join(words)}": COMMAND.format(words)
    for words in (
        ("served.py:Line", "--user", "nobody", "--proxy-protocol-from", "127.0.0.1"),
        ("served.py:application", "--user", "nobody"),
        ("served.py:callback", "--user", "nobody", "--loop", "asyncio"),
    )
}


def asked(server: Server, kind: str, word: bytes) -> bytes:
    """What a client of this kind of server hears; b"" where the handler failed."""
    if kind == "udp":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(server.address)
            client.send(word)
            client.settimeout(0.5 if word == b"raise" else PATIENCE)
            try:
                return client.recv(100)
            except TimeoutError:
                return b""
    client = server.connect()
    if "https" in kind or "certfile" in kind:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        client = context.wrap_socket(client, server_hostname="localhost")
    with client:
        if any(part in kind for part in ("HTTP", "https", "wsgi", "application")):
            head = b"POST /%b HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\n" % word
            client.sendall(head + b"Connection: close\r\nContent-Length: 0\r\n\r\n")
            answer = read_all(client)
            return b"" if b" 500 " in answer else answer.partition(b"\r\n\r\n")[2]
        header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" if "roxy" in kind.lower() else b""
        client.sendall(header + word + b"\n")
        try:
            return read_all(client)
        except ConnectionResetError:  # the worker is gone
            return b""


def imported(server: Server, asks: bool) -> set[str]:
    """What was imported after the first fork: in the workers, and in a master that has some.
    ``asks``: its first fork is the one that tells it what the target is."""
    lines = list(server.lines)
    forked = {m[1] for line in lines if (m := re.search(r"pid=(\d+) forked", line))}
    forks: Counter[str] = Counter()
    found = set()
    for line in lines:
        if m := re.match(r"FORK (\d+)", line):
            forks[m[1]] += 1
        m = re.match(r"IMPORT (\d+) (\S+)", line)
        if m and (m[1] in forked or forks[m[1]] > asks) and m[2] != "served":
            found.add(m[2])
    return found


@pytest.mark.parametrize("kind", [*KINDS, *[pytest.param(k, marks=as_root) for k in KINDS_OF_ROOT]])
@pytest.mark.executed
def test_nothing_is_imported_after_the_first_fork(
    start: Starter, open_path: Path, kind: str
) -> None:
    if "uvloop" in kind and not find_spec("uvloop"):
        pytest.skip("uvloop is not installed")
    start.directory = directory = open_path
    (directory / "served.py").write_text("import os, socketserver\n" + HANDLER)
    make_certificate(directory)
    program = textwrap.dedent((KINDS | KINDS_OF_ROOT)[kind])
    script = directory / "program.py"
    script.write_text(HEAD + AUDIT + HANDLER + program)
    server = start.script(script, env=unmeasured()).ready()
    server.expect_error(
        *("handler failed", "application failed", "client_connected_cb failed", "Traceback"),
        *("silent for more than", "reaped"),
    )
    assert asked(server, kind, b"hello") == b"hello"
    assert asked(server, kind, b"raise") == b""
    if "status" in KINDS.get(kind, ""):
        look_at_the_status(directory / "status.sock")
    server.signal(signal.SIGUSR1)
    server.signal(signal.SIGHUP)
    server.saw("generation 2 serves")
    server.signal(signal.SIGKILL, server.workers()[-1])
    server.saw("killed by")
    if kind not in ("udp", "threads", "mix-in and HTTP"):
        assert asked(server, kind, b"hang") == b""
        server.saw("silent for more than 1s")
    assert asked(server, kind, b"hello") == b"hello"
    server.signal(signal.SIGUSR2)
    successor = int(server.saw(r"master pid=(\d+) ready", times=2)[1][1])
    assert server.wait() == 0
    assert asked(server, kind, b"hello") == b"hello"
    server.signal(signal.SIGQUIT, successor)
    server.saw(f"master pid={successor} stopped")
    assert imported(server, "command" in kind and "--preload" not in kind) == set()


def look_at_the_status(path: Path) -> None:
    for name in (b"/", b"/stats.json", b"/metrics", b"/readyz", b"/nothing"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET %b HTTP/1.0\r\n\r\n" % name)
            assert read_all(client)


MOVED = {
    "a program": "serve(Line, workers=2, timeout=1)",
    "the command": COMMAND.format(("served.py:application",)),
}


@pytest.mark.parametrize("how", ["moved", "replaced"])
@pytest.mark.parametrize("kind", MOVED)
@pytest.mark.executed
def test_a_package_that_is_moved_or_replaced_is_needed_no_more(
    start: Starter, tmp_path: Path, kind: str, how: str
) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "release")
    (tmp_path / "served.py").write_text("import os, socketserver\n" + HANDLER)
    script = tmp_path / "program.py"
    here = "import sys\nsys.path.insert(0, 'release')\n"
    script.write_text(
        here + HEAD + HANDLER + textwrap.dedent(MOVED[kind]) + "\nprint('over', flush=True)\n"
    )
    server = start.script(script, env=unmeasured()).ready()
    server.expect_error("reaped")
    package = tmp_path / "release" / "prefork_server"
    if how == "moved":
        package.rename(tmp_path / "old")
    else:
        for file in package.rglob("*.py"):
            file.write_text("raise ImportError('of the next version')")
    server.signal(signal.SIGKILL, server.workers()[0])
    server.saw("killed by SIGKILL")
    server.signal(signal.SIGHUP)
    server.saw("generation 2 serves")
    served = "HTTP" if kind == "the command" else "tcp"
    assert asked(server, served, b"hello") == b"hello"
    assert server.quit() == 0
    assert kind == "the command" or server.saw("^over")


def test_the_working_directory_is_not_on_the_path_of_a_master(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, entered, other = (tmp_path / name for name in ("left", "entered", "other"))
    for each in (left, entered, other):
        each.mkdir()
    (tmp_path / "link").symlink_to(entered)
    monkeypatch.chdir(left)
    path = ["", str(left), str(other), str(tmp_path / "link"), f"{entered}/.", "/nowhere.zip"]
    monkeypatch.setattr(sys, "path", path.copy())
    assert _enter(str(entered)) == (str(entered), [str(entered), *path])
    assert sys.path == [str(other), "/nowhere.zip"]


def test_no_module_of_the_working_directory_is_imported_by_the_master(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text("import os, socketserver\n" + HANDLER)
    for name in ("ssl", "ipaddress", "argparse", "ctypes"):
        text = "import os\nos.write(1, b'planted, in %d\\n' % os.getpid())\nraise ImportError"
        (tmp_path / f"{name}.py").write_text(text)
    make_certificate(tmp_path)
    words = ("served.py:Line", "--check", "--certfile", "server.pem", "-b", "127.0.0.1:0")
    process = subprocess.Popen(
        [sys.executable, "-m", "prefork_server", "serve", *words],
        cwd=tmp_path,
        env={**unmeasured(), "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
    )
    with process:
        said = process.communicate(timeout=PATIENCE)[0].decode()
    assert "could be served" in said and process.returncode == 0
    assert f"planted, in {process.pid}" not in said
