"""The extra fields of files, which http.server has since CPython 3.15."""

import functools
import http.server
import io
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from prefork_server.http import HTTPRequestHandler, PreforkHTTPServer
from prefork_server.testing import serving
from tests.conftest import PATIENCE, read_all

KEPT = b"GET /file HTTP/1.1\r\nHost: h\r\n\r\n"
LAST = b"GET /file HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
EXTRA = [("X-Twice", "1"), ("x-twice", "2"), ("content-type", "no"), ("SERVER", "no")]


class Files(HTTPRequestHandler, http.server.SimpleHTTPRequestHandler):
    """Asks for the names of its fields, and adds some, by what 3.15 calls for it."""

    def end_headers(self) -> None:
        names = {name.lower() for name, _ in self._default_response_headers}
        for name, value in EXTRA:
            if name.lower() not in names:
                self.send_header(name, value, _is_extra=True)
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class Given(HTTPRequestHandler, http.server.SimpleHTTPRequestHandler):
    log_message = Files.log_message


class Plain(http.server.SimpleHTTPRequestHandler):
    log_message = Files.log_message


NEW = pytest.mark.skipif(sys.version_info < (3, 15), reason="http.server has no such fields")
GIVEN = [functools.partial(kind, extra_response_headers=EXTRA) for kind in (Given, Plain)]


@pytest.mark.parametrize("kind", [Files, *(pytest.param(kind, marks=NEW) for kind in GIVEN)])
def test_an_extra_field_is_added_to_each_answer_that_has_none_of_its_name(
    kind: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    server = PreforkHTTPServer(
        ("127.0.0.1", 0), functools.partial(kind, directory=str(tmp_path)), inline=True
    )
    with serving(server) as address, socket.create_connection(address, PATIENCE) as client:
        client.sendall(KEPT + LAST)
        answers = read_all(client)
    assert answers.count(b" 200 OK\r\n") == 2
    assert answers.count(b"\r\nX-Twice: 1\r\nx-twice: 2\r\n") == 2
    assert answers.lower().count(b"\r\ncontent-type: ") == 2
    assert answers.lower().count(b"\r\nserver: ") == 2


@NEW
@pytest.mark.parametrize("kind", GIVEN)
def test_where_there_is_no_socket_each_answer_has_them_too(kind: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")

    class Fake:
        said = b""

        def makefile(self, *_: Any) -> io.BytesIO:
            return io.BytesIO(KEPT + LAST)

        def sendall(self, answer: bytes) -> None:
            self.said += answer

    fake: Any = Fake()
    kind(fake, ("::1", 1), None, directory=str(tmp_path))
    answers = fake.said.count(b" 200 OK\r\n")
    assert answers and fake.said.count(b"\r\nX-Twice: 1\r\nx-twice: 2\r\n") == answers
    assert fake.said.lower().count(b"\r\nserver: ") == answers
