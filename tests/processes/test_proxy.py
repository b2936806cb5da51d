"""The PROXY protocol before real servers: TCP, TLS, HTTP."""

import re
import socket
import struct
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from tests.certificates import make_certificate
from tests.conftest import PATIENCE, Server, Starter, read_all
from tests.edges.test_proxy import V1
from tests.processes.test_http import GET, HTTP, Client
from tests.unit.test_proxy import v2

# Real servers


SAYS = """
        import logging
        logging.basicConfig(level="DEBUG", format="%(levelname)s %(message)s")

        class Says(socketserver.StreamRequestHandler):
            def handle(self):
                for line in self.rfile:
                    if line == b"hang\\n":
                        time.sleep(1000)
                    if line == b"die\\n":
                        raise RuntimeError("of my own")
                    self.wfile.write(f"{self.client_address!r} {line!r}\\n".encode())

        class Server(PreforkTCPServer):
            handshake_timeout = 0.5
            proxy_protocol_from = ["127.0.0.0/8"]
"""


WHO = b"('192.0.2.7', 1234) "


def say(server: Server, *words: bytes) -> bytes:
    """Each as a piece of its own, as far as that can be said of a stream."""
    with server.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for word in words:
            client.sendall(word)
        with suppress(OSError):  # it has reset the connection: reading says so
            client.shutdown(socket.SHUT_WR)
        return read_all(client)


def test_a_proxy_speaks_for_its_client(start: Starter) -> None:
    server = start(SAYS + "\n        serve(Says, Server, workers=2)").ready()
    assert say(server, V1 + b"hi\n") == WHO + b"b'hi\\n'\n"
    assert say(server, *(bytes([byte]) for byte in V1), b"hi\n") == WHO + b"b'hi\\n'\n"
    assert say(server, v2(0x21) + b"hi\n").startswith(b"('2001:db8::1', 7, 0, 0) ")
    assert say(server, v2(0x31) + b"hi\n").startswith(b"'/run/client' ")
    for header in (b"PROXY UNKNOWN\r\n", v2(command=0x20)):
        assert say(server, header + b"hi\n").startswith(b"('127.0.0.1', ")
    assert say(server, V1, V1).startswith(WHO + b"b'PROXY TCP4")  # and there is one of them


@pytest.mark.parametrize(
    "word", [b"hi\n", b"", b"PROXY TCP4 ", b"PROXY UNKNOWN ".ljust(200, b"x"), v2(0x41), v2()[:-1]]
)
def test_a_proxy_that_does_not_say_for_whom_it_speaks_is_a_quiet_line(
    start: Starter, word: bytes
) -> None:
    server = start(SAYS + "\n        serve(Says, Server, workers=1)").ready()
    with suppress(ConnectionResetError):
        assert say(server, word) == b""
    server.saw("DEBUG 127.0.0.1:.* is gone: .*PROXY")
    assert say(server, V1 + b"hi\n")
    assert server.count("forked") == 1 and server.count("Traceback|ERROR") == 0


def test_a_silent_proxy_has_its_time_and_the_worker_lives(start: Starter) -> None:
    server = start(
        SAYS + "\n        serve(Says, Server, workers=1, timeout=1, client_timeout=None)"
    ).ready()
    for word in (b"", b"PROXY"):
        with server.connect() as client:
            client.sendall(word)
            assert read_all(client) == b""
    server.saw("DEBUG .* is gone: timed out", times=2)
    assert server.count("forked") == 1


def test_a_stranger_speaks_for_himself(start: Starter) -> None:
    server = start(
        SAYS
        + "\n        serve(Says, Server, workers=1, proxy_protocol_from=['192.0.2.0/24', 'unix'])"
    ).ready()
    answer = say(server, V1 + b"hi\n")
    assert re.fullmatch(rb"\('127.0.0.1', \d+\) b'PROXY TCP4 .*\n\('127.*\) b'hi\\n'\n", answer)


def test_whoever_opens_the_unix_socket_may_be_a_proxy(start: Starter) -> None:
    server = start(
        SAYS
        + """
        serve(Says, PreforkUnixStreamServer, os.path.abspath("s"), workers=1,
              proxy_protocol_from=["unix"])
        """
    ).ready()
    with server.connect() as client:
        client.sendall(V1 + b"hi\n")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == WHO + b"b'hi\\n'\n"


@pytest.mark.parametrize("threads", [1, 2])
def test_the_log_names_the_client_where_a_worker_hung(start: Starter, threads: int) -> None:
    server = start(
        SAYS + f"\n        serve(Says, Server, workers=1, threads={threads}, timeout=0.5)"
    ).ready()
    server.expect_error("silent for more than", "killed by SIGKILL", "handler failed", "Traceback")
    with suppress(ConnectionResetError):
        say(server, V1 + b"hang\n")
    server.saw("with 192.0.2.7:1234")


def test_in_threads_a_silent_proxy_keeps_nobody_out(start: Starter) -> None:
    server = start(
        SAYS
        + """
        class Threads(socketserver.ThreadingMixIn, Server):
            handshake_timeout = 10

        serve(Says, Threads, workers=1)
        """
    ).ready()
    with server.connect():
        assert say(server, V1 + b"hi\n") == WHO + b"b'hi\\n'\n"


def test_the_header_comes_before_tls(start: Starter, tmp_path: Path) -> None:
    context = make_certificate(tmp_path)
    server = start(SAYS + "\n        serve(Says, Server, workers=1, certfile='server.pem')").ready()
    for header in (V1, v2(place=socket.inet_aton("192.0.2.7") * 2 + struct.pack("!HH", 1234, 1))):
        plain = server.connect()
        plain.sendall(header)
        with context.wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(b"hi\n")
            assert client.recv(100) == WHO + b"b'hi\\n'\n"
    with pytest.raises(OSError), server.connect() as plain:
        context.wrap_socket(plain, server_hostname="localhost").close()
    server.saw("DEBUG 127.0.0.1:.* is gone: .*PROXY")


# HTTP


TELLS = """
    import logging
    logging.basicConfig(level="DEBUG", format="%(levelname)s %(message)s")

    def do_GET(self):
        print(self.address_string(), "asks")
        Hello.answer(self, repr(self.client_address).encode())

    Hello.do_GET = Plain.do_GET = do_GET

    class Own(Hello):
        def handle(self):
            super().handle()

    class Server(PreforkHTTPServer):
        defer_accept = 0
        handshake_timeout = 1
        proxy_protocol_from = ["127.0.0.1"]
"""


HANDLERS = pytest.mark.parametrize("handler", ["Hello", "Plain", "Own"])


def serve_http(start: Starter, handler: str, more: str = "") -> Server:
    return start(HTTP + TELLS + f"\n    {more}\n    serve_http({handler}, Server)").ready()


@HANDLERS
def test_a_proxy_speaks_for_its_client_in_http_too(start: Starter, handler: str) -> None:
    server = serve_http(start, handler)
    with closing(Client(server)) as client:
        for byte in V1:
            client.send(bytes([byte]))
        for _ in range(3):
            assert client.get() == WHO.strip()
    with closing(Client(server)) as client:
        assert client.send(v2(0x21) + GET).answer()[2] == b"('2001:db8::1', 7, 0, 0)"
    with closing(Client(server)) as client:
        assert client.send(v2(0x31) + GET).answer()[2] == b"'/run/client'"
        server.saw("a UNIX socket asks" if handler != "Plain" else "")


@HANDLERS
@pytest.mark.parametrize("word", [GET, GET + bytes(100_000), b"PROXY TCP4 \r\n" + GET])
def test_a_request_without_its_header_is_refused(start: Starter, handler: str, word: bytes) -> None:
    server = serve_http(start, handler)
    for number in range(5):
        with closing(Client(server)) as client:
            status, fields, body = client.send(word).answer()
            assert (status, fields["connection"]) == (400, "close")
            assert body == b"There is no PROXY header."
            assert client.is_closed()
            client.send(b"what was on its way").send(b"is not answered with a reset")
        server.saw("DEBUG 127.0.0.1:.* is gone: .*PROXY", times=number + 1)
    assert server.count("Traceback|ERROR") == 0


@HANDLERS
def test_a_forged_header_of_a_stranger_is_no_request(start: Starter, handler: str) -> None:
    server = serve_http(start, handler, "Server.proxy_protocol_from = ['192.0.2.1', 'unix']")
    with closing(Client(server)) as client:
        assert b"127.0.0.1" in client.get()
        assert b" 400" in client.send(V1 + GET).rest()


@pytest.mark.parametrize("handler", ["Hello", "Plain"])
@pytest.mark.parametrize("head_timeout", [600, 1])
def test_a_proxy_that_says_nothing_yet_costs_no_worker(
    start: Starter, handler: str, head_timeout: int
) -> None:
    server = serve_http(
        start, handler, f"HTTPRequestHandler.head_timeout = Hello.head_timeout = {head_timeout}"
    )
    with ExitStack() as stack:
        silent = []
        for word in (b"", V1[:20], v2()[:14]):
            for _ in range(8):
                silent.append(stack.enter_context(server.connect()))
                silent[-1].sendall(word)
        good = stack.enter_context(closing(Client(server))).send(V1)
        assert good.get()
        if head_timeout < PATIENCE:
            for client in silent:
                assert read_all(client) == b""
            server.saw("DEBUG .* is gone: timed out", times=24)


@pytest.mark.parametrize("handler", ["Hello", "Plain"])
def test_the_header_comes_before_https(start: Starter, tmp_path: Path, handler: str) -> None:
    context = make_certificate(tmp_path)
    program = f"serve_http({handler}, Server, certfile='server.pem')"
    server = start(HTTP + TELLS + f"\n    {program}").ready()
    plain = server.connect()
    for byte in V1:
        plain.sendall(bytes([byte]))
    with context.wrap_socket(plain, server_hostname="localhost") as client:
        for _ in range(2):
            client.sendall(GET)
            data = b""
            while not data.endswith(WHO.strip()):
                data += client.recv(1000)
    for word in (GET, b"\x16\x03\x01\x02\x00" + bytes(512)):  # not a byte of plain text
        with server.connect() as plain, suppress(ConnectionResetError):
            plain.sendall(word)
            assert read_all(plain) == b""
    server.saw("DEBUG 127.0.0.1:.* is gone: .*PROXY", times=2)
    for word in (V1, V1 + b"\x16\x03"):  # the handshake has a time of its own
        with server.connect() as plain:
            plain.sendall(word)
            assert read_all(plain) == b""
    server.saw("DEBUG .* is gone: timed out", times=2)


@pytest.mark.parametrize("handler", ["Hello", "Plain"])
def test_who_made_a_handler_fail_is_named_and_not_the_proxy(start: Starter, handler: str) -> None:
    server = serve_http(start, handler, "Hello.do_GET = Plain.do_GET = lambda self: 1 / 0")
    server.expect_error("handler failed for 192.0.2.7:1234", "Traceback")
    with closing(Client(server)) as client:
        client.send(V1 + GET).rest()
    server.saw("handler failed for 192.0.2.7:1234")
