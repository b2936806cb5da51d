"""What a server logs is heard, once, however its target configures logging."""

import os
import re
import signal
import socket
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Server, Starter, eventually, read_all

pytestmark = pytest.mark.executed

TARGET = """
import logging, logging.config

def configure():
    CONFIGURE

def app(environ, start_response):
    if environ["PATH_INFO"] == "/configure":
        configure()
        start_response("200 OK", [])
        return []
    raise ValueError("told by the log")

if EARLY:
    configure()
"""
STREAM = '"handlers": {"c": {"class": "logging.StreamHandler"}}, "root": {"handlers": ["c"]}'
SILENT = '"loggers": {"prefork_server": {"propagate": False}}'
INI = "[loggers]\nkeys=root\n[handlers]\nkeys=c\n[formatters]\nkeys=\n[logger_root]\nhandlers=c\n"
INI += "[handler_c]\nclass=StreamHandler\nargs=()\n"
WAYS = {
    "dictConfig": f'logging.config.dictConfig({{"version": 1, {STREAM}}})',
    "dictConfig without a handler": 'logging.config.dictConfig({"version": 1})',
    "dictConfig of our logger": f'logging.config.dictConfig({{"version": 1, {SILENT}}})',
    "fileConfig": f"import io; logging.config.fileConfig(io.StringIO({INI!r}))",
    "basicConfig": "logging.basicConfig()",
    "a handler of the access log": 'a = logging.getLogger("prefork_server.access"); '
    "a.addHandler(logging.StreamHandler())",
}


def served(start: Starter, directory: Path, way: str, early: bool, *words: str) -> Server:
    text = TARGET.replace("CONFIGURE", WAYS[way]).replace("EARLY", str(early))
    (directory / "target.py").write_text(text)
    command = (Path("-m"), "prefork_server", "serve", "target:app", "-b", "127.0.0.1:0")
    server = start.script(*command, "-w", "1", "--access-log", *words)
    server.expect_error("failed", "Traceback", "ERROR")
    return server


def ask(where: str, path: str) -> bytes:
    """``where``: a text that has the address."""
    port = re.search(r"listening on 127.0.0.1:(\d+)", where)
    assert port, where
    with socket.create_connection(("127.0.0.1", int(port[1])), PATIENCE) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        return read_all(client)


@pytest.mark.parametrize("when", ["in its module", "in a request"])
@pytest.mark.parametrize("way", WAYS)
def test_an_error_and_a_request_are_each_told_once(
    start: Starter, tmp_path: Path, way: str, when: str
) -> None:
    early = when == "in its module"
    server = served(start, tmp_path, way, early).ready()
    if not early:
        assert b" 200 " in ask(server.log, "/configure")
    for number in range(3):
        assert b" 500 " in ask(server.log, f"/{number}")
    assert server.quit() == 0
    assert server.count("ValueError: told by the log") == 3
    for number in range(3):
        assert server.count(rf'"GET /{number} HTTP/1.1" 500 ') == 1


@pytest.mark.parametrize("way", ["dictConfig", "dictConfig of our logger", "basicConfig"])
def test_a_log_file_that_was_asked_for_has_it_all_and_is_rotated(
    start: Starter, tmp_path: Path, way: str
) -> None:
    server = served(start, tmp_path, way, True, "--log-path", "log")
    log = tmp_path / "log"
    eventually(lambda: log.exists() and " ready" in log.read_text())
    where = log.read_text()
    ask(where, "/before")
    assert log.read_text().count("ValueError: told by the log") == 1
    log.rename(tmp_path / "old")
    server.signal(signal.SIGUSR1)
    eventually(lambda: log.exists() and "rotation 1 done" in log.read_text())
    ask(where, "/after")
    assert server.quit() == 0
    assert log.read_text().count("ValueError: told by the log") == 1
    assert "/after" not in (tmp_path / "old").read_text()


@pytest.mark.parametrize("way", ["nothing", "basicConfig", "dictConfig"])
def test_the_access_log_of_a_daemon_is_in_its_log(start: Starter, tmp_path: Path, way: str) -> None:
    words = ("-D", "-p", "pid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WAYS, "nothing", "pass")
        launcher = served(start, tmp_path, way, True, *words)
    assert launcher.wait() == 0
    pid, log = int((tmp_path / "pid").read_text()), tmp_path / "target.log"
    assert b" 500 " in ask(log.read_text(), "/one")
    os.kill(pid, signal.SIGQUIT)
    assert not launcher.anyone_left()
    assert log.read_text().count('"GET /one HTTP/1.1" 500 ') == 1
    assert log.read_text().count("ValueError: told by the log") == 1


def test_the_requests_that_a_handler_logs_in_a_daemon_are_in_its_log(
    start: Starter, tmp_path: Path
) -> None:
    launcher = start("""
        from prefork_server.http import HTTPRequestHandler, PreforkHTTPServer

        class Telling(HTTPRequestHandler):
            logs_requests = True

            def do_GET(self):
                self.send_response(204)
                self.end_headers()

        with PreforkHTTPServer(("127.0.0.1", 0), Telling, workers=1, app_name="telling") as server:
            print("listening on 127.0.0.1:%d" % server.server_port)
            print("launched %d" % server.start())
    """)
    pid = int(launcher.saw(r"launched (\d+)")[0][1])
    assert b" 204 " in ask(launcher.log, "/two")
    os.kill(pid, signal.SIGQUIT)
    assert not launcher.anyone_left()
    assert '"GET /two HTTP/1.1" 204 -' in (tmp_path / "telling.log").read_text()
