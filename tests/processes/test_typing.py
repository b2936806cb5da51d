"""A stranger's code type-checks, and a misspelt setting is an error in his editor."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.timeout(300)  # beside other tests, a type checker has half a CPU

STRANGER = """
import socketserver
import ssl

from prefork_server import (
    Death, MasterHandle, Preforker, PreforkMixIn, PreforkTCPServer, PreforkWSGIServer, Settings,
    current_master,
)
from prefork_server.http import serve

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        master = current_master()
        if master.wants_me_alive(within=5.0):
            self.wfile.write(self.rfile.readline())


class Server(PreforkMixIn, socketserver.ThreadingTCPServer):
    settings = Settings(workers=4, timeout=None)

    def after_fork(self, master: MasterHandle) -> None:
        print(master.slot, self.master.logger)

    def after_worker_exit(self, death: Death) -> None:
        print(death.slot, death)


def work(master: MasterHandle) -> None:
    for connection, peer in master.connections():
        with connection:
            connection.sendall(connection.recv(100) + repr(peer).encode())


with PreforkTCPServer(("127.0.0.1", 9000), Handler, workers=4) as server:
    server.serve_forever()
Server(("127.0.0.1", 0), Handler, settings=Settings(workers=2)).serve_forever()
PreforkWSGIServer("127.0.0.1:0", print, certfile="a.pem", keyfile="b.pem", password="c", workers=2)
serve(print, "127.0.0.1:0", ssl_context=context, proxy_protocol_from=["unix"], access_log=True)
Preforker(work, workers=2, listen=["127.0.0.1:0", ("127.0.0.1", 1)], timeout=2.5).run()
"""

WRONG = """
from prefork_server import Preforker, PreforkTCPServer, PreforkWSGIServer
from prefork_server.http import serve
import socketserver

PreforkTCPServer(("127.0.0.1", 9000), socketserver.BaseRequestHandler, workrs=4)
Preforker(lambda master: None, workrs=4)
PreforkWSGIServer("127.0.0.1:0", print, workrs=4)
serve(print, workrs=4)
"""

CHECKERS = {  # and how a line that names an error begins
    "mypy": (["-m", "mypy", "--strict", "--no-error-summary"], r".*?: error: "),
    "pyright": (
        ["-m", "pyright", "--pythonversion=3.11", "--pythonpath", sys.executable],
        r".* - error: ",
    ),
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_strangers_program_and_the_examples_type_check_and_a_misspelt_setting_does_not(
    checker: str, tmp_path: Path
) -> None:
    (tmp_path / "stranger.py").write_text(STRANGER)
    (tmp_path / "wrong.py").write_text(WRONG)
    ours = [tmp_path / "stranger.py", tmp_path / "wrong.py"]
    words, begins = CHECKERS[checker]
    command = [sys.executable, *words, *ours, *sorted((ROOT / "examples").glob("*.py"))]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    errors = re.findall(begins + ".*", result.stdout)
    assert result.returncode == 1, result.stdout + result.stderr
    assert all("wrong.py:" in error for error in errors), result.stdout
    assert result.stdout.count("workrs") >= 4, result.stdout


def test_the_types_of_the_public_interface_are_complete() -> None:
    verify = ["-m", "pyright", "--verifytypes", "prefork_server", "--ignoreexternal"]
    result = subprocess.run(
        [sys.executable, *verify, "--pythonpath", sys.executable],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Type completeness score: 100%" in result.stdout, result.stdout + result.stderr
