"""What a log shows of a traceback, and of the stack of a worker in a debugger."""

import socketserver
import traceback
from types import SimpleNamespace

import pytest

from prefork_server.journal import Journal
from prefork_server.listeners import parse
from prefork_server.reports import in_debugger
from prefork_server.text import users_part


class Fails(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        parse(8000)  # type: ignore[arg-type]


def functions(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def test_a_traceback_begins_with_the_user_s_code_and_goes_on_below_it() -> None:
    server = SimpleNamespace(RequestHandlerClass=Fails)
    with pytest.raises(ValueError) as caught:
        socketserver.BaseServer.finish_request(server, object(), None)  # type: ignore[arg-type]
    error = caught.value
    assert error.__traceback__
    error.__traceback__ = error.__traceback__.tb_next  # this function is user's code, too
    assert functions(error) == ["finish_request", "__init__", "handle", "parse"]
    assert users_part(error) is error
    assert functions(error) == ["handle", "parse"]


def test_a_traceback_without_user_s_code_stays_whole() -> None:
    error: BaseException = ValueError()
    try:
        parse(8000)  # type: ignore[arg-type]
    except ValueError as raised:
        error = raised
    assert error.__traceback__
    error.__traceback__ = error.__traceback__.tb_next
    assert functions(users_part(error)) == ["parse"]


def test_a_hook_that_fails_is_told_from_its_own_frame_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    import logging
    import os

    def ready() -> None:
        raise LookupError("of my own")

    Journal(logging.getLogger("prefork_server"), os.getpid()).run_hook("ready", ready)
    (record,) = caplog.records
    assert record.exc_info
    assert record.exc_info[1]
    assert functions(record.exc_info[1]) == ["ready"]


@pytest.mark.parametrize("debugger", ["/usr/lib/python3.12/bdb.py", "/venv/lib/pdb.py"])
def test_a_stack_with_a_debugger_is_told_with_the_cure(debugger: str) -> None:
    stack = f'Current thread 0x1 (most recent call first):\n  File "{debugger}", line 3 in wait'
    assert "inline=True (-X)" in in_debugger(stack)
    assert not in_debugger(stack.replace(".py", "_of_mine.py"))
