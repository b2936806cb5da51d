"""Text from elsewhere is printable, and no text can forge the beginning of a record."""

import json
import logging
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork_server.journal import Journal
from prefork_server.listeners import address_text
from prefork_server.logfiles import speaking
from prefork_server.reports import innermost_first
from prefork_server.scoreboard import NEVER, Scoreboard
from prefork_server.text import one_record, printable
from tests.conftest import ROOT, Starter, read_all

WILD = "a\x1b[31m\r\x00\x07\x7f\x85\x9b\u2028\u2029\u202e\u2066\ufeff\ud800\nb"


def is_clean(text: str) -> bool:
    """Whether all of it is printable, and each line but the first is indented."""
    first, *rest = text.rstrip("\n").split("\n")
    return first.isprintable() and all(
        line.isprintable() and (line.startswith("  ") or not line) for line in rest
    )


def test_what_is_printable_stays_and_all_else_is_an_escape() -> None:
    assert printable("12:00 naïve „café“ 漢字") == "12:00 naïve „café“ 漢字"
    assert printable("\x1b\r\n\t\u2028\u202e") == "\\x1b\\r\\n\\t\\u2028\\u202e"
    assert printable("a\nb\r", "\n") == "a\nb\\r"


@given(st.text())
def test_no_text_is_more_than_one_record(text: str) -> None:
    assert printable(text).isprintable()
    assert is_clean(one_record(f"record{text}"))


def test_a_traceback_keeps_its_shape_and_is_indented_once() -> None:
    told = "failed\nTraceback:\n  File x\n    raise\n\nValueError: \x1b\n"
    indented = "failed\n  Traceback:\n    File x\n      raise\n\n  ValueError: \\x1b".splitlines()
    assert [line.rstrip() for line in one_record(told).split("\n")] == indented
    assert one_record(one_record(told)) == one_record(told)


@pytest.mark.parametrize(
    "name", [(WILD, 80), f"/run/{WILD}", f"\0{WILD}", WILD.encode("utf-8", "surrogatepass")]
)
def test_a_peer_by_any_name_is_one_printable_word(name: object) -> None:
    assert address_text(name).isprintable()


def test_a_log_of_ours_is_clean_whatever_is_in_a_record(tmp_path: Path) -> None:
    logger = logging.getLogger("test_text_1")
    logger.propagate = False
    with speaking(logger, tmp_path / "log"):
        logger.info("of %s", WILD)
        try:
            raise ValueError(f"{WILD}\n2026-01-01 12:00:00.000 INFO    master pid=1 stopped")
        except ValueError:
            logger.exception("failed")
    *lines, last = (tmp_path / "log").read_text().split("\n")
    assert last == "" and all(line.isprintable() for line in lines)
    begin = [line for line in lines if line and not line.startswith("  ")]
    assert [line.split()[2:4] for line in begin] == [["INFO", "of"], ["ERROR", "failed"]]
    assert any(line.startswith("  Traceback") for line in lines)


def test_what_the_journal_says_is_clean_in_a_programs_own_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("test_text_2")
    journal = Journal(logger, 1)
    caplog.set_level(logging.INFO)
    journal.say(logging.INFO, "event", None, "%s of %d: %s", WILD, 7, OSError(WILD))
    journal.say(logging.INFO, "event", None, "died", report=f"{WILD}\nmaster pid=1 stopped")
    assert len(caplog.records) == 2
    assert all(is_clean(record.getMessage()) for record in caplog.records)
    assert "\n" not in caplog.records[0].getMessage()


def test_what_a_worker_writes_of_its_peer_and_of_itself_is_clean() -> None:
    board = Scoreboard(1)
    board.clear(1, NEVER)
    board._write(64, WILD.encode("utf-8", "replace"))
    board.set_note(1, WILD)
    assert board.peer(1).isprintable() and board.note(1).isprintable()
    board.close()


def test_a_thread_and_a_file_with_a_line_break_are_one_line_of_a_stack() -> None:
    wild = WILD.translate({0: "", 0xD800: ""})  # which no name of a file holds
    code = compile("import threading; found = look(threading.get_ident())", f"x{wild}.py", "exec")
    names = {"look": innermost_first}
    exec(code, names)
    place, stacks = names["found"]  # type: ignore[misc]
    assert place.isprintable() and all(line.isprintable() for line in stacks.split("\n"))
    assert not [line for line in stacks.split("\n") if not line.startswith(("Thread ", "  File "))]


# Of real servers


@pytest.mark.processes
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


@pytest.mark.processes
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


@pytest.mark.processes
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
