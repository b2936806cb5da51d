"""HTTP over real connections: who is parked costs no worker, who is late is not waited for."""

import gzip
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import trustme

from tests.conftest import PATIENCE, Server, Starter, eventually, read_all

HTTP = """
    from prefork_server.http import HTTPRequestHandler, Limits, PreforkHTTPServer
    from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler

    class Hello(HTTPRequestHandler):
        head_timeout = float(os.environ.get("HEAD", 10))
        body_timeout = float(os.environ.get("BODY", 30))
        write_timeout = float(os.environ.get("WRITE", 30))
        keep_alive_timeout = float(os.environ.get("KEEP", 5))
        max_requests = int(os.environ.get("MOST", 1000))

        def answer(self, body, status=200):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def do_GET(self):
            self.answer(b"%d" % os.getpid())
        def do_POST(self):
            self.answer(self.rfile.read())
        def do_PUT(self):  # and reads nothing of it
            self.answer(b"not read")
        def log_error(self, *_):
            pass

    class Plain(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        max_requests = Hello.max_requests
        do_GET = lambda self: Hello.answer(self, b"%d" % os.getpid())
        def log_message(self, *_):
            pass

    def serve_http(handler=Hello, server_class=PreforkHTTPServer, **settings):
        serve(handler, server_class, workers=int(os.environ.get("WORKERS", 1)), **settings)
"""
HELLO = HTTP + "\n    serve_http()\n"
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


class Client:
    """One that keeps its connection, and reads each answer to its end."""

    def __init__(self, server: Server) -> None:
        self.socket = server.connect()
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> "Client":
        self.socket.sendall(data)
        return self

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        status = self._file.readline()
        assert status, "closed"
        fields: dict[str, str] = {}
        while (line := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            assert name.lower() not in fields, name
            fields[name.lower()] = value.strip()
        if fields.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._file.readline(), 16):
                body += self._file.read(size)
                assert self._file.readline() == b"\r\n"
            assert self._file.readline() == b"\r\n"
        else:
            body = self._file.read(int(fields.get("content-length", 0)))
        return int(status.split()[1]), fields, body

    def get(self, request: bytes = GET) -> bytes:
        status, _, body = self.send(request).answer()
        assert status == 200
        return body

    def rest(self) -> bytes:
        return self._file.read()

    def is_closed(self) -> bool:
        return self.rest() == b""

    def close(self) -> None:
        self._file.close()
        self.socket.close()


Connect = Callable[[Server], Client]


@pytest.fixture
def connect() -> Iterator[Connect]:
    with ExitStack() as stack:

        def one(server: Server) -> Client:
            client = Client(server)
            stack.callback(client.close)
            return client

        yield one


@contextmanager
def env(monkeypatch: pytest.MonkeyPatch, **values: object) -> Iterator[None]:
    with monkeypatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, str(value))
        yield


@pytest.fixture
def serving(start: Starter, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Server]:
    def one(program: str = "serve_http()", **values: object) -> Server:
        with env(monkeypatch, **values):
            return start(HTTP + f"\n    {program}\n").ready()

    return one


Serving = Callable[..., Server]
BOTH = pytest.mark.parametrize("handler", ["Hello", "Plain"])


# Keep-alive


@BOTH
def test_a_connection_serves_one_request_after_the_other(
    serving: Serving, connect: Connect, handler: str
) -> None:
    client = connect(serving(f"serve_http({handler})"))
    assert len({client.get() for _ in range(5)}) == 1
    assert client.get(LAST)
    assert client.is_closed()


@BOTH
def test_many_idle_connections_cost_no_worker(
    serving: Serving, connect: Connect, handler: str
) -> None:
    server = serving(f"serve_http({handler})")
    idle = [connect(server) for _ in range(200)]
    for client in idle:
        client.get()
    connect(server).get()  # with all of them there
    for client in idle:
        client.get()


@BOTH
def test_silent_connections_cost_no_worker(
    serving: Serving, connect: Connect, handler: str
) -> None:
    server = serving(f"serve_http({handler})")
    for _ in range(100):
        connect(server)
    half = connect(server)
    for _ in range(2):  # of the second request as well
        half.send(b"GET / HT")
        connect(server).get()
        half.send(GET[8:30])
        connect(server).get()
        assert half.send(GET[30:]).answer()[0] == 200
    half.send(GET + b"GET / HT").answer()
    connect(server).get()
    assert half.send(GET[8:]).answer()[0] == 200


@BOTH
def test_requests_that_come_together_are_answered_in_their_order(
    serving: Serving, connect: Connect, handler: str
) -> None:
    client = connect(serving(f"serve_http({handler})"))
    client.send(GET * 20 + LAST)
    for _ in range(21):
        assert client.answer()[0] == 200
    assert client.is_closed()


def test_after_a_request_that_is_none_nothing_more_is_read(
    serving: Serving, connect: Connect
) -> None:
    client = connect(serving()).send(GET + b"GET /\r\n\r\n" + GET)
    assert client.answer()[0] == 200
    status, fields, _ = client.answer()
    assert (status, fields["connection"]) == (400, "close")
    assert client.is_closed()


@BOTH
def test_one_who_asks_all_the_time_cannot_keep_others_out(
    serving: Serving, connect: Connect, handler: str, tmp_path: Path
) -> None:
    server = serving(f"""
    import itertools
    number = itertools.count()

    def in_order(self):
        if (mine := next(number)) == 0:
            with open("gate") as gate:  # until the other one has asked
                gate.read()
        Hello.answer(self, b"%d" % mine)

    os.mkfifo("gate")
    Hello.do_GET = Plain.do_GET = in_order
    serve_http({handler})
    """)
    greedy = connect(server).send(GET * 900)
    other = connect(server).send(GET)
    with open(tmp_path / "gate", "w"):
        pass
    assert int(other.answer()[2]) < 100, "it is served before the other 800"
    for _ in range(900):
        assert greedy.answer()[0] == 200


def test_a_connection_ends_after_so_many_requests(serving: Serving, connect: Connect) -> None:
    client = connect(serving(MOST=3)).send(GET * 4)
    assert ["close" in client.answer()[1].get("connection", "") for _ in range(3)] == [0, 0, 1]
    assert client.is_closed()


def test_a_client_of_http_1_0_is_kept_if_it_asks_for_that(
    serving: Serving, connect: Connect
) -> None:
    server = serving()
    client = connect(server)
    _, fields, _ = client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").answer()
    assert fields["connection"] == "keep-alive"
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert client.answer()[1]["connection"] == "close"
    assert client.is_closed()


# Time limits


def test_who_is_idle_for_too_long_is_closed(serving: Serving, connect: Connect) -> None:
    client = connect(serving(KEEP=0.2))
    client.get()
    assert client.is_closed()


@pytest.mark.parametrize("part", [b"", b"G", GET[:-1]])
def test_a_head_has_its_time_in_all(serving: Serving, connect: Connect, part: bytes) -> None:
    client = connect(serving("PreforkHTTPServer.defer_accept = 0; serve_http()", HEAD=0.3))
    begun = time.monotonic()
    client.send(part)
    if part:
        assert client.answer()[0] == 408
    assert client.is_closed()
    assert time.monotonic() - begun < PATIENCE / 2


@BOTH
@pytest.mark.parametrize("served", [0, 1])
def test_a_head_that_trickles_in_is_not_waited_for(
    serving: Serving, connect: Connect, handler: str, served: int
) -> None:
    program = f"HTTPRequestHandler.head_timeout = 0.5; serve_http({handler})"
    client = connect(serving(program, HEAD=0.5))
    for _ in range(served):
        client.get()
    client.send(b"GET / HTTP/1.1\r\nX: ")
    client.socket.settimeout(0.001)  # it never stops sending
    data = b""
    while not data:
        with suppress(TimeoutError):
            client.send(b"y")
            data = client.socket.recv(65536)
    assert data.startswith(b"HTTP/1.1 408 "), data


def test_a_handler_that_reads_from_a_file_of_its_own_keeps_its_worker(
    serving: Serving, connect: Connect
) -> None:
    server = serving(
        "def setup(self):\n"
        "        BaseHTTPRequestHandler.setup(self)\n"
        "        self.rfile = socket.SocketIO(self.connection, 'r')\n"
        "    Plain.setup = setup\n"
        "    serve_http(Plain)"
    )
    client = connect(server)
    assert client.get() and client.get(LAST)
    assert client.is_closed()
    connect(server).get()


def test_a_plain_handler_reads_its_bodies_and_what_follows_is_the_next_request(
    serving: Serving, connect: Connect
) -> None:
    client = connect(
        serving(
            "def do_POST(self):\n"
            "        Hello.answer(self, self.rfile.read(int(self.headers['Content-Length'])))\n"
            "    Plain.do_POST = do_POST\n"
            "    serve_http(Plain)"
        )
    )
    for size in (0, 1, 5000, 8192, 70_000, 300_000):
        body = bytes(size % 251 for size in range(size))
        post = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size
        client.send(post + body + GET + post + body[: size // 2])
        assert client.answer()[2] == body
        assert client.answer()[2].isdigit()
        assert client.send(body[size // 2 :]).answer()[2] == body
    client.send(b"GET / HTTP/1.0\r\n\r\n").socket.shutdown(socket.SHUT_WR)
    assert client.answer()[0] == 200
    assert client.is_closed()


def test_a_body_has_its_time_in_all(serving: Serving, connect: Connect) -> None:
    server = serving(BODY=0.3)
    client = connect(server).send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nab")
    assert client.answer()[0] == 408
    assert client.is_closed()
    connect(server).get()


def test_who_does_not_read_the_answer_is_not_waited_for(serving: Serving, connect: Connect) -> None:
    server = serving(
        "Hello.do_GET = lambda self: self.answer(b'x' * 20_000_000); serve_http()", WRITE=0.3
    )
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.address)
        client.sendall(GET)
        post = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi"
        assert connect(server).send(post).answer()[2] == b"hi"


# Bodies


def test_a_body_that_nobody_reads_is_skipped(serving: Serving, connect: Connect) -> None:
    client = connect(serving())
    put = b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n"
    client.send(put + b"GET /" + put)  # the body of the second one comes later
    assert client.answer()[2] == b"not read"
    assert client.answer()[2] == b"not read"
    client.send(b"GET /" + GET)
    assert client.answer()[0] == 200


def test_a_body_that_is_too_much_to_skip_ends_the_connection(
    serving: Serving, connect: Connect
) -> None:
    client = connect(serving())
    client.send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 1000)
    _, fields, body = client.answer()
    assert (fields["connection"], body) == ("close", b"not read")


def test_the_answer_to_an_upload_that_is_refused_arrives(
    serving: Serving, connect: Connect
) -> None:
    server = serving("Hello.limits = Limits(body=1000); serve_http()")
    for _ in range(20):
        client = connect(server)
        client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 300000\r\n\r\n")
        client.send(b"x" * 300000)
        assert client.answer()[0] == 413
        assert client.is_closed()


def test_chunks_are_decoded_and_the_next_request_follows(
    serving: Serving, connect: Connect
) -> None:
    client = connect(serving())
    post = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert client.get(post + b"5\r\nhello\r\n1;a=b\r\n!\r\n0\r\nX: y\r\n\r\n") == b"hello!"
    for byte in post + b"3\r\nabc\r\n0\r\n\r\n":
        client.send(bytes([byte]))
    assert client.answer()[2] == b"abc"


@pytest.mark.parametrize("expects", ["100-continue", "100-Continue"])
def test_who_asks_whether_to_go_on_is_told_when_the_body_is_read(
    serving: Serving, connect: Connect, expects: str
) -> None:
    client = connect(serving())
    client.send(
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: %b\r\n\r\n" % expects.encode()
    )
    assert client.answer()[0] == 100
    assert client.send(b"hi").answer()[2] == b"hi"
    # And not, if nobody wants it.
    client.send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    status, fields, _ = client.answer()
    assert (status, fields["connection"]) == (200, "close")


def test_a_body_that_ends_too_early_is_an_error_of_its_client(
    serving: Serving, connect: Connect
) -> None:
    client = connect(serving())
    client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nab")
    client.socket.shutdown(socket.SHUT_WR)
    assert client.answer()[0] == 400
    assert client.is_closed()


# The end


@BOTH
def test_a_stop_closes_who_is_idle_and_says_so_to_who_asks(
    serving: Serving, connect: Connect, handler: str
) -> None:
    server = serving(f"serve_http({handler}, graceful_timeout=600)", KEEP=600)
    idle = [connect(server) for _ in range(20)]
    for client in idle:
        client.get()
    assert server.quit() == 0
    for client in idle:
        assert client.is_closed()


@BOTH
def test_who_has_just_come_or_begun_to_ask_has_a_second_when_the_stop_comes(
    serving: Serving, connect: Connect, handler: str
) -> None:
    # Otherwise it is the kernel who waits for the first word of the one who is silent.
    server = serving(f"PreforkHTTPServer.defer_accept = 0; serve_http({handler})")
    halves = connect(server).send(GET)
    halves.answer()
    halves.send(LAST[:20])
    silent = connect(server)
    connect(server).get()  # and so all three were taken
    server.signal(3)
    server.saw("stopping 1 workers gracefully")
    time.sleep(0.4)  # longer than the queue must be empty for
    for client, request in ((halves, LAST[20:]), (silent, LAST)):
        assert client.send(request).answer()[0] == 200
    assert server.wait() == 0


GATED = """os.mkfifo('gate')
    def do_GET(self):
        print('in the handler')
        with open('gate') as gate:
            stops = gate.read() == 'stops'
        while stops and current_master().wants_me_alive():
            time.sleep(0.01)
        current_master().logger.info('answers %s', self.path)
        Hello.answer(self, self.path.encode())
    Hello.do_GET = Plain.do_GET = do_GET
    Plain.do_OPTIONS = Hello.do_OPTIONS = lambda self: Hello.answer(self, b'')
"""


@BOTH
def test_nothing_is_lost_of_what_was_asked_when_the_stop_came(
    serving: Serving, connect: Connect, tmp_path: Path, handler: str
) -> None:
    server = serving(f"{GATED}\n    serve_http({handler})")
    busy, waits = connect(server), connect(server)
    waits.send(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n").answer()
    busy.send(GET)
    server.saw("in the handler")
    waits.send(GET)
    server.signal(3)
    server.saw("stopping 1 workers gracefully")
    for client in (busy, waits):
        (tmp_path / "gate").write_text("stops")
        status, fields, body = client.answer()
        assert (status, fields["connection"], body) == (200, "close", b"/")
        assert client.is_closed()
    assert server.wait() == 0


def found_by_one_look(server: Server, connect: Connect, gate: Path) -> list[Client]:
    """Three who ask /1, /2 and /3 while the only worker serves another: one is in the handler."""
    busy, *waiting = clients = [connect(server) for _ in range(4)]
    for client in clients:
        client.send(b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n").answer()
    busy.send(GET)
    server.saw("in the handler")
    for number, client in enumerate(waiting, 1):
        client.send(GET.replace(b"/", b"/%d" % number, 1))
    gate.write_text("goes on")
    assert busy.answer()[2] == b"/"
    server.saw("in the handler", times=2)
    return waiting


@BOTH
def test_a_stop_between_those_found_by_one_look_is_said_to_them_all(
    serving: Serving, connect: Connect, tmp_path: Path, handler: str
) -> None:
    server = serving(f"{GATED}\n    serve_http({handler})")
    found = found_by_one_look(server, connect, tmp_path / "gate")
    server.signal(3)
    server.saw("stopping 1 workers gracefully")
    for number, client in enumerate(found, 1):
        (tmp_path / "gate").write_text("stops")
        status, fields, body = client.answer()
        assert (status, fields["connection"], body) == (200, "close", b"/%d" % number)
        assert client.is_closed()
    assert server.wait() == 0


@BOTH
def test_a_rotation_between_those_found_by_one_look_is_followed_at_once(
    serving: Serving, connect: Connect, tmp_path: Path, handler: str
) -> None:
    server = serving(
        f"{GATED}\n    PreforkHTTPServer.ready = lambda self, addresses: "
        "print(f'master pid={os.getpid()} ready, listening on {addresses[0]}')\n"
        f"    serve_http({handler}, log_path='log')"
    )
    found = found_by_one_look(server, connect, tmp_path / "gate")
    log = (tmp_path / "log").rename(tmp_path / "log.1").with_name("log")
    server.signal(10)  # USR1
    eventually(lambda: log.exists() and "rotation 1, logs reopened" in log.read_text())
    for client in found:
        (tmp_path / "gate").write_text("goes on")
        client.answer()
    assert "answers /2" in log.read_text()
    assert "answers /3" in log.read_text()


def test_a_worker_that_retires_serves_who_is_kept_once_more(
    serving: Serving, connect: Connect
) -> None:
    server = serving(WORKERS=2)
    kept: list[Client] = []
    pids: set[bytes] = set()
    while len(kept) < 8 or len(pids) < 2:  # the second worker may be later than all of them
        kept.append(connect(server))
        pids.add(kept[-1].get())
    server.signal(22)  # TTOU
    server.saw("no longer wanted, retiring")
    closing = 0
    for client in kept:
        status, fields, _ = client.send(GET).answer()
        assert status == 200
        closing += fields.get("connection") == "close"
    assert 0 < closing < len(kept)
    server.saw(r"worker=2 .* reaped: ")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_body_that_nobody_reads_and_that_never_comes_ends_the_connection(
    serving: Serving, connect: Connect, threads: int
) -> None:
    server = serving(f"serve_http(threads={threads})", BODY=0.3)
    client = connect(server).send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nonly")
    assert client.answer()[2] == b"not read"
    assert client.is_closed()


def test_the_500_of_a_handler_that_fails_arrives_at_who_is_still_sending(
    serving: Serving, connect: Connect
) -> None:
    server = serving("Hello.do_POST = lambda self: 1 / 0; serve_http()")
    server.expect_error("handler failed", "Traceback")
    client = connect(server).send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 900000\r\n\r\n")
    server.saw("ZeroDivisionError")
    for _ in range(9):  # the first is answered with a reset where nobody lingers
        client.send(bytes(100_000))
    assert client.answer()[0] == 500
    assert client.is_closed()


def test_a_handler_with_files_of_its_own_is_served_as_by_http_server(
    serving: Serving, connect: Connect
) -> None:
    server = serving("""
    class Own(Hello):
        def setup(self):
            super().setup()
            self.rfile = self.connection.makefile("rb")
            self.wfile = self.connection.makefile("wb", 0)
    serve_http(Own)""")
    client = connect(server)
    assert client.get() == client.get()
    assert client.get(LAST)
    assert client.is_closed()


def test_the_head_of_a_tunnel_comes_before_anybody_speaks(
    serving: Serving, connect: Connect
) -> None:
    server = serving("""
    def do_CONNECT(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.rfile.readline())
    Hello.do_CONNECT = do_CONNECT
    serve_http()""")
    client = connect(server).send(b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n")
    assert client.answer()[0] == 200
    assert client.send(b"hello\n").rest() == b"hello\n"


def test_who_was_slow_to_take_an_answer_may_be_silent_in_a_tunnel_all_the_same(
    serving: Serving, connect: Connect
) -> None:
    size = 20_000_000  # more than the kernel holds
    server = serving(
        f"""
    def do_GET(self):
        self.send_response(101)
        self.end_headers()
        self.wfile.write(bytes({size}))
        print("has sent it")
        self.wfile.write(self.rfile.readline())
    Hello.do_GET = do_GET
    serve_http()""",
        WRITE=0.5,
    )
    client = connect(server).send(GET)
    assert client.answer()[0] == 101
    taken = 0
    while taken < size:
        taken += len(client._file.read1(1 << 20))
    server.saw("has sent it")
    with pytest.raises(TimeoutError):
        client.socket.settimeout(0.8)
        client.socket.recv(1)
    client.socket.settimeout(PATIENCE)
    assert client.send(b"hello\n").socket.recv(100) == b"hello\n"


def test_what_a_handler_copies_is_what_its_file_reads_and_not_what_is_on_the_disk(
    serving: Serving, connect: Connect, tmp_path: Path
) -> None:
    (tmp_path / "plain").write_bytes(b"a" * 100_000)
    with gzip.open(tmp_path / "packed", "wb") as file:
        file.write(b"a" * 100_000)
    server = serving("""
    import gzip
    class Files(HTTPRequestHandler, SimpleHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with (gzip.open if self.path == "/packed" else open)(self.path[1:], "rb") as file:
                self.copyfile(file, self.wfile)
    serve_http(Files)""")
    client = connect(server)
    for name in (b"plain", b"packed"):
        assert client.get(GET.replace(b"/", b"/" + name, 1)) == b"a" * 100_000


def test_a_handler_that_fails_answers_500_and_says_nothing_of_why(
    serving: Serving, connect: Connect
) -> None:
    server = serving("Hello.do_GET = lambda self: 1 / 0; serve_http()")
    server.expect_error("handler failed", "Traceback")
    client = connect(server).send(GET)
    status, fields, body = client.answer()
    assert (status, fields["connection"]) == (500, "close")
    assert b"ZeroDivision" not in body and b"Traceback" not in body
    assert client.is_closed()
    server.saw("ZeroDivisionError")
    assert connect(server).send(b"POST / HTTP/1.1\r\nHost: h\r\n\r\n").answer()[0] == 200


HALF = """
    import ctypes, resource

    class Half(Hello):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"one half")
            self.wfile.write(b", and")
            how = self.path[1:]
            if how == "raise": raise OSError("of my own")
            if how == "leave": sys.exit(3)
            if how == "exit": os._exit(0)
            if how == "kill": os.kill(os.getpid(), signal.SIGKILL)
            if how == "term": os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)
            if how == "abort": resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.abort()
            if how == "hang": time.sleep(60)
            self.wfile.write(b" the other")
"""


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("how", ["raise", "leave", "exit", "kill", "term", "abort", "hang"])
def test_half_an_answer_to_http_1_0_never_ends_as_a_whole_one_does(
    start: Starter, how: str, threads: int
) -> None:
    ending = f"serve_http(Half, timeout=0.5, threads={threads})"
    server = start(HTTP + HALF + f"\n    {ending}\n").ready()
    server.expect_error(".")
    assert server.ask(b"GET / HTTP/1.0\r\n\r\n").endswith(b"one half, and the other")
    with pytest.raises(ConnectionResetError):
        server.ask(f"GET /{how} HTTP/1.0\r\n\r\n".encode())


def test_half_an_answer_over_tls_has_no_goodbye(start: Starter, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "server.pem"
    )
    context = ssl.create_default_context()
    authority.configure_trust(context)
    server = start(
        HTTP
        + HALF
        + f"""
    serve_http(Half, certfile={str(tmp_path / "server.pem")!r})
    """
    ).ready()
    server.expect_error(".")
    for how in ("raise", "kill"):
        with (
            server.connect() as plain,
            context.wrap_socket(
                plain, server_hostname="localhost", suppress_ragged_eofs=False
            ) as client,
        ):
            client.sendall(f"GET /{how} HTTP/1.0\r\n\r\n".encode())
            with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
                read_all(client)


def test_a_mistake_of_a_handler_is_one_error_with_its_request_and_the_worker_goes_on(
    serving: Serving, connect: Connect
) -> None:
    server = serving(
        "Hello.do_DELETE = lambda self: (self.answer(b'one'), self.answer(b'two')); serve_http()"
    )
    server.expect_error("the answer is wrong")
    pid = connect(server).get()
    client = connect(server).send(b"DELETE /x HTTP/1.1\r\nHost: h\r\n\r\n")
    assert client.answer()[2] == b"one" and client.is_closed()
    server.saw(r'ERROR .*a 200 was begun after a 200.*: "DELETE /x HTTP/1.1" of 127.0.0.1:')
    assert connect(server).get() == pid
    assert server.count("ERROR") == 1


def test_every_way_to_be_no_request_is_answered_and_closed(
    serving: Serving, connect: Connect
) -> None:
    server = serving()
    for request, status in (
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: h\n\n", 400),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: h\r\nExpect: miracles\r\n\r\n", 417),
        (b"GET /" + b"x" * 8190, 414),
        (b"BREW / HTTP/1.1\r\nHost: h\r\n\r\n", 501),
    ):
        client = connect(server).send(request)
        got, fields, body = client.answer()
        assert (got, fields["connection"]) == (status, "close"), request
        assert b"BREW" not in body
        assert client.is_closed()


def test_it_serves_under_other_peoples_servers_too(start: Starter, connect: Connect) -> None:
    for theirs in ("http.server.HTTPServer", "http.server.ThreadingHTTPServer"):
        server = start(
            HTTP
            + f"""
    import http.server, threading
    server = {theirs}(("127.0.0.1", 0), Hello)
    print("master pid=1 ready, listening on 127.0.0.1:%d" % server.server_address[1])
    server.serve_forever()
    """
        )
        client = connect(server)
        assert client.get() and client.get()
        post = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert client.get(post + b"2\r\nhi\r\n0\r\n\r\n") == b"hi"
        assert client.send(b"GET /\r\n\r\n").answer()[0] == 400
        assert read_all(client.socket) == b""
        server.signal(9)
        server.wait()


def test_it_serves_unix_sockets_as_well(serving: Serving, connect: Connect) -> None:
    server = serving(
        "del Hello.log_error; Hello.logs_requests = True\n"
        "    import pathlib\n"
        "    serve_http(address=[pathlib.Path('s.sock').absolute()])"
    )
    client = connect(server)
    assert client.get() and client.get()
    assert client.send(b"GET /\r\n\r\n").answer()[0] == 400
    assert client.is_closed()
    server.saw("a UNIX socket - - .*code 400")


@BOTH
def test_over_tls_it_is_served_as_well(serving: Serving, tmp_path: Path, handler: str) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "cert.pem"
    )
    server = serving(
        "import ssl\n"
        "    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n"
        "    context.load_cert_chain('cert.pem')\n"
        f"    with PreforkHTTPServer(('127.0.0.1', 0), {handler}, workers=1) as server:\n"
        "        server.socket = context.wrap_socket(server.socket, server_side=True)\n"
        "        server.serve_forever()"
    )
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with trusting.wrap_socket(server.connect(), server_hostname="localhost") as client:
        for _ in range(3):
            client.sendall(GET * 2)
            data = b""
            while data.count(b"HTTP/1.1 200 OK") < 2 or not data[-1:].isdigit():
                data += client.recv(65536)
