"""Proxies that say for whom they ask: which peer is believed, over a socket."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prefork_server import ConfigError, HTTPRequestHandler, PreforkHTTPServer, PreforkWSGIServer
from prefork_server.testing import serving
from tests.conftest import PATIENCE, read_all

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
