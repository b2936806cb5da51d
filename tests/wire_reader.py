"""Read a stream of requests as a server would, from nothing but the bytes as they arrive."""

import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from prefork_server.http.wire import (
    LIMITS,
    Chunks,
    Limits,
    Reject,
    Request,
    find_head,
    read_head,
    read_known,
)


class Message(NamedTuple):
    """One request, and where in the stream the next one begins."""

    method: str
    target: str
    path: str
    fields: list[tuple[str, str]]
    body: bytes
    end: int


class Story(NamedTuple):
    """All that was read, and why no more.

    ``end`` is "idle" (nothing is left), "cut" (the end of the stream is inside a message),
    "closed" (the last message said so), or a status.
    """

    messages: list[Message]
    end: str | int
    reason: str = ""


def read(parts: Iterable[bytes], limits: Limits | None = None) -> Story:
    limits = limits or LIMITS
    stream = _Stream(parts)
    messages: list[Message] = []
    try:
        while True:
            request = _head(stream, limits)
            if request is None:
                return Story(messages, "cut" if stream.buffer else "idle")
            body = _body(request, stream, limits)
            if body is None:
                return Story(messages, "cut")
            at = stream.arrived - len(stream.buffer)
            messages.append(
                Message(request.method, request.target, request.path, request.fields, body, at)
            )
            if not request.keep_alive:
                return Story(messages, "closed")
    except Reject as refusal:
        return Story(messages, refusal.status, refusal.reason)


class _Stream:
    def __init__(self, parts: Iterable[bytes]) -> None:
        self.buffer = bytearray()
        self.arrived = 0
        self._parts = iter(parts)

    def more(self) -> bool:
        part = next(self._parts, b"")
        self.buffer += part
        self.arrived += len(part)
        return bool(part)


def _head(stream: _Stream, limits: Limits) -> Request | None:
    seen = 0
    known = read_known(bytes(stream.buffer), limits)
    if known:
        raw = bytes(stream.buffer)
        read = read_head(raw, limits) if find_head(raw, limits) == len(raw) else None
        for name in Request.__slots__:
            assert getattr(known, name) == getattr(read, name), raw[:300]
    while not (size := find_head(stream.buffer, limits, seen)):
        seen = len(stream.buffer)
        if not stream.more():
            return None
    head = bytes(stream.buffer[:size])
    del stream.buffer[:size]
    return read_head(head, limits)


def _body(request: Request, stream: _Stream, limits: Limits) -> bytes | None:
    body = b""
    if request.length is not None:
        while len(stream.buffer) < request.length:
            if not stream.more():
                return None
        body = bytes(stream.buffer[: request.length])
        del stream.buffer[: request.length]
        return body
    chunks = Chunks(limits)
    while True:
        body += chunks.feed(stream.buffer)
        if chunks.finished:
            return body
        if not stream.more():
            return None


def ways(raw: bytes, seed: int = 7) -> Iterator[list[bytes]]:
    """The same bytes whole, in halves, byte by byte, and in pieces of random length.

    Of many bytes the middle comes in pieces of 37.
    """
    half = len(raw) // 2
    yield [raw]
    yield [part for part in (raw[:half], raw[half:]) if part]
    yield bytes_of(raw)
    pieces, chance = [], random.Random(seed)
    while raw:
        size = chance.randint(1, max(1, len(raw) // 5))
        pieces.append(raw[:size])
        raw = raw[size:]
    yield pieces


def bytes_of(raw: bytes) -> list[bytes]:
    begin, end = (400, max(400, len(raw) - 400)) if len(raw) > 2000 else (0, 0)
    sizes = [1] * begin + [37] * ((end - begin) // 37)
    pieces, at = [], 0
    for size in (*sizes, *[1] * (len(raw) - sum(sizes))):
        pieces.append(raw[at : at + size])
        at += size
    return pieces


def story(raw: bytes, limits: Limits | None = None) -> Story:
    """What is read, which must be the same however it arrives."""
    first, *others = (read(parts, limits) for parts in ways(raw))
    for other in others:
        assert other == first, raw[:300]
    return first
