"""What the fields of a request say of its connection and of where it ends; or ``Reject``."""

import re
from ipaddress import IPv6Address
from typing import NamedTuple

from .grammar import TOKEN, Limits, Reject
from .memo import Memo

# Those fields that say something of the connection, or of where the message ends.
_telling = re.compile(
    r"\n(host|connection|content-length|transfer-encoding|expect):[ \t]*+([^\r]*+)"
).findall

_is_token = re.compile(rf"[{TOKEN}]++").fullmatch

# RFC 3986 3.2.2 without the comma, which in a field may be the seam of two values.
_host = re.compile(
    r"(?:\[([0-9a-f:.]++)\]|(?:[a-z0-9\-._~!$&'*+;=()]|%[0-9a-f]{2})+)(?::([0-9]{0,5}))?"
).fullmatch


class Said(NamedTuple):
    """What the fields say. Many requests may share one."""

    text: str  # the lines in Latin-1, with a line feed before the first
    lower: str  # the same in lower case, character for character
    late: bool  # of HTTP/1.1, and not 1.0
    host: str | None
    keep_alive: bool
    length: int | None  # None: in chunks
    expects_continue: bool


def values_of(text: str, lower: str, key: str) -> list[str]:
    found = []
    at = lower.find(key)
    while at >= 0:
        start = at + len(key)
        at = text.find("\r", start)
        found.append(text[start:at].strip(" \t"))
        at = lower.find(key, at)
    return found


def heed(fields: str, minor: str, limits: Limits) -> Said:
    """What the fields say of the connection and the body."""
    text = "\n" + fields
    lower = text.lower()
    telling = _telling(lower)
    if len(telling) == 1 and telling[0][0] == "host":
        late = minor == "1"
        return Said(text, lower, late, _hosts[telling[0][1]], late, 0, False)
    said = dict(telling)
    if len(said) < len(telling):
        said = _joined(telling)
    late = keep_alive = minor == "1"
    host = _hosts[said["host"]] if "host" in said else None
    if late and host is None:
        raise Reject(400, "A request of HTTP/1.1 must have a Host field.")
    if "connection" in said:
        keep_alive = _keeps(said["connection"].rstrip(" \t"), late)
    size, coding = said.get("content-length"), said.get("transfer-encoding")
    length: int | None = 0
    if coding is not None:
        _check_coding(coding.rstrip(" \t"), late, size is not None)
        length = None
    elif size is not None:
        length = _length(size.rstrip(" \t"), limits.body)
    expects = late and "expect" in said
    if expects and said["expect"].rstrip(" \t") != "100-continue":
        raise Reject(417, "Nothing can be expected but 100-continue.")
    return Said(text, lower, late, host, keep_alive, length, expects and length != 0)


def _joined(telling: list[tuple[str, str]]) -> dict[str, str]:
    """Lines of one name are one list. Of Host and Content-Length none is allowed, and a comma
    stands in none of their values."""
    said: dict[str, str] = {}
    for name, value in telling:
        said[name] = f"{said[name]},{value}" if name in said else value
    return said


def _host_of(value: str) -> str:
    """The host and port of a Host field, in lower case, and checked."""
    host = value.rstrip(" \t")
    if host:  # a target without a host has an empty Host, says RFC 9112 3.2
        check_host(host)
    return host


_hosts: Memo[str, str] = Memo(_host_of)  # nearly all requests of a server name the same few


def check_host(host: str) -> None:
    """Of the host and port, in lower case, as they stand in Host or in a target."""
    found = _host(host)
    if found:
        address, port = found.groups()
        try:
            if address is not None:
                IPv6Address(address)
            if not port or int(port) <= 65535:
                return
        except ValueError:
            pass
    raise Reject(400, "The host is not a name or an address, with or without a port.")


def _keeps(value: str, late: bool) -> bool:
    if value == "keep-alive":  # what browsers send
        return True
    options = {option.strip(" \t") for option in value.split(",")}
    if "close" in options or "upgrade" in options:
        return False
    return late or "keep-alive" in options


def _length(value: str, most: int) -> int:
    # 18 digits are less than 2**63, so nobody's integer overflows.
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise Reject(400, "The Content-Length is not one number.")
    length = int(value)
    if length > most:
        raise Reject(413, "The body is too long.")
    return length


def _check_coding(value: str, late: bool, has_length: bool) -> None:
    if has_length:
        raise Reject(400, "Transfer-Encoding and Content-Length exclude each other.")
    if not late:
        raise Reject(400, "HTTP/1.0 has no Transfer-Encoding.")
    if value == "chunked":
        return
    codings = [coding.strip(" \t") for coding in value.split(",")]
    if "chunked" not in codings[:-1] and all(map(_is_token, codings)):
        raise Reject(501, "No transfer coding is known but chunked.")
    raise Reject(400, "The Transfer-Encoding is malformed.")
