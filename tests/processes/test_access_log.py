"""Access logs of real servers: one line for each answer, and whole."""

import http.client
import re
import socket
from pathlib import Path

from tests.conftest import PATIENCE, Starter, eventually, read_all
from tests.edges.test_access_log import COMBINED, LAST

APP = """
    from prefork_server import serve as serve_wsgi

    def app(environ, start_response):
        start_response("200 OK", [])
        return [b"hello"]

    def serve_app(**settings):
        serve_wsgi(app, "127.0.0.1:0", access_log=True, workers=4, **settings)
"""


def test_where_nobody_has_configured_logging_whole_lines_go_to_stdout(start: Starter) -> None:
    server = start(APP + "\n    serve_app()\n").all_ready(4)
    assert isinstance(server.address, tuple)
    agent = "x" * 500
    for n in range(200):
        client = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
        client.request("GET", f"/{n}", headers={"User-Agent": agent, "Connection": "close"})
        assert client.getresponse().read() == b"hello"
        client.close()
    found = server.saw(r"^(127\.0\.0\.1 - - .*)$", times=200)
    matches = [COMBINED.fullmatch(match[1]) for match in found]
    assert sorted(int(m["line"].split()[1][1:]) for m in matches if m) == list(range(200))


def test_lines_of_many_workers_never_tear(start: Starter, tmp_path: Path) -> None:
    settings = f"stdout_path={str(tmp_path / 'out')!r}, log_path='log'"
    server = start(APP + f"\n    serve_app({settings})\n")
    eventually((tmp_path / "log").exists)
    eventually(lambda: "ready, listening" in (tmp_path / "log").read_text())
    where = re.search(r"listening on 127.0.0.1:(\d+)", (tmp_path / "log").read_text())
    assert where
    address = ("127.0.0.1", int(where[1]))
    agent = b"User-Agent: " + b"y" * 500
    request = b"GET /%b HTTP/1.1\r\nHost: h\r\n" % (b"z" * 1500) + agent + b"\r\n\r\n"
    clients = [socket.create_connection(address, PATIENCE) for _ in range(8)]
    for client in clients:
        client.sendall(request * 99 + request[:-2] + b"Connection: close\r\n\r\n")
    for client in clients:
        assert read_all(client).count(b"hello") == 100
        client.close()
    assert server.quit() == 0
    out = (tmp_path / "out").read_text().splitlines()
    assert len(out) == 800 and all(COMBINED.fullmatch(line) for line in out)
    assert "GET" not in (tmp_path / "log").read_text()  # the log of the server is another


def test_a_logger_that_is_configured_is_given_the_lines(start: Starter, tmp_path: Path) -> None:
    server = start(
        APP
        + """
    import logging
    logger = logging.getLogger("prefork_server.access")
    logger.setLevel("INFO")
    logger.addHandler(logging.FileHandler("access"))
    logger.propagate = False
    serve_app()
    """
    ).ready()
    server.ask(LAST)
    eventually(lambda: (tmp_path / "access").read_text().count("\n") == 1)
    assert COMBINED.fullmatch((tmp_path / "access").read_text().strip())
    assert server.quit() == 0
    assert server.count("GET / HTTP") == 0


def test_an_output_that_nobody_reads_any_more_costs_no_request(start: Starter) -> None:
    server = start(
        APP
        + """
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(writer)
    os.close(reader)
    serve_app()
    """
    ).ready()
    for _ in range(8):
        assert server.ask(LAST).endswith(b"hello")
