"""No write of a real server waits for a reader, through its whole life."""

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, ROOT, children, eventually, read_all
from tests.edges.test_output import drained, fill

# One descriptor


BACKGROUND = """
import fcntl, os, signal, sys, termios
from prefork_server.output import Output
fcntl.ioctl(1, termios.TIOCSCTTY, 0)
mode = termios.tcgetattr(1)
mode[3] |= termios.TOSTOP
termios.tcsetattr(1, termios.TCSANOW, mode)
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, lambda *_: None)
    Output(1).write(b"from behind\\n")
    os._exit(0)
os.waitpid(pid, 0)
"""


def test_a_terminal_that_stops_its_background_is_written_to_all_the_same() -> None:
    reader, writer = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", BACKGROUND],
        stdout=writer,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    try:
        assert process.wait(PATIENCE) == 0
        assert drained(reader) == b"from behind\r\n"
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


# The whole life of a server whose output nobody reads


COMMON = """
import asyncio, logging, os, socketserver, sys, warnings
from pathlib import Path
from prefork_server import *
from prefork_server import serve, PreforkAsyncioServer, HTTPRequestHandler, PreforkHTTPServer

def told(word):
    for stream in (sys.stdout, sys.stderr):
        for number in range(100):
            print("a handler prints", word, "x" * 90, file=stream)
    warnings.warn("a warning " + word)
    logging.getLogger("of.the.program").error("a record %s", word)
    if word == "raise":
        raise ValueError("of the handler")
    return b"%d" % os.getpid()

class Hooks:
    def ready(self, addresses):
        print("ready", file=sys.stderr)
        Path("address").write_text(addresses[0])
    def before_fork(self):
        print("a hook prints before a fork")
    def after_fork(self, master):
        print("a hook prints in a worker", flush=True)
    def after_worker_exit(self, death):
        print("a hook prints", death)
        print("a hook prints", death, file=sys.stderr)

class Stream(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(told(self.rfile.readline().decode().strip()))

class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        self.request[1].sendto(told(self.request[0].decode().strip()), self.client_address)

class Http(HTTPRequestHandler):
    access_log = True
    def do_GET(self):
        body = told(self.path[1:])
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

class Old(__import__("http.server").server.BaseHTTPRequestHandler):
    do_GET = Http.do_GET

def app(environ, start_response):
    body = told(environ["PATH_INFO"][1:])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

async def talk(reader, writer):
    writer.write(told((await reader.readline()).decode().strip()))
    await writer.drain()
    writer.close()

def work(master):
    for connection, _ in master.connections():
        with connection:
            connection.sendall(told(connection.recv(100).decode().strip()))

settings = dict(workers=2, pid_path="x.pid")
"""


HOOKED = """
class Server(Hooks, {base}): pass
with Server({address}, {handler}, **settings{more}) as server:
    server.serve_forever()
"""


def hooked(base: str, handler: str, address: str = '("127.0.0.1", 0)', more: str = "") -> str:
    return HOOKED.format(base=base, handler=handler, address=address, more=more)


LIVES = {
    "TCP": hooked("PreforkTCPServer", "Stream"),
    "TCP with basicConfig": "logging.basicConfig()\n" + hooked("PreforkTCPServer", "Stream"),
    "UDP": hooked("PreforkUDPServer", "Datagram"),
    "UNIX": hooked("PreforkUnixStreamServer", "Stream", '"s.sock"'),
    "HTTP": hooked("PreforkHTTPServer", "Http", more=', status="unix:status.sock"'),
    "the standard library's handler": hooked("PreforkHTTPServer", "Old"),
    "threads": hooked("PreforkTCPServer", "Stream", more=", threads=3"),
    "WSGI": 'serve(app, "unix:s.sock", access_log=True, **settings)',
    "asyncio": hooked("PreforkAsyncioServer", "talk"),
    "Preforker": """
hooks = Hooks()
names = ("before_fork", "after_fork", "ready", "after_worker_exit")
named = {name: getattr(hooks, name) for name in names}
Preforker(work, listen="127.0.0.1:0", **settings, **named).run()
""",
    "the command": "",
}


class Life:
    """A server whose stdout and stderr are full pipes, asked until it answers."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory, self.kind = directory, kind
        (directory / "things.py").write_text(COMMON)
        program = directory / "program.py"
        program.write_text(f"from things import *\n{LIVES[kind]}")
        words = [str(program)]
        if kind == "the command":
            words = ["-m", "prefork_server", "serve", "things:app", "-b", "unix:s.sock", "-w", "2"]
            words += ["--access-log", "--pid-path", "x.pid"]
        self.outputs, theirs = zip(*(os.pipe(), os.pipe()), strict=True)
        self.gone, writer = os.pipe()
        for fd in theirs:
            fill(fd)
        self.process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=theirs[0],
            stderr=theirs[1],
            pass_fds=[writer],
            start_new_session=True,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{directory}"},
        )
        for fd in (*theirs, writer):
            os.close(fd)

    def address(self) -> str | tuple[str, int]:
        if self.kind in ("UNIX", "WSGI", "the command"):
            return "s.sock"
        host, _, port = (self.directory / "address").read_text().rpartition(":")
        return host, int(port)

    def ask(self, word: str, within: float = 5) -> bytes:
        """What is answered; nothing where the handler raised, or nothing answers yet."""
        request = f"{word}\n"
        if self.kind in ("HTTP", "the standard library's handler", "WSGI", "the command"):
            request = f"GET /{word} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        with suppress(OSError, ValueError):
            address = self.address()
            family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
            if self.kind == "UDP":
                with socket.socket(family, socket.SOCK_DGRAM) as client:
                    client.settimeout(0.5)
                    client.sendto(request.encode(), address)
                    return client.recv(100)
            with socket.socket(family) as client:
                client.settimeout(within)
                client.connect(address)
                client.sendall(request.encode())
                return read_all(client).rpartition(b"\n")[2]
        return b""

    def answered_by_another_than(self, pids: Iterable[int]) -> int:
        """The pid of a worker that answers, and is none of these."""
        found = []

        def answers() -> bool:
            answer = self.ask("print")
            if answer.isdigit() and int(answer) not in pids:
                found.append(int(answer))
            return bool(found)

        eventually(answers)
        return found[0]

    def master(self) -> int:
        with suppress(OSError, ValueError):
            return int((self.directory / "x.pid").read_text())
        return 0

    def close(self) -> None:
        for pid in {self.process.pid, self.master()} - {0}:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self.process.wait()
        for fd in (*self.outputs, self.gone):
            os.close(fd)


@pytest.mark.parametrize("kind", LIVES)
def test_a_server_whose_output_is_not_read_lives_its_whole_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)  # a path of a UNIX socket is short
    life = Life(tmp_path, kind)
    try:
        worker = life.answered_by_another_than(())
        for _ in range(30):  # if one waited for a reader, it would do so for a minute
            life.answered_by_another_than(())
        life.ask("raise")
        os.kill(worker, signal.SIGKILL)
        life.answered_by_another_than([worker])
        master = life.process.pid
        for signum in (signal.SIGUSR1, signal.SIGHUP):
            os.kill(master, signum)
        worker = life.answered_by_another_than(children(master))
        os.kill(master, signal.SIGUSR2)
        eventually(lambda: life.master() not in (0, master))
        successor = life.master()
        assert life.process.wait(PATIENCE) == 0
        life.answered_by_another_than([worker])
        # The readers are back.
        outputs = [b"", b""]
        reading = [threading.Thread(target=read_to, args=(outputs, n, life)) for n in (0, 1)]
        for thread in reading:
            thread.start()
        for _ in range(4):
            life.answered_by_another_than(())
        os.kill(successor, signal.SIGQUIT)
        for thread in reading:
            thread.join(PATIENCE)
        assert select.select([life.gone], [], [], PATIENCE)[0], "a process is left"
        for said in outputs:
            assert re.search(rb"\((\d+) lines were lost\)\n", said), said[-2000:]
    finally:
        life.close()


def read_to(outputs: list[bytes], number: int, life: Life) -> None:
    """Read to the end, when the last process that may write there is gone."""
    while data := os.read(life.outputs[number], 65536):
        outputs[number] += data


@pytest.mark.parametrize("target", ["nothing:app", "fails:app"])
def test_a_command_whose_output_is_not_read_ends_with_its_code(tmp_path: Path, target: str) -> None:
    (tmp_path / "fails.py").write_text("raise ValueError('no application')\n")
    ends = [os.pipe(), os.pipe()]
    for _, writer in ends:
        fill(writer)
    command = subprocess.Popen(
        [sys.executable, "-m", "prefork_server", "serve", target, "-b", "unix:s.sock"],
        stdout=ends[0][1],
        stderr=ends[1][1],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    try:
        assert command.wait(PATIENCE) == 3
    finally:
        command.kill()
        command.wait()
        for reader, writer in ends:
            os.close(reader)
            os.close(writer)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give up being root")
@pytest.mark.parametrize("flag", ["os.RWF_NOWAIT", "0"])
def test_workers_of_another_user_do_not_wait_for_the_reader_of_roots_pipe(
    tmp_path: Path, flag: str
) -> None:
    program = f"""
import os, socketserver, sys
sys.path.insert(0, {str(ROOT / "src")!r})
from prefork_server import PreforkTCPServer, output
output._NOWAIT = {flag}
class H(socketserver.StreamRequestHandler):
    def handle(self):
        for number in range(1000):
            print("x" * 90, flush=True)
        self.wfile.write(b"%d" % os.getuid())
class Server(PreforkTCPServer):
    def ready(self, addresses):
        os.write({{ready}}, addresses[0].encode() + b"\\n")
with Server(("127.0.0.1", 0), H, workers=2, user="nobody") as server:
    server.serve_forever()
"""
    (reader, writer), (told, ready) = os.pipe(), os.pipe()
    fill(writer)
    command = [sys.executable, "-c", program.replace("{ready}", str(ready))]
    server = subprocess.Popen(command, stdout=writer, pass_fds=[ready], cwd="/")
    try:
        host, _, port = os.read(told, 100).decode().strip().rpartition(":")
        for _ in range(10):
            with socket.create_connection((host, int(port)), PATIENCE) as client:
                assert read_all(client).isdigit()
        server.send_signal(signal.SIGQUIT)
        assert server.wait(PATIENCE) == 0
    finally:
        server.kill()
        server.wait()
        for fd in (reader, writer, told, ready):
            os.close(fd)
