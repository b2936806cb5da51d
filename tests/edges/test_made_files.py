"""Files that the kernel makes as they are read, of /proc and /sys, are sent to their end."""

import glob
import socket
import socketserver
from http.client import HTTPConnection
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from prefork_server import (
    HTTPRequestHandler,
    PreforkHTTPServer,
    PreforkTCPServer,
    PreforkWSGIServer,
)
from prefork_server.testing import serving
from tests.conftest import PATIENCE, read_all

# By ``stat`` the first two have no bytes, and the others 4096, where there are any.
MADE = ["/proc/version", "/proc/filesystems", *glob.glob("/sys/kernel/[fr]*[sd]")]


def static(path: str) -> Any:
    class Handler(HTTPRequestHandler, SimpleHTTPRequestHandler):
        def translate_path(self, _: str) -> str:
            return path

    return PreforkHTTPServer(("127.0.0.1", 0), Handler, inline=True)


def wrapped(path: str) -> Any:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](open(path, "rb"))

    return PreforkWSGIServer(("127.0.0.1", 0), application, inline=True)


WAYS = {"static": static, "wrapped": wrapped}


def answers(address: Any, version: int) -> list[tuple[int, bytes]]:
    """To two requests, on one connection if the server keeps it."""
    found = []
    client = HTTPConnection(*address, timeout=PATIENCE)
    client._http_vsn, client._http_vsn_str = version, f"HTTP/1.{version - 10}"  # type: ignore
    for _ in range(2):
        client.request("GET", "/", headers={"Connection": "keep-alive"})
        answer = client.getresponse()
        found.append((answer.status, answer.read()))
    client.close()
    return found


@pytest.mark.parametrize("version", [11, 10])
@pytest.mark.parametrize("path", MADE)
@pytest.mark.parametrize("way", WAYS)
def test_what_stat_says_of_them_cuts_no_answer(way: str, path: str, version: int) -> None:
    with serving(WAYS[way](path)) as address:
        assert answers(address, version) == [(200, Path(path).read_bytes())] * 2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [0, 1, 4096, 300_000])
def test_the_length_of_an_ordinary_file_is_told(way: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    with serving(WAYS[way](str(path))) as address:
        client = HTTPConnection(*address, timeout=PATIENCE)
        client.request("GET", "/")
        answer = client.getresponse()
        assert answer.getheader("Content-Length") == str(size)
        assert len(answer.read()) == size
        client.close()


def test_one_that_is_read_already_in_part_goes_on_from_there() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        file = open("/proc/version", "rb")  # noqa: SIM115 - the server closes it
        file.seek(5)
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](file)

    server = PreforkWSGIServer(("127.0.0.1", 0), application, inline=True)
    with serving(server) as address:
        assert answers(address, 11) == [(200, Path("/proc/version").read_bytes()[5:])] * 2


def test_a_length_that_is_not_that_of_stat_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    class Handler(HTTPRequestHandler, SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            with open("/proc/version", "rb") as file:
                self.copyfile(file, self.wfile)

    with serving(PreforkHTTPServer(("127.0.0.1", 0), Handler, inline=True)) as address:
        client = HTTPConnection(*address, timeout=PATIENCE)
        client.request("GET", "/")
        assert client.getresponse().read() == b"Linux"
        client.close()
    assert "longer than its Content-Length" in caplog.text


@pytest.mark.parametrize("path", MADE)
def test_sendfile_of_a_connection_sends_them_whole(path: str) -> None:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with open(path, "rb") as file:
                sent = self.request.sendfile(file)
            self.request.sendall(b" %d" % sent)

    content = Path(path).read_bytes()
    server = PreforkTCPServer(("127.0.0.1", 0), Handler, inline=True)
    with serving(server) as address, socket.create_connection(address, PATIENCE) as client:
        assert read_all(client) == content + b" %d" % len(content)
