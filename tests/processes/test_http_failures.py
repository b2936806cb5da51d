"""SystemExit in a handler or an application is answered, and then has its worker replaced."""

import re
import signal

import pytest

from tests.conftest import Starter

PROGRAM = """
    from prefork_server.http import HTTPRequestHandler, PreforkHTTPServer, PreforkWSGIServer

    class Leaving(HTTPRequestHandler):
        def do_POST(self):
            if self.path == "/leave":
                sys.exit(5)
            self.send_response(200)
            self.send_header("X-Worker", str(os.getpid()))
            self.end_headers()

    def application(environ, start_response):
        if environ["PATH_INFO"] == "/leave":
            sys.exit(5)
        start_response("200 OK", [("X-Worker", str(os.getpid()))])
        return []

    if sys.argv[1] == "handler":
        serve(Leaving, PreforkHTTPServer, threads=int(sys.argv[2]), workers=1)
    else:
        serve(application, PreforkWSGIServer, threads=int(sys.argv[2]), workers=1)
"""


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("kind", ["handler", "application"])
def test_its_client_has_an_answer_and_the_next_one_another_worker(
    start: Starter, kind: str, threads: str
) -> None:
    server = start(PROGRAM, kind, threads).ready()

    def ask(path: str, body: bytes) -> bytes:
        head = f"POST {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
        return server.ask(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    (first,) = server.workers()
    assert b"X-Worker: %d\r" % first in ask("/", b"")
    assert ask("/leave", b"x" * 500_000).startswith(b"HTTP/1.1 500 ")
    server.saw(rf"pid={first} reaped: exit code 0")
    found = re.search(rb"X-Worker: (\d+)", ask("/", b""))
    assert found and int(found[1]) != first
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
