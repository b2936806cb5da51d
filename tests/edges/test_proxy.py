"""The PROXY protocol: what a header says, however it arrives, and who is believed."""

import re
import socket
import struct
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork_server.proxy import MOST, Introduction, ProxyError, introduced, read_header
from tests.certificates import make_certificate
from tests.conftest import Server, Starter, read_all
from tests.edges.test_connection import PAUSE, Worker, later
from tests.processes.test_http import GET, HTTP, Client

V1 = b"PROXY TCP4 192.0.2.7 127.0.0.1 1234 80\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
PLACES = {0x11: b"\x01\x02\x03\x04\x05\x06\x07\x08" + struct.pack("!HH", 1000, 80)}
PLACES[0x21] = socket.inet_pton(socket.AF_INET6, "2001:db8::1") * 2 + struct.pack("!HH", 7, 80)
PLACES[0x31] = b"/run/client".ljust(108, b"\0") + b"/run/server".ljust(108, b"\0")


def v2(
    family: int = 0x11, more: bytes = b"", command: int = 0x21, place: bytes | None = None
) -> bytes:
    body = (PLACES.get(family, b"") if place is None else place) + more
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(body)) + body


def verdict(data: bytes) -> object:
    try:
        return read_header(data)
    except ProxyError as error:
        return str(error)


# What it says


@pytest.mark.parametrize(
    ("header", "peer"),
    [
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", ("192.0.2.1", 56324)),
        (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 0\r\n", ("255.255.255.255", 65535)),
        (b"PROXY TCP6 2001:DB8::0001 ::1 1 2\r\n", ("2001:db8::1", 1, 0, 0)),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", ("::ffff:192.0.2.1", 1, 0, 0)),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff::1 whatever 9\n \0\r\n", None),
        (v2(), ("1.2.3.4", 1000)),
        (v2(0x21), ("2001:db8::1", 7, 0, 0)),
        (v2(0x31), "/run/client"),
        (v2(0x31, place=b"\0abstract".ljust(216, b"\0")), b"\0abstract"),
        (v2(0x31, place=bytes(216)), b""),
        (v2(0x11, b"\x03\x00\x04abcd"), ("1.2.3.4", 1000)),  # with a TLV
        (v2(0x11, bytes(MOST - 28)), ("1.2.3.4", 1000)),
        (v2(0x11, command=0x20), None),
        (v2(0x77, command=0x20, place=b"xyz"), None),  # LOCAL: what follows means nothing
        (v2(0x00), None),
        (v2(0x12, place=PLACES[0x11]), None),  # datagrams: known, and not for streams
    ],
)
def test_a_header_names_its_peer_in_as_many_bytes_as_it_has(header: bytes, peer: object) -> None:
    for rest in (b"", b"GET / HTTP/1.1\r\n", header):
        assert read_header(header + rest) == (len(header), peer)
    for size in range(len(header)):
        assert read_header(header[:size]) is None


@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n\r\n",
        b"PROXY TCP4 1.2.3.4\t1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        b"PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 0x1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP6 :::1 ::1 1 2\r\n",
        b"PROXY TCP6 ::1%lo ::1 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 \xb2 2\r\n",
        b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY \r\n",
        b"PROXY UNKNOWN ".ljust(106, b"x") + b"\r\n",
        b"PROXY UNKNOWN ".ljust(107, b"x"),
        v2(command=0x22),
        v2(command=0x11),
        v2(0x41),
        v2(0x13),
        v2(place=bytes(11)),
        v2(0x21, place=bytes(35)),
        v2(0x31, place=bytes(215)),
        v2(0x11, bytes(MOST - 27)),
        SIGNATURE + b"\x21\x11\xff\xff",
        SIGNATURE[:-1] + b"\r",
    ],
)
def test_what_is_no_header_is_none(header: bytes) -> None:
    with pytest.raises(ProxyError) as error:
        read_header(header)
    assert error.value.by_client


def test_the_longest_line_has_107_bytes_and_no_more_are_waited_for() -> None:
    line = b"PROXY UNKNOWN ".ljust(105, b"x")
    assert read_header(line + b"\r\n") == (107, None)
    assert read_header(line + b"x") is None
    with pytest.raises(ProxyError, match="longer than 107 bytes"):
        read_header(line + b"x\r")


GOOD = [
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
    b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n",
    b"PROXY UNKNOWN x\r\n",
    *(v2(family, b"\x03\x00\x01x") for family in PLACES),
    v2(command=0x20),
]


@st.composite
def _mangled(draw: Any) -> bytes:
    data = bytearray(draw(st.sampled_from(GOOD)) + draw(st.binary(max_size=20)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data) - 1))
        how = draw(st.integers(0, 2))
        if how == 0:
            data[at] = draw(st.integers(0, 255))
        elif how == 1:
            data[at:at] = draw(st.binary(max_size=3))
        elif len(data) > 1:
            del data[at]
    return bytes(data)


@given(st.one_of(_mangled(), st.binary(max_size=200)))
@settings(max_examples=1000, deadline=None)
def test_the_verdict_is_the_same_however_it_arrives(data: bytes) -> None:
    """And nothing is raised but ProxyError."""
    whole, size = verdict(data), 0
    while size < len(data) and (early := verdict(data[:size])) is None:
        size += 1
    if size < len(data):
        assert type(early) is type(whole) and (early == whole or isinstance(early, str))


@given(st.ip_addresses(), st.integers(0, 65535), st.binary(max_size=50))
@settings(deadline=None)
def test_whatever_a_proxy_says_of_a_client_arrives(address: Any, port: int, rest: bytes) -> None:
    peer = (str(address), port) if address.version == 4 else (str(address), port, 0, 0)
    line = f"PROXY TCP{address.version} {address} {address} {port} 9\r\n".encode()
    place = address.packed * 2 + struct.pack("!HH", port, 9)
    for header in (line, v2(0x11 if address.version == 4 else 0x21, place=place)):
        size, named = read_header(header + rest) or (0, None)
        assert size == len(header) and named[1:] == peer[1:]
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        assert socket.inet_pton(family, named[0]) == address.packed


# How it is taken


@pytest.mark.parametrize("header", GOOD)
@pytest.mark.parametrize("step", [1, 2, 5, 1000])
def test_not_one_byte_more_than_the_header_is_read(header: bytes, step: int) -> None:
    after = b"what follows\r\n\r\n"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        introduction, sent = Introduction("nobody"), header + after
        while not introduction.take_now(ours):
            piece, sent = sent[:step], sent[step:]
            theirs.sendall(piece)
        theirs.sendall(sent)
        theirs.shutdown(socket.SHUT_WR)
        found = read_header(header)
        assert found and introduction.peer == (found[1] or "nobody")
        with ours.makefile("rb") as file:
            assert file.read() == after


def test_an_end_in_the_middle_of_it_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        introduction = Introduction("nobody")
        assert not introduction.take_now(ours)
        theirs.sendall(b"PROXY TCP4")
        assert not introduction.take_now(ours)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ProxyError, match="ended before"):
            introduction.take_now(ours)


def test_on_a_socket_that_is_not_ours_it_is_waited_for_as_well() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        timer = later(lambda: theirs.sendall(V1))
        assert introduced(ours, "nobody", 5) == ("192.0.2.7", 1234)
        timer.join()
        with pytest.raises(TimeoutError) as error:
            introduced(ours, "nobody", PAUSE)
        assert error.value.by_client  # type: ignore[attr-defined]


def test_a_worker_that_goes_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefork_server.vigil.FAREWELL", PAUSE)
    worker = Worker()
    worker.retire()
    ours, theirs = worker.connect(None)
    with ours, theirs, pytest.raises(ProxyError, match="nothing came, and we go"):
        introduced(ours, "nobody", 5)
    worker.bell.close()


def test_a_reset_instead_of_it_is_by_the_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        with ours, pytest.raises(ConnectionResetError) as error:
            introduced(ours, "nobody", 5)
        assert error.value.by_client  # type: ignore[attr-defined]


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


@pytest.mark.processes
def test_a_proxy_speaks_for_its_client(start: Starter) -> None:
    server = start(SAYS + "\n        serve(Says, Server, workers=2)").ready()
    assert say(server, V1 + b"hi\n") == WHO + b"b'hi\\n'\n"
    assert say(server, *(bytes([byte]) for byte in V1), b"hi\n") == WHO + b"b'hi\\n'\n"
    assert say(server, v2(0x21) + b"hi\n").startswith(b"('2001:db8::1', 7, 0, 0) ")
    assert say(server, v2(0x31) + b"hi\n").startswith(b"'/run/client' ")
    for header in (b"PROXY UNKNOWN\r\n", v2(command=0x20)):
        assert say(server, header + b"hi\n").startswith(b"('127.0.0.1', ")
    assert say(server, V1, V1).startswith(WHO + b"b'PROXY TCP4")  # and there is one of them


@pytest.mark.processes
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


@pytest.mark.processes
def test_a_silent_proxy_has_its_time_and_the_worker_lives(start: Starter) -> None:
    server = start(
        SAYS + "\n        serve(Says, Server, workers=1, timeout=0.3, client_timeout=None)"
    ).ready()
    for word in (b"", b"PROXY"):
        with server.connect() as client:
            client.sendall(word)
            assert read_all(client) == b""
    server.saw("DEBUG .* is gone: timed out", times=2)
    assert server.count("forked") == 1


@pytest.mark.processes
def test_a_stranger_speaks_for_himself(start: Starter) -> None:
    server = start(
        SAYS
        + "\n        serve(Says, Server, workers=1, proxy_protocol_from=['192.0.2.0/24', 'unix'])"
    ).ready()
    answer = say(server, V1 + b"hi\n")
    assert re.fullmatch(rb"\('127.0.0.1', \d+\) b'PROXY TCP4 .*\n\('127.*\) b'hi\\n'\n", answer)


@pytest.mark.processes
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


@pytest.mark.processes
@pytest.mark.parametrize("threads", [1, 2])
def test_the_log_names_the_client_where_a_worker_hung(start: Starter, threads: int) -> None:
    server = start(
        SAYS + f"\n        serve(Says, Server, workers=1, threads={threads}, timeout=0.5)"
    ).ready()
    server.expect_error("silent for more than", "killed by SIGKILL", "handler failed", "Traceback")
    with suppress(ConnectionResetError):
        say(server, V1 + b"hang\n")
    server.saw("with 192.0.2.7:1234")


@pytest.mark.processes
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


@pytest.mark.processes
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


@pytest.mark.processes
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


@pytest.mark.processes
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


@pytest.mark.processes
@HANDLERS
def test_a_forged_header_of_a_stranger_is_no_request(start: Starter, handler: str) -> None:
    server = serve_http(start, handler, "Server.proxy_protocol_from = ['192.0.2.1', 'unix']")
    with closing(Client(server)) as client:
        assert b"127.0.0.1" in client.get()
        assert b" 400" in client.send(V1 + GET).rest()


@pytest.mark.processes
@pytest.mark.parametrize("handler", ["Hello", "Plain"])
@pytest.mark.parametrize("word", [b"", V1[:20], v2()[:14]])
def test_a_proxy_that_says_nothing_yet_costs_no_worker(
    start: Starter, handler: str, word: bytes
) -> None:
    server = serve_http(start, handler, "HTTPRequestHandler.head_timeout = Hello.head_timeout = 1")
    silent = [server.connect() for _ in range(20)]
    for client in silent:
        client.sendall(word)
    begun = time.monotonic()
    with closing(Client(server)) as good:
        good.send(V1)
        assert good.get() and time.monotonic() - begun < 0.9
        for client in silent:
            with client:
                assert read_all(client) == b""
    server.saw("DEBUG .* is gone: timed out", times=20)


@pytest.mark.processes
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


@pytest.mark.processes
@pytest.mark.parametrize("handler", ["Hello", "Plain"])
def test_who_made_a_handler_fail_is_named_and_not_the_proxy(start: Starter, handler: str) -> None:
    server = serve_http(start, handler, "Hello.do_GET = Plain.do_GET = lambda self: 1 / 0")
    server.expect_error("handler failed for 192.0.2.7:1234", "Traceback")
    with closing(Client(server)) as client:
        client.send(V1 + GET).rest()
    server.saw("handler failed for 192.0.2.7:1234")
