"""What a WSGI application is told, and what it may say: the texts of PEP 3333, and no I/O.

What repeats itself from request to request is made once: the names of fields, the lines and
the statuses of answers. Clients choose the names, so few of them are remembered.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from http.server import BaseHTTPRequestHandler
from typing import Any, Final
from urllib.parse import unquote

from .grammar import check_reason
from .heads import Fields, fields
from .memo import LONGEST, Memo
from .wire import Request

HOP_BY_HOP: Final = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    )
)
_ALL: Final = 4096  # characters of all fields of a request, to be remembered
DATED: Final = ("date", "server")  # which we say, where the application does not

_fields = re.compile(r"([^:]++):[ \t]*+((?:[^\r]*[^\r \t])?)[ \t]*+\r\n").findall
_status = re.compile(r"([2-9][0-9]{2})(?: (.*+))?", re.DOTALL).fullmatch


def add_request(environ: dict[str, Any], request: Request, path: str) -> None:
    """Add what differs from one request of a connection to the next, but for the body."""
    path, _, query = path.partition("?")
    if "%" in path:
        path = unquote(path, "latin-1")
    environ["REQUEST_METHOD"] = request.method
    environ["PATH_INFO"] = path if path != "*" else ""  # OPTIONS *, which is about no path
    environ["QUERY_STRING"] = query
    environ["REQUEST_URI"] = environ["RAW_URI"] = request.target
    environ["SERVER_PROTOCOL"] = "HTTP/1.1" if request.version == (1, 1) else "HTTP/1.0"
    environ.update(told_by[request.said.text])


def _told_by(text: str) -> Mapping[str, str]:
    """What the fields say, by the names that they have in ``environ``."""
    told: dict[str, str] = {}
    for name, value in _fields(text, 1):
        key = key_of(name) if len(name) <= LONGEST else key_of.__wrapped__(name)
        if key not in told:
            told[key] = value
        else:
            told[key] += f"; {value}" if key == "HTTP_COOKIE" else f",{value}"
    told.pop("", None)
    return told


@lru_cache(256)
def key_of(name: str) -> str:
    """``HTTP_USER_AGENT`` for ``User-Agent``. Empty for what no application may see: with an
    underscore it would be taken for the name with a hyphen, which a proxy may vouch for; and
    HTTP_PROXY is where many programs look for the proxy that they are to use."""
    key = name.upper().replace("-", "_")
    if "_" in name or key == "PROXY":
        return ""
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"


def _status_of(status: str) -> tuple[int, str | None]:
    """The code, and the reason if it is not the usual one. Raises ValueError, TypeError."""
    if not isinstance(status, str):
        raise TypeError(f"a status is a text, as '200 OK', not {status!r}")
    found = _status(status)
    if not found:
        raise ValueError(f"a status is a number of 200 or more and a reason, not {status!r}")
    code, reason = int(found[1]), found[2] or ""
    check_reason(reason)
    usual = BaseHTTPRequestHandler.responses.get(code, ("",))[0]
    return code, None if reason == usual else reason


def _line_of(key: tuple[str, str]) -> tuple[bytes, int, str]:
    """A line of the head; of Content-Length the number; the name, if it is one that matters.

    Raises ValueError for what the application may not say, TypeError for what is no text.
    """
    name, value = key
    if not (isinstance(name, str) and isinstance(value, str)):
        raise TypeError(f"a header field is a pair of texts, not {(name, value)!r}")
    lower = name.lower()
    if lower in HOP_BY_HOP:
        raise ValueError(f"{name} is for the server to say, and not for an application (PEP 3333)")
    line, length, told = fields.make(key)
    return line, length, told or (lower if lower in DATED else "")


told_by: Memo[str, Mapping[str, str]] = Memo(_told_by, _ALL)  # clients repeat their fields
status_of: Memo[str, tuple[int, str | None]] = Memo(_status_of)
line_of: Fields = Fields(_line_of)
