"""HTTPS: who is parked over TLS costs no worker, from the first byte of its handshake on."""

import select
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefork_server.http import HTTPRequestHandler
from prefork_server.http.connection import HTTPConnection, Service
from prefork_server.tls import Terms
from tests.certificates import make_certificate
from tests.conftest import PATIENCE, Server, Starter
from tests.edges.test_acceptor import PATIENTLY, Bench
from tests.edges.test_connection import Worker
from tests.processes.test_http import BOTH, GET, HTTP, LAST, Client, env

HTTPS = (
    HTTP
    + """
    import logging
    logging.basicConfig(level="DEBUG", format="%(levelname)s %(message)s")

    class Server(PreforkHTTPServer):
        defer_accept = 0
        handshake_timeout = float(os.environ.get("HANDSHAKE", 10))

    def post(self):
        try:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        except OSError as error:
            print("cut short:", type(error).__name__)
            raise
        Hello.answer(self, body)

    Hello.do_POST = Plain.do_POST = post

    def serve_https(handler=Hello, server_class=Server, **more):
        serve_http(handler, server_class, **{"certfile": "server.pem", **more})
"""
)
POST = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"


class Secure(Client):
    """The same, over TLS; to it an end without a goodbye is an error."""

    def __init__(self, server: Server, context: ssl.SSLContext, request: bytes = b"") -> None:
        plain = server.connect()
        try:
            self.socket: ssl.SSLSocket = context.wrap_socket(
                plain, server_hostname="localhost", suppress_ragged_eofs=False
            )
        except BaseException:
            plain.close()
            raise
        self._file = self.socket.makefile("rb")


class Site:
    """A server, and who trusts its certificate."""

    def __init__(self, server: Server, context: ssl.SSLContext, stack: ExitStack) -> None:
        self.server, self.context, self._stack = server, context, stack

    def secure(self) -> Secure:
        client = Secure(self.server, self.context)
        self._stack.callback(client.close)
        return client

    def plain(self) -> socket.socket:
        return self._stack.enter_context(self.server.connect())

    def openssl(self, *options: str) -> subprocess.Popen[bytes]:
        host, port = self.server.address
        return self._stack.enter_context(
            subprocess.Popen(
                ["openssl", "s_client", "-connect", f"{host}:{port}", *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
            )
        )


Serving = Callable[..., Site]


@pytest.fixture
def serving(start: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    context = make_certificate(tmp_path)
    with ExitStack() as stack:

        def one(program: str = "serve_https()", **values: object) -> Site:
            with env(monkeypatch, **values):
                return Site(start(HTTPS + f"\n    {program}\n").ready(), context, stack)

        yield one


def client_hello(context: ssl.SSLContext) -> bytes:
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


# Keep-alive


@BOTH
def test_many_idle_connections_over_tls_cost_no_worker(serving: Serving, handler: str) -> None:
    site = serving(f"serve_https({handler})", WORKERS=2, KEEP=600)
    idle = [site.secure() for _ in range(64)]
    for client in idle:
        client.get()
    site.secure().get()
    for client in idle:
        client.get()
    assert site.server.count("is gone") == 0


@BOTH
def test_over_tls_one_request_follows_the_other(serving: Serving, handler: str) -> None:
    client = serving(f"serve_https({handler})").secure()
    assert len({client.get() for _ in range(5)}) == 1
    assert client.get(POST % 70000 + b"x" * 70000) == b"x" * 70000
    assert client.get(LAST)
    assert client.is_closed()  # with a goodbye


@BOTH
def test_what_was_decrypted_and_not_read_yet_is_not_forgotten(
    serving: Serving, handler: str
) -> None:
    site = serving(f"serve_https({handler})", MOST=100_000)
    greedy = site.secure()
    for size in (1, 16384, 65536, 100_000):  # a record of 16384 bytes is read by halves
        requests = GET * (size // len(GET) + 1)
        sender = threading.Thread(target=greedy.send, args=(requests,))
        sender.start()
        site.secure().get()
        for _ in range(requests.count(GET)):
            assert greedy.answer()[0] == 200
        sender.join()
    assert greedy.get()


def test_what_a_handler_left_decrypted_is_not_forgotten(serving: Serving) -> None:
    site = serving(
        "Hello.do_GET = lambda self: self.answer(self.connection.recv(5)); serve_https()", KEEP=30
    )
    client = site.secure().send(GET).send(b"first" + POST % 0)  # a record each
    assert [client.answer()[2] for _ in range(2)] == [b"first", b""]


def test_who_asks_without_pause_for_longer_than_an_idle_time_is_served_on(
    serving: Serving,
) -> None:
    site = serving(
        "HTTPRequestHandler.head_timeout = HTTPRequestHandler.keep_alive_timeout = 0.3\n"
        "    Plain.do_GET = lambda self: (time.sleep(0.02), Hello.answer(self, b''))\n"
        "    serve_https(Plain)"
    )
    client = site.secure().send(GET * 40)
    for _ in range(40):
        assert client.answer()[0] == 200


def test_who_is_idle_for_too_long_is_told_goodbye(serving: Serving) -> None:
    client = serving(KEEP=0.2).secure()
    client.get()
    assert client.is_closed()


def test_a_handler_with_a_way_of_its_own_keeps_its_worker(serving: Serving) -> None:
    site = serving(
        "class Own(Hello):\n"
        "        def handle(self):\n"
        "            super().handle()\n"
        "    serve_https(Own)"
    )
    client = site.secure()
    assert client.get() and client.get(LAST) and client.is_closed()


def test_http_1_1_is_what_alpn_offers(serving: Serving) -> None:
    site = serving()
    for offered, chosen in ((["h2", "http/1.1"], "http/1.1"), (["h2"], None), ([], None)):
        if offered:
            site.context.set_alpn_protocols(offered)
        client = site.secure()
        assert client.socket.selected_alpn_protocol() == chosen
        assert client.get()


# Who does not come as far as a request


@pytest.mark.parametrize("handshake_timeout", [600, 1])
def test_silent_clients_keep_nobody_out_and_are_let_go(
    serving: Serving, handshake_timeout: int
) -> None:
    site = serving(WORKERS=2, HANDSHAKE=handshake_timeout)
    hello = client_hello(site.context)
    silent = [site.plain() for _ in range(20)]
    for client in silent[10:]:
        client.sendall(hello[: len(hello) // 2])
    begun = time.monotonic()
    good = site.secure()
    good.get()
    if handshake_timeout > PATIENCE:
        assert select.select(silent, [], [], 0) == ([], [], [])
        return
    for client in silent:
        with suppress(ConnectionResetError):
            assert client.recv(100) == b""
    assert time.monotonic() - begun > 0.5
    good.get()
    site.server.saw("DEBUG .* is gone: timed out", times=20)
    assert site.server.count("reaped|Traceback") == 0


def test_a_handshake_that_trickles_in_has_its_time_in_all(serving: Serving) -> None:
    site = serving(HANDSHAKE=0.5)
    client, hello = site.plain(), client_hello(site.context)
    sent = 0
    with suppress(ConnectionError):
        while sent < len(hello) and not select.select([client], [], [], 0.02)[0]:
            sent += client.send(hello[sent : sent + 1])
    assert sent < len(hello)  # all of it would take ten seconds
    site.server.saw("is gone: timed out")
    site.secure().get()


class Wire:
    """A client whose TLS and whose bytes on the wire are two things."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, piece: int = 65536) -> None:
        self.socket, self._piece = sock, piece
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")

    def send_what_there_is(self, after: Callable[[], object] = bytes) -> None:
        with suppress(ssl.SSLWantReadError):
            after()
        data = self._out.read()
        for at in range(0, len(data), self._piece):
            self.socket.sendall(data[at : at + self._piece])

    def run(self, step: Callable[[], object]) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self.send_what_there_is()
                self.receive()

    def receive(self, after: Callable[[], object] = bytes) -> None:
        data = self.socket.recv(65536)
        assert data, "closed"
        self._in.write(data)
        after()


def test_a_handshake_in_pieces_is_made(serving: Serving) -> None:
    site = serving()
    wire = Wire(site.plain(), site.context, 1)
    wire.run(wire.tls.do_handshake)
    wire.tls.write(LAST)
    assert wire.run(lambda: wire.tls.read(9999)).startswith(b"HTTP/1.1 200 OK")


Fault = Callable[[socket.socket, ssl.SSLContext], None]


def abort(client: socket.socket, _: ssl.SSLContext) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def say(word: bytes) -> Fault:
    return lambda client, _: client.sendall(word)


def begin_and(end: Fault, part: float = 0.5) -> Fault:
    def begin(client: socket.socket, context: ssl.SSLContext) -> None:
        hello = client_hello(context)
        client.sendall(hello[: int(len(hello) * part)])
        if part == 1:
            client.recv(100)
        end(client, context)

    return begin


def limited(**limits: object) -> Fault:
    def shake(client: socket.socket, _: ssl.SSLContext) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if "ciphers" in limits:
            context.set_ciphers(str(limits["ciphers"]))
        for name in ("minimum_version", "maximum_version"):
            if name in limits:
                setattr(context, name, limits[name])
        with pytest.raises(OSError):
            context.wrap_socket(client)
            raise OSError

    return shake


def distrust(client: socket.socket, _: ssl.SSLContext) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(client, server_hostname="localhost")


FAULTS = {
    "plain HTTP": say(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"),
    "noise": say(bytes(range(256)) * 300),
    "a message of zeros": say(b"\x16\x03\x01\x02\x00" + bytes(512)),
    "too long a record": say(b"\x16\x03\x01\xff\xff" + bytes(70000)),
    "a reset": abort,
    "a reset in the middle": begin_and(abort, 1),
    "half a hello": begin_and(lambda client, _: client.shutdown(socket.SHUT_WR)),
    "noise in the middle": begin_and(say(b"nonsense" * 100), 1),
    "an old version": limited(
        maximum_version=ssl.TLSVersion.TLSv1_1, minimum_version=ssl.TLSVersion.TLSv1
    ),
    "a weak cipher": limited(maximum_version=ssl.TLSVersion.TLSv1_2, ciphers="AES128-SHA"),
    "distrust": distrust,
}


@pytest.mark.filterwarnings("ignore:.*TLSv1.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", FAULTS)
def test_who_fails_in_the_handshake_is_a_quiet_line_and_the_worker_lives(
    serving: Serving, name: str
) -> None:
    site = serving()
    worker = site.secure().get()
    FAULTS[name](site.plain(), site.context)
    assert site.secure().get() == worker
    if name != "a reset":  # perhaps it was gone before it was accepted
        site.server.saw("DEBUG 127.0.0.1:.* is gone: ")
    assert site.server.count("Traceback|ERROR|WARNING") == 0
    assert site.server.count("is gone") <= 1


def test_to_renegotiate_is_refused_and_the_worker_lives(serving: Serving) -> None:
    site = serving()
    worker = site.secure().get()
    client = site.openssl("-tls1_2")
    assert client.stdin and client.stdout
    client.stdin.write(b"R\n")
    assert b"no renegotiation" in client.stdout.read()
    assert site.secure().get() == worker
    assert site.server.count("Traceback|ERROR") == 0


def test_keys_may_change_between_two_requests(serving: Serving) -> None:
    client = serving().openssl("-tls1_3", "-quiet")
    assert client.stdin and client.stdout
    request = LAST.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    for update in (b"K\n", b"k\n"):
        client.stdin.write(update)
    client.stdin.write(request)
    assert b"HTTP/1.1 " in client.stdout.read()


def fill(sock: socket.socket) -> int:
    """Send until nothing more goes, not even a byte, and return how much went."""
    sent = 0
    for size in (4096, 64, 1):
        with suppress(BlockingIOError):
            while True:
                sent += socket.socket.send(sock, bytes(size))
    return sent


def resume(acceptor: Any) -> None:
    guest = acceptor.wait(PATIENTLY)
    assert isinstance(guest, HTTPConnection)
    guest.resume()


def test_a_handshake_that_finds_no_room_waits_for_room_and_for_nothing_else(
    tmp_path: Path,
) -> None:
    trusting, server_side = make_certificate(tmp_path), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(tmp_path / "server.pem")
    entered: list[object] = []

    class Enters(HTTPRequestHandler):
        def setup(self) -> None:
            super().setup()
            entered.append(self)

    service = Service(Enters)
    service.server = SimpleNamespace(
        _prefork_proxies=(),
        handshake_timeout=PATIENCE,
        shutdown_request=lambda request: request.close(),
    )
    with ExitStack() as stack:
        acceptor, worker = Bench(stack).loop(), Worker()
        stack.callback(worker.bell.close)
        plain, theirs = worker.connect()
        ours: Any = stack.enter_context(Terms(server_side, True, False).wrap(plain, worker))
        wire = Wire(stack.enter_context(theirs), trusting)
        full = fill(ours)
        service.keep, service.let_go = acceptor.keep, acceptor.let_go
        service.arrive(ours, "")
        wire.send_what_there_is(wire.tls.do_handshake)
        resume(acceptor)
        assert acceptor.wait(0.1) is None and acceptor.has_guests
        while full:
            full -= len(wire.socket.recv(min(full, 65536)))
        resume(acceptor)
        assert acceptor.wait(0.1) is None and not entered
        wire.receive(wire.tls.do_handshake)
        wire.send_what_there_is()
        resume(acceptor)
        assert entered and acceptor.has_guests
        acceptor.close()


# What is cut short, and what nobody reads


@BOTH
def test_a_body_that_is_cut_short_is_an_error_and_never_taken_for_whole(
    serving: Serving, handler: str
) -> None:
    site = serving(f"serve_https({handler})")
    client = site.secure().send(POST % 9 + b"ab")
    socket.socket.shutdown(client.socket, socket.SHUT_WR)  # without a goodbye
    site.server.saw("cut short: SSLEOFError")
    with suppress(OSError):
        assert b"200" not in client.rest()
    site.server.saw("DEBUG .* is gone: .*EOF")
    assert site.secure().get()
    assert site.server.count("Traceback") == 0


@BOTH
def test_an_end_without_goodbye_between_two_requests_is_no_news(
    serving: Serving, handler: str
) -> None:
    site = serving(f"serve_https({handler})")
    for goodbye in (False, True):
        client = site.secure()
        client.get()
        if goodbye:
            client.socket.unwrap()
        else:
            socket.socket.shutdown(client.socket, socket.SHUT_WR)
            with suppress(OSError):
                assert client.is_closed()
    assert site.secure().get()
    assert site.server.count("Traceback|ERROR|WARNING") == 0


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 200),
        (GET[:-2] + b"Connection: upgrade\r\nUpgrade: echo\r\n\r\n", 101),
    ],
)
def test_over_tls_a_tunnel_and_an_upgrade_are_the_handlers(
    serving: Serving, head: bytes, status: int
) -> None:
    site = serving("""
    class Echo(Hello):
        def do_CONNECT(self):
            self.tunnel(200)
        def do_GET(self):
            self.tunnel(101)
        def tunnel(self, status):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(self.rfile.readline())
            self.wfile.write(self.rfile.readline().upper())
    serve_https(Echo)
""")
    client = site.secure()
    client.send(head + b"with it\n")
    assert client._file.readline().startswith(b"HTTP/1.1 %d " % status)
    while client._file.readline() != b"\r\n":
        pass
    assert client._file.readline() == b"with it\n"
    client.send(b"get / http/1.1\n")  # which is no request here
    assert client._file.read() == b"GET / HTTP/1.1\n"


def test_over_tls_the_answer_to_an_upload_that_is_refused_arrives(serving: Serving) -> None:
    site = serving("Hello.limits = Limits(body=1000); serve_https()")
    for _ in range(20):
        client = site.secure()
        client.send(POST % 300000)
        with suppress(OSError):
            client.send(b"x" * 300000)
        assert client.answer()[0] == 413
        assert client.is_closed()


def test_over_tls_who_takes_the_answer_slowly_gets_all_of_it(serving: Serving) -> None:
    site = serving(
        "def do_GET(self):\n"
        "        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)\n"
        "        self.answer(b'x' * 8_000_000)\n"
        "    Hello.do_GET = do_GET\n"
        "    serve_https()",
        WRITE=1,
    )
    client = site.secure().send(LAST)
    begun, got = time.monotonic(), 0
    while data := client.socket.recv(65536):
        got += len(data)
        if time.monotonic() - begun < 3:  # three times as long as for one piece of it
            select.select([], [], [], 0.02)
    assert got > 8_000_000


def test_over_tls_who_does_not_read_the_answer_is_not_waited_for(serving: Serving) -> None:
    site = serving(
        "Hello.do_GET = lambda self: self.answer(b'x' * 20_000_000); serve_https()", WRITE=0.3
    )
    site.secure().send(GET)
    assert site.secure().send(POST % 2 + b"hi").answer()[2] == b"hi"
    site.server.saw("DEBUG .* is gone: timed out")


# The end


@BOTH
def test_a_stop_says_goodbye_to_who_is_idle_over_tls(serving: Serving, handler: str) -> None:
    site = serving(f"serve_https({handler}, graceful_timeout=600)", KEEP=600, HANDSHAKE=600)
    idle = [site.secure() for _ in range(20)]
    for client in idle:
        client.get()
    half = site.plain()
    half.sendall(client_hello(site.context)[:50])
    assert site.server.quit() == 0
    for client in idle:
        assert client.is_closed()


def test_a_handshake_under_way_is_finished_when_the_stop_comes(serving: Serving) -> None:
    site = serving()
    wire = Wire(site.plain(), site.context)
    wire.send_what_there_is(wire.tls.do_handshake)
    assert select.select([wire.socket], [], [], PATIENCE)[0]
    site.server.signal(signal.SIGQUIT)
    site.server.saw("stopping 1 workers gracefully")
    select.select([], [], [], 0.4)  # a round trip around the world
    wire.run(wire.tls.do_handshake)
    wire.run(lambda: wire.tls.write(GET))
    wire.send_what_there_is()
    assert wire.run(lambda: wire.tls.read(9999)).startswith(b"HTTP/1.1 200 OK")
    assert site.server.wait() == 0


class Shopper:
    """A client that keeps its connection, and asks again on another one only if no byte of an
    answer came: so must it be done, since nobody knows what came of the request."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.client = Secure(site.server, site.context)

    def ask(self) -> str:
        begun = b""
        try:
            begun = self.client.send(GET)._file.peek(1)
            if begun:
                status, fields, _ = self.client.answer()
                assert status == 200
                if fields.get("connection") == "close":
                    self.change()
                return "answered"
        except OSError:
            if begun:
                raise
        self.change()
        return "asked again"

    def change(self) -> None:
        self.client.close()
        self.client = Secure(self.site.server, self.site.context)


def test_no_request_is_lost_while_workers_come_and_go(serving: Serving) -> None:
    site = serving(WORKERS=3)
    site.server.all_ready(3)
    counts: Counter[str] = Counter()
    changed = threading.Condition()

    def run() -> None:
        shopper, answers = Shopper(site), 0
        while answers < 125:
            result = shopper.ask()
            answers += result == "answered"
            with changed:
                counts[result] += 1
                changed.notify_all()
        shopper.client.close()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for number in range(1, 9):
        with changed:
            assert changed.wait_for(lambda n=number: counts["answered"] > 100 * n, PATIENCE)
        if number % 2:
            site.server.signal(signal.SIGQUIT, site.server.workers()[0])
        else:
            site.server.signal(signal.SIGTTOU)
        site.server.saw("reaped", times=number)
        if number % 2 == 0:
            site.server.signal(signal.SIGTTIN)
        site.server.saw("forked", times=3 + number)
    for thread in threads:
        thread.join()
    assert counts == {"answered": 1000}
