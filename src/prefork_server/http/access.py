"""The access log: a line for each answer, in Apache's combined format."""

import logging
import os
import re
import time
from functools import lru_cache
from typing import Any, Final

from ..logfiles import LOGGER, is_configured, leads_nowhere
from ..output import STANDARD
from ..text import escape

_MONTHS: Final = "JanFebMarAprMayJunJulAugSepOctNovDec"  # in every locale
# All of a line is less than the 4096 bytes that a pipe takes in one piece.
_LINE, _REFERER, _AGENT, _HOST = 2048, 1024, 512, 128
_GONE: Final = 499  # nginx's number for a client that left before it was answered

_stdout = STANDARD[1]
_logger = logging.getLogger(f"{LOGGER}.access")
_referer = re.compile(rb"\nReferer:[ \t]*+([^\r\n]++)", re.IGNORECASE).search
_agent = re.compile(rb"\nUser-Agent:[ \t]*+([^\r\n]++)", re.IGNORECASE).search


def log_answer(handler: Any, head: bytes) -> None:
    """``head`` is what has come of the request's; if that is nothing, nobody has asked."""
    asked = head.lstrip(b"\r\n").partition(b"\r\n")[0]
    if not asked:
        return
    reply, peer = handler._reply, handler.client_address
    named = isinstance(peer, tuple)  # of a UNIX socket it may be a path
    status = (reply.status or "-") if reply.begun else _GONE
    _say(
        f"{escape(str(peer[0]), _HOST) if named else 'unix:'} - - {_local(int(time.time()))} "
        f'"{_text(asked, _LINE)}" {status} {reply.body_sent or "-"} '
        f'"{_found(_referer(head), _REFERER)}" "{_found(_agent(head), _AGENT)}"'
    )


def _found(match: re.Match[bytes] | None, limit: int) -> str:
    return _text(match[1].rstrip(b" \t"), limit) if match else "-"


def _text(value: bytes, limit: int) -> str:
    return escape(value[:limit].decode("latin-1"), limit)


@lru_cache(2)
def _local(second: int) -> str:
    now = time.localtime(second)
    hours, minutes = divmod(abs(now.tm_gmtoff) // 60, 60)
    sign = "-" if now.tm_gmtoff < 0 else "+"
    return (
        f"[{now.tm_mday:02}/{_MONTHS[3 * now.tm_mon - 3 : 3 * now.tm_mon]}/{now.tm_year}"
        f":{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02} {sign}{hours:02}{minutes:02}]"
    )


def _say(line: str) -> None:
    if not (is_configured(_logger) or leads_nowhere(1)):
        _stdout.write(f"{line}\n".encode("ascii"))
        return
    extra = {"event": "access", "pid": os.getpid()}
    record = _logger.makeRecord(_logger.name, logging.INFO, "", 0, "%s", (line,), None, None, extra)
    _logger.disabled = False
    _logger.handle(record)  # whatever the level of the log is: it was asked for by ``access_log``
