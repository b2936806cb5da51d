"""The command, from outside: what it serves, what it says, and its exit codes."""

import http.client
import os
import pty
import pwd
import re
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme

import prefork_server.http
from prefork_server import Settings
from prefork_server.cli.recipe import Recipe
from prefork_server.cli.serve import _ask_a_child
from tests.conftest import (
    PATIENCE,
    ROOT,
    Server,
    Starter,
    alive,
    eventually,
    read_all,
    title,
    unmeasured,
)
from tests.zygote import run_program

THINGS = """
import os, signal, socketserver, sys, threading, time
from http.server import BaseHTTPRequestHandler, HTTPServer
from prefork_server import *

os.write(1, b"imported by %d\\n" % os.getpid())

class Greeter(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"%d" % os.getpid())

class Echo(Greeter):
    def handle(self):
        while self.request.recv(100):
            pass
        super().handle()

class Held(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"held\\n")
        self.wfile.write(self.rfile.readline())

class Datagrams(socketserver.DatagramRequestHandler):
    def handle(self):
        self.wfile.write(b"%d" % os.getpid())

class Either(socketserver.BaseRequestHandler):
    def handle(self):
        if isinstance(self.request, tuple):
            self.request[1].sendto(b"%d" % os.getpid(), self.client_address)

class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"%d" % os.getpid()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass

class Theirs(socketserver.ThreadingTCPServer):
    handler_class = Echo

class HeldByThem(socketserver.ThreadingTCPServer):
    handler_class = Held

class TheirHTTP(HTTPServer):
    handler_class = Hello

class Ours(PreforkTCPServer):
    settings = Settings(workers=2)
    def __init__(self, address):
        super().__init__(address, Echo)
    def after_fork(self, master):
        os.write(1, b"after_fork in %d of %d\\n" % (os.getpid(), master.pid))
    def before_fork(self):
        os.write(1, b"a hook of the master's\\n")
    def ready(self, addresses):
        os.write(1, b"a hook of the master's\\n")

class Stopping(PreforkTCPServer):
    def __init__(self, address):
        super().__init__(address, Stop)

class Stop(socketserver.BaseRequestHandler):
    def handle(self):
        while self.request.recv(100):
            pass
        self.server.shutdown()
        self.request.sendall(b"%d" % os.getpid())

class Itself(socketserver.TCPServer):
    def __init__(self, address):
        super().__init__(address, Echo, bind_and_activate=False)

def work(master):
    for connection, peer in master.connections():
        with connection:
            while connection.recv(100):
                pass
            connection.sendall(b"%d" % os.getpid())

def table(master):
    os.write(1, b"at work\\n")
    while master.wait(1):
        pass

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]

def factory():
    return Echo
"""
LOOKING = """
import os, socketserver

def seen():
    return repr([name for name in os.environ if name.startswith("LISTEN")]).encode()

os.write(1, b"import %s\\n" % seen())

class Looking(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(seen())
"""
INIT = """
import os, sys
fds = [int(fd) for fd in sys.argv[1].split()]
for n, fd in enumerate(fds):
    os.dup2(fd, 60 + n)
for n in range(len(fds)):
    os.dup2(60 + n, 3 + n)
    os.close(60 + n)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-W", "error", *sys.argv[2:]])
"""
HTTP = {"Hello", "TheirHTTP", "application"}


@pytest.fixture
def command(start: Starter) -> Callable[..., Server]:
    """Start ``prefork-server`` in the directory of the things, with two workers."""
    (start.directory / "things.py").write_text(THINGS)

    def run(verb: str, *words: str, **options: Any) -> Server:
        return start.script(Path("-m"), "prefork_server", verb, *words, **options)

    return run


def ended(directory: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """What the command says when it is over, without the log's times."""
    (directory / "things.py").write_text(THINGS)
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environ}
    return run_program(["-m", "prefork_server", *words], env=env, cwd=directory, timeout=PATIENCE)


def over_http(server: Server) -> bytes:
    host, port = server.address
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read()
    finally:
        connection.close()


def two_answer(server: Server, ask: Callable[[], bytes]) -> None:
    """Many ask at once, until two different workers have answered."""
    pids: set[int] = set()

    def again() -> bool:
        with ThreadPoolExecutor(8) as clients:
            answers = [clients.submit(ask) for _ in range(16)]
        pids.update(int(answer.result()) for answer in answers)
        return len(pids) >= 2

    eventually(again)
    assert server.pid not in pids


# serve: each kind of thing


KINDS = {
    "Echo": "a request handler class, by PreforkTCPServer",
    "factory()": "a request handler class, by PreforkTCPServer",
    "Hello": "a request handler class, by PreforkHTTPServer",
    "Theirs": "a server class",
    "TheirHTTP": "a server class",
    "Ours": "a server class",
    "work": "a work function",
    "": "a WSGI application, by PreforkWSGIServer",
}


@pytest.mark.parametrize("thing", KINDS)
def test_each_kind_of_thing_answers_from_several_processes(
    command: Callable[..., Server], thing: str
) -> None:
    if not thing and not hasattr(prefork_server.http, "PreforkWSGIServer"):
        pytest.skip("there is no WSGI server yet")
    name = thing or "application"  # which is what it looks for
    server = command("serve", f"things:{thing}".rstrip(":"), "-b", "127.0.0.1:0", "-w", "2")
    server.saw(rf"INFO .*master pid=\d+ serves things:{re.escape(name)}, {KINDS[thing]}$")
    server.all_ready(2)
    two_answer(server, lambda: over_http(server) if name in HTTP else server.ask(b""))
    assert title(server.pid) == "things master"
    server.signal(signal.SIGTERM)
    server.saw("SIGTERM: stopping 2 workers gracefully")
    assert server.wait() == 0


@pytest.mark.parametrize(
    ("thing", "bind"), [("Datagrams", ""), ("Datagrams", "udp:"), ("Either", "udp:")]
)
def test_datagrams_are_served_by_their_handler_or_their_address(
    command: Callable[..., Server], thing: str, bind: str
) -> None:
    server = command("serve", f"things:{thing}", "-b", f"{bind}127.0.0.1:0", "-w", "2")
    server.saw("by PreforkUDPServer")
    server.ready()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.sendto(b"who?", server.address)
        assert int(client.recv(100)) in server.workers()


def test_several_addresses_are_served_and_a_path_is_removed(
    command: Callable[..., Server], tmp_path: Path
) -> None:
    path = tmp_path / "x.sock"
    server = command("serve", "things:Ours", "-b", f"unix:{path}", "-b", "[::1]:0")
    port = int(server.saw(r"listening on unix:\S+/x\.sock, \[::1\]:(\d+)")[0][1])
    assert int(server.ask(b"")) in server.workers()
    with socket.create_connection(("::1", port), PATIENCE) as client:
        client.shutdown(socket.SHUT_WR)
        assert int(read_all(client)) in server.workers()
    assert server.quit() == 0
    assert not path.exists()


def test_a_foreign_server_class_is_served_on_a_path(
    command: Callable[..., Server], tmp_path: Path
) -> None:
    server = command("serve", "things:Theirs", "-b", f"unix:{tmp_path}/x", "-w", "1").ready()
    assert int(server.ask(b"")) in server.workers()


def test_the_class_says_how_many_and_the_options_win(command: Callable[..., Server]) -> None:
    server = command("serve", "things:Ours", "-b", "127.0.0.1:0").all_ready(2)
    server.saw(rf"after_fork in \d+ of {server.pid}", times=2)
    assert server.quit() == 0
    assert server.count("a hook of the master's") == 0
    assert server.count("forked$") == 2
    server = command("serve", "things:Ours", "-b", "127.0.0.1:0", "-w", "1").all_ready(1)
    assert server.quit() == 0
    assert server.count("forked$") == 1


def test_a_work_function_listens_nowhere_unless_it_is_told_to(
    command: Callable[..., Server],
) -> None:
    server = command("serve", "things:table", "-w", "1")
    server.saw("at work")
    server.saw(r"master pid=\d+ ready$")
    assert server.quit() == 0


def test_shutdown_in_a_handler_stops_the_whole_server(command: Callable[..., Server]) -> None:
    server = command("serve", "things:Stopping", "-b", "127.0.0.1:0", "-w", "2").all_ready(2)
    assert server.ask(b"").isdigit()
    server.saw(r"shutdown\(\) was called: stopping 2 workers gracefully")
    assert server.wait() == 0


def test_a_server_class_may_wrap_its_socket_for_tls(
    command: Callable[..., Server], start: Starter
) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        str(start.directory / "pem")
    )
    (start.directory / "secure.py").write_text(
        textwrap.dedent("""
        import ssl
        from things import *

        class Secure(socketserver.TCPServer):
            def __init__(self, address):
                super().__init__(address, Greeter)
                context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                context.load_cert_chain("pem")
                self.socket = context.wrap_socket(self.socket, server_side=True)
    """)
    )
    server = command("serve", "secure:Secure", "-b", "127.0.0.1:0", "-w", "2").all_ready(2)
    context = ssl.create_default_context()
    authority.configure_trust(context)

    def ask() -> bytes:
        with context.wrap_socket(server.connect(), server_hostname="localhost") as client:
            return read_all(client)

    two_answer(server, ask)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        server.connect()


def test_a_thread_that_still_serves_does_not_keep_the_port(command: Callable[..., Server]) -> None:
    server = command("serve", "things:HeldByThem", "-b", "127.0.0.1:0", "-w", "1").all_ready(1)
    with server.connect() as client:
        assert client.recv(100) == b"held\n"
        client.sendall(b"g")  # the line has begun
        server.signal(signal.SIGTERM)
        eventually(lambda: not listens(server))
        client.sendall(b"o\n")
        assert read_all(client) == b"go\n"
    assert server.wait() == 0


def listens(server: Server) -> bool:
    """Whether anybody has its port still, as the kernel has it. To ask would be a connection."""
    end = f":{server.address[1]:04X}"
    table = Path("/proc/net/tcp").read_text().splitlines()
    return any(row.split()[1].endswith(end) and row.split()[3] == "0A" for row in table[1:])


# serve: sockets that it was started with


def test_an_inherited_socket_is_served_and_left_open_for_the_next(
    command: Callable[..., Server],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        fd = listening.fileno()
        for _ in range(2):
            words = ("things:Echo", "-b", f"fd://{fd}", "-w", "2")
            server = command("serve", *words, pass_fds=[fd]).all_ready(2)
            assert server.address == listening.getsockname()
            assert int(server.ask(b"")) in server.workers()
            assert server.quit() == 0
            # A filter, or a backlog of 0, would be there for whoever listens next.
            waiting = [server.connect() for _ in range(3)]
            accepted = [listening.accept()[0] for _ in waiting]
            for each in (*waiting, *accepted):
                each.close()
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def test_an_inherited_path_is_not_removed(command: Callable[..., Server], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "x"))
        listening.listen()
        fd = listening.fileno()
        words = ("things:Echo", "-b", f"fd://{fd}", "-w", "1")
        server = command("serve", *words, pass_fds=[fd]).ready()
        assert int(server.ask(b"")) in server.workers()
        assert server.quit() == 0
        assert (tmp_path / "x").exists()


def test_an_inherited_socket_of_the_wrong_kind_is_refused(command: Callable[..., Server]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        fd = listening.fileno()
        server = command("serve", "things:Datagrams", "-b", f"fd://{fd}", pass_fds=[fd])
        server.saw(rf"fd://{fd} is no socket for things:Datagrams, .* by PreforkUDPServer")
        assert server.wait() == 2


@pytest.fixture
def handed(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """``serve`` with these words, and the sockets as an init system hands them over: 3, 4 ..."""
    (tmp_path / "init.py").write_text(INIT)
    (tmp_path / "env.py").write_text(LOOKING)

    def run(sockets: list[socket.socket], *words: str, **environ: str) -> Server:
        fds = [sock.fileno() for sock in sockets]
        env = {**os.environ, "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": "a:b", **environ}
        started = [" ".join(map(str, fds)), "-m", "prefork_server", "serve", *words]
        server = Server(tmp_path / "init.py", *started, env=env, pass_fds=fds, cwd=tmp_path)
        servers.append(server)
        return server

    servers: list[Server] = []
    yield run
    for server in servers:
        server.finish()


def test_what_an_init_system_hands_over_is_served_without_a_bind(
    handed: Callable[..., Server],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("", 0)) as other:
        server = handed([one, other], "env:Looking", "-w", "2", PORT="1").all_ready(2)
        for sock in (one, other):
            with socket.create_connection(("127.0.0.1", sock.getsockname()[1]), 5) as client:
                assert read_all(client) == b"[]"
        server.saw(r"^import \[\]$", 3)  # by the child that looks, and the workers
        assert server.quit() == 0
        assert server.count("^import") == 3


@pytest.mark.executed
def test_a_successor_has_what_was_handed_over_too(handed: Callable[..., Server]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        server = handed([one], "env:Looking", "-w", "1").ready()
        server.signal(signal.SIGUSR2)
        successor = int(server.saw(r"the successor pid=(\d+) serves, leaving")[0][1])
        assert server.wait() == 0
        with socket.create_connection(one.getsockname(), 5) as client:
            assert read_all(client) == b"[]"
        server.signal(signal.SIGTERM, successor)
        assert not server.anyone_left(PATIENCE)


def test_an_address_that_is_said_wins_over_what_is_handed_over(
    handed: Callable[..., Server],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        server = handed([one], "env:Looking", "-w", "1", "-b", "127.0.0.1:0").ready()
        assert server.address != one.getsockname()
        assert server.ask(b"") == b"[]"


def test_what_was_handed_to_another_process_is_not_ours(
    command: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "env.py").write_text(LOOKING)
    env = {**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": "1"}
    server = command("serve", "env:Looking", "-w", "1", "-b", "127.0.0.1:0", env=env).ready()
    assert server.ask(b"") == b"[]"


def test_sockets_that_are_not_there_are_misuse(handed: Callable[..., Server]) -> None:
    server = handed([], "env:Looking", LISTEN_FDS="many")
    server.saw("prefork-server: LISTEN_FDS must be a number of sockets, 1 to 1024, not 'many'")
    assert server.wait() == 2


# serve: who imports, and what if that fails


def test_each_worker_imports_what_is_there_when_it_starts(
    command: Callable[..., Server], tmp_path: Path
) -> None:
    server = command("serve", "things:Echo", "-b", "127.0.0.1:0", "-w", "1").all_ready(1)
    (first,) = server.workers()
    server.saw(f"imported by {first}")
    assert server.count(f"imported by {server.pid}") == 0
    edited = THINGS.replace('b"%d" % os.getpid()', 'b"edited %d" % os.getpid()')
    (tmp_path / "things.py").write_text(edited)
    server.signal(signal.SIGQUIT, first)
    server.saw("forked$", times=2)
    eventually(lambda: server.ask(b"").startswith(b"edited "))


def test_preload_imports_once_in_the_master(command: Callable[..., Server]) -> None:
    words = ("things:Ours", "--preload", "-b", "127.0.0.1:0")
    server = command("serve", *words).all_ready(2)
    two_answer(server, lambda: server.ask(b""))
    server.saw("after_fork in", times=2)
    assert server.quit() == 0
    assert [m[1] for m in server.saw(r"imported by (\d+)")] == [str(server.pid)]


BROKEN = {
    "import nowhere_at_all": "ModuleNotFoundError: No module named 'nowhere_at_all'",
    "def f():\n    raise ValueError('mine')\nf()": "ValueError: mine",
    "import os; os._exit(5)": "the process that was to load the target ended: exit code 5",
    "import os; os.abort()": "the process that was to load the target ended: killed by SIGABRT",
    "raise ValueError('ü' * 100000)": "ValueError: ü{900,1000} [.]{3}$",
    "import time; time.sleep(1000)": r"was not loaded after 2s \(boot_timeout\)",
    "import signal, time; signal.signal(signal.SIGALRM, signal.SIG_IGN); time.sleep(1000)": (
        r"was not loaded after 2s \(boot_timeout\)"
    ),
}


@pytest.mark.parametrize("extra", [[], ["--check"], ["-D"]])
@pytest.mark.parametrize("text", BROKEN)
def test_a_target_that_cannot_be_imported_is_told_once_and_nothing_is_bound(
    tmp_path: Path, text: str, extra: list[str]
) -> None:
    (tmp_path / "broken.py").write_text(text, encoding="utf-8")
    path = tmp_path / "x.sock"
    patience = "2" if "sleep" in text else "60"
    words = ("broken:app", "-b", f"unix:{path}", "--boot-timeout", patience, *extra)
    said = ended(tmp_path, "serve", *words)
    assert said.returncode == 3
    assert re.search(BROKEN[text], said.stderr.splitlines()[-1]), said.stderr
    assert said.stderr.count("Traceback") == (1 if "Error" in BROKEN[text] else 0)
    ours = str(ROOT / "src")
    assert ours not in said.stderr
    assert "importlib" not in said.stderr
    assert len(said.stderr.encode()) < 65536  # a pipe takes it before its reader begins
    assert not path.exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_nobody_goes_on_with_an_import_that_hangs_when_the_command_is_gone(
    command: Callable[..., Server], tmp_path: Path, signum: int
) -> None:
    (tmp_path / "hangs.py").write_text(
        "import signal, time\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
        "print('hanging', flush=True)\n"
        "time.sleep(1000)\n"
    )
    server = command("serve", "hangs:app", "-b", "127.0.0.1:0")
    server.saw("^hanging$")
    server.signal(signum)
    server.process.wait(PATIENCE)
    assert not server.anyone_left()


ONCE = """
from pathlib import Path
from things import Echo

seen = Path("seen")
def load():
    if seen.exists():
        raise ValueError("a second time")
    seen.touch()
load()
"""


def test_a_thing_that_objects_to_being_looked_at_is_told_with_its_frames(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "class Odd:\n    @property\n    def __signature__(self):\n        return 1 / 0\n"
        "    def __call__(self): pass\napp = Odd()"
    )
    said = ended(tmp_path, "serve", "odd:app")
    assert said.returncode == 3
    assert said.stderr.endswith("cannot tell what it is: ZeroDivisionError: division by zero\n")
    assert said.stderr.count('odd.py", line 4') == 1
    assert str(ROOT / "src") not in said.stderr


def test_an_import_that_fails_in_the_workers_alone_ends_it_with_one_traceback(
    command: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "once.py").write_text(ONCE)
    server = command("serve", "once:Echo", "-b", "127.0.0.1:0", "-w", "3")
    server.expect_error("reaped before it was ready", "^Traceback")
    assert server.wait() == 3
    assert server.count("^  Traceback") == 1
    assert server.count("^  ValueError: a second time") == 1
    assert server.count('File ".*once.py", line [0-9]+, in load') == 1
    assert not [line for line in server.lines if "File" in line and "once.py" not in line]
    assert server.lines[-1] == (
        "prefork-server: no worker of the first generation could boot, giving up: "
        "ValueError: a second time"
    )


def test_a_server_class_that_cannot_be_made_is_a_failed_boot(
    command: Callable[..., Server], tmp_path: Path
) -> None:
    server = command("serve", "things:Itself", "-b", "127.0.0.1:0", "-w", "1")
    server.expect_error("reaped before it was ready")
    server.saw("things:Itself binds a socket of its own")
    assert server.wait() == 3
    (tmp_path / "bad.py").write_text(
        textwrap.dedent("""
        from things import *

        class Bad(socketserver.TCPServer):
            def __init__(self, address):
                raise ValueError("not today")
    """)
    )
    server = command("serve", "bad:Bad", "-b", "127.0.0.1:0", "-w", "1")
    server.expect_error("reaped before it was ready", "^Traceback")
    server.saw('File ".*bad.py", line 6, in __init__')
    server.saw("ValueError: not today")
    assert server.wait() == 3


# serve: exit codes, and what they are for


def test_it_ends_with_0_when_it_was_asked_to(command: Callable[..., Server]) -> None:
    for signum in (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT):
        server = command("serve", "things:Echo", "-b", "127.0.0.1:0", "-w", "1").ready()
        server.signal(signum)
        assert server.wait() == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["things:Echo", "--wrkers", "2"], "there is no option --wrkers: did you mean --workers?"),
        (["things:Echo", "-w", "0"], "workers must be a whole number, 1 to 2048, not 0"),
        (["things:Echo", "-b", "80"], "write host:port, as in 127.0.0.1:9000"),
        (["things:Echo", "--chdir", "/nowhere"], "--chdir /nowhere: No such file or directory"),
        (["things:Echo", "-X", "-D"], "--inline is for the foreground"),
        (["things:sys"], "things:sys is of type module, and cannot be served"),
        (["things:work", "-b", "udp:127.0.0.1:0"], "wants streams"),
        (["things:work", "--certfile", "x"], "--certfile is nothing for a work function"),
        (["things:Echo", "--keyfile", "x"], "--keyfile is for a --certfile, and there is none"),
        (["things:Echo", "--log-path", "/nowhere/x"], "log_path /nowhere/x: No such file"),
        (["a-b:c"], "a target is module:thing"),
    ],
)
def test_misuse_is_one_line_and_code_2(tmp_path: Path, words: list[str], sentence: str) -> None:
    said = ended(tmp_path, "serve", *words)
    assert said.returncode == 2
    assert sentence in said.stderr
    assert said.stderr.count("\n") == 1


def test_an_address_in_use_is_code_3(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = ended(tmp_path, "serve", "things:Echo", "-b", address)
        assert said.returncode == 3
        assert said.stderr.endswith(
            f"prefork-server: cannot listen on {address}: Address already in use "
            "(is another server running there?)\n"
        )
        # Nothing is bound by a check, so that is no matter there.
        said = ended(tmp_path, "serve", "things:Echo", "-b", address, "--check")
        assert (said.returncode, said.stderr) == (0, "")
        assert said.stdout.endswith(
            f"things:Echo, a request handler class, by PreforkTCPServer on {address}: "
            "could be served\n"
        )


def test_a_second_one_on_the_same_pid_file_is_code_4(
    command: Callable[..., Server], tmp_path: Path
) -> None:
    words = ("serve", "things:Echo", "-b", "127.0.0.1:0", "-w", "1", "-p", "x.pid")
    server = command(*words).ready()
    for extra in ([], ["-D"]):
        said = ended(tmp_path, *words, *extra)
        assert said.returncode == 4
        assert f"prefork-server: already running: pid {server.pid} holds" in said.stderr


def test_a_daemon_whose_workers_cannot_boot_is_code_3_with_the_traceback(tmp_path: Path) -> None:
    (tmp_path / "once.py").write_text(ONCE)
    words = ("once:Echo", "-D", "-b", "127.0.0.1:0", "-w", "1")
    said = ended(tmp_path, "serve", *words)
    assert said.returncode == 3
    assert said.stdout.count("runs, pid") == 0
    assert said.stderr.count("Traceback") == 1
    assert str(ROOT / "src") not in said.stderr
    assert said.stderr.endswith("giving up: ValueError: a second time\n")


IGNORING = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("text", ["app = 1", "import os; os._exit(3)"])
def test_whoever_ignores_the_end_of_children_hears_the_same(tmp_path: Path, text: str) -> None:
    (tmp_path / "target.py").write_text(text)
    said = subprocess.run(  # noqa: PLW1510
        [
            *(sys.executable, "-c", IGNORING),
            *(sys.executable, "-m", "prefork_server", "serve", "target:app"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    code, word = (2, "is of type int, and") if "app" in text else (3, "ended: nobody knows how")
    assert said.returncode == code
    assert word in said.stderr


def test_ctrl_c_during_the_import_is_a_stop(command: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import os, time; os.write(1, b'loading\\n'); time.sleep(99)")
    for tell in (os.kill, os.killpg):
        server = command("serve", "slow:app")
        server.saw("loading")
        tell(server.pid, signal.SIGINT)
        assert server.wait() == 0
        assert "Traceback" not in server.log


# serve: where and how


def test_the_environment_says_where_and_how_many(command: Callable[..., Server]) -> None:
    with socket.create_server(("0.0.0.0", 0)) as free:
        port = free.getsockname()[1]
    env = {**os.environ, "PORT": str(port), "WEB_CONCURRENCY": "3"}
    server = command("serve", "things:Echo", env=env).all_ready(3)
    server.saw(rf"listening on 0\.0\.0\.0:{port}$")
    assert server.quit() == 0
    assert server.count("forked$") == 3


def test_a_target_in_another_directory_with_options_from_a_file(
    command: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "near.py").write_text("from things import Echo")
    (tmp_path / "things.py").rename(tmp_path / "sub" / "things.py")
    (tmp_path / "options").write_text("-b 127.0.0.1:0  # any\n--workers 1 --chdir sub\n")
    server = command("serve", "@options", "near:Echo").ready()
    assert int(server.ask(b"")) in server.workers()
    assert title(server.pid) == "near master"
    server = command("serve", "sub/near.py:Echo", "-b", "127.0.0.1:0", "-w", "1").ready()
    assert int(server.ask(b"")) in server.workers()


def test_inline_serves_in_this_process(command: Callable[..., Server]) -> None:
    for thing in ("Echo", "Theirs", "work"):
        server = command("serve", f"things:{thing}", "-X", "-b", "127.0.0.1:0").ready()
        assert int(server.ask(b"")) == server.pid
        server.signal(signal.SIGINT)
        assert server.wait() == 0
        assert server.count("imported by") == 1


def test_a_daemon_is_started_and_stopped_by_its_pid_file(tmp_path: Path) -> None:
    words = ("things:Echo", "-D", "-b", f"unix:{tmp_path}/x", "-w", "2", "-p", "x.pid")
    said = ended(tmp_path, "serve", *words)
    assert said.returncode == 0, said.stderr
    pid = int((tmp_path / "x.pid").read_text())
    assert said.stdout.endswith(f"things runs, pid {pid}\n")
    assert "serves things:Echo" in (tmp_path / "things.log").read_text()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "x"))
        client.shutdown(socket.SHUT_WR)
        assert int(read_all(client)) != pid
    said = ended(tmp_path, "stop", "x.pid")
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    assert not alive(pid)
    assert not (tmp_path / "x.pid").exists()
    assert "SIGQUIT: stopping 2 workers gracefully" in (tmp_path / "things.log").read_text()


def test_who_has_closed_its_output_is_obeyed_all_the_same(tmp_path: Path) -> None:
    def silently(*words: str) -> int:
        (tmp_path / "things.py").write_text(THINGS)
        command = [sys.executable, "-W", "error", "-m", "prefork_server", *words]
        env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        shell = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh"]
        over = subprocess.run([*shell, *command], check=False, cwd=tmp_path, env=env, timeout=60)
        return over.returncode

    words = ("things:Echo", "-D", "-b", f"unix:{tmp_path}/x", "-w", "1", "-p", "x.pid")
    assert silently("serve", *words) == 0
    pid = int((tmp_path / "x.pid").read_text())
    for verb in ("reload", "status", "stop"):
        assert silently(verb, "x.pid") == 0
    assert "generation 2 serves" in (tmp_path / "things.log").read_text()
    assert not alive(pid)


# stop


def test_stop_waits_for_who_is_served_and_gives_up_when_it_is_told_to(
    command: Callable[..., Server], tmp_path: Path
) -> None:
    words = ("things:Held", "-b", "127.0.0.1:0", "-w", "1", "-p", "x.pid")
    server = command("serve", *words).ready()
    with server.connect() as client:
        assert client.recv(100) == b"held\n"
        client.sendall(b"g")
        said = ended(tmp_path, "stop", "--within", "0.3", "x.pid")
        assert said.returncode == 1
        assert said.stderr == f"prefork-server: pid {server.pid} is still there after 0.3s\n"
        assert ended(tmp_path, "stop", "--now", "x.pid").returncode == 0
    server.saw("SIGINT: stopping 1 workers now")
    assert server.wait() == 0


def test_stop_says_on_a_terminal_how_long_it_waits(
    command: Callable[..., Server], tmp_path: Path
) -> None:
    server = command("serve", "things:Echo", "-b", "127.0.0.1:0", "-w", "1", "-p", "x.pid").ready()
    ours, theirs = pty.openpty()
    try:
        stopping = subprocess.run(  # noqa: PLW1510
            [sys.executable, "-m", "prefork_server", "stop", "x.pid"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stderr=theirs,
            timeout=PATIENCE,
        )
        assert stopping.returncode == 0
        assert os.read(ours, 10000).endswith(b"pid %d has stopped   \r\n" % server.pid)
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda path: None, "x.pid: No such file or directory"),
        (lambda path: path.write_text("1\n"), "nobody holds x.pid: the server does not run"),
        (lambda path: path.symlink_to("/etc/passwd"), "x.pid: Too many levels of symbolic links"),
        (os.mkfifo, "x.pid is no pid file"),
        (lambda path: path.mkdir(), "x.pid is no pid file"),
    ],
)
def test_stop_signals_nobody_where_no_server_runs(
    tmp_path: Path, made: Callable[[Path], object], sentence: str
) -> None:
    made(tmp_path / "x.pid")
    said = ended(tmp_path, "stop", "x.pid")
    assert (said.returncode, said.stderr) == (2, f"prefork-server: {sentence}\n")


# run


PROGRAMS = {
    "wsgiref": """
        import os
        from wsgiref.simple_server import make_server
        def application(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"%d" % os.getpid()]
        with make_server("127.0.0.1", 0, application) as server:
            server.serve_forever()
            print("and on it goes", flush=True)
    """,
    "threads": """
        import os, socketserver, sys, threading
        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                assert threading.current_thread() is not threading.main_thread()
                self.rfile.readline()
                self.wfile.write(b"HTTP/1.0 200 OK\\r\\n\\r\\n%d" % os.getpid())
        server = socketserver.ThreadingTCPServer(("127.0.0.1", int(sys.argv[1])), Handler)
        server.daemon_threads = True
        with server:
            server.serve_forever(poll_interval=0.1)
        print("and on it goes", flush=True)
    """,
    "flask": """
        import os
        from flask import Flask
        app = Flask(__name__)
        @app.get("/")
        def index():
            return str(os.getpid())
        if __name__ == "__main__":
            app.run("127.0.0.1", 0)
            print("and on it goes", flush=True)
    """,
    "in a thread": """
        import os, threading
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"%d" % os.getpid())
                if self.path == "/stop":
                    os.close(WRITER)
        READER, WRITER = os.pipe()
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        os.read(0, 1)
        server.shutdown()
        thread.join()
        server.server_close()
        print("and on it goes", flush=True)
    """,
}


def program(
    start: Starter, text: str, *words: str, before: tuple[str, ...] = (), **options: Any
) -> Server:
    """``run`` it, as a file."""
    script = start.directory / f"program{len(start.servers)}.py"
    script.write_text(textwrap.dedent(text))
    return start.script(
        Path("-m"), "prefork_server", "run", *before, str(script), *words, **options
    )


@pytest.mark.parametrize("name", ["wsgiref", "threads", "flask"])
def test_a_program_that_never_heard_of_us_answers_from_several_processes(
    start: Starter, name: str
) -> None:
    if name == "flask":
        pytest.importorskip("flask")
    server = program(start, PROGRAMS[name], "0", before=("-w", "3", "--name", "theirs"))
    server.all_ready(3)
    two_answer(server, lambda: over_http(server))
    assert title(server.pid) == "theirs master"
    server.signal(signal.SIGTERM)
    server.saw("SIGTERM: stopping 3 workers gracefully")
    server.saw("^and on it goes$")
    assert server.wait() == 0


def test_the_http_server_of_the_standard_library_answers_from_several_processes(
    start: Starter,
) -> None:
    server = start.script(
        *(Path("-m"), "prefork_server", "run", "-w", "2"),
        *("-m", "http.server", "--bind", "127.0.0.1", "0"),
    ).all_ready(2)
    assert title(server.pid) == "http.server master"
    with ThreadPoolExecutor(8) as clients:
        pages = [clients.submit(over_http, server) for _ in range(64)]
    assert all(b"Directory listing for /" in page.result() for page in pages)
    server.quit()
    requests = [int(m[1]) for m in server.saw(r"reaped: .* requests=(\d+)", times=2)]
    assert sum(requests) == 64
    assert min(requests) > 0
    assert server.wait() == 0


def test_a_program_that_serves_in_a_thread_is_stopped_by_its_shutdown(start: Starter) -> None:
    reader, writer = os.pipe()
    try:
        server = program(start, PROGRAMS["in a thread"], before=("-w", "2"), stdin=reader)
        server.all_ready(2)
        two_answer(server, lambda: over_http(server))
        os.write(writer, b"!")
        server.saw("^and on it goes$")
        assert server.wait() == 0
    finally:
        os.close(reader)
        os.close(writer)


def test_a_shutdown_that_came_before_is_heard_as_ever(start: Starter) -> None:
    server = program(
        start,
        """
        import socketserver, threading
        server = socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        thread = threading.Thread(target=server.shutdown)
        thread.start()
        while not vars(server)["_BaseServer__shutdown_request"]:
            pass
        server.serve_forever()
        thread.join()
        server.server_close()
        print("over", flush=True)
        """,
    )
    server.saw("^over$")
    assert server.wait() == 0
    assert server.count("forked$") == 0


def test_a_second_server_of_a_program_is_refused(start: Starter) -> None:
    server = program(
        start,
        """
        import socketserver, threading
        class Server(socketserver.TCPServer):
            def service_actions(self):
                ready.set()
        ready = threading.Event()
        first = Server(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        second = Server(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        with first, second:
            thread = threading.Thread(target=first.serve_forever)
            thread.start()
            first.wait_ready() if hasattr(first, "wait_ready") else None
            while type(first) is Server:
                pass
            first.wait_ready(20)
            try:
                second.serve_forever()
            except RuntimeError as error:
                print("refused:", error, flush=True)
            first.shutdown()
            thread.join()
            print("over", flush=True)
        """,
        before=("-w", "1"),
    )
    server.saw("^refused: prefork-server run preforks one server of a program, and this Server is")
    server.saw("^over$")
    assert server.wait() == 0


def test_a_backlog_of_five_is_made_longer_and_one_that_was_chosen_is_kept(start: Starter) -> None:
    for extra, longer in (("", True), ("    request_queue_size = 3", False)):
        server = program(
            start,
            f"""
        import socketserver
        class Server(socketserver.TCPServer):
            settings = "its own"
        {extra}
        with Server(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
            server.serve_forever()
            print(server.settings)
            """,
            before=("-w", "1"),
        ).ready()
        (worker,) = server.workers()
        server.signal(signal.SIGSTOP, worker)
        with ExitStack() as stack:
            for _ in range(20):
                try:
                    stack.enter_context(server.connect(PATIENCE if longer else 0.2))
                except TimeoutError:
                    assert not longer
                    break
            else:
                assert longer
        server.signal(signal.SIGCONT, worker)
        server.quit()
        server.saw("^its own$")


def test_its_pid_file_its_boot_and_its_exit_codes_are_those_of_the_command(start: Starter) -> None:
    before = ("-w", "1", "-p", "x.pid")
    server = program(start, PROGRAMS["wsgiref"], before=before).ready()
    second = program(start, PROGRAMS["wsgiref"], before=before)
    second.saw(f"^prefork-server: already running: pid {server.pid} holds")
    assert second.wait() == 4
    assert "Traceback" not in second.log


SAME = {
    "words": "import sys; print(sys.argv, sys.path[0], __name__, __file__, __spec__, __package__)",
    "main": "import __main__, pickle\nclass A: pass\nprint(__main__.A is A, pickle.dumps(A()))",
    "exit 3": "import sys; sys.exit(3)",
    "exit text": "import sys; sys.exit('goodbye')",
    "exit none": "import sys; print('x'); sys.exit()",
    "error": "def f():\n    g()\ndef g():\n    raise ValueError('x')\nf()",
    "cause": "try:\n    {}['x']\nexcept KeyError as e:\n    raise ValueError('x') from e",
    "syntax": "def f(:\n    pass",
    "interrupt": "raise KeyboardInterrupt",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "hook": "import sys\nsys.excepthook = lambda *a: print('hook', a[0], a[2].tb_lineno)\n1/0",
    "atexit": "import atexit\n@atexit.register\ndef f(): print('bye', __name__, x)\nx = 1",
    "thread": "import threading, __main__\n"
    "threading.Timer(0.2, lambda: print(__main__.x)).start()\nx = 5",
    "encoding": "# -*- coding: latin-1 -*-\nprint(ascii('\xe4'))",
    "future": "def f(x: undefined) -> None: pass",
    "annotations": "from __future__ import annotations\ndef f(x: undefined): pass",
    "multiprocessing": "import multiprocessing as m\ndef f(x): return x + 1\n"
    "if __name__ == '__main__':\n"
    "    with m.get_context('spawn').Pool(1) as p: print(p.map(f, [1]))",
    "lines": "import inspect\ndef f(): pass\nprint(inspect.getsource(f))",
}


def both(directory: Path, *words: str) -> list[tuple[int, str, str]]:
    """What Python makes of them, and what ``run`` does."""
    ends = []
    for before in ([], ["-m", "prefork_server", "run"]):
        ended = subprocess.run(  # noqa: PLW1510
            [sys.executable, *before, *words],
            cwd=directory,
            env={**unmeasured(), "PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        ends.append((ended.returncode, ended.stdout, ended.stderr))
    return ends


@pytest.mark.parametrize("name", SAME)
def test_a_program_that_serves_nothing_is_as_without_us(tmp_path: Path, name: str) -> None:
    encoding = "latin-1" if name == "encoding" else "utf-8"
    (tmp_path / "program.py").write_text(SAME[name], encoding=encoding)
    without, within = both(tmp_path, "program.py", "a", "-w", "--help")
    assert within == without


def test_modules_packages_and_directories_are_as_without_us(tmp_path: Path) -> None:
    package = tmp_path / "pack" / "age"
    package.mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("value = 4")
    text = (
        "import sys; print(sys.argv, sys.path[0], __name__, __file__, __package__, __spec__.name)"
    )
    (package / "__main__.py").write_text(f"from . import value\n{text}\nprint(value)")
    (package / "part.py").write_text(f"from . import value\n{text}\nprint(value)\n1/0")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "other.py").write_text("value = 5")
    (tmp_path / "alone" / "__main__.py").write_text(f"import other; print(other.value)\n{text}")
    subprocess.run(
        [sys.executable, "-m", "zipapp", "alone", "-o", "alone.pyz"], cwd=tmp_path, check=True
    )
    for words in (
        ["-m", "pack.age", "a", "-m"],
        ["alone", "a"],
        ["alone.pyz", "a"],
    ):
        without, within = both(tmp_path, *words)
        assert within == without
        assert within[0] == 0, within
    without, within = both(tmp_path, "-m", "pack.age.part", "x")
    assert within[:2] == without[:2] == (1, without[1])
    # Python's own way to a module is in the first traceback; ours is not in the second.
    assert within[2].splitlines()[-2:] == without[2].splitlines()[-2:]
    assert "frozen" not in within[2]
    assert "prefork_server" not in within[2]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["nowhere.py"], 2, "can't open file 'nowhere.py': No such file or directory"),
        (["-m", "nowhere_at_all"], 1, "No module named nowhere_at_all"),
        (["-m", "os.nowhere"], 1, "cannot find os.nowhere"),
        (["-m"], 2, "which module?"),
        (["-w", "0", "x.py"], 2, "workers must be a whole number"),
    ],
)
def test_a_program_that_is_not_there_is_one_line(
    tmp_path: Path, words: list[str], code: int, sentence: str
) -> None:
    said = ended(tmp_path, "run", *words)
    assert said.returncode == code
    assert sentence in said.stderr
    assert said.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_workers_that_may_not_read_the_key_serve_with_it(
    command: Callable[..., Server], tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "pem")
    )
    os.chmod(tmp_path / "pem", 0o600)
    os.chmod(tmp_path, 0o755)
    (tmp_path / "whoami.py").write_text(
        "import os\n"
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [str(os.geteuid()).encode()]\n"
    )
    # Preloaded, since the interpreter itself may be where nobody else can read.
    words = ("serve", "whoami.py", "--preload", "-b", "127.0.0.1:0", "-w", "1", "-u", "nobody")
    server = command(*words, "--certfile", "pem").ready()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    nobody = pwd.getpwnam("nobody").pw_uid

    def answer() -> bytes:
        with (
            server.connect() as plain,
            context.wrap_socket(plain, server_hostname="localhost") as client,
        ):
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return read_all(client)

    assert b"%d" % nobody in answer().partition(b"\r\n\r\n")[2]
    (tmp_path / "pem").write_text("no certificate any more")
    server.expect_error("renew failed", "Traceback")
    server.signal(signal.SIGHUP)
    server.saw("renew failed")
    server.saw("generation 2 serves")
    assert b"%d" % nobody in answer()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_child_that_looks_at_the_target_is_the_workers_user() -> None:
    class Who(Recipe):
        def __str__(self) -> str:
            return f"{os.getresuid()}"

    who = Who("who", "work", None, None, {})
    told = _ask_a_child(lambda: who, Settings(user="nobody"))
    assert told["words"] == str((pwd.getpwnam("nobody").pw_uid,) * 3)


def test_preloaded_code_is_said_to_stay_at_a_reload(
    command: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "once.py").write_text(
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [b'hello']\n"
    )
    server = command("serve", "once.py", "--preload", "-w", "1", "-b", "127.0.0.1:0").ready()
    server.signal(signal.SIGHUP)
    server.saw(r"imported once \(--preload\), and stays as it is")
    server.saw("generation 2 serves")
