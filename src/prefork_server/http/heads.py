"""The heads of answers. They repeat themselves: each line is checked and encoded once."""

from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from .memo import Memo
from .wire import check_field, check_reason

NO_PHRASE = ("",)


_MOST: Final = 1024  # of one second; a handler may choose another length for each answer


class _Beginnings(dict[tuple[Any, ...], bytes]):
    """Status line, Server and Date, by handler class, version and status; whole heads, by type
    and length of the body, too. Good for a second."""

    second: int = 0

    def renew(self, second: int) -> None:
        self.clear()
        self.second = second

    def make(self, handler: BaseHTTPRequestHandler, code: int, now: float) -> bytes:
        version = handler.protocol_version
        start = status_line[version, code, handler.responses.get(code, NO_PHRASE)[0]]
        server, _, _ = fields["Server", handler.version_string()]
        date, _, _ = fields["Date", handler.date_time_string(now)]
        return self.keep((type(handler), version, code), start + server + date)

    def keep(self, key: tuple[Any, ...], head: bytes) -> bytes:
        if len(self) >= _MOST:
            self.clear()
        self[key] = head
        return head


beginnings: _Beginnings = _Beginnings()


def _status_line(key: tuple[str, int, str]) -> bytes:
    """Raises ValueError for what is no status, and a message that would be more than one line."""
    version, code, message = key
    if not (isinstance(code, int) and 100 <= code <= 999):
        raise ValueError(f"a status is a number of three digits, not {code!r}")
    check_reason(message)
    return f"{version} {int(code)} {message}\r\n".encode("latin-1")


status_line: Memo[tuple[str, int, str], bytes] = Memo(_status_line)


def _field(key: tuple[str, str]) -> tuple[bytes, int, str]:
    """Of a name and a value: a line; if it says something of the body or the connection, a length,
    and the name. Raises ValueError for what no field can hold."""
    keyword, value = key
    check_field(keyword, value)
    line = f"{keyword}: {value}\r\n".encode("latin-1")
    name, length = keyword.lower(), 0
    if name == "content-length":
        if not (value.isascii() and value.isdigit()):
            raise ValueError(f"a Content-Length is a number of bytes, not {value!r}")
        length = int(value)
    elif name not in ("connection", "transfer-encoding"):
        name = ""
    return line, length, name


class Fields(Memo[tuple[str, str], tuple[bytes, int, str]]):
    """Of the fields of answers, but for cookies: each is for one client, and comes once."""

    def keep(self, key: tuple[str, str], made: tuple[bytes, int, str]) -> None:
        if key[0].lower() != "set-cookie":
            super().keep(key, made)


fields: Fields = Fields(_field)
