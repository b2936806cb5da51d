"""The heads of answers. They repeat themselves: each line is checked and encoded once."""

from functools import lru_cache
from http.server import BaseHTTPRequestHandler

from .wire import check_field, check_reason

NO_PHRASE = ("",)
_MOST = 1024  # fields that are kept


class _Beginnings(dict[tuple[type, str, int], bytes]):
    """Status line, Server and Date, by handler class, version and status: good for a second."""

    until: float = 0.0

    def renew(self, now: float) -> None:
        self.clear()
        self.until = int(now) + 1

    def make(self, handler: BaseHTTPRequestHandler, code: int, now: float) -> bytes:
        version = handler.protocol_version
        start = status_line(version, code, handler.responses.get(code, NO_PHRASE)[0])
        server, _, _ = fields["Server", handler.version_string()]
        date, _, _ = fields["Date", handler.date_time_string(now)]
        self[type(handler), version, code] = beginning = start + server + date
        return beginning


beginnings: _Beginnings = _Beginnings()


@lru_cache(256)
def status_line(version: str, code: int, message: str) -> bytes:
    """Raises ValueError for a message that would be more than one line."""
    check_reason(message)
    return f"{version} {int(code)} {message}\r\n".encode("latin-1")


class _Fields(dict[tuple[str, str], tuple[bytes, int, str]]):
    """By name and value: a line; if it says something of the body or the connection, a length,
    and the name. Raises ValueError for what no field can hold.

    A dict of its own costs a third of what ``lru_cache`` does. Full, it forgets all.
    """

    def __missing__(self, key: tuple[str, str]) -> tuple[bytes, int, str]:
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
        if len(self) >= _MOST:
            self.clear()
        self[key] = made = line, length, name
        return made


fields: _Fields = _Fields()
