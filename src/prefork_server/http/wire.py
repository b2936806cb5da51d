"""HTTP/1.1 as bytes: where a request's head ends, what it says, and how long its body is.

It decides what is a request at all, by RFC 9110 and RFC 9112, and is strict wherever two
readers could disagree about where a message ends. The verdict is the same however the bytes
arrive: what is wrong is found line by line, in the order in which it was sent.

It reads no socket and no clock, writes no log, and knows no handler. It repairs nothing, and
no sentence of its refusals repeats what the client sent.
"""

import re
from typing import Final, NoReturn

from ..text import escape
from .chunks import Chunks
from .fields import Said, check_host, heed, values_of
from .grammar import (
    LIMITS,
    TEXT,
    TOKEN,
    UPPER,
    Limits,
    Reject,
    begun,
    check_field,
    check_field_line,
    check_reason,
    token_end,
)
from .memo import Memo

__all__ = [
    "LIMITS",
    "Chunks",
    "Limits",
    "Reject",
    "Request",
    "check_field",
    "check_reason",
    "escape",
    "find_head",
    "known_requests",
    "read_head",
    "read_known",
]


# Two empty lines before a request: RFC 9112 2.2 wants one to be allowed, for clients that end
# a body with a CRLF of their own.
_LEADING: Final = 4

# Sets are repeated possessively. Groups are not: before 3.11.5 that could match too much
# (gh-106052). But none can be left before its end in a way that matches, so it is one pass.
_QUERY = r"!\"$-~"  # printable but "#"; browsers send "\", "|" and a lone "%" here
_PATH = r"!\"$&->@-\[\]-~"  # the same without "%", "?" and "\"
# A NUL in a path is for nobody, and many a file system's functions fail at one (RFC 3986 7.3).
_FULL_PATH = rf"/[{_PATH}]*+(?:%(?!00)[0-9A-Fa-f]{{2}}[{_PATH}]*+)*"
_ORIGIN = rf"{_FULL_PATH}(?:\?[{_QUERY}]*+)?"
_MANY: Final = 100  # fields; more are looked at line by line, where a program allows them
_FIELDS = rf"(?:[{TOKEN}]++:[{TEXT}]*+\r\n){{0,{_MANY}}}"

# Nearly every request that is one. What does not match is looked at line by line.
_plain = re.compile(
    rf"((?!CONNECT |PRI )[{UPPER}]{{1,32}}+) ({_ORIGIN}) HTTP/1\.([01])\r\n({_FIELDS})\r\n"
).fullmatch
_any_form = re.compile(
    rf"([{UPPER}]{{1,32}}+) ([!-~]++) HTTP/1\.([01])\r\n((?:[^\r]++\r\n)*)\r\n"
).fullmatch

_SMALL: Final = min(LIMITS.line, LIMITS.field)  # within it _plain has seen to all of them
_upper = re.compile(rf"[{UPPER}]{{1,32}}+".encode()).match
_printable = re.compile(rb"[!-~]*+").fullmatch
_origin = re.compile(_ORIGIN.encode()).fullmatch
_absolute = re.compile(
    rf"([Hh][Tt][Tt][Pp][Ss]?)://([^/?#]++)({_ORIGIN}|\?[{_QUERY}]*+|)"
).fullmatch
_authority = re.compile(r"[^/?#@]+:[0-9]{1,5}").fullmatch
_version = re.compile(rb"HTTP/[0-9]\.[0-9]").fullmatch

_SPLIT = "A request is a method, a target and a version, with one space between them."
_NO_FORM = "The target has none of the forms that a request can have."
_VERSIONS = "Only HTTP/1.0 and HTTP/1.1 are spoken."
_TWO_HOSTS = "The target and the Host field name different hosts."


def find_head(data: bytes | bytearray, limits: Limits = LIMITS, seen: int = 0) -> int:
    """The length of the head at the front, with its final empty line, or 0: more has to come.

    ``seen`` is how much of it was there when this last returned 0; that is not looked at
    again. Raises ``Reject`` as soon as no request can begin like this. Two empty lines
    before it are allowed; they belong to the head, and count towards ``limits.head`` alone.
    """
    end = data.find(b"\r\n\r\n", seen - 3 if seen > 3 else 0) + 4
    if 4 < end <= limits.head and data[0] != 13:
        return end  # what is in it, read_head will see
    return _examine(data, limits, seen)


def _examine(data: bytes | bytearray, limits: Limits, seen: int) -> int:
    """``find_head`` by the line. The first fault in order of bytes is the one that is named:
    so it is the same for a part of the head and for the whole."""
    at, most = 0, limits.head
    while data.startswith(b"\r\n", at):
        at += 2
        if at > _LEADING:
            raise Reject(400, "There are too many empty lines before the request.")
    end = data.find(b"\r\n", at, most)
    if end < 0:
        _check_request_line(begun(data, at, most), False, limits.line)
    else:
        if seen < end + 2:
            _check_request_line(bytes(data[at:end]), True, limits.line)
        start = end + 2
        at = max(start, data.rfind(b"\n", 0, seen) + 1)
        # Where no line has begun since, there is nothing to count, for a head byte by byte.
        count = data.count(b"\n", start, at) if data.find(b"\n", max(0, seen - 2)) >= 0 else 0
        while (end := data.find(b"\r\n", at, most)) != at:
            line = bytes(data[at:end]) if end > 0 else begun(data, at, most)
            if line:
                count += 1
                if count > limits.fields:
                    raise Reject(431, "There are too many header fields.")
                check_field_line(line, end > 0, limits.field)
            if end < 0:
                break
            at = end + 2
        else:
            return at + 2
    if len(data) >= most:
        raise Reject(431, "The head of the request is too long.")
    return 0


def _check_request_line(line: bytes, whole: bool, most: int) -> None:
    seen = line[:most]
    if seen.startswith(b"\x16"):
        raise Reject(400, "This is a TLS handshake, and here is plain HTTP.")
    method, space, rest = seen.partition(b" ")
    known = _upper(method)
    end = known.end() if known else 0
    if token_end(method, end) > end:  # lower case, or longer than any
        raise Reject(501, "The method is not known.")
    if end < len(method) or (space and not method):
        raise Reject(400, "The request does not begin with a method.")
    target, space, version = rest.partition(b" ")
    if not _printable(target):
        raise Reject(400, "The target is not written in printable ASCII.")
    if space:
        _check_target(method, target)
    if not _version(version + b"HTTP/1.1"[len(version) :]):
        raise Reject(400, _SPLIT)
    if len(line) > most:
        raise Reject(414, "The request line is too long.")
    if whole and version not in (b"HTTP/1.0", b"HTTP/1.1"):
        raise Reject(505, _VERSIONS) if len(version) == 8 else Reject(400, _SPLIT)


def _check_target(method: bytes, target: bytes) -> None:
    if method == b"PRI":  # how HTTP/2 begins
        raise Reject(505, _VERSIONS)
    if target == b"*" and method == b"OPTIONS":
        return
    if method == b"CONNECT":
        if not _authority(target.decode()):
            raise Reject(400, _NO_FORM)
        check_host(target.decode().lower())
    elif not _origin(target):
        found = _absolute(target.decode())
        if not found:
            raise Reject(400, _NO_FORM)
        check_host(found[2].lower())


class Request:
    """What the head of a request says; it has been checked, all of it.

    ``target`` is as it was sent, ``path`` what a handler wants to see: of a target with a host
    in it, the path and the query; otherwise the same. ``length`` is that of the body, 0 where
    there is none, ``None`` if it is ``chunked``. ``expects_continue`` is true only where there
    is a body. Whoever asks for another protocol, or a tunnel (CONNECT, whose target is a host
    and a port), is not kept alive: what follows might be it.
    """

    __slots__ = ("method", "path", "said", "shown", "target")

    method: str
    target: str
    path: str
    said: Said  # shared by many
    shown: tuple[str, str, bool]  # to a handler: path, version, whether the connection ends

    def show(self) -> None:
        """Make ``shown`` of the others."""
        path = self.path
        if path[:2] == "//":  # in a Location of a handler it would name another host
            path = "/" + path.lstrip("/")
        version = "HTTP/1.1" if self.said.late else "HTTP/1.0"
        self.shown = (path, version, not self.said.keep_alive)

    @property
    def version(self) -> tuple[int, int]:
        return (1, 1) if self.said.late else (1, 0)

    @property
    def keep_alive(self) -> bool:
        return self.said.keep_alive

    @property
    def length(self) -> int | None:
        return self.said.length

    @property
    def chunked(self) -> bool:
        return self.said.length is None

    @property
    def expects_continue(self) -> bool:
        return self.said.expects_continue

    @property
    def raw_fields(self) -> bytes:
        """The header lines, each with its CRLF."""
        return self.said.text[1:].encode("latin-1")

    @property
    def fields(self) -> list[tuple[str, str]]:
        """Names as they were sent, and values without the white space around them; a new list."""
        pairs = [line.partition(":") for line in self.said.text[1:].split("\r\n")[:-1]]
        return [(name, value.strip(" \t")) for name, _, value in pairs]

    def get(self, name: str) -> str | None:
        """The value of one field, by its name in lower case; of several, joined by commas."""
        values = values_of(self.said.text, self.said.lower, f"\n{name}:")
        return ", ".join(values) if values else None


# The fields of a client's next request are those of its last one, byte for byte, whatever its
# path. So what they say is known, by what stands behind the target: to match and to read them
# again is two thirds of all reading for one of them, and four fifths for a browser's twelve.
# And much of what is asked for was asked for just before. With what is made of it that is 2 MB
# at most.
_KNOWN_SIZE: Final = 4096  # bytes of the longest head that is kept
_KNOWN_ROOM: Final = 1 << 18  # and of all of them, without what is made of them


def _nothing(_: bytes) -> NoReturn:
    raise KeyError  # it is only looked for


_known: Memo[bytes, Said] = Memo(_nothing, _KNOWN_SIZE, _KNOWN_ROOM)
_asked: Memo[bytes, Request] = Memo(_nothing, _KNOWN_SIZE, _KNOWN_ROOM)  # by all of the head

_METHODS: Final = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
}
_HARMLESS: Final = bytes(set(range(33, 127)) - set(b"%#\\"))  # anywhere in a target


known_requests: Final = _asked.get  # by all of the head, where the limits are LIMITS


def read_known(data: bytes | bytearray, limits: Limits = LIMITS) -> Request | None:
    """The request, if ``data`` is just its head, and its fields are known; else None, which says
    nothing. What it returns is what ``find_head`` and ``read_head`` would."""
    if limits is not LIMITS or type(data) is not bytes or len(data) > _SMALL:
        return None
    request = _asked.get(data)
    if request is not None:
        return request
    parts = data.split(b" ", 2)
    said = _known.get(parts[-1])
    method = _METHODS.get(parts[0])
    if said is None or method is None or len(parts) < 3:
        return None
    target = parts[1]
    # To match it costs as much as all the rest, so that is left to those that need it.
    if (target.translate(None, _HARMLESS) or target[:1] != b"/") and not _origin(target):
        return None
    request = Request()
    request.method, request.said = method, said
    request.target = request.path = target.decode("latin-1")
    request.show()
    _asked.keep(data, request)
    return request


def read_head(head: bytes, limits: Limits = LIMITS) -> Request:
    """What the head says, which is what ``find_head`` has measured; or ``Reject``."""
    text = str(head, "latin-1")
    found = _plain(text)
    plain = found and not ((len(text) > _SMALL or limits is not LIMITS) and _exceeds(text, limits))
    if found is None or not plain:
        found = _read_by_line(head, limits)
    request = Request()
    request.method, target, minor, fields = found.groups()
    request.said = said = heed(fields, minor, limits)
    request.target = request.path = target
    if target[0] != "/" and target != "*":
        if request.method != "CONNECT":
            request.path = _path_of(target, said.host)
        elif said.host in (None, target.lower()):
            request.said = said._replace(keep_alive=False)
        else:
            raise Reject(400, _TWO_HOSTS)
    request.show()
    if plain and limits is LIMITS:
        _known.keep(head[found.end(2) + 1 :], said)
    return request


def _exceeds(text: str, limits: Limits) -> bool:
    size = len(text)  # no line can be longer than all of them
    line, field, fields, head, _, _ = limits
    return size > line or size > field or size > head or text.count("\n") - 2 > fields


def _read_by_line(head: bytes, limits: Limits) -> re.Match[str]:
    if _examine(head, limits, 0) != len(head):
        raise ValueError("this is not exactly one head")
    found = _any_form(str(head, "latin-1").lstrip("\r\n"))
    if found is None:
        raise Reject(400, _SPLIT)
    return found


def _path_of(target: str, host: str | None) -> str:
    """The path and query of a target with a host, which must be the one in Host."""
    found = _absolute(target)
    if found is None:
        raise Reject(400, _NO_FORM)
    scheme, named, path = found.groups()
    port = ":443" if scheme[4:] else ":80"
    if host is not None:
        names = {name.lower().removesuffix(port).removesuffix(":") for name in (named, host)}
        if len(names) > 1:
            raise Reject(400, _TWO_HOSTS)
    return path if path.startswith("/") else "/" + path
