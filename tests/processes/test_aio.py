"""Servers whose workers run a loop: the same promises, under asyncio's and under uvloop's."""

import os
import re
import resource
import signal
import socket
import ssl
import struct
import sys
import textwrap
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
import trustme

from prefork_server import BindError, ConfigError
from prefork_server.aio import PreforkAsyncioServer
from prefork_server.aio.turns import Shares
from prefork_server.testing import serving
from tests.conftest import (
    PATIENCE,
    Server,
    Starter,
    alive,
    eventually,
    open_files,
    read_all,
    soak,
    title,
)
from tests.hammer import Hammer

LOOPS = [
    "asyncio",
    pytest.param(
        "uvloop", marks=pytest.mark.skipif(not find_spec("uvloop"), reason="there is no uvloop")
    ),
]

AIO = """\
import asyncio
from prefork_server.aio import *
LOOP = sys.argv[1]

async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def who(reader, writer):
    while await reader.read(100):
        writer.write(b"%d" % os.getpid())
    writer.close()

def leave_early():
    # Long before graceful_timeout is over, which a slow machine may reach on the way: of 100 s,
    # what goes on is cancelled after 0.5 s, and the worker is to be gone after 1 s.
    put("aio.life._CANCEL", 0.005)
    put("aio.life._LEAVE", 0.01)
    put("aio.life._CANCEL_BEFORE", 100)
    put("aio.life._LEAVE_BEFORE", 100)

def run(callback=None, address="127.0.0.1:0", **keywords):
    keywords = {"loop": LOOP, "workers": 1, **keywords}
    with PreforkAsyncioServer(address, callback, **keywords) as server:
        server.serve_forever()
"""


class Aio:
    """Starts programs that run this loop."""

    def __init__(self, start: Starter, loop: str) -> None:
        self._start = start
        self.loop = loop

    def __call__(self, program: str, *args: str) -> Server:
        return self._start(AIO + textwrap.dedent(program), self.loop, *args)


@pytest.fixture(params=LOOPS)
def aio(start: Starter, request: pytest.FixtureRequest) -> Aio:
    return Aio(start, request.param)


def ask(client: socket.socket, word: bytes = b"?") -> bytes:
    client.sendall(word)
    return client.recv(65536)


def all_answering(server: Server, workers: int) -> Server:
    """Wait until so many accept, which is a moment after they are ready."""
    seen: set[bytes] = set()

    def answer() -> bool:
        seen.add(server.ask())
        return len(seen) == workers

    eventually(answer)
    return server


# Which loop, and where


def test_the_loop_is_made_in_each_worker_and_named_once_in_the_log(aio: Aio) -> None:
    server = aio("""
    def told(make):
        def make_and_tell(*args):
            print("made in", os.getpid())
            return make(*args)
        return make_and_tell
    asyncio.SelectorEventLoop = told(asyncio.SelectorEventLoop)
    if LOOP == "uvloop":
        import uvloop
        uvloop.new_event_loop = told(uvloop.new_event_loop)

    async def kind(reader, writer):
        writer.write(type(asyncio.get_running_loop()).__module__.encode())
        writer.close()

    run(kind, workers=2)
    """).all_ready(2)
    made = {int(m[1]) for m in server.saw(r"made in (\d+)", times=2)}
    assert made == set(server.workers())
    said = server.ask(b"")
    assert said == (b"uvloop" if aio.loop == "uvloop" else b"asyncio.unix_events")
    assert server.quit() == 0
    assert len(server.saw(rf"the loop of each worker: {aio.loop}$")) == 1


def test_without_uvloop_auto_is_asyncio_and_says_so(start: Starter) -> None:
    server = start(
        "sys.modules['uvloop'] = None\n" + AIO + "run(echo, loop='auto')", "auto"
    ).ready()
    server.saw("the loop of each worker: asyncio, since there is no uvloop")
    assert server.ask(b"hello") == b"hello"


def test_uvloop_is_refused_by_name_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with pytest.raises(ConfigError, match="loop='uvloop', and it cannot be imported"):
        PreforkAsyncioServer("127.0.0.1:0", print, loop="uvloop")


def test_it_is_refused_where_a_loop_runs_in_words(aio: Aio) -> None:
    server = aio("""
    async def main():
        server = PreforkAsyncioServer("127.0.0.1:0", echo, loop=LOOP)
        with server:
            for call in (server.serve_forever, server.start, lambda: run_asyncio(None)):
                try:
                    call()
                except RuntimeError as error:
                    print(error)
    asyncio.run(main())
    """)
    assert server.wait() == 0
    for name in ("serve_forever", "start", "run_asyncio"):
        assert re.search(rf"{name}\(\) forks.*no place for it in a running loop", server.log)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"loop": "trio"}, "loop must be 'auto', 'asyncio' or 'uvloop', not 'trio'"),
        ({"worker_connections": 0}, "worker_connections must be a whole number, 1 or more, not 0"),
        ({"limit": "64k"}, "limit must be a whole number, 1 or more, not '64k'"),
        ({"workrs": 2}, "no setting workrs: did you mean workers"),
        ({"client_timeout": 3}, "client_timeout is for handlers that block"),
        ({"protocol_factory": print}, "client_connected_cb or protocol_factory, one of them"),
        ({"ssl_context": "pem"}, "ssl_context must be an ssl.SSLContext, not 'pem'"),
        ({"ssl_context": ssl.create_default_context()}, "ssl_context must be for a server"),
        ({"ssl_handshake_timeout": 0}, "ssl_handshake_timeout must be .* above 0, not 0"),
        ({"addresses": "udp:127.0.0.1:0"}, "127.0.0.1:0 takes datagrams: it needs"),
        ({"addresses": []}, "at least one address"),
        ({"addresses": ["udp:127.0.0.1"]}, "write host:port"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_bound(
    keywords: dict[str, object], words: str
) -> None:
    usual = {"addresses": "127.0.0.1:0", "client_connected_cb": print}
    with pytest.raises(ConfigError, match=words):
        PreforkAsyncioServer(**{**usual, **keywords})  # type: ignore[arg-type]


def test_an_address_that_cannot_be_had_frees_the_others(tmp_path: Path) -> None:
    path = tmp_path / "first.sock"
    with pytest.raises(BindError, match="nowhere/second"):
        PreforkAsyncioServer([path, tmp_path / "nowhere" / "second.sock"], print)
    assert not path.exists()


# Sharing


@pytest.mark.parametrize("burst", [False, True], ids=["one-by-one", "all-at-once"])
def test_held_connections_are_spread_evenly(aio: Aio, burst: bool) -> None:
    server = all_answering(aio("run(who, workers=4)").all_ready(4), 4)
    with ExitStack() as stack:
        clients = []
        for _ in range(100):
            clients.append(stack.enter_context(server.connect()))
            if not burst:
                ask(clients[-1])
        shares = Counter(ask(client) for client in clients)
    print(f"{aio.loop}: {sorted(shares.values())}")
    assert len(shares) == 4
    assert max(shares.values()) <= 3 * min(shares.values()), shares


def test_a_share_is_the_mean_of_those_who_are_there_and_three_more() -> None:
    shares = Shares(4)
    assert shares.fair() == 0
    shares.words[1], shares.words[2], shares.words[3] = 1 + 10, 1 + 0, 0  # 3 is dead
    assert shares.fair() == 5 + 3
    shares.words[7] = 1 + 20
    assert shares.fair() == 10 + 3


def test_a_worker_that_was_killed_has_its_share_again(aio: Aio) -> None:
    server = all_answering(aio("run(who, workers=2)").all_ready(2), 2)
    server.expect_error("killed by SIGKILL, not by us")
    with ExitStack() as stack:
        for _ in range(40):
            ask(stack.enter_context(server.connect()))
        before = server.workers()
        victim = before[0]
        server.signal(signal.SIGKILL, victim)
        server.saw("forked", times=3)
        eventually(lambda: victim not in server.workers())
        all_answering(server.all_ready(2), 2)
        # The other has 20 by now, and the new one nobody.
        shares = Counter(ask(stack.enter_context(server.connect())) for _ in range(20))
        (other,) = set(server.workers()) & set(before)
    assert shares[b"%d" % other] <= 10, shares


def test_a_full_worker_leaves_the_next_one_to_its_sibling_or_in_the_queue(aio: Aio) -> None:
    server = all_answering(aio("run(who, workers=2, worker_connections=2)").all_ready(2), 2)
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(4)]
        shares = Counter(ask(client) for client in clients)
        assert sorted(shares.values()) == [2, 2]
        fifth = stack.enter_context(server.connect())
        fifth.sendall(b"?")
        fifth.settimeout(0.3)
        with pytest.raises(TimeoutError):
            fifth.recv(100)
        fifth.settimeout(PATIENCE)
        left = ask(clients[0])
        clients[0].close()
        assert fifth.recv(100) == left


def test_without_descriptors_accepting_pauses_and_comes_back(aio: Aio) -> None:
    server = aio("run(who)").all_ready(1)
    (worker,) = server.workers()
    with server.connect() as first:
        ask(first)
        lowest_free = min(set(range(100)) - open_files(worker))
        soft, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (lowest_free, hard))
        with server.connect() as waiting:
            waiting.sendall(b"?")
            server.saw("accept: Too many open files, trying again in")
            assert ask(first)  # whoever is inside is served meanwhile
            resource.prlimit(worker, resource.RLIMIT_NOFILE, (soft, hard))
            assert waiting.recv(100) == b"%d" % worker


def test_small_answers_do_not_wait_for_acknowledgements(aio: Aio) -> None:
    server = aio("""
    async def told(reader, writer):
        sock = writer.get_extra_info("socket")
        writer.write(b"%d" % sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()
    run(told)
    """).ready()
    assert server.ask(b"") != b"0"


# Endings of a connection

ENDINGS = textwrap.dedent("""
    async def fated(reader, writer):
        word = await reader.read(100)
        match word:
            case b"raise":
                raise ValueError("of my own")
            case b"cancel":
                asyncio.current_task().cancel()
                await asyncio.sleep(1)
            case b"abort":
                writer.transport.abort()
            case b"read":
                await reader.readexactly(1000)
            case b"flood":
                while True:
                    writer.write(bytes(1 << 20))
                    await writer.drain()
            case b"exit":
                sys.exit()
            case _:
                writer.write(word)
                writer.close()
""")


@pytest.mark.parametrize("word", ["raise", "cancel", "abort", "read", "flood", "echo"])
def test_each_ending_of_a_connection_frees_its_place_and_no_other(aio: Aio, word: str) -> None:
    server = aio(ENDINGS + "run(fated, worker_connections=3)").all_ready(1)
    if word == "raise":
        server.expect_error("client_connected_cb failed for 127.0.0.1:", "^Traceback")
    with server.connect() as other:
        for _ in range(7):  # more than there are places
            client = server.connect()
            port = client.getsockname()[1]
            client.sendall(word.encode())
            if word in ("read", "flood"):  # the client resets the connection
                if word == "flood":
                    client.recv(1)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            else:
                with client:
                    try:
                        assert read_all(client) == (b"echo" if word == "echo" else b"")
                    except ConnectionResetError:
                        assert word == "abort"
            if word == "raise":
                server.saw(f"client_connected_cb failed for 127.0.0.1:{port}")
        assert ask(other, b"still here") == b"still here"
    (worker,) = server.workers()
    eventually(lambda: " idle" in title(worker))
    assert server.quit() == 0
    assert server.count("client_connected_cb failed") == (7 if word == "raise" else 0)
    assert "never retrieved" not in server.log and server.count("exit code 0") == 1


def test_a_system_exit_closes_the_connection_and_asks_for_a_new_worker(aio: Aio) -> None:
    server = aio(ENDINGS + "run(fated)").all_ready(1)
    before = server.workers()
    with server.connect() as other:
        assert server.ask(b"exit") == b""
        server.saw("reaped: exit code 0|retiring")
        assert ask(other, b"I am served still") == b"I am served still"
    eventually(lambda: server.workers() and before[0] not in server.workers())
    assert server.ask(b"hello") == b"hello"


def test_a_plain_function_may_keep_the_writer(aio: Aio) -> None:
    server = aio("""
    kept = []
    def keep(reader, writer):
        kept.append(writer)
        asyncio.get_running_loop().call_later(0.1, write)
    def write():
        writer = kept.pop()
        writer.write(b"later")
        writer.close()
    run(keep)
    """).ready()
    with server.connect() as client:
        assert read_all(client) == b"later"


# Protocols, datagrams, paths, TLS

PROTOCOL = textwrap.dedent("""
    class Upper(asyncio.Protocol, asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport
        def data_received(self, data):
            if data == b"raise":
                raise ValueError("of my own")
            self.transport.write(data.upper())
        def datagram_received(self, data, peer):
            self.transport.sendto(data.upper(), peer)
        def connection_lost(self, error):
            print("lost:", error)
""")


def test_a_protocol_that_raises_costs_its_connection_and_one_log_line(aio: Aio) -> None:
    server = aio(PROTOCOL + "run(protocol_factory=Upper)").ready()
    server.expect_error(r"ERROR .* for 127.0.0.1:\d+", "^Traceback")
    with server.connect() as other, server.connect() as client:
        port = client.getsockname()[1]
        assert ask(other, b"one") == b"ONE"
        client.sendall(b"raise")
        assert read_all(client) == b""
        server.saw(f"ERROR .* for 127.0.0.1:{port}$")  # each loop has words of its own
        assert ask(other, b"two") == b"TWO"
    server.saw("lost: (None|of my own)", times=2)
    assert server.quit() == 0
    assert server.count("ValueError: of my own") == 1


def test_a_factory_that_raises_closes_each_connection(aio: Aio) -> None:
    server = aio("""
    def factory():
        raise ValueError("of my own")
    run(protocol_factory=factory, worker_connections=1)
    """).ready()
    server.expect_error("protocol_factory failed for 127.0.0.1:", "^Traceback")
    for _ in range(3):
        with server.connect() as client:
            assert read_all(client) == b""
    server.saw("protocol_factory failed for", times=3)


def test_streams_and_datagrams_are_served_by_one_server(aio: Aio, tmp_path: Path) -> None:
    server = aio(
        PROTOCOL
        + """
run(None, ["127.0.0.1:0", "unix:door.sock", "udp:127.0.0.1:0", "unixgram:gram.sock"],
    protocol_factory=Upper, workers=2)
"""
    ).all_ready(2)
    where = server.saw(r"ready, listening on (.*)")[0][1].split(", ")
    with server.connect() as client:
        assert ask(client, b"tcp") == b"TCP"
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(PATIENCE)
        client.connect(str(tmp_path / "door.sock"))
        assert ask(client, b"unix") == b"UNIX"
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", int(where[2].rpartition(":")[2])))
        for _ in range(20):
            assert ask(client, b"udp") == b"UDP"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as client:
        client.settimeout(PATIENCE)
        client.bind(str(tmp_path / "client.sock"))
        client.connect(str(tmp_path / "gram.sock"))
        for _ in range(20):
            assert ask(client, b"gram") == b"GRAM"
    assert server.quit() == 0
    assert not (tmp_path / "door.sock").exists() and not (tmp_path / "gram.sock").exists()


def test_datagrams_that_were_queued_are_served_when_the_stop_comes(aio: Aio) -> None:
    server = aio("""
class Slow(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport
    def datagram_received(self, data, peer):
        time.sleep(0.01)
        self.transport.sendto(data, peer)
run(None, "udp:127.0.0.1:0", protocol_factory=Slow, max_requests=5)
""").ready()
    where = server.saw(r"ready, listening on (.*)")[0][1]
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", int(where.rpartition(":")[2])))
        for number in range(100):
            client.send(b"%d" % number)
        server.signal(signal.SIGQUIT)
        assert [client.recv(100) for _ in range(100)] == [b"%d" % n for n in range(100)]
    assert server.wait() == 0
    assert server.count("forked") == 1  # they are not counted


def test_whatever_a_callback_raises_closes_its_connection(aio: Aio) -> None:
    server = aio("""
    class Odd(BaseException):
        pass
    async def odd(reader, writer):
        await reader.read(1)
        raise Odd("not an Exception")
    run(odd, worker_connections=1)
    """).ready()
    server.expect_error("client_connected_cb failed for 127.0.0.1:", "^Traceback")
    for _ in range(3):
        assert server.ask() == b""
    server.saw("Odd: not an Exception", times=3)


def test_a_callback_that_stops_the_loop_costs_its_worker_and_is_told(aio: Aio) -> None:
    server = aio("""
    async def stop(reader, writer):
        asyncio.get_running_loop().stop()
    run(stop)
    """).ready()
    server.expect_error("")
    with suppress(ConnectionResetError):
        assert server.ask() == b""
    server.saw("RuntimeError: Event loop stopped before Future completed")
    server.saw("worker=1 .* forked", times=2)


@pytest.mark.parametrize("when", ["before it is ready", "after"])
@pytest.mark.parametrize("what", ["task", "generator"])
def test_what_does_not_end_at_the_end_does_not_keep_a_worker_whose_main_has_failed(
    aio: Aio, what: str, when: str
) -> None:
    server = aio(f"""
    async def stubborn():
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass
    async def generator():
        try:
            yield 1
        finally:
            await stubborn()
    async def fail(master):
        if {what!r} == "task":
            tasks = await master.exit_stack.enter_async_context(asyncio.TaskGroup())
            tasks.create_task(stubborn())
        else:
            global kept
            kept = generator()
            await anext(kept)
        await asyncio.sleep(0)
        raise RuntimeError("lost the database")
    if {when!r} == "after":
        run_asyncio(fail, workers=1, loop=LOOP, graceful_timeout=1, pid_path=None)
    else:
        run(who, after_fork=fail, graceful_timeout=1)
    """)
    server.expect_error(".*")
    server.saw("RuntimeError: lost the database")
    if when == "after":
        server.saw("worker=1 .* forked", times=2)
        server.signal(signal.SIGTERM)
    server.wait()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def test_tls_and_who_does_not_speak_it(aio: Aio, authority: trustme.CA, tmp_path: Path) -> None:
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "server.pem"
    )
    server = aio("""
    import ssl
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("server.pem")
    run(echo, ssl_context=context, ssl_handshake_timeout=1, worker_connections=3)
    """).ready()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    def securely() -> ssl.SSLSocket:
        return trusting.wrap_socket(server.connect(), server_hostname="localhost")

    with server.connect() as silent, securely() as client:
        assert ask(client, b"hello") == b"hello"
        for _ in range(3):
            with server.connect() as plain:
                plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
                with suppress(ConnectionResetError):  # it left what we said unread
                    assert not read_all(plain).startswith(b"GET")
        assert read_all(silent) == b""  # after a second
        assert ask(client, b"still") == b"still"
    with securely() as client:
        assert ask(client, b"again") == b"again"


# A loop that hangs


@pytest.mark.parametrize(
    ("hang", "tasks_too"),
    [
        ("time.sleep(1000)", True),
        ("while True: pass", True),
        ("sum(range(10**11))", False),  # C that never looks back
    ],
    ids=["sleep", "spin", "C"],
)
def test_a_coroutine_that_stops_the_loop_is_found_with_its_line(
    aio: Aio, hang: str, tasks_too: bool, tmp_path: Path
) -> None:
    server = aio(f"""
    async def wait_for_word(reader):
        return await reader.read(100)
    async def hang(reader, writer):
        if await wait_for_word(reader) == b"hang":
            {hang}
        writer.write(b"%d" % os.getpid())
        writer.close()
    run(hang, timeout=1, workers=1)
    """).all_ready(1)
    server.expect_error(r"silent for more than 1s at .*app0.py:\d+ in hang, killing", "SIGKILL")
    with server.connect() as waiting:  # accepted before, since it is the first in the queue
        (old,) = server.workers()
        with server.connect() as client:
            client.sendall(b"hang")
            assert read_all(client) == b""
        assert server.ask(b"who") != b"%d" % old
        assert read_all(waiting) == b""
    text = (tmp_path / "app0.py").read_text().splitlines()
    line = next(n for n, words in enumerate(text, 1) if hang in words)
    server.saw(rf"silent for more than 1s at .*app0.py:{line} in hang, killing")
    if tasks_too:
        server.saw(r"\d other tasks \(most recent call first\)")
        server.saw(r"line \d+ in wait_for_word")


def test_a_worker_that_waits_is_not_killed(aio: Aio) -> None:
    server = aio("""
    async def slow(reader, writer):
        await asyncio.sleep(1.5)
        writer.write(b"%d" % os.getpid())
        writer.close()
    run(slow, timeout=0.5)
    """).all_ready(1)
    (worker,) = server.workers()
    assert server.ask(b"") == b"%d" % worker


# Stops


def test_who_waits_in_the_queue_of_a_full_worker_is_served_at_a_stop(aio: Aio) -> None:
    server = aio("run(echo, worker_connections=1)").all_ready(1)
    clients = [server.connect() for _ in range(5)]
    assert ask(clients[0]) == b"?"
    server.signal(signal.SIGQUIT)
    server.saw("SIGQUIT: stopping 1 workers gracefully")
    for client in clients:
        with client:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"hello"
    assert server.wait() == 0


@pytest.mark.parametrize("address", ["127.0.0.1:0", "unix:stop.sock"])
def test_a_stop_under_fire_loses_nobody(aio: Aio, address: str, tmp_path: Path) -> None:
    server = aio(f"run(echo, {address!r}, workers=4)").all_ready(4)
    where = str(tmp_path / "stop.sock") if address.startswith("unix") else server.address
    with Hammer(where, 16) as hammer:
        hammer.ended("served", 300)
        server.signal(signal.SIGQUIT)
        assert server.wait() == 0
        hammer.ended("refused", 16)
    print(aio.loop, hammer.counts)
    assert hammer.counts["lost"] <= (0 if address.startswith("unix") or filtering() else 1)


def filtering() -> bool:
    """Whether the kernel lets us attach a filter to a socket."""
    with closing(socket.socket()) as sock:
        from prefork_server.listeners import Listener

        return Listener(sock)._attach(struct.pack("HBBI", 0x06, 0, 0, 0xFFFFFFFF))


def test_workers_that_retire_under_fire_lose_nobody(aio: Aio) -> None:
    server = aio("run(echo, workers=4)").all_ready(4)
    with Hammer(server.address, 8) as hammer:
        for wave in range(3):
            hammer.ended("served", 100 * (wave + 1))
            server.signal(signal.SIGTTOU)
            server.saw("no longer wanted, retiring", times=wave + 1)
            server.signal(signal.SIGTTIN)
            server.saw("forked", times=5 + wave)  # the one that retires may be there still
        hammer.ended("served", hammer.counts["served"] + 100)
    assert hammer.counts.keys() == {"served"}, hammer.counts


def test_a_callback_that_goes_on_is_cancelled_in_time_and_the_stack_closed(aio: Aio) -> None:
    server = aio("""
    async def after_fork(master):
        master.exit_stack.callback(print, "the stack is closed")
        await asyncio.sleep(0)
    async def endless(reader, writer):
        try:
            writer.write(b"begun")
            await asyncio.sleep(1000)
        finally:
            writer.write(b" and ended")
            await asyncio.sleep(0.05)
            print("put its things away")
    leave_early()
    run(endless, after_fork=after_fork, graceful_timeout=100)
    """).all_ready(1)
    with server.connect() as client:
        assert client.recv(5) == b"begun"
        began = time.monotonic()
        server.signal(signal.SIGQUIT)
        assert read_all(client) == b" and ended"
        assert time.monotonic() - began > 0.4
    assert server.wait() == 0
    server.saw("cancelling 1 callbacks that go on")
    assert server.lines.index("put its things away") < server.lines.index("the stack is closed")
    assert server.count("reaped: exit code 0") == 1


def test_one_that_will_not_be_cancelled_does_not_keep_the_worker(aio: Aio) -> None:
    server = aio("""
    async def deaf(reader, writer):
        writer.write(b"begun")
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                pass
    async def after_fork(master):
        master.exit_stack.callback(print, "the stack is closed")
    leave_early()
    run(deaf, after_fork=after_fork, graceful_timeout=100)
    """).all_ready(1)
    with server.connect() as client:
        assert client.recv(5) == b"begun"
        assert server.quit() == 0
    server.saw("the stack is closed")
    assert server.count("reaped: exit code 0") == 1


def test_a_stack_that_does_not_close_is_given_up(aio: Aio) -> None:
    server = aio("""
    async def after_fork(master):
        master.exit_stack.push_async_callback(asyncio.sleep, 1000)
    leave_early()
    run(echo, after_fork=after_fork, graceful_timeout=100)
    """).all_ready(1)
    assert server.quit() == 0
    server.saw("exit_stack was not closed in time")
    assert server.count("reaped: exit code 0") == 1


def test_whoever_looks_ends_at_once_at_a_stop(aio: Aio) -> None:
    server = aio("""
    async def polite(reader, writer):
        master = current_master()
        writer.write(b"%d%d" % (master.wants_me_alive(), master.is_over()))
        await master.wait_retired()
        writer.write(b"%d%d" % (master.wants_me_alive(), master.is_over()))
        writer.close()
    run(polite, graceful_timeout=60)
    """).all_ready(1)
    with server.connect() as client:
        assert client.recv(2) == b"10"
        server.signal(signal.SIGQUIT)
        assert read_all(client) == b"01"
    assert server.wait() == 0


def test_term_does_not_wait(aio: Aio) -> None:
    server = aio("run(echo, graceful_timeout=60)").all_ready(1)
    with server.connect() as client:
        ask(client)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert server.count("reaped: killed by SIGTERM") == 1


def test_a_worker_follows_a_killed_master(aio: Aio) -> None:
    server = aio("run(echo, graceful_timeout=1)").all_ready(1)
    with server.connect() as client:
        ask(client)
        server.signal(signal.SIGKILL)
        assert not server.anyone_left(within=5)


def test_shutdown_in_a_callback_stops_the_server(aio: Aio) -> None:
    server = aio("""
    async def stop(reader, writer):
        server.shutdown()
        writer.write(b"stopping")
        writer.close()
    server = PreforkAsyncioServer("127.0.0.1:0", stop, loop=LOOP, workers=2)
    server.serve_forever()
    """).all_ready(2)
    with server.connect() as client:
        assert read_all(client) == b"stopping"
    assert server.wait() == 0


# Hooks and the handle


def test_after_fork_is_awaited_before_the_worker_is_ready_and_in_the_task_that_ends_it(
    aio: Aio,
) -> None:
    server = aio("""
    class Mine(PreforkAsyncioServer):
        def before_fork(self):
            print("before_fork in", os.getpid())
        async def after_fork(self, master):
            assert master is current_master() and isinstance(master, AsyncMasterHandle)
            await asyncio.sleep(0.3)
            self.group = await master.exit_stack.enter_async_context(asyncio.TaskGroup())
            self.group.create_task(self.tick(master))
            print("prepared")
        async def tick(self, master):
            await master.wait_retired()
            print("the task of the group has ended")
        def ready(self, addresses):
            print("ready hook", addresses)
    with Mine("127.0.0.1:0", echo, loop=LOOP, workers=1) as server:
        print(server.addresses)
        server.serve_forever()
    """).ready()
    assert server.ask(b"hello") == b"hello"
    assert server.quit() == 0
    words = ("before_fork in", "prepared", "ready hook", "the task of")
    order = [server.lines.index(server.saw(word)[0].string) for word in words]
    assert order == sorted(order)


def test_an_after_fork_that_raises_is_told_by_the_boot_error(aio: Aio) -> None:
    server = aio("""
    async def after_fork(master):
        master.exit_stack.callback(print, "put away")
        await asyncio.sleep(0)
        raise LookupError("no database")
    try:
        run(echo, after_fork=after_fork)
    except BootError as error:
        print("told:", error)
        assert "in after_fork" in error.report
    """)
    server.expect_error("reaped before it was ready", "^Traceback")
    assert server.wait() == 0
    server.saw("told: no worker of the first generation could boot.*LookupError: no database")
    server.saw("put away")


def test_what_would_stop_the_loop_is_refused_by_the_handle(aio: Aio) -> None:
    server = aio("""
    async def block(reader, writer):
        for call in (lambda: current_master().wait(1), current_master().connections):
            try:
                call()
            except RuntimeError as error:
                writer.write(str(error).encode() + b"\\n")
        writer.close()
    run(block)
    """).ready()
    with server.connect() as client:
        first, second = read_all(client).splitlines()
    assert first.startswith(b"master.wait() would stop the loop") and b"asyncio.sleep()" in first
    assert second.startswith(b"master.connections() would stop the loop")


def test_a_worker_that_retires_itself_is_replaced_and_finishes(aio: Aio) -> None:
    server = aio("""
    async def once(reader, writer):
        current_master().retire()
        await reader.read(100)
        writer.write(b"%d" % os.getpid())
        writer.close()
    run(once)
    """).all_ready(1)
    (old,) = server.workers()
    with server.connect() as client:
        server.saw("forked", times=2)
        assert ask(client) == b"%d" % old
    eventually(lambda: not alive(old))


def test_a_callback_that_forks_never_makes_a_second_loop(aio: Aio) -> None:
    server = aio("""
    async def fork(reader, writer):
        await reader.read(100)
        if not os.fork():
            return  # into the loop of its parent
        os.wait()
        writer.write(b"its child is gone")
        writer.close()
    run(fork, timeout=5)
    """).ready()
    assert server.ask(b"?") == b"its child is gone"


def test_a_worker_whose_listener_was_closed_is_replaced(aio: Aio) -> None:
    server = aio("""
    async def close(reader, writer):
        if await reader.read(100) == b"close":
            for listener in current_master().listeners:
                os.dup2(os.open("/dev/null", os.O_RDONLY), listener.fileno())
        writer.write(b"%d" % os.getpid())
        writer.close()
    run(close)
    """).all_ready(1)
    server.expect_error("^Traceback")
    (old,) = server.workers()
    with server.connect() as inside:
        inside.sendall(b"close")
        assert inside.recv(100) == b"%d" % old
    assert server.ask(b"who", timeout=5) != b"%d" % old
    server.saw(r"^  (OSError|PermissionError|FileNotFoundError): ")


# Other doors


def test_a_main_of_its_own_is_supervised(aio: Aio) -> None:
    server = aio("""
    async def main(master):
        master.exit_stack.callback(print, "closed")
        if os.path.exists("hang"):
            os.unlink("hang")
            time.sleep(1000)
        while master.wants_me_alive():
            print("tick of", os.getpid())
            try:
                await asyncio.wait_for(master.wait_retired(), 0.05)
            except TimeoutError:
                pass
        print("leaves")
    open("hang", "w").close()
    run_asyncio(main, loop=LOOP, workers=2, timeout=1, pid_path=None)
    """).ready()
    server.expect_error(r"silent for more than 1s at .*app0.py:\d+ in main, killing", "SIGKILL")
    server.saw("silent for more than 1s")
    eventually(lambda: len({m[1] for m in server.saw(r"tick of (\d+)")}) == 2)
    assert server.quit() == 0
    assert server.count("^leaves$") == server.count("^closed$") == 2


def test_a_main_that_does_not_look_is_cancelled_and_one_that_raises_is_replaced(aio: Aio) -> None:
    server = aio("""
    async def main(master):
        if os.path.exists("fail"):
            os.unlink("fail")
            raise LookupError("no queue")
        print("consuming")
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            print("cancelled")
            raise
    open("fail", "w").close()
    leave_early()
    run_asyncio(main, loop=LOOP, workers=1, pid_path=None, graceful_timeout=100)
    """).ready()
    server.expect_error("reaped: exit code 1", "^Traceback")
    server.saw("LookupError: no queue")
    server.saw("consuming")
    assert server.quit() == 0
    server.saw("^cancelled$")
    server.saw("cancelling main")
    assert server.count("reaped: exit code 0") == 1


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("inline", [False, True])
def test_it_is_served_in_a_test_and_inline(loop: str, inline: bool) -> None:
    async def double(reader, writer):  # type: ignore[no-untyped-def]
        writer.write(2 * await reader.readline())
        writer.close()

    server = PreforkAsyncioServer("127.0.0.1:0", double, loop=loop, inline=inline)  # type: ignore[arg-type]
    with serving(server) as address:
        assert server.addresses == ["{}:{}".format(*address)]
        with socket.create_connection(address, PATIENCE) as client:
            client.sendall(b"word\n")
            assert read_all(client) == b"word\nword\n"
    with pytest.raises(ConfigError, match="served already"):
        server.serve_forever()


@pytest.mark.parametrize("loop", LOOPS)
def test_killed_workers_are_replaced_and_who_asks_again_is_answered(loop: str) -> None:
    async def echo(reader, writer):  # type: ignore[no-untyped-def]
        writer.write(await reader.readline())
        writer.close()

    def ask_again(address: tuple[str, int]) -> bytes:
        while True:
            try:
                with socket.create_connection(address, PATIENCE) as client:
                    client.sendall(b"word\n")
                    if answer := read_all(client):
                        return answer
            except ConnectionError:
                pass  # the worker that had it is gone: ask again

    server = PreforkAsyncioServer("127.0.0.1:0", echo, loop=loop, workers=3)  # type: ignore[arg-type]
    with serving(server, kill_a_worker_every=0.2) as address:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            assert ask_again(address) == b"word\n"


def test_inline_it_stops_by_ctrl_c(aio: Aio) -> None:
    server = aio("""
    async def stay(reader, writer):
        writer.write(b"%d" % os.getpid())
        await current_master().wait_retired()
        writer.close()
    run(stay, inline=True)
    print("returned")
    """).ready()
    with server.connect() as client:
        assert client.recv(100) == b"%d" % server.pid
        server.signal(signal.SIGINT)
        assert read_all(client) == b""
    assert server.wait() == 0
    server.saw("^returned$")


def test_as_a_daemon_its_launcher_returns_when_it_is_ready(aio: Aio, tmp_path: Path) -> None:
    launcher = aio("""
    server = PreforkAsyncioServer("unix:door.sock", who, loop=LOOP, workers=1, pid_path="d.pid")
    print("started", server.start())
    """)
    pid = int(launcher.saw(r"started (\d+)")[0][1])
    assert launcher.wait() == 0
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(PATIENCE)
        client.connect(str(tmp_path / "door.sock"))
        assert ask(client).isdigit()
    os.kill(pid, signal.SIGQUIT)
    assert not launcher.anyone_left(within=PATIENCE)
    assert not (tmp_path / "door.sock").exists()


# Many


@pytest.mark.soak
def test_a_thousand_slow_clients_do_not_keep_another_waiting(aio: Aio) -> None:
    clients, rounds = 1000, soak(30, 3000)
    needed = 3 * clients
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < needed:
        pytest.skip(f"{needed} descriptors are needed, and {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    try:
        server = aio("run(echo, worker_connections=2000)").all_ready(1)
        with ExitStack() as stack:
            slow = [stack.enter_context(server.connect()) for _ in range(clients)]
            other = stack.enter_context(server.connect())
            took = []
            for number in range(rounds):
                for n in range(100):
                    slow[(100 * number + n) % clients].send(b".")
                began = time.monotonic()
                assert ask(other, b"and I?") == b"and I?"
                took.append(time.monotonic() - began)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    p99 = sorted(took)[len(took) * 99 // 100] * 1000
    print(f"{aio.loop}: {clients} slow clients, p99 of another {p99:.1f} ms of {len(took)}")
