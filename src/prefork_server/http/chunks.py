"""A body in chunks, decoded as it arrives.

It takes no byte behind the body, keeps no trailer, and reads no socket.
"""

import re
from collections.abc import Callable
from typing import Final

from .grammar import LIMITS, TEXT, TOKEN, Limits, Reject, begun, check_field_line

_size_line = re.compile(
    rf"[0-9A-Fa-f]{{1,16}}+(?:[ \t]*+;[ \t]*+[{TOKEN}]++(?:[ \t]*+=[ \t]*+(?:[{TOKEN}]++"
    rf"|\"(?:[\t !#-\[\]-~\x80-\xff]|\\[{TEXT}])*\"))?)*".encode("latin-1")
).fullmatch
_size_line_begun = re.compile(
    rf"[0-9A-Fa-f]{{0,16}}+(?:(?<=[0-9A-Fa-f])[ \t;][{TEXT}]*+)?".encode("latin-1")
).fullmatch
_digits = re.compile(rb"[0-9A-Fa-f]{1,16}+").match

# What says how long a message is, where it goes, who sent it or what is in it comes too late
# behind the body (RFC 9110 6.5.1). So does all that begins with Content-, but for two that
# clients do send there, and nobody frames a message by: they are dropped like any other.
_UNTIMELY: Final = frozenset(
    b"authorization cache-control connection cookie expect forwarded host keep-alive max-forwards "
    b"proxy-authorization proxy-connection range set-cookie te trailer transfer-encoding upgrade"
    .split()
)  # fmt: skip
_LATE: Final = frozenset((b"content-type", b"content-digest"))

_MALFORMED = "The size of a chunk is malformed."
_Stage = Callable[["Chunks", bytearray, int, list[bytearray]], int]


class Chunks:
    """The decoder of one body in chunks; ``finished`` when its trailers have come, too.

    Trailers are checked and dropped: merged into the head they could say what nobody checked.
    """

    __slots__ = ("_left", "_limits", "_more", "_room", "_stage", "_trail", "_trailers", "finished")

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.finished: bool = False
        self._limits = limits
        self._stage: _Stage = Chunks._size  # what comes next; bound, it would be a cycle
        self._left = 0  # of the data of this chunk
        self._more = limits.body  # how much data there may still be
        self._room = limits.extensions
        self._trail = limits.head
        self._trailers = 0

    def feed(self, buffer: bytearray) -> bytes:
        """Take what can be used from the front of ``buffer``, and return the data in it.

        What is left there needs more behind it, or is behind the body.
        """
        pieces: list[bytearray] = []
        at, after = -1, 0
        while at != after and not self.finished:
            at = after
            after = self._stage(self, buffer, at, pieces)
        del buffer[:after]
        return b"".join(pieces)

    # Each stage returns where the next one begins, which is where it began itself if it needs
    # more.

    def _size(self, buffer: bytearray, at: int, _: list[bytearray]) -> int:
        most = at + 16 + self._room + 2
        end = buffer.find(b"\r\n", at, most)
        line = bytes(buffer[at:end]) if end >= 0 else begun(buffer, at, most)
        known = _digits(line)
        digits = known.end() if known else 0
        extensions = len(line) - digits
        if end < 0 or extensions:
            if not _size_line_begun(line[: digits + self._room]):
                raise Reject(400, _MALFORMED)
            if extensions > self._room:
                raise Reject(400, "There are too many chunk extensions.")
            if end < 0:
                return at
            self._room -= extensions
        if not _size_line(line):
            raise Reject(400, _MALFORMED)
        self._left = int(line[:digits], 16)
        self._more -= self._left
        if self._more < 0:
            raise Reject(413, "The body is too long.")
        self._stage = Chunks._data if self._left else Chunks._trailer
        return end + 2

    def _data(self, buffer: bytearray, at: int, pieces: list[bytearray]) -> int:
        piece = buffer[at : at + self._left]
        pieces.append(piece)
        self._left -= len(piece)
        if not self._left:
            self._stage = Chunks._seam
        return at + len(piece)

    def _seam(self, buffer: bytearray, at: int, _: list[bytearray]) -> int:
        seam = buffer[at : at + 2]
        if not b"\r\n".startswith(seam):
            raise Reject(400, "A chunk is not as long as it says.")
        if len(seam) < 2:
            return at
        self._stage = Chunks._size
        return at + 2

    def _trailer(self, buffer: bytearray, at: int, _: list[bytearray]) -> int:
        most = at + self._trail
        end = buffer.find(b"\r\n", at, most)
        line = bytes(buffer[at:end]) if end >= 0 else begun(buffer, at, most)
        if line:
            if self._trailers == self._limits.fields:
                raise Reject(400, "There are too many trailers.")
            check_field_line(line, end >= 0, self._limits.field, 400)
        if end < 0:
            if len(buffer) >= most:
                raise Reject(400, "The trailers are too long.")
            return at
        name = line.partition(b":")[0].lower()
        if name in _UNTIMELY or (name.startswith(b"content-") and name not in _LATE):
            raise Reject(400, "A trailer says what must be said before the body.")
        self._trailers += 1
        self._trail -= end + 2 - at
        self.finished = not line
        return end + 2
