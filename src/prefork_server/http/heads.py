"""The heads of answers. They repeat themselves: each line is checked and encoded once."""

from functools import lru_cache

from .wire import check_field, check_reason


class _Beginnings(dict[tuple[type, str, int], bytes]):
    """Status line, Server and Date, by handler class, version and status: good for a second."""

    until: float = 0.0

    def renew(self, now: float) -> None:
        self.clear()
        self.until = int(now) + 1


beginnings: _Beginnings = _Beginnings()


@lru_cache(256)
def status_line(version: str, code: int, message: str) -> bytes:
    """Raises ValueError for a message that would be more than one line."""
    check_reason(message)
    return f"{version} {int(code)} {message}\r\n".encode("latin-1")


@lru_cache(1024)
def field(keyword: str, value: str) -> tuple[bytes, int, str]:
    """A line; if it says something of the body or the connection, a length, and the name.

    Raises ValueError for what no field can hold.
    """
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
