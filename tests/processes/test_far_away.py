"""Stops, reloads and upgrades lose no client that is connected, however long a round trip is."""

import signal
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from textwrap import dedent

import pytest

from tests.certificates import make_certificate
from tests.conftest import PATIENCE, SOAK, Server, Starter, soak
from tests.distance import NEEDS, POSSIBLE, Host, two_hosts
from tests.hammer import Address, ask_http, ask_once, connected

pytestmark = [
    pytest.mark.executed,
    pytest.mark.skipif(not POSSIBLE, reason=NEEDS),
    pytest.mark.soak,
]

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
CLIENTS = soak(8, 30)  # of each server
DELAYS = [0, 0.1, 0.3] if SOAK else [0.1]  # seconds in each direction

# Each serves at ADDRESS. What a client sends comes back, or over HTTP an answer.
PREFORKER = """
    def work(master):
        for connection, _ in master.connections():
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data)

    Preforker(work, listen=ADDRESS, workers=2, pid_path=PID).run()
"""
WSGI = """
    from prefork_server.http import PreforkWSGIServer

    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "2")])
        return [b"x\\n"]

    PreforkWSGIServer(ADDRESS, app, workers=2, pid_path=PID{}).serve_forever()
"""
LOOP = """
    from prefork_server.aio import PreforkAsyncioServer

    async def echo(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    PreforkAsyncioServer(ADDRESS, echo, workers=2, pid_path=PID, loop="{}").serve_forever()
"""
TCP = "serve(Echo, address=ADDRESS, workers=2, pid_path=PID{})"
PROGRAMS = {
    "tcp": TCP.format(""),
    "tcp with threads": TCP.format(", threads=4"),
    "tcp over tls": TCP.format(', certfile="server.pem", threads=16'),
    "connections()": PREFORKER,
    "http": WSGI.format(""),
    "http with threads": WSGI.format(", threads=4"),
    "https": WSGI.format(', certfile="server.pem"'),
    "asyncio": LOOP.format("asyncio"),
    **({"uvloop": LOOP.format("uvloop")} if find_spec("uvloop") else {}),
}


class Far:
    """One server of each kind on one host, and their clients on the other."""

    def __init__(self, start: Starter, near: Host, far: Host, delay: float) -> None:
        self.far = far
        self.round_trip = 2 * delay
        self.trusting = make_certificate(start.directory)
        self.trusting.maximum_version = ssl.TLSVersion.TLSv1_2  # a round trip more than 1.3
        with near.inside():
            self.servers = {
                kind: start(
                    f"ADDRESS, PID = ({near.address!r}, 0), 'pid{number}'\n" + dedent(program)
                )
                for number, (kind, program) in enumerate(PROGRAMS.items())
            }
        for server in self.servers.values():
            server.ready()

    def clients_around(self, signum: int) -> dict[str, Counter[str]]:
        """Have clients connect one after the other, for three round trips, and signal each server
        when half of its clients have begun; return how they ended."""
        counts = {kind: Counter[str]() for kind in self.servers}
        pause = threading.Event()  # of one client after the one before
        step = max(0.3, 3 * self.round_trip) / CLIENTS

        def client(kind: str, server: Server, number: int) -> None:
            pause.wait(number * step)
            if number == CLIENTS // 2:
                server.signal(signum)
            counts[kind][self.ask(kind, server.address)] += 1

        with self.far.inside():
            threads = [
                threading.Thread(target=client, args=(kind, server, number))
                for kind, server in self.servers.items()
                for number in range(CLIENTS)
            ]
            for thread in threads:
                thread.start()
        for thread in threads:
            thread.join()
        return counts

    def ask(self, kind: str, address: Address) -> str:
        if kind.startswith("tcp ") and "tls" in kind:
            return self._over_tls(address, _echoed)
        if kind == "https":
            return self._over_tls(address, lambda client: ask_http(client, GET)[0])
        if kind.startswith("http"):
            return _once_connected(address, lambda client: ask_http(client, GET)[0])
        return ask_once(address, b"from far away")

    def _over_tls(self, address: Address, ask: Callable[[socket.socket], str]) -> str:
        def wrapped(client: socket.socket) -> str:
            with self.trusting.wrap_socket(client, server_hostname="localhost") as secure:
                return ask(secure)

        return _once_connected(address, wrapped)


def _once_connected(address: Address, ask: Callable[[socket.socket], str]) -> str:
    try:
        client = connected(address)
    except (ConnectionRefusedError, ConnectionResetError):
        return "refused"
    with client:
        try:
            return ask(client)
        except OSError as error:
            return f"lost: {error}"


def _echoed(client: socket.socket) -> str:
    client.sendall(b"from far away")
    return "served" if client.recv(100) == b"from far away" else "lost"


def losses(counts: dict[str, Counter[str]], *fine: str) -> dict[str, Counter[str]]:
    """How clients ended otherwise, by the kinds of their servers."""
    lost = {
        kind: Counter({how: n for how, n in each.items() if how not in fine})
        for kind, each in counts.items()
    }
    return {kind: each for kind, each in lost.items() if each}


@pytest.mark.parametrize("delay", DELAYS)
def test_a_stop_loses_no_client_that_is_connected(start: Starter, delay: float) -> None:
    with two_hosts(delay) as (near, far):
        there = Far(start, near, far, delay)
        counts = there.clients_around(signal.SIGQUIT)
        assert {server.wait() for server in there.servers.values()} == {0}
    print(counts)
    assert losses(counts, "served", "refused") == {}
    assert sum(each["served"] for each in counts.values()) > CLIENTS


@pytest.mark.parametrize("delay", DELAYS)
def test_a_reload_loses_and_refuses_no_client(start: Starter, delay: float) -> None:
    with two_hosts(delay) as (near, far):
        there = Far(start, near, far, delay)
        counts = there.clients_around(signal.SIGHUP)
        for server in there.servers.values():
            server.saw("generation 2 serves")
            assert server.quit() == 0
    assert losses(counts, "served") == {}


@pytest.mark.parametrize("delay", DELAYS[-1:])
def test_an_upgrade_loses_and_refuses_no_client(start: Starter, delay: float) -> None:
    with two_hosts(delay) as (near, far):
        there = Far(start, near, far, delay)
        counts = there.clients_around(signal.SIGUSR2)
        for server in there.servers.values():
            successor = int(server.saw(r"the successor pid=(\d+) serves, leaving")[0][1])
            server.signal(signal.SIGQUIT, successor)
            assert not server.anyone_left(PATIENCE)
    assert losses(counts, "served") == {}
