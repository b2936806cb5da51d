"""Proxies that say for whom they ask: who is believed, how far, and what is refused."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prefork_server import ConfigError, HTTPRequestHandler, PreforkHTTPServer, PreforkWSGIServer
from prefork_server.http.forwarded import Origin, believed, origin
from prefork_server.http.wire import Reject, read_head
from prefork_server.testing import serving
from tests.conftest import PATIENCE, read_all

PEERS = believed(["10.0.0.0/8", "192.0.2.1", "fd00::/8"])


def said(*fields: str) -> Origin:
    head = "".join(f"{field}\r\n" for field in ("GET / HTTP/1.1", "Host: h", *fields, ""))
    return origin(read_head(head.encode("latin-1")), PEERS)


# What is said


@pytest.mark.parametrize(
    ("chain", "address", "port"),
    [
        ("203.0.113.9", "203.0.113.9", 0),
        ("203.0.113.9:4711", "203.0.113.9", 4711),
        ("2001:db8::1", "2001:db8::1", 0),
        ("[2001:DB8::1]", "2001:db8::1", 0),
        ("[2001:db8::1]:80", "2001:db8::1", 80),
        ("forged, 203.0.113.9", "203.0.113.9", 0),
        ("forged, 203.0.113.9,10.1.1.1 ,\t10.2.2.2", "203.0.113.9", 0),
        ("203.0.113.9, 198.51.100.1, fd00::1", "198.51.100.1", 0),
        ("10.1.1.1", "10.1.1.1", 0),  # one of ours is who asks
        ("10.1.1.1, 10.2.2.2", "10.1.1.1", 0),
        ("unknown", None, 0),
        ("203.0.113.9, unknown", None, 0),
        ("203.0.113.9, unknown, 10.2.2.2", "10.2.2.2", 0),  # as far as is known
    ],
)
def test_from_the_right_the_first_who_is_no_proxy_of_ours_is_the_client(
    chain: str, address: str | None, port: int
) -> None:
    assert said(f"X-Forwarded-For: {chain}") == Origin(address, port)
    lines = [f"X-Forwarded-For: {each}" for each in chain.split(",")]
    assert said(*lines) == Origin(address, port)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("for=203.0.113.9", Origin("203.0.113.9")),
        ("For=203.0.113.9;Proto=HTTPS;by=10.1.1.1", Origin("203.0.113.9", 0, "https")),
        ('for="203.0.113.9:47";proto=http', Origin("203.0.113.9", 47, "http")),
        ('for="[2001:db8::1]:_hidden"', Origin("2001:db8::1")),
        ("for=1.2.3.4;proto=http, for=203.0.113.9;proto=https", Origin("203.0.113.9", 0, "https")),
        # The scheme is that of the client's connection, and not of the proxies' among each other.
        ("for=203.0.113.9;proto=https,for=10.1.1.1;proto=http", Origin("203.0.113.9", 0, "https")),
        ("for=203.0.113.9, for=10.1.1.1;proto=http", Origin("203.0.113.9")),
        ("for=203.0.113.9, for=unknown;proto=https", Origin(None, 0, "https")),
        ("for=203.0.113.9, for=_a.b-c", Origin()),
        ("proto=https", Origin(None, 0, "https")),
        ('for="203.0.113.\\9"; host="a,b;c\\"" , ,', Origin("203.0.113.9")),
        ("", Origin()),
    ],
)
def test_the_standard_field_is_read_by_its_grammar(field: str, expected: Origin) -> None:
    assert said(f"Forwarded: {field}") == expected


@pytest.mark.parametrize(
    "fields",
    [
        ["X-Forwarded-For: me"],
        ["X-Forwarded-For: 203.0.113.9,"],
        ["X-Forwarded-For:"],
        ["X-Forwarded-For: 203.0.113.256"],
        ["X-Forwarded-For: 203.0.113.9:65536"],
        ["X-Forwarded-For: [203.0.113.9]:x"],
        ["X-Forwarded-For: 1:2"],
        ["X-Forwarded-For: fe80::1%eth0"],
        ["X-Forwarded-For: 203.0.113.9;10.0.0.1"],
        ["X-Forwarded-Proto: ftp"],
        ["X-Forwarded-Proto:"],
        ["X-Forwarded-Proto: https, http"],
        ["X-Forwarded-Proto: https", "X-Forwarded-Proto: http"],
        ["Forwarded: for=me"],
        ["Forwarded: for"],
        ["Forwarded: for=203.0.113.9 proto=http"],
        ['Forwarded: for="203.0.113.9'],
        ['Forwarded: for="1.2.3.4, for=203.0.113.9'],  # to swallow what a proxy adds
        ["Forwarded: for=203.0.113.9;for=1.2.3.4"],
        ["Forwarded: for=203.0.113.9;proto=ftp"],
        ["Forwarded: for=[::1]"],
        ["Forwarded: for=203.0.113.9", "X-Forwarded-For: 203.0.113.8"],
        ["Forwarded: proto=https", "X-Forwarded-For: 203.0.113.8"],
        ["Forwarded: for=203.0.113.8", "X-Forwarded-Proto: https"],
        ["Forwarded: for=203.0.113.8;proto=https", "X-Forwarded-For: 203.0.113.8"],
        ["Forwarded:", "X-Forwarded-For: 203.0.113.8"],
    ],
)
def test_what_is_malformed_or_said_twice_and_differs_is_refused(fields: list[str]) -> None:
    with pytest.raises(Reject) as caught:
        said(*fields)
    assert caught.value.status == 400


def test_two_fields_that_say_the_same_are_one() -> None:
    both = ["Forwarded: for=203.0.113.9;proto=https", "X-Forwarded-For: 203.0.113.9"]
    assert said(*both, "X-Forwarded-Proto: https, HTTPS") == Origin("203.0.113.9", 0, "https")


def test_who_says_nothing_speaks_for_himself() -> None:
    assert said() == said("X-Forwarded-Host: evil", "X-Forwarded-Port: 1") == Origin()


def test_a_field_as_long_as_can_be_is_soon_refused() -> None:
    for value in ('"' * 8000, "for=" * 2000, ("=" * 8000), 'for="' + "\\" * 7999):
        with pytest.raises(Reject):
            said(f"Forwarded: {value}")


# Who is believed

FORGED = (
    b"X-Forwarded-For: 1.2.3.4, 203.0.113.9, 127.0.0.9\r\nX-Forwarded-Proto: https\r\n"
    b"X-Forwarded-Host: evil\r\n"
)


def get(*fields: bytes, last: bool = True) -> bytes:
    close = b"Connection: close\r\n" if last else b""
    return b"GET / HTTP/1.1\r\nHost: h\r\n%b%b\r\n" % (b"".join(fields), close)


def tell(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    names = "REMOTE_ADDR", "wsgi.url_scheme", "HTTP_HOST", "HTTP_X_FORWARDED_PROTO"
    return [" ".join(str(environ.get(name)) for name in names).encode()]


@contextmanager
def served(address: Any = ("127.0.0.1", 0), **keywords: Any) -> Iterator[Any]:
    with serving(PreforkWSGIServer(address, tell, inline=True, **keywords)) as where:
        yield where


def ask(address: Any, request: bytes, source: str = "127.0.0.1") -> bytes:
    with socket.create_connection(address, PATIENCE, (source, 0)) as client:
        client.sendall(request)
        return read_all(client)


def test_by_default_nobody_is_believed() -> None:
    with served() as address:
        assert ask(address, get(FORGED)).endswith(b"\r\n\r\n127.0.0.1 http h https")
        assert ask(address, get(b"X-Forwarded-For: me\r\n")).startswith(b"HTTP/1.1 200 ")


def test_only_a_listed_peer_is_believed() -> None:
    with served(forwarded_from=["127.0.0.2", "127.0.0.9"]) as address:
        answer = ask(address, get(FORGED), "127.0.0.2")
        assert answer.endswith(b"\r\n\r\n203.0.113.9 https h https")
        answer = ask(address, get(FORGED), "127.0.0.3")
        assert answer.endswith(b"\r\n\r\n127.0.0.3 http h https")
        assert ask(address, get(b"X-Forwarded-For: me\r\n"), "127.0.0.2").startswith(
            b"HTTP/1.1 400 Bad Request\r\n"
        )
        answer = ask(address, get(b"X_Forwarded_For: 1.2.3.4\r\n"), "127.0.0.2")
        assert answer.endswith(b"\r\n\r\n127.0.0.2 http h None")


def test_on_one_connection_a_proxy_speaks_for_many() -> None:
    requests = [
        get(b"X-Forwarded-For: 203.0.113.9:47\r\nX-Forwarded-Proto: https\r\n", last=False),
        get(last=False),
        get(b"Forwarded: for=203.0.113.8;proto=http\r\n"),
    ]
    with served(forwarded_from=("127.0.0.1",)) as address:
        answer = ask(address, b"".join(requests))
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert bodies == [
        b"203.0.113.9 https h https",
        b"127.0.0.1 http h None",
        b"203.0.113.8 http h None",
    ]


def test_of_a_request_that_is_refused_for_its_field_nothing_before_it_is_remembered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "prefork_server.access")
    before = get(b"X-Forwarded-For: 203.0.113.9\r\n", last=False).replace(b"GET", b"HEAD")
    with served(forwarded_from=("127.0.0.1",), access_log=True) as address:
        answer = ask(address, before + get(b"X-Forwarded-For: me\r\n"))
    assert answer.count(b"HTTP/1.1 400 ") == answer.count(b"is not an address") == 1
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("access")]
    assert [line.split()[0] for line in lines] == ["203.0.113.9", "127.0.0.1"]
    assert '"GET / HTTP/1.1" 400 ' in lines[1]


@pytest.mark.parametrize(("listed", "said"), [(["unix"], b"203.0.113.9 https"), ([], b" http")])
def test_whoever_may_open_the_unix_socket_is_listed_as_unix(
    tmp_path: Path, listed: list[str], said: bytes
) -> None:
    path = str(tmp_path / "s")
    with served(f"unix:{path}", forwarded_from=listed), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(path)
        client.sendall(get(b"Forwarded: for=203.0.113.9;proto=https\r\n"))
        assert read_all(client).endswith(b"\r\n\r\n" + said + b" h None")


def test_a_handler_sees_the_client_as_well() -> None:
    class Tell(HTTPRequestHandler):
        forwarded_from = ("127.0.0.0/8",)

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"{self.client_address} {self.scheme}".encode())

    with serving(PreforkHTTPServer(("127.0.0.1", 0), Tell, inline=True)) as address:
        answer = ask(
            address, get(b"X-Forwarded-For: 203.0.113.9:5\r\nX-Forwarded-Proto: https\r\n")
        )
        assert b"('203.0.113.9', 5) https" in answer
        assert b"('127.0.0.1', " in ask(address, get()) and b" https" not in ask(address, get())


@pytest.mark.parametrize("wrong", ["10.0.0.1", ["10.0.0.1/8"], ["localhost"]])
def test_a_wrong_list_of_a_handler_class_is_refused_before_anything_is_bound(wrong: Any) -> None:
    handler = type("Wrong", (HTTPRequestHandler,), {"forwarded_from": wrong})
    with pytest.raises(ConfigError, match="forwarded_from must"):
        PreforkHTTPServer(("127.0.0.1", 1), handler)
