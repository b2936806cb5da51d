"""For whom a proxy asks: ``X-Forwarded-For`` and ``-Proto``, or ``Forwarded`` (RFC 7239).

Anybody can write these fields, so they are looked at only where the other end of the
connection is a proxy that the program lists. Each proxy adds to the right, so what the last
of ours has added is believed, and nothing to the left of that.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import Final, NamedTuple

from ..peers import Peers
from .grammar import TOKEN, Reject
from .memo import Memo
from .wire import Request


class Origin(NamedTuple):
    """What is said of the client: None, where nothing is; port 0, where none is."""

    address: str | None = None
    port: int = 0
    scheme: str | None = None


def believed(forwarded_from: Sequence[str]) -> Peers:
    """Raises ConfigError for what is no list of peers."""
    return _parsed(forwarded_from if isinstance(forwarded_from, str) else tuple(forwarded_from))


@lru_cache(16)
def _parsed(forwarded_from: Sequence[str]) -> Peers:
    return Peers("forwarded_from", forwarded_from)


def origin(request: Request, peers: Peers) -> Origin:
    """Who asks, if the other end is a listed proxy. ``Reject`` where what is said is malformed,
    or is said twice and differs: a client may have written one of the two fields, and the proxy,
    which does not know that one, passed it on."""
    standard, chain, scheme = map(request.get, ("forwarded", "x-forwarded-for", _X_PROTO))
    if chain is None and scheme is None:
        return _by_standard(standard, peers) if standard is not None else Origin()
    _, address, port = _walk(chain.split(","), peers) if chain is not None else (0, None, 0)
    said = Origin(address, port, _scheme(*scheme.split(",")) if scheme is not None else None)
    if standard is not None and _by_standard(standard, peers)[::2] != said[::2]:
        raise Reject(400, "Forwarded and X-Forwarded-For or -Proto say different things.")
    return said


_X_PROTO: Final = "x-forwarded-proto"
_UNKNOWN: Final = "unknown"  # RFC 7239 6.2; Squid writes it in the other field, too

# A pair, and the comma or semicolon behind it; RFC 7239 4, with white space around them.
_step = re.compile(
    rf"[ \t]*+(?:([{TOKEN}]++)=([{TOKEN}]++|\"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*\"))?"
    r"[ \t]*+([,;]|\Z)"
).match
_node = re.compile(
    r"(?:([0-9.]++)|\[([0-9A-Fa-f:.]++)\])(?::(?:([0-9]{1,5})|_[A-Za-z0-9._\-]++))?"
    r"|([0-9A-Fa-f]*+:[0-9A-Fa-f]*+:[0-9A-Fa-f:.]*+)"
).fullmatch
_hidden = re.compile(r"(?:unknown|_[A-Za-z0-9._\-]++)(?::[0-9A-Za-z._\-]++)?").fullmatch


def _by_standard(text: str, peers: Peers) -> Origin:
    elements = _elements(text)
    if not elements:
        return Origin()
    at, address, port = _walk([each.get("for", _UNKNOWN) for each in elements], peers)
    scheme = elements[at].get("proto")  # of his own connection; behind it are those of proxies
    return Origin(address, port, None if scheme is None else _scheme(scheme))


def _elements(text: str) -> list[dict[str, str]]:
    """One for each proxy. All of it must be well formed: what a client wrote to the left, an
    open quote, say, could otherwise swallow what a proxy has added."""
    elements: list[dict[str, str]] = [{}]
    at, more = 0, True
    while more:
        found = _step(text, at)
        name = found[1] and found[1].lower() if found else None
        if found is None or name in elements[-1]:
            raise Reject(400, "The Forwarded field is malformed.")
        if name:
            value = found[2]
            quoted = value.startswith('"')
            elements[-1][name] = re.sub(r"\\(.)", r"\1", value[1:-1]) if quoted else value
        if found[3] == ",":
            elements.append({})
        at, more = found.end(), bool(found[3])
    return [each for each in elements if each]


def _walk(nodes: Sequence[str], peers: Peers) -> tuple[int, str | None, int]:
    """From the right past the proxies that are listed: where it ended, the address and port of
    who stands there. Of one who is hidden the proxy next to him is all that is known."""
    at, address, port = len(nodes), None, 0
    while at:
        at -= 1
        text = nodes[at].strip(" \t")
        if _hidden(text.lower()):
            break
        address, port = found = _addresses[text]
        if found not in peers:
            break
    return at, address, port


def _address_of(text: str) -> tuple[str, int]:
    found = _node(text)
    port = int(found[3] or 0) if found else 0
    try:
        if found and port <= 65535:
            return str(ip_address(found[1] or found[2] or found[4])), port
    except ValueError:
        pass
    raise Reject(400, "For whom a proxy asks is not an address.")


_addresses: Memo[str, tuple[str, int]] = Memo(_address_of)


def _scheme(*said: str) -> str:
    schemes = {each.strip(" \t").lower() for each in said}
    if len(schemes) != 1 or not schemes <= {"http", "https"}:
        raise Reject(400, "By which scheme a client came is not said in one word, http or https.")
    return schemes.pop()
