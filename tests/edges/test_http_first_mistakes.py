"""A handler that forgets ``end_headers()``, or writes a body first, sends no malformed answer."""

import io
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest

from prefork_server.http import HTTPRequestHandler
from tests.conftest import read_all


class Pages(HTTPRequestHandler):
    def do_GET(self) -> None:
        getattr(self, self.path[1:])()

    def body_before_the_head(self) -> None:
        self.wfile.writelines([b"he", b"llo"])
        self.send_response(200)
        self.end_headers()

    def body_in_the_head(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        shutil.copyfileobj(io.BytesIO(b"hello"), self.wfile)
        self.end_headers()

    def file_in_the_head(self) -> None:
        self.send_response(200)
        with Path(__file__).open("rb") as file:
            self.copyfile(file, self.wfile)

    def flushed_between(self) -> None:
        self.wfile.write(b"hello")
        self.wfile.flush()
        self.send_response(404)
        self.end_headers()

    def no_end_of_the_head(self) -> None:
        self.send_response(204)
        self.send_header("X-Told", "yes")


@pytest.fixture
def address() -> Iterator[Any]:
    with HTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address
        server.shutdown()
        thread.join()


def asked_twice(address: tuple[str, int], path: str) -> bytes:
    """Both requests are there at once: what is not the first answer would look like a second."""
    with socket.create_connection(address, 20) as client:
        client.sendall(f"GET /{path} HTTP/1.1\r\nHost: here\r\n\r\n".encode() * 2)
        client.shutdown(socket.SHUT_WR)
        return read_all(client)


@pytest.mark.parametrize(
    "path", ["body_before_the_head", "body_in_the_head", "file_in_the_head", "flushed_between"]
)
def test_a_body_before_the_end_of_the_head_is_a_500_and_the_end(
    address: tuple[str, int], path: str, caplog: pytest.LogCaptureFixture
) -> None:
    head, _, body = asked_twice(address, path).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 500 ")
    assert b"Connection: close" in head
    assert b"HTTP/1.1" not in body
    assert b"hello" not in body
    assert caplog.text.count("a body was written before end_headers() was called") == 1


def test_a_head_without_an_end_is_ended(address: tuple[str, int]) -> None:
    answers = asked_twice(address, "no_end_of_the_head").split(b"\r\n\r\n")
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 204", b"HTTP/1.1 204", b""]
    assert all(b"X-Told: yes" in answer for answer in answers[:2])
