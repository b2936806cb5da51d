"""TLS as keywords of real servers: certificates, their renewal, their clients."""

import signal
import socket
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import make_certificate
from tests.conftest import Server, Starter, eventually, read_all, unmeasured

# Real servers


WHO = """
        class Who(socketserver.BaseRequestHandler):
            def handle(self):
                while self.request.recv(100):
                    self.request.sendall(b"%d" % os.getpid())

        def log_all():
            import logging
            logging.basicConfig(level="DEBUG", format="%(levelname)s %(message)s")
"""


def dial(server: Server, context: ssl.SSLContext, **how: Any) -> ssl.SSLSocket:
    return context.wrap_socket(server.connect(), server_hostname="localhost", **how)


def ask(client: ssl.SSLSocket) -> bytes:
    client.sendall(b"hello")
    return client.recv(100)


@pytest.mark.parametrize(
    "how",
    [
        "certfile='server.pem'",
        "certfile='server.pem', keyfile='server.pem'",
        "ssl_context=context",
        "server_class=PreforkUnixStreamServer, address=os.path.abspath('s'), certfile='server.pem'",
        "address=['127.0.0.1:0', '127.0.0.1:0'], certfile='server.pem'",
    ],
)
def test_our_servers_speak_tls_by_a_keyword(start: Starter, tmp_path: Path, how: str) -> None:
    trusting = make_certificate(tmp_path)
    server = start(
        WHO
        + f"""
        import ssl
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain("server.pem")
        log_all()
        serve(Who, workers=1, timeout=0.5, {how})
        """
    ).ready()
    with dial(server, trusting) as client:
        before = ask(client)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(1)
        assert ask(client) == before  # it waits as in plain, with signs of life
    with server.connect() as plain, pytest.raises(OSError):
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert read_all(plain) == b"", "plain text on a TLS port"
        raise ConnectionResetError
    server.saw("DEBUG .* is gone: .*SSL")
    assert server.count("Traceback") == 0


def test_a_handshake_has_as_long_as_the_server_says(start: Starter, tmp_path: Path) -> None:
    trusting = make_certificate(tmp_path)
    server = start(
        WHO
        + """
        class Hasty(PreforkTCPServer):
            handshake_timeout = 1.5

        log_all()
        serve(Who, Hasty, workers=1, timeout=1, client_timeout=None, certfile="server.pem")
        """
    ).ready()
    with server.connect() as silent:
        with suppress(ConnectionResetError):
            assert read_all(silent) == b""
        server.saw("DEBUG .* is gone: timed out")
    with dial(server, trusting) as client:
        before = ask(client)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(2.5)  # and its limit is for the handshake alone
        assert ask(client) == before
    assert server.count("forked") == 1


def test_a_session_that_one_worker_began_is_resumed_by_any_other(
    start: Starter, tmp_path: Path
) -> None:
    trusting = make_certificate(tmp_path)
    server = start(WHO + "\n        serve(Who, workers=2, certfile='server.pem')").all_ready(2)
    with dial(server, trusting) as client:
        first, session = ask(client), client.session
        with dial(server, trusting, session=session) as other:  # the first one is busy
            assert ask(other) != first and other.session_reused


def test_an_end_without_goodbye_is_an_error_for_the_handler_and_a_quiet_line(
    start: Starter, tmp_path: Path
) -> None:
    trusting = make_certificate(tmp_path)
    server = start(
        WHO
        + """
        class Reads(socketserver.StreamRequestHandler):
            def handle(self):
                try:
                    print("read", self.rfile.read())
                except OSError as error:
                    print("error", type(error).__name__)
                    raise

        log_all()
        serve(Reads, workers=1, certfile="server.pem")
        """
    ).ready()
    with dial(server, trusting) as client:
        client.sendall(b"all of it?")
        socket.socket.shutdown(client, socket.SHUT_WR)
        server.saw("error SSLEOFError")
    with dial(server, trusting) as client:
        client.sendall(b"all of it")
        client.unwrap()
        server.saw("read b'all of it'")
    server.saw("DEBUG .* is gone: .*EOF")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o604])
def test_a_key_that_others_may_read_is_told(start: Starter, tmp_path: Path, mode: int) -> None:
    trusting = make_certificate(tmp_path)
    (tmp_path / "server.pem").chmod(mode)
    server = start(WHO + "\n        serve(Who, workers=1, certfile='server.pem')").ready()
    with dial(server, trusting) as client:
        ask(client)
    told = server.count(f"WARNING .*server.pem is open to others .* is {mode:04o}, and should be")
    assert told == (mode != 0o600)


def test_a_wrapped_listener_and_a_keyword_are_one_too_many(start: Starter, tmp_path: Path) -> None:
    make_certificate(tmp_path)
    server = start("""
        import ssl
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain("server.pem")
        with PreforkTCPServer(("127.0.0.1", 0), Echo, ssl_context=context) as server:
            server.socket = context.wrap_socket(server.socket, server_side=True)
            try:
                server.serve_forever()
            except ConfigError as error:
                print("refused:", error)
    """)
    assert server.wait() == 0
    server.saw("refused: the listener is wrapped already")


RENEWS = """
        class Server(PreforkTCPServer):
            def before_fork(self):
                if os.path.exists("renew"):
                    try:
                        self._prefork_renew()
                        print("renewed")
                    except ConfigError as error:
                        print("kept:", error)
"""


def kill(server: Server, worker: int) -> None:
    server.signal(signal.SIGKILL, worker)
    eventually(lambda: worker not in server.workers() and len(server.workers()) == 1)


def test_a_renewed_certificate_is_served_by_workers_forked_afterwards(
    start: Starter, tmp_path: Path
) -> None:
    old = make_certificate(tmp_path)
    server = start(WHO + RENEWS + "\n        serve(Who, Server, workers=1, certfile='server.pem')")
    server.expect_error("killed by SIGKILL")
    with dial(server.all_ready(1), old) as client:
        worker = int(ask(client))
        new = make_certificate(tmp_path)
        (tmp_path / "renew").touch()
    with dial(server, old) as client:  # until somebody asks for it, nothing is read
        assert int(ask(client)) == worker
    kill(server, worker)
    server.saw("renewed")
    with pytest.raises(ssl.SSLCertVerificationError):
        dial(server, old)
    with dial(server, new) as client:
        worker = int(ask(client))
    # What cannot be used changes nothing: neither the worker to come, nor the file's own error.
    good = (tmp_path / "server.pem").read_bytes()
    for number, content in enumerate((good[:-100], b"", good.replace(b"CERTIFICATE", b"X"))):
        (tmp_path / "server.pem").write_bytes(content)
        kill(server, worker)
        server.saw("kept: ", times=number + 1)
        with dial(server, new) as client:
            worker = int(ask(client))


@pytest.mark.parametrize(
    "served", ["Who", "Who, PreforkHTTPServer", "lambda *_: [], PreforkWSGIServer"]
)
def test_hup_renews_the_certificate_and_a_broken_one_leaves_the_last(
    start: Starter, tmp_path: Path, served: str
) -> None:
    old = make_certificate(tmp_path)
    server = start(
        WHO
        + f"""
        from prefork_server import PreforkWSGIServer
        from prefork_server.http import PreforkHTTPServer
        serve({served}, workers=1, certfile="server.pem")
        """
    ).ready()
    dial(server, old).close()
    new = make_certificate(tmp_path)
    server.signal(signal.SIGHUP)
    server.saw("generation 2 serves$")
    server.saw("reaped: exit code 0")
    with pytest.raises(ssl.SSLCertVerificationError):
        dial(server, old)
    dial(server, new).close()
    (tmp_path / "server.pem").write_text("no certificate any more")
    server.expect_error("renew failed", "Traceback")
    server.signal(signal.SIGHUP)
    server.saw("renew failed")
    server.saw("generation 3 serves$")
    server.saw("reaped: exit code 0", times=2)
    dial(server, new).close()


@pytest.mark.executed
def test_without_tls_nothing_of_it_is_loaded(start: Starter) -> None:
    server = start(
        """
        class Tells(socketserver.BaseRequestHandler):
            def handle(self):
                loaded = {"ssl", "ipaddress", "prefork_server.tls", "prefork_server.proxy"}
                self.request.sendall(repr(sorted(loaded & set(sys.modules))).encode())

        serve(Tells, workers=1)
        """,
        env=unmeasured(),  # coverage loads ipaddress
    ).ready()
    assert server.ask(b"") == b"[]"
