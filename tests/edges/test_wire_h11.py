"""Mutated requests, judged by h11 as well: what we take, it takes, and finds the same in it.

h11 is laxer than we are nearly everywhere, so nothing is said about what we refuse. Where it
is stricter, ``excuse`` names the difference and its reason. ``make fuzz`` takes the long look.
"""

import os
import random
import re

import h11
import pytest

from tests.conftest import soak
from tests.unit.test_wire import a_post, a_request, chunked
from tests.wire_reader import Message, read, story

MUTATIONS = int(os.environ.get("MUTATIONS", soak(2000, 100_000)))
SEED = int(os.environ.get("SEED", "9112"))

SEEDS = [
    a_request(),
    a_request() + a_request(b"HEAD /next HTTP/1.1", b"Connection: close"),
    a_request(b"GET /a/b%20c?d=e&f HTTP/1.0", b"Connection: keep-alive", host=b"") + a_request(),
    a_request(b"GET http://example.com/a?b HTTP/1.1", b"Accept: */*", b"X:"),
    a_request(b"OPTIONS * HTTP/1.1", b"Max-Forwards: 0"),
    a_request(b"GET / HTTP/1.1", b"A: b\t c\xff", b"Cookie: a=b; c=d", b"cookie: e=f"),
    a_post(b"Content-Length: 11", b"Expect: 100-continue") + b"hello world" + a_request(),
    a_post(b"Content-Length: 0") + a_post(b"Content-Length: 3") + b"\r\n\0" + a_request(),
    chunked(b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\n\r\n") + a_request(),
    chunked(b'A;a="b;c"\r\n0123456789\r\n00\r\nX-Sum: 1\r\nY: \xe9\r\n\r\n') + a_request(),
    a_request(b"GET /chat HTTP/1.1", b"Connection: upgrade", b"Upgrade: websocket"),
    a_request(b"CONNECT a.example:443 HTTP/1.1", host=b"Host: a.example:443\r\n"),
    b"\r\n" + a_request(b"DELETE /x HTTP/1.1", host=b"host:[::1]:8000\r\n"),
]
BYTES = [
    bytes([n]) for n in b'\r\n\t :;,/?#%*"\\@[]=+-_.019aAfFgGzZ\0\1\x0b\x0c\x1c\x7f\x80\x85\xa0\xff'
]
SCRAPS = [
    b"\r\n", b"\r\n\r\n", b"\n\r", b"\r\r\n", b"\r\n ", b"\r\n\t", b" \r\n", b"  ", b"::", b", ",
    b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"content-length:+1\r\n", b"0x", b"1e1",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"chunked",
    b"Host: a\r\n", b"Connection: close\r\n", b"Connection: keep-alive, upgrade\r\n", b"identity",
    b"Expect: 100-continue\r\n", b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"GET ", b"CONNECT ",
    b"0\r\n\r\n", b"0\r\n", b"1\r\nx\r\n", b"5;x\r\n", b"5 ;x=y\r\n", b"ffffffffffffffff\r\n",
]  # fmt: skip


def mutated(chance: random.Random) -> bytes:
    raw = chance.choice(SEEDS)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5))):
        at = chance.randrange(len(raw) + 1)
        kind = chance.randrange(8)
        if kind == 0:  # a byte more
            raw = raw[:at] + chance.choice(BYTES) + raw[at:]
        elif kind == 1:  # another byte
            raw = raw[:at] + chance.choice(BYTES) + raw[at + 1 :]
        elif kind == 2:  # a few bytes fewer
            raw = raw[:at] + raw[at + chance.randint(1, 4) :]
        elif kind == 3:  # something that has a meaning
            raw = raw[:at] + chance.choice(SCRAPS) + raw[at:]
        elif kind == 4:  # a line more, or a line twice
            lines = raw.split(b"\r\n")
            lines.insert(chance.randrange(len(lines) + 1), chance.choice(SCRAPS + lines).rstrip())
            raw = b"\r\n".join(lines)
        elif kind == 5:  # a line elsewhere
            lines = raw.split(b"\r\n")
            lines.insert(chance.randrange(len(lines)), lines.pop(chance.randrange(len(lines))))
            raw = b"\r\n".join(lines)
        elif kind == 6:  # the head of one and the tail of another
            raw = raw[:at] + (other := chance.choice(SEEDS))[chance.randrange(len(other)) :]
        else:  # in another case
            end = at + chance.randint(1, 20)
            raw = raw[:at] + raw[at:end].swapcase() + raw[end:]
    return raw


def judged_by_h11(raw: bytes) -> tuple[str, str, bytes, int] | None:
    """Method, target, body and length of the first request; ``None`` if there is none."""
    peer = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    peer.receive_data(raw)
    body, request = b"", None
    try:
        while True:
            event = peer.next_event()
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and request:
                length = len(raw) - len(peer.trailing_data[0])
                return request.method.decode(), request.target.decode(), body, length
            else:
                return None
    except h11.RemoteProtocolError:
        return None


def excuse(raw: bytes) -> bytes:
    """The same without what h11 is known to refuse, and we rightly take."""
    # RFC 9112 2.2: a server should ignore an empty line before a request line.
    raw = raw.lstrip(b"\r\n")
    # RFC 9112 7.1.1: white space before the ";" of an extension must be parsed, and removed.
    return re.sub(rb"(\r\n[0-9A-Fa-f]+)[ \t]+;", rb"\1;", raw)


def difference(ours: Message, start: int, raw: bytes) -> str:
    rest = raw[ours.end :]
    for message in (raw[start : ours.end], excuse(raw[start : ours.end])):
        wanted = (ours.method, ours.target, ours.body, len(message))
        found = judged_by_h11(message + rest)
        if found == wanted:
            return ""
    return f"{raw!r} from {start}: we read {wanted}, and h11 {found}"


def test_the_requests_that_are_mutated_are_requests() -> None:
    for raw in SEEDS:
        told = story(raw)
        assert told.end in ("idle", "closed")
        start = 0
        for message in told.messages:
            assert not difference(message, start, raw)
            start = message.end


@pytest.mark.timeout(3600)
def test_h11_takes_what_we_take_and_finds_the_same_in_it() -> None:
    chance = random.Random(SEED)
    taken = 0
    for _ in range(MUTATIONS):
        raw = mutated(chance)
        told = story(raw) if chance.random() < 0.2 else read([raw])
        start = 0
        for message in told.messages:
            assert not (found := difference(message, start, raw)), found
            start = message.end
            taken += 1
    # If nearly all were refused, nothing would have been compared.
    assert taken > MUTATIONS / 4
