"""Text from elsewhere is printable, and no text can forge the beginning of a record."""

import logging
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
