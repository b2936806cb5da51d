"""TLS in real servers: a wrapped listener, or a get_request of the class's own."""

import http.client
import os
import signal
import socket
import ssl
import struct
import subprocess
import textwrap
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
import trustme

from tests.conftest import HELLO, Server, Starter, eventually, read_all
from tests.edges.test_tls import drop

TLS = """\
import ssl
HERE = os.path.dirname(__file__) + "/"
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(HERE + "server.pem")

class Who(socketserver.BaseRequestHandler):
    def handle(self):
        while self.request.recv(100):
            self.request.sendall(b"%d" % os.getpid())

def wrap(server, **how):
    server.socket = context.wrap_socket(server.socket, server_side=True, **how)
    return server

def serve_tls(handler, server_class=PreforkTCPServer, address=("127.0.0.1", 0), **settings):
    with server_class(address, handler, **settings) as server:
        wrap(server).serve_forever()

def log_all():
    import logging
    logging.basicConfig(level="DEBUG", format="%(levelname)s %(message)s")
"""


MIXED = """
class Server(PreforkMixIn, socketserver.TCPServer):
    settings = Settings(workers=1, timeout=0.5)
"""


Connect = Callable[..., ssl.SSLSocket]


@pytest.fixture
def connect(client_context: ssl.SSLContext) -> Connect:
    def connect(server: Server, name: str = "localhost", **how: object) -> ssl.SSLSocket:
        return client_context.wrap_socket(server.connect(), server_hostname=name, **how)  # type: ignore[arg-type]

    return connect


@pytest.fixture
def start_tls(start: Starter, authority: trustme.CA) -> Callable[[str], Server]:
    def run(program: str) -> Server:
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
            start.directory / "server.pem"
        )
        authority.cert_pem.write_to_path(start.directory / "ca.pem")
        return start(TLS + textwrap.dedent(program))

    return run


StartTLS = Callable[[str], Server]


def ask(client: ssl.SSLSocket, data: bytes = b"hello") -> bytes:
    client.sendall(data)
    return client.recv(65536)


def nothing_happens_for(seconds: float, server: Server) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(seconds)


# The listener is wrapped


def test_two_workers_answer_over_tls(start_tls: StartTLS, connect: Connect) -> None:
    server = start_tls("serve_tls(Who, workers=2)").all_ready(2)
    with connect(server) as one, connect(server) as other:
        assert {int(ask(one)), int(ask(other))} == set(server.workers())
        assert one.version() == "TLSv1.3"


@pytest.mark.parametrize("where", ["outside", "in the class"])
def test_a_stdlib_https_server_runs_under_the_mix_in(
    start_tls: StartTLS, client_context: ssl.SSLContext, where: str
) -> None:
    server = start_tls(
        HELLO
        + f"""
        class Theirs(HTTPServer):
            def __init__(self, *args):
                super().__init__(*args)
                if {where == "in the class"}:
                    wrap(self)

        class Server(PreforkMixIn, Theirs):
            settings = Settings(workers=2)

        (serve_tls if {where == "outside"} else serve)(Hello, Server)
    """
    ).all_ready(2)
    port = int(server.address[1])
    for _ in range(5):
        client = http.client.HTTPSConnection("localhost", port, timeout=10, context=client_context)
        client.request("GET", "/")
        assert int(client.getresponse().read()) in server.workers()
        client.close()


def test_a_silent_client_does_not_keep_a_threading_worker_from_accepting(
    start_tls: StartTLS, connect: Connect
) -> None:
    server = start_tls("""
        class Server(socketserver.ThreadingMixIn, PreforkTCPServer):
            daemon_threads = True

        serve_tls(Who, Server, workers=1)
    """).all_ready(1)
    with server.connect(), connect(server) as client:
        assert int(ask(client)) == server.workers()[0]


def test_a_silent_client_holds_one_place_for_client_timeout_and_the_worker_lives(
    start_tls: StartTLS, connect: Connect
) -> None:
    server = start_tls("""
        log_all()
        serve_tls(Who, workers=1, timeout=0.5, client_timeout=1.2)
    """).all_ready(1)
    workers = server.workers()
    with server.connect(), connect(server) as client:
        assert [int(ask(client))] == workers
    server.saw(r"DEBUG.*is gone: timed out")
    assert server.count("forked") == 1


def test_a_plain_client_gets_no_plain_answer_and_leaves_one_quiet_line(
    start_tls: StartTLS, connect: Connect
) -> None:
    server = start_tls("""
        log_all()
        serve_tls(Echo, workers=1)
    """).ready()
    with server.connect() as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with suppress(ConnectionResetError):
            assert b"HTTP" not in read_all(client)
    server.saw(r"DEBUG 127.0.0.1:\d+ is gone: .*SSL")
    with connect(server) as secure:
        assert ask(secure) == b"hello"
    assert server.count("Traceback|ERROR") == 0 and server.count("is gone") == 1


def test_a_reset_in_the_queue_is_nobodys_error(start_tls: StartTLS, connect: Connect) -> None:
    server = start_tls("serve_tls(Echo, workers=1)").all_ready(1)
    worker = server.workers()[0]
    server.signal(signal.SIGSTOP, worker)
    for word in (b"", b"GET / HTTP/1.0\r\n\r\n") * 5:
        with server.connect() as client:
            client.sendall(word)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.signal(signal.SIGCONT, worker)
    with connect(server) as secure:
        assert ask(secure) == b"hello"
    assert server.workers() == [worker]


def test_an_idle_client_keeps_its_worker(start_tls: StartTLS, connect: Connect) -> None:
    server = start_tls(MIXED + "serve_tls(Who, Server)").ready()
    with connect(server) as client:
        before = ask(client)
        nothing_happens_for(1.5, server)
        assert ask(client) == before
    assert server.count("forked") == 1


def test_a_graceful_stop_finishes_what_is_under_way(start_tls: StartTLS, connect: Connect) -> None:
    server = start_tls("""
        class Slow(socketserver.BaseRequestHandler):
            def handle(self):
                print("read", self.request.recv(10))
                self.server.master.wait(30)
                self.request.sendall(bytes(1_000_000))

        serve_tls(Slow, workers=3)
    """).all_ready(3)
    with connect(server) as client, connect(server) as idle, server.connect() as silent:
        client.sendall(b"x")
        server.saw("read b'x'")
        server.signal(signal.SIGQUIT)
        assert len(read_all(client)) == 1_000_000
        assert len(read_all(idle)) == 1_000_000  # to the handler it is one that has ended
        with suppress(ConnectionResetError):
            assert read_all(silent) == b""
        assert server.wait() == 0
    server.saw("read b''")


def test_megabytes_are_exact_under_a_rain_of_signals(start_tls: StartTLS, connect: Connect) -> None:
    server = start_tls("serve_tls(Echo, workers=1)").all_ready(1)
    worker = server.workers()[0]
    data = os.urandom(1 << 20) * 20
    with connect(server) as client:
        done = threading.Event()

        def rain() -> None:
            while not done.wait(0.001):
                server.signal(signal.SIGUSR1, worker)

        weather = threading.Thread(target=rain)
        weather.start()
        received = bytearray()
        for at in range(0, len(data), 1 << 16):
            client.sendall(data[at : at + (1 << 16)])
            while len(received) < at + (1 << 16):
                received += client.recv(1 << 16)
        done.set()
        weather.join()
    assert received == data
    assert server.workers() == [worker]


def test_a_slow_reader_gets_all_and_the_worker_lives(start_tls: StartTLS, connect: Connect) -> None:
    server = start_tls(
        MIXED
        + """
class Big(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(bytes(20_000_000))

serve_tls(Big, Server)
"""
    ).ready()
    with connect(server, suppress_ragged_eofs=False) as client:
        first = client.recv(10)
        nothing_happens_for(1.2, server)
        assert len(first + read_all(client)) == 20_000_000  # and a goodbye
    assert server.count("forked") == 1


def test_the_handler_sees_the_certificate_the_name_and_the_protocol(
    start_tls: StartTLS, authority: trustme.CA, connect: Connect, client_context: ssl.SSLContext
) -> None:
    server = start_tls("""
        class Tells(socketserver.BaseRequestHandler):
            def handle(self):
                names = self.request.getpeercert()["subjectAltName"]
                word = f"{names[0][1]} {self.request.selected_alpn_protocol()} {self.request.name}"
                self.request.sendall(word.encode())

        def named(sock, name, context):
            sock.name = name

        context.sni_callback = named
        context.set_alpn_protocols(["smtp", "http/1.1"])
        context.load_verify_locations(HERE + "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        log_all()
        serve_tls(Tells, workers=1)
    """).ready()
    with suppress(OSError), connect(server) as nobody:  # of TLS 1.3, it learns at the first read
        nobody.recv(1)
    server.saw("DEBUG .*is gone: .*(CERTIFICATE|certificate)")
    mine = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(mine)
    authority.issue_cert("client.example").configure_cert(mine)
    mine.set_alpn_protocols(["http/1.1"])
    with mine.wrap_socket(server.connect(), server_hostname="localhost") as client:
        assert client.recv(100) == b"client.example http/1.1 localhost"


def test_an_end_without_goodbye_is_an_end_for_the_handler(
    start_tls: StartTLS, connect: Connect
) -> None:
    server = start_tls("""
        class Reads(socketserver.StreamRequestHandler):
            def handle(self):
                print("read", self.rfile.read())

        serve_tls(Reads, workers=1)
    """).ready()
    with connect(server) as client:
        client.sendall(b"all of it")
        drop(client)
        server.saw("read b'all of it'")


def test_it_is_closed_when_it_has_served_and_serves_nobody_in_plain_text(
    start_tls: StartTLS,
) -> None:
    server = start_tls("""
        class Stops(PreforkTCPServer):
            def ready(self, addresses):
                self.shutdown()

        class Fails(PreforkTCPServer):
            def after_fork(self, master):
                sys.exit("on purpose")

        for server_class in (Stops, Fails):
            server = wrap(server_class(("127.0.0.1", 0), Echo, workers=1))
            try:
                server.serve_forever()
            except BootError:
                pass
            print("closed:", server.socket.fileno() == -1)
            server.server_close()
    """)
    server.expect_error("before it was ready", "on purpose")
    assert server.wait() == 0
    server.saw("closed: True", times=2)


def test_handle_request_is_as_it_was_before_serving(start_tls: StartTLS, connect: Connect) -> None:
    server = start_tls("""
        with PreforkTCPServer(("127.0.0.1", 0), Who, workers=1) as server:
            wrap(server)
            print("ready, listening on %s:%d" % server.server_address)
            server.handle_request()
            server.serve_forever()
    """)
    with connect(server) as client:
        assert int(ask(client)) == server.pid
    server.saw("listening on", times=2)
    with connect(server) as client:
        assert int(ask(client)) != server.pid


def test_a_forking_server_does_the_handshake_in_its_child(
    start_tls: StartTLS, connect: Connect
) -> None:
    server = start_tls("""
        class Server(socketserver.ForkingMixIn, PreforkTCPServer):
            pass

        serve_tls(Who, Server, workers=1)
    """).all_ready(1)
    with server.connect(), connect(server) as one, connect(server) as other:
        pids = {int(ask(one)), int(ask(other))}
        assert len(pids) == 2 and not pids & set(server.workers())


def test_a_unix_socket_serves_tls_and_leaves_no_path(start_tls: StartTLS, connect: Connect) -> None:
    server = start_tls("""
        path = HERE + "sock"
        serve_tls(Echo, PreforkUnixStreamServer, path, workers=2)
        print("path is gone:", not os.path.exists(path))
    """).ready()
    with connect(server) as client:
        assert ask(client) == b"hello"
        server.signal(signal.SIGQUIT)
        eventually(lambda: not os.path.exists(str(server.address)))  # the door is shut first
    assert server.wait() == 0
    server.saw("path is gone: True")


def test_the_handshake_may_be_left_to_the_handler(start_tls: StartTLS, connect: Connect) -> None:
    server = start_tls("""
        class Late(socketserver.BaseRequestHandler):
            def handle(self):
                before = self.request.version()
                self.request.do_handshake()
                self.request.sendall(f"{before} {self.request.version()}".encode())

        with PreforkTCPServer(("127.0.0.1", 0), Late, workers=1) as server:
            wrap(server, do_handshake_on_connect=False).serve_forever()
    """).ready()
    with connect(server) as client:
        assert read_all(client) == b"None TLSv1.3"


def test_a_socket_class_of_the_contexts_own_is_used(start_tls: StartTLS, connect: Connect) -> None:
    server = start_tls("""
        class Mine(ssl.SSLSocket):
            pass

        class Tells(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.sendall(type(self.request).__name__.encode())

        log_all()
        context.sslsocket_class = Mine
        serve_tls(Tells, workers=1, timeout=0.5, client_timeout=1)
    """).ready()
    with server.connect(), connect(server) as client:
        assert read_all(client) == b"Mine"
    assert server.count("forked") == 1


@pytest.mark.executed
def test_another_kind_of_socket_is_refused(start: Starter) -> None:
    server = start("""
        class Odd(socket.socket):
            pass

        with PreforkTCPServer(("127.0.0.1", 0), Echo, workers=1) as server:
            server.socket = Odd(fileno=server.socket.detach())
            try:
                server.serve_forever()
            except ConfigError as error:
                print("refused:", error)
        print("ssl" in sys.modules)
    """)
    assert server.wait() == 0
    server.saw("refused: the listener must be a plain socket or an SSLSocket, not a Odd")
    server.saw("False")


# A get_request of the class's own


@pytest.mark.parametrize(
    "body",
    [
        "self.socket.accept(); taken[0].sendall(b'by hand: ')",
        "super().get_request(); taken[0].sendall(b'by hand: ')",
        "self.socket.accept(); taken = socket.socket(fileno=taken[0].detach()), taken[1]",
    ],
    ids=["accept", "super", "taken out of its wrapper"],
)
def test_on_a_tls_port_it_speaks_tls_whatever_it_does(
    start_tls: StartTLS, connect: Connect, body: str
) -> None:
    server = start_tls(f"""
        class Server(PreforkTCPServer):
            def get_request(self):
                taken = {body}
                return taken

        serve_tls(Echo, Server, workers=1, timeout=0.5)
    """).ready()
    with connect(server) as client:
        answer = ask(client)
        if "by hand" in body:
            answer += client.recv(10)
        nothing_happens_for(1.2, server)
        assert answer == b"by hand: hello"[-len(answer) :] and ask(client, b"still") == b"still"
    server.expect_error("Traceback")  # it leaves the socket unclosed if what it does fails
    with server.connect() as plain:
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with suppress(ConnectionResetError):
            answer = read_all(plain)
            assert b"by hand" not in answer and b"GET" not in answer
    assert server.count("forked") == 1


def test_it_may_wrap_each_connection_itself(start_tls: StartTLS, connect: Connect) -> None:
    server = start_tls(
        MIXED
        + """
class Wraps(Server):
    def get_request(self):
        connection, peer = self.socket.accept()
        return context.wrap_socket(connection, server_side=True), peer

serve(Who, Wraps)
"""
    ).ready()
    with connect(server) as client:
        before = ask(client)
        nothing_happens_for(1.5, server)
        assert ask(client) == before
    assert server.count("forked") == 1


def test_a_handshake_of_its_own_is_bounded_and_the_worker_lives(
    start_tls: StartTLS, connect: Connect
) -> None:
    server = start_tls("""
        class Wraps(PreforkTCPServer):
            def get_request(self):
                connection, peer = self.socket.accept()
                return context.wrap_socket(connection, server_side=True), peer

        serve(Who, Wraps, workers=1, timeout=0.5, client_timeout=1.2)
    """).ready()
    with server.connect(), connect(server) as client:
        assert int(ask(client)) == server.workers()[0]
    assert server.count("forked") == 1


@pytest.mark.executed
def test_an_idle_client_of_a_get_request_keeps_its_worker(start: Starter) -> None:
    server = start("""
        class Server(PreforkMixIn, socketserver.TCPServer):
            settings = Settings(workers=1, timeout=0.5)
            def get_request(self):
                connection, peer = self.socket.accept()
                assert type(connection) is Connection
                return connection, peer

        class Who(socketserver.BaseRequestHandler):
            def handle(self):
                while self.request.recv(10):
                    word = f"{os.getpid()} {self.request.gettimeout()} {'ssl' in sys.modules}"
                    self.request.sendall(word.encode())

        serve(Who, Server)
    """).ready()
    with server.connect() as client:
        client.sendall(b"who?")
        before = client.recv(100)
        nothing_happens_for(1.5, server)
        client.sendall(b"still?")
        assert client.recv(100) == before == b"%d None False" % server.workers()[0]
    assert server.count("forked") == 1
