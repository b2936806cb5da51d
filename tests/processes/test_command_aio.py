"""``prefork-server serve`` of what is for an event loop, from outside, under each of them."""

import os
import re
import signal
import socket
import textwrap
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.certificates import make_certificate
from tests.conftest import Server, Starter, eventually, read_all
from tests.processes.test_command import ended, two_answer

LOOPS = [
    "asyncio",
    pytest.param(
        "uvloop", marks=pytest.mark.skipif(not find_spec("uvloop"), reason="there is no uvloop")
    ),
]
THINGS = """
    import asyncio, os, time
    from prefork_server.aio import PreforkAsyncioServer

    def loop():
        return type(asyncio.get_running_loop()).__module__

    async def talk(reader, writer):
        while word := await reader.read(100):
            if word == b"hang":
                time.sleep(1000)
            writer.write(f"{os.getpid()} {loop()}".encode())
        writer.close()

    def plain(reader, writer):
        return talk(reader, writer)

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport
        def data_received(self, data):
            self.transport.write(f"{os.getpid()} {loop()}".encode())
        def eof_received(self):
            self.transport.close()

    class Packets(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport
        def datagram_received(self, data, address):
            self.transport.sendto(f"{os.getpid()} {loop()}".encode(), address)

    class Ours(PreforkAsyncioServer):
        def __init__(self, addresses, **keywords):
            super().__init__(addresses, talk, **keywords)
        async def after_fork(self, master):
            await asyncio.sleep(0)
            os.write(1, b"after_fork in worker %d\\n" % master.slot)

    def made():
        return talk
"""


@pytest.fixture(params=LOOPS)
def serve(start: Starter, request: pytest.FixtureRequest) -> Callable[..., Server]:
    (start.directory / "talks.py").write_text(textwrap.dedent(THINGS))

    def run(*words: str) -> Server:
        loop = ("--loop", request.param)
        return start.script(Path("-m"), "prefork_server", "serve", *words, *loop)

    run.loop = request.param  # type: ignore[attr-defined]
    return run


def spoken_by(serve: Callable[..., Server], answer: bytes) -> int:
    """The pid in it, and that it comes from a loop of the kind that was asked for."""
    pid, module = answer.decode().split()
    assert module.startswith(serve.loop)  # type: ignore[attr-defined]
    return int(pid)


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        ("talk", "an asyncio callback, by PreforkAsyncioServer, in loops of {}"),
        ("made()", "an asyncio callback, by PreforkAsyncioServer, in loops of {}"),
        ("plain --as asyncio", "an asyncio callback, by PreforkAsyncioServer, in loops of {}"),
        ("Protocol", "an asyncio protocol, by PreforkAsyncioServer, in loops of {}"),
        ("Ours", "a server class"),
    ],
)
def test_each_kind_of_thing_answers_on_each_kind_of_address(
    serve: Callable[..., Server], thing: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "talk.sock"
    server = serve(
        *f"talks:{thing} -b 127.0.0.1:0 -b unix:{path} -w 2 --worker-connections 50".split()
    ).all_ready(2)
    name = thing.split()[0]
    server.saw(re.escape(f"serves talks:{name}, {words.format(serve.loop)}") + "$")  # type: ignore[attr-defined]
    two_answer(server, lambda: b"%d" % spoken_by(serve, server.ask(b"who?")))
    with ExitStack() as stack:
        pids = Counter[int]()
        for _ in range(20):
            client = stack.enter_context(server.connect())
            client.sendall(b"who?")
            pids[spoken_by(serve, client.recv(100))] += 1
        assert set(pids) == set(server.workers()) and max(pids.values()) <= 15, pids
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(b"who?")
        client.shutdown(socket.SHUT_WR)
        assert spoken_by(serve, read_all(client)) in server.workers()
    if thing == "Ours":
        server.saw("after_fork in worker", times=2)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0 and not path.exists()


@pytest.mark.parametrize("address", ["udp:127.0.0.1:0", "127.0.0.1:0"])
def test_datagrams_are_for_a_protocol_of_theirs(serve: Callable[..., Server], address: str) -> None:
    server = serve("talks:Packets", "-b", address, "-w", "2").all_ready(2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.connect(server.address)
        client.send(b"who?")
        assert spoken_by(serve, client.recv(100)) in server.workers()
    assert server.quit() == 0


def test_a_socket_that_we_were_started_with_is_served(start: Starter) -> None:
    (start.directory / "talks.py").write_text(textwrap.dedent(THINGS))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = os.dup(listener.fileno())
        os.set_inheritable(fd, True)
        server = start.script(
            *(Path("-m"), "prefork_server", "serve", "talks:talk", "-b", f"fd://{fd}", "-w", "1"),
            pass_fds=[fd],
        ).ready()
        os.close(fd)
        assert server.ask(b"who?").startswith(b"%d " % server.workers()[0])
        assert server.quit() == 0


def test_tls_is_spoken_with_the_files_of_the_command(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    trusting = make_certificate(tmp_path)
    server = serve(
        *["talks:talk", "-b", "127.0.0.1:0", "-w", "1", "--certfile", "server.pem"]
    ).ready()
    with trusting.wrap_socket(server.connect(), server_hostname="localhost") as client:
        client.sendall(b"who?")
        assert spoken_by(serve, client.recv(100)) == server.workers()[0]
    assert server.quit() == 0


def test_a_callback_that_stops_its_loop_is_found_and_hup_brings_new_code(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(*["talks:talk", "-b", "127.0.0.1:0", "-w", "1", "-t", "0.5"]).ready()
    server.expect_error("silent for more than 0.5s", "killed by SIGKILL")
    assert server.ask(b"hang") == b""
    server.saw(r"silent for more than 0.5s at .*talks\.py:\d+ in talk, killing")
    server.saw("forked", times=2)
    text = (tmp_path / "talks.py").read_text()
    (tmp_path / "talks.py").write_text(text.replace('f"{os.getpid()}', 'f"new'))
    server.signal(signal.SIGHUP)
    server.saw("generation 2 serves")
    eventually(lambda: server.ask(b"who?").startswith(b"new "))
    assert server.quit() == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("talks:talk -b udp:127.0.0.1:0", "wants streams, and an address is for udp:"),
        ("talks:talk --threads 4", "threads=4 is for servers .* coroutines share their loop"),
        ("talks:talk --client-timeout 4", "client_timeout is for handlers that block"),
        ("talks:talk --worker-connections 0", "worker_connections must be a whole number"),
        ("things:Echo --loop asyncio", "--loop is nothing for PreforkTCPServer"),
        ("things:work --threads 2", "threads=2 is for servers .* a work function does by itself"),
        ("things:Echo --threads 100", "threads must be a whole number, 1 to 99, not 100"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_bound(
    tmp_path: Path, words: str, sentence: str
) -> None:
    (tmp_path / "talks.py").write_text(textwrap.dedent(THINGS))
    done = ended(tmp_path, "serve", *words.split())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert re.search(sentence, done.stderr), done.stderr


def test_without_uvloop_to_ask_for_it_is_misuse(tmp_path: Path) -> None:
    (tmp_path / "talks.py").write_text(
        "import sys\nsys.modules['uvloop'] = None\n" + textwrap.dedent(THINGS)
    )
    done = ended(tmp_path, "serve", "talks:talk", "--loop", "uvloop")
    assert done.returncode == 2 and "uvloop" in done.stderr, done.stderr


def test_threads_are_an_option_of_the_command_too(start: Starter) -> None:
    (start.directory / "names.py").write_text(
        textwrap.dedent("""
        import threading

        def application(environ, start_response):
            start_response("200 OK", [])
            return [f"{environ['wsgi.multithread']} {threading.current_thread().name}".encode()]
        """)
    )
    words = "serve names:application -b 127.0.0.1:0 -w 1 --threads 4"
    server = start.script(Path("-m"), "prefork_server", *words.split()).ready()
    assert server.ask(b"GET / HTTP/1.0\r\n\r\n").endswith(b"True worker 1 thread 4")
    assert server.quit() == 0
