"""What a first program does wrong is told in the log, in the words of that mistake."""

import os
import signal
import socket

import pytest

from tests.conftest import Server, Starter

LEAVES = """
    class Leaves(socketserver.StreamRequestHandler):
        def handle(self):
            sys.exit({code})
"""
SERVERS = {
    "alone": "    serve(Leaves, workers=1)",
    "in a thread": "    serve(Leaves, workers=1, threads=2)",
    "ThreadingMixIn": """
    class Server(PreforkMixIn, socketserver.ThreadingMixIn, socketserver.TCPServer):
        settings = Settings(workers=1)
    serve(Leaves, Server)
    """,
    "asyncio": """
    from prefork_server.aio import PreforkAsyncioServer
    async def leaves(reader, writer):
        Leaves.handle(None)
    PreforkAsyncioServer("127.0.0.1:0", leaves, workers=1).serve_forever()
    """,
    "HTTP": """
    from prefork_server.http import HTTPRequestHandler, PreforkHTTPServer
    class Pages(HTTPRequestHandler):
        do_GET = Leaves.handle
    serve(Pages, PreforkHTTPServer, workers=1)
    """,
    "WSGI": """
    import prefork_server.http
    prefork_server.http.serve(lambda environ, start_response: Leaves.handle(None), "127.0.0.1:0")
    """,
}


def asked(server: Server) -> None:
    """Send a request, whatever becomes of it."""
    with server.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        try:
            while client.recv(1000):
                pass
        except ConnectionError:
            pass  # closed with something unread


@pytest.mark.parametrize("how", SERVERS)
def test_what_a_handler_says_with_sys_exit_is_told(how: str, start: Starter) -> None:
    server = start(LEAVES.format(code="'no\\ndatabase'") + SERVERS[how]).ready()
    asked(server)
    server.saw(r"WARNING +worker=\d+ pid=\d+ a handler called sys\.exit\('no\\ndatabase'\), ret")
    server.saw(r"worker=\d+ pid=\d+ reaped: exit code 0")


def test_sys_exit_without_a_message_is_told_too(start: Starter) -> None:
    server = start(LEAVES.format(code="") + SERVERS["alone"]).ready()
    asked(server)
    server.saw(r"INFO +worker=1 pid=\d+ a handler called sys\.exit\(\), retiring")


FAILS = {
    "HTTP": """
    from prefork_server.http import HTTPRequestHandler, PreforkHTTPServer
    class Pages(HTTPRequestHandler):
        def do_GET(self):
            [][self.path]
    serve(Pages, PreforkHTTPServer, workers=1)
    """,
    "http.server": """
    from http.server import BaseHTTPRequestHandler
    from prefork_server.http import PreforkHTTPServer
    class Pages(BaseHTTPRequestHandler):
        def do_GET(self):
            [][self.path]
    serve(Pages, PreforkHTTPServer, workers=1)
    """,
    "WSGI": """
    import prefork_server.http
    def application(environ, start_response):
        [][environ["PATH_INFO"]]
    prefork_server.http.serve(application, "127.0.0.1:0", workers=1)
    """,
    "threads": """
    class Reads(socketserver.StreamRequestHandler):
        def handle(self):
            [][self.rfile.readline()]
    serve(Reads, workers=1, threads=2)
    """,
    "handle_error": """
    import traceback
    class Reads(socketserver.StreamRequestHandler):
        def handle(self):
            [][self.rfile.readline()]
    class Server(PreforkTCPServer):
        def handle_error(self, request, client_address):
            print(traceback.format_exc())
    serve(Reads, Server, workers=1)
    """,
    "asyncio": """
    from prefork_server.aio import PreforkAsyncioServer
    async def reads(reader, writer):
        [][await reader.readline()]
    PreforkAsyncioServer("127.0.0.1:0", reads, workers=1).serve_forever()
    """,
}


@pytest.mark.parametrize("how", FAILS)
def test_a_traceback_begins_with_the_handler_s_own_frame(how: str, start: Starter) -> None:
    server = start(FAILS[how]).ready()
    server.expect_error("failed for", "the application failed", "Traceback")
    asked(server)
    server.saw("TypeError: list indices must be integers")
    assert server.quit() == 0
    lines = [line.strip() for line in server.lines]
    first = lines[lines.index("Traceback (most recent call last):") + 1]
    assert 'app0.py", line' in first
    assert not server.count("prefork_server/mixin")


def test_a_work_function_s_traceback_begins_with_it(start: Starter) -> None:
    server = start("""
        def work(master):
            master.wait(0.1)
            [][work]
        Preforker(work, workers=1, pid_path=None).run()
    """).ready()
    server.expect_error("reaped: exit code 1", "Traceback")
    server.saw("TypeError: list indices")
    lines = [line.strip() for line in server.lines]
    assert "in work" in lines[lines.index("Traceback (most recent call last):") + 1]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_breakpoint_that_outlasts_the_timeout_is_told_with_the_cure(
    start: Starter, threads: int
) -> None:
    reader, writer = os.pipe()  # a terminal at which nothing is typed
    server = start(
        f"""
        class Stops(socketserver.StreamRequestHandler):
            def handle(self):
                breakpoint()
                self.wfile.write(b"done")
        serve(Stops, workers=1, timeout=1, graceful_timeout=1, threads={threads})
        """,
        stdin=reader,
    ).ready()
    os.close(reader)
    server.expect_error("silent for more than 1s", "not gone", "reaped: killed by SIGKILL")
    server.expect_error("handler failed", "Traceback")  # in a thread it hears of the end of input
    with server.connect():
        server.saw(r"silent for more than 1s at .*; it was in a debugger: inline=True \(-X\)")
    os.close(writer)


@pytest.mark.parametrize("term", ["now", "graceful"])
def test_a_term_to_the_whole_group_with_a_status_page_is_no_error(
    start: Starter, term: str
) -> None:
    for _ in range(5):  # each of them may be the first that hears it
        server = start(f"serve(Echo, workers=3, status='127.0.0.1:0', term={term!r})").ready()
        os.killpg(server.pid, signal.SIGTERM)
        assert server.wait() == 0
        assert not server.count("ERROR|WARNING")


def test_a_port_in_use_is_told_in_one_line_and_one_traceback(start: Starter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = start(f"serve(Echo, address='127.0.0.1:{port}', workers=1)")
        server.expect_error("Traceback")
        assert server.wait() == 1
    assert server.count("is in use, trying for 2s") == 1
    assert server.count("Traceback") == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in server.lines[-1]
