"""Text from elsewhere in the log of real servers: printable, one record each."""

import json
import socket
import struct
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, Starter, read_all
from tests.unit.test_text import WILD

# Of real servers


def test_no_client_forges_a_line_whatever_it_calls_itself(start: Starter, tmp_path: Path) -> None:
    forged = "12:00:00.000 INFO    master pid=1 stopped"
    path = str(tmp_path / "s.sock")
    server = start("""
        def app(environ, start_response):
            raise ValueError("of\\r\\n" + environ["PATH_INFO"])
        serve_wsgi = __import__("prefork_server").serve
        serve_wsgi(app, "unix:s.sock", "127.0.0.1:0", workers=1, proxy_protocol_from=["127.0.0.1"])
    """)
    server.expect_error("failed|raised", "^Traceback")
    where = server.saw(r"127\.0\.0\.1:(\d+)")[0][1]
    asks = b"GET /%0A12:00:00.000%20INFO HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.bind(f"\0{server.pid}\u202e\x1b[2J\n{forged} (a name)\n")
        client.connect(path)
        client.sendall(asks)
        assert b" 500 " in read_all(client)
    named = f"/x\r\n{forged} (a header)\x9b\u2028".encode().ljust(108, b"\0")
    header = b"\r\n\r\n\0\r\nQUIT\n\x21\x31" + struct.pack("!H", 216) + named * 2
    with socket.create_connection(("127.0.0.1", int(where))) as client:
        client.sendall(header + asks)
        assert b" 500 " in read_all(client)
    assert server.quit() == 0
    begins = [line for line in server.lines if line[:1] != " " and line]
    assert not [line for line in begins if line.startswith("12:00:00.000")]
    assert all(line.isprintable() for line in server.lines)
    assert server.count(r"\\x1b\[2J\\n12:00:00\.000 INFO .*\(a name\)") >= 1
    assert server.count(r"\\r\\n12:00:00\.000 INFO .*\(a header\)\\x9b") >= 1


def test_what_a_worker_reports_does_not_look_like_a_line_of_the_log(start: Starter) -> None:
    server = start("""
        def after_fork(master):
            raise ValueError("boom\\n12:00:00.000 INFO    master pid=1 stopped\\x1b[2J")
        try:
            Preforker(print, workers=1, pid_path=None, after_fork=after_fork).run()
        except BootError as error:
            pass
    """)
    server.expect_error("before it was ready", "^Traceback")
    assert server.wait() == 0
    assert server.count(r"^12:00:00\.000") == 0
    assert server.count(r"^  12:00:00\.000 INFO .*\\x1b\[2J") >= 1


def test_the_command_says_nothing_that_steers_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        'raise ValueError("a\\x1b[2J\\r\\nprefork-server: all is well")'
    )
    for words in (["serve", "bad:app"], ["serve", f"no{WILD[:6]}:x"], ["reload", "a\x1b[2J\npid"]):
        said = subprocess.run(
            [sys.executable, "-m", "prefork_server", *(word.replace("\0", "") for word in words)],
            capture_output=True,
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""},
            check=False,
        )
        assert said.returncode in (2, 3)
        lines = (said.stdout + said.stderr).decode().split("\n")
        assert all(line.isprintable() for line in lines), json.dumps(lines)
        assert not [line for line in lines if line.startswith("prefork-server: all is well")]
