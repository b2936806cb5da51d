"""A log that is heard, and once: while the program configures logging, and after."""

import logging
from pathlib import Path

import pytest

from prefork_server.logfiles import leads_nowhere, logger_named, redirected, reopen, speaking


def lonely_logger(name: str) -> logging.Logger:
    """Made in the test, since pytest has handlers on those that were there before."""
    logger = logging.getLogger(f"test_logging.{name}")
    logger.propagate = False
    return logger


def test_a_logger_that_was_disabled_before_the_server_is_heard(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = lonely_logger("disabled")
    logger.disabled = True
    with speaking(logger):
        logger.info("heard")
    assert capsys.readouterr().err.endswith(" heard\n")


def test_stderr_is_left_to_the_handlers_of_the_program_as_soon_as_it_has_any(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = lonely_logger("configured")
    child, theirs = logger.getChild("access"), logging.StreamHandler()
    with speaking(logger):
        logger.info("ours")
        logger.addHandler(theirs)
        child.info("theirs, of a child")
        logger.info("theirs")
        logger.removeHandler(theirs)
        logger.info("ours again")
    first, *others, last = capsys.readouterr().err.splitlines()
    assert (first[-5:], others, last[-11:]) == (
        " ours",
        ["theirs, of a child", "theirs"],
        " ours again",
    )


def test_a_logger_that_logging_does_not_know_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("test_logging")
    with speaking(logger):
        logger.info("of its own")
    assert capsys.readouterr().err.endswith(" of its own\n")


def test_a_log_file_is_not_closed_by_what_the_program_configures_and_is_rotated(
    tmp_path: Path,
) -> None:
    logger = lonely_logger("file")
    with speaking(logger, tmp_path / "log"):
        handler = logger.handlers[-1]
        logging.shutdown()  # which dictConfig() calls, for all handlers that logging knows
        logger.handlers.clear()
        logger.disabled = True
        assert logger_named(logger) is logger and logger.handlers == [handler]
        logger.info("before")
        (tmp_path / "log").rename(tmp_path / "old")
        assert reopen() == []
        logger.info("after")
    assert "before" in (tmp_path / "old").read_text() and " after" in (tmp_path / "log").read_text()
    assert logger.handlers == []


def test_what_the_settings_drop_leads_nowhere(tmp_path: Path) -> None:
    with redirected("/dev/null", tmp_path / "err"):
        assert leads_nowhere(1) and not leads_nowhere(2)
    assert not leads_nowhere(1)
