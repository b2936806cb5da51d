"""What a character, a line and a limit of HTTP/1.1 is, for requests, bodies and answers alike.

It knows no message: where a line stands is said by whoever asks. It repairs nothing.
"""

import re
from typing import Final, NamedTuple


class Limits(NamedTuple):
    """Bytes, unless it says otherwise. A limit itself passes, one more does not.

    Lines are measured without their CRLF. The numbers for lines and fields are Apache's
    (``LimitRequestLine``, ``LimitRequestFieldSize``, ``LimitRequestFields``).
    """

    line: int = 8190  # the request line; 414
    field: int = 8190  # a field line of the head, or of the trailers; 431, in trailers 400
    fields: int = 100  # how many of them, in the head and in the trailers; 431, 400
    head: int = 65536  # the head with the empty lines around it, and the trailers; 431, 400
    body: int = 1 << 30  # the body without its framing, whatever that is; 413
    extensions: int = 4096  # all chunk extensions of a body together; nobody uses them; 400


class Reject(Exception):
    """What was sent is no request, or none that is taken: answer ``status``, and close.

    ``reason`` is a sentence of ours, fit for an answer and for a log.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status: int = status
        self.reason: str = reason


LIMITS: Final = Limits()

# Each class of characters is spelt out: \w, \s and \d would take what no RFC does.
UPPER: Final = r"!#$%&'*+\-.^_`|~0-9A-Z"  # of a method that anybody uses
TOKEN: Final = UPPER + "a-z"
TEXT: Final = r"\t\x20-\x7e\x80-\xff"  # of a value: no control character but HTAB

_token = re.compile(rf"[{TOKEN}]++".encode()).match
_text = re.compile(rf"[{TEXT}]*+".encode("latin-1")).fullmatch


def begun(data: bytes | bytearray, at: int, most: int) -> bytes:
    """A line that has not ended; of a CR nobody knows yet whether it is its end."""
    line = bytes(data[at:most])
    return line[:-1] if line.endswith(b"\r") else line


def token_end(line: bytes, start: int = 0) -> int:
    """Where the token ends that begins there; where it begins, if none does."""
    found = _token(line, start)
    return found.end() if found else start


def check_field_line(line: bytes, whole: bool, most: int, too_long: int = 431) -> None:
    seen = line[:most]
    end = token_end(seen)
    if end < len(seen):
        if seen[0] in b" \t":
            raise Reject(400, "A header line begins with white space.")  # obs-fold
        if not end or seen[end] != 58:
            raise Reject(400, "A header line does not begin with a name and a colon.")
        if not _text(seen, end + 1):
            raise Reject(400, "A header field has a control character in its value.")
    if len(line) > most:
        raise Reject(too_long, "A header line is too long.")
    if whole and end == len(seen):
        raise Reject(400, "A header line does not begin with a name and a colon.")


_name_is_token = re.compile(rf"[{TOKEN}]++").fullmatch
_value_is_text = re.compile(rf"[{TEXT}]*+").fullmatch


def check_field(name: str, value: str) -> None:
    """Raise ``ValueError`` where a field of a response would say more than one field."""
    if not _name_is_token(name):
        raise ValueError(f"the name of a header field is a token, not {name!r}")
    if not _value_is_text(value):
        raise ValueError(
            f"the value of {name} has control characters, or others than Latin-1: {value!r}"
        )


def check_reason(reason: str) -> None:
    """The same for the reason phrase of a response."""
    if not _value_is_text(reason):
        raise ValueError(
            f"the reason phrase has control characters, or others than Latin-1: {reason!r}"
        )
