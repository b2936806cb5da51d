"""Other people's servers, unmodified, answer from two processes."""

import http.client
import os
import signal
import socket
import socketserver
import struct
import wsgiref.simple_server
import xmlrpc.client
import xmlrpc.server
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from prefork_server import PreforkMixIn, Settings
from prefork_server.testing import serving
from tests.conftest import PATIENCE, ROOT, Starter, eventually, read_all

EXAMPLES = ROOT / "examples"
TWO = Settings(workers=2)


def two_answer(ask: Callable[[], object]) -> None:
    """Many ask at once, until two different processes have answered, and neither is this one.

    Of those who ask one after the other, the worker that is warm may serve all.
    """
    pids: set[int] = set()

    def again() -> bool:
        with ThreadPoolExecutor(8) as clients:
            answers = [clients.submit(ask) for _ in range(16)]
        pids.update(int(str(answer.result())) for answer in answers)
        return len(pids) >= 2

    eventually(again)
    assert os.getpid() not in pids


def over_http(address: tuple[str, int], path: str = "/") -> bytes:
    connection = http.client.HTTPConnection(*address[:2], timeout=PATIENCE)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def over_tcp(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address, PATIENCE) as client:
        client.shutdown(socket.SHUT_WR)
        return read_all(client)


class Pid(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"%d" % os.getpid())


class Web(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"%d" % os.getpid())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.mark.parametrize("theirs", [HTTPServer, ThreadingHTTPServer])
def test_http_server(theirs: type) -> None:
    server: Any = type("Server", (PreforkMixIn, theirs), {"settings": TWO})
    with serving(server(("127.0.0.1", 0), Web)) as address:
        two_answer(lambda: over_http(address).decode())


def test_wsgiref() -> None:
    class Server(PreforkMixIn, wsgiref.simple_server.WSGIServer):
        settings = TWO

    class Quiet(wsgiref.simple_server.WSGIRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d" % os.getpid()]

    make = wsgiref.simple_server.make_server
    with serving(make("127.0.0.1", 0, app, Server, Quiet)) as address:  # type: ignore[arg-type]
        two_answer(lambda: over_http(address).decode())


def test_xmlrpc() -> None:
    class Server(PreforkMixIn, xmlrpc.server.SimpleXMLRPCServer):
        settings = TWO

    server = Server(("127.0.0.1", 0), logRequests=False)
    server.register_function(os.getpid, "pid")
    with serving(server) as (host, port):

        def ask() -> object:
            with xmlrpc.client.ServerProxy(f"http://{host}:{port}") as proxy:
                return proxy.pid()

        two_answer(ask)


@pytest.mark.parametrize("theirs", ["BaseWSGIServer", "ThreadedWSGIServer", "ForkingWSGIServer"])
def test_werkzeug_serving_flask(theirs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flask = pytest.importorskip("flask")
    serving_module = pytest.importorskip("werkzeug.serving")
    monkeypatch.setattr(serving_module.WSGIRequestHandler, "log_request", lambda *_: None)
    app = flask.Flask("ours")
    # Of a server that forks for each request the parent is who answers.
    forks = theirs == "ForkingWSGIServer"
    app.route("/")(lambda: str(os.getppid() if forks else os.getpid()))
    bases = (PreforkMixIn, getattr(serving_module, theirs))
    server: Any = type("Server", bases, {"settings": TWO})
    with serving(server("127.0.0.1", 0, app)) as address:
        two_answer(lambda: over_http(address).decode())


ORDERS = [
    (PreforkMixIn, socketserver.ThreadingMixIn),
    (socketserver.ThreadingMixIn, PreforkMixIn),
    (PreforkMixIn, socketserver.ForkingMixIn),
    (socketserver.ForkingMixIn, PreforkMixIn),
]


@pytest.mark.parametrize("mixins", ORDERS)
@pytest.mark.parametrize("kind", ["TCP", "UDP", "UnixStream", "UnixDatagram"])
def test_threads_and_forks_act_within_each_worker(
    mixins: tuple[type, ...], kind: str, tmp_path: Path
) -> None:
    class Tell(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            forks = isinstance(self.server, socketserver.ForkingMixIn)
            pid = b"%d" % (os.getppid() if forks else os.getpid())
            if isinstance(self.request, tuple):
                self.request[1].sendto(pid, self.client_address)
            else:
                self.request.sendall(pid)

    base = getattr(socketserver, f"{kind}Server")
    server: Any = type("Server", (*mixins, base), {"settings": TWO})
    path, numbers = str(tmp_path / "s"), count()
    with serving(server(path if "Unix" in kind else ("127.0.0.1", 0), Tell)) as address:

        def ask() -> str:
            datagram = kind in ("UDP", "UnixDatagram")
            own = tmp_path / f"client{next(numbers)}"
            with socket.socket(base.address_family, base.socket_type) as client:
                client.settimeout(PATIENCE)
                if kind == "UnixDatagram":
                    client.bind(str(own))
                client.connect(address)
                if datagram:
                    client.send(b"?")
                return client.recv(100).decode()

        two_answer(ask)


def test_a_foreign_signature_of_serve_forever_is_taken(start: Starter) -> None:
    server = start("""
        class Theirs(socketserver.TCPServer):
            def serve_forever(self, poll_interval=0.5, *, banner, **more):
                print(banner)
                super().serve_forever(poll_interval)

        class Server(PreforkMixIn, Theirs):
            settings = Settings(workers=1)

        with Server(("127.0.0.1", 0), Echo) as server:
            server.serve_forever(0.1, banner="not printed", more=1)
    """)
    assert server.ask() == b"hello"
    assert not server.count("not printed")


def test_a_pool_of_threads_of_the_classes_own_finishes_what_it_has_begun(
    start: Starter, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "gate")
    server = start("""
        from concurrent.futures import ThreadPoolExecutor

        class Pooled(PreforkMixIn, socketserver.TCPServer):
            settings = Settings(workers=1)
            def after_fork(self, master):
                self.pool = ThreadPoolExecutor(2)
            def process_request(self, request, peer):
                self.pool.submit(self.serve, request, peer)
            def serve(self, request, peer):
                self.finish_request(request, peer)
                self.shutdown_request(request)

        class Slow(socketserver.BaseRequestHandler):
            def handle(self):
                print("in the handler")
                with open("gate") as gate:
                    self.request.sendall(gate.read().encode())

        serve(Slow, Pooled)
    """)
    with server.connect() as client:
        server.saw("in the handler")
        server.signal(signal.SIGQUIT)
        server.saw("stopping 1 workers gracefully")
        (tmp_path / "gate").write_text("finished")
        assert read_all(client) == b"finished"
    assert server.wait() == 0


def test_shutdown_may_be_called_by_the_full_name_of_the_base_class() -> None:
    class Server(PreforkMixIn, socketserver.TCPServer):
        settings = TWO

    server = Server(("127.0.0.1", 0), Pid)
    with serving(server) as address:
        over_tcp(address)
        stopper = Thread(target=socketserver.TCPServer.shutdown, args=(server,), daemon=True)
        stopper.start()
        stopper.join(PATIENCE)
        assert not stopper.is_alive()


def test_handle_request_is_untouched() -> None:
    class Server(PreforkMixIn, socketserver.TCPServer):
        settings = TWO
        timeout = 0.01
        timeouts = 0

        def handle_timeout(self) -> None:
            self.timeouts += 1

    with Server(("127.0.0.1", 0), Pid) as server:
        server.handle_request()
        assert server.timeouts == 1
        server.timeout = PATIENCE
        with socket.create_connection(server.server_address[:2], PATIENCE) as client:
            server.handle_request()
            assert read_all(client) == b"%d" % os.getpid()


def test_a_connection_that_is_idle_for_longer_than_timeout_keeps_its_worker() -> None:
    class Server(PreforkMixIn, socketserver.TCPServer):
        settings = Settings(workers=1, timeout=1)

    class Waits(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"%d\n" % os.getpid())
            self.rfile.readline()
            self.wfile.write(b"%d\n" % os.getpid())

    with (
        serving(Server(("127.0.0.1", 0), Waits)) as address,
        socket.create_connection(address, PATIENCE) as client,
        client.makefile("rb") as answers,
    ):
        first = answers.readline()
        client.settimeout(2.5)  # more than twice as long; nothing may come
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(PATIENCE)
        client.sendall(b"\n")
        assert client.recv(100) == first


# The examples


def test_the_example_xmlrpc(start: Starter) -> None:
    server = start.script(EXAMPLES / "xmlrpc.py", "0").ready()
    host, port = server.address

    def ask() -> object:
        with xmlrpc.client.ServerProxy(f"http://{host}:{port}") as proxy:
            assert proxy.pow(2, 10) == 1024
            return proxy.pid()

    two_answer(ask)


def test_the_example_dns_answers_over_udp_and_tcp(start: Starter) -> None:
    dnslib = pytest.importorskip("dnslib")
    server = start.script(EXAMPLES / "dns.py", "0").ready()
    host, port = server.address
    server.saw("ready, listening on", times=2)
    for tcp in (False, True):
        reply = dnslib.DNSRecord.question("one.example").send(host, int(port), tcp, PATIENCE)
        assert str(dnslib.DNSRecord.parse(reply).short()) == "192.0.2.1"
    assert server.quit() == 0


def test_dnslibs_servers_answer_from_two_processes() -> None:
    dnslib = pytest.importorskip("dnslib")
    from dnslib.server import BaseResolver, DNSServer, TCPServer, UDPServer

    class Who(BaseResolver):  # type: ignore[misc]
        def resolve(self, request: Any, handler: Any) -> Any:
            reply = request.reply()
            pid = socket.inet_ntoa(struct.pack("!I", os.getpid()))
            reply.add_answer(*dnslib.RR.fromZone(f"who. 1 IN A {pid}"))
            return reply

    for tcp, theirs in ((False, UDPServer), (True, TCPServer)):
        ours: Any = type("Server", (PreforkMixIn, theirs), {"settings": TWO})
        dns = DNSServer(Who(), "127.0.0.1", 0, server=ours)
        dns.start_thread()
        assert dns.server.wait_ready(PATIENCE)
        port = dns.server.server_address[1]

        def ask(tcp: bool = tcp, port: int = port) -> int:
            reply = dnslib.DNSRecord.question("who").send("127.0.0.1", port, tcp, PATIENCE)
            address = str(dnslib.DNSRecord.parse(reply).short())
            return int(struct.unpack("!I", socket.inet_aton(address))[0])

        two_answer(ask)
        dns.stop()
        dns.thread.join(PATIENCE)
        assert not dns.isAlive()
