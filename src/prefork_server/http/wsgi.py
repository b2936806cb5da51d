"""A WSGI application (PEP 3333) as what answers the requests of an ``HTTPRequestHandler``.

So all that holds for the handler holds for the application. Here is only the protocol between
the two; what they say to each other is made and checked in ``environ``.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any

from ..sockets.connection import size_of
from .environ import add_request, line_of, status_of
from .handler import HTTPRequestHandler
from .reply import COUNTED, OVER, Reply, is_real
from .wire import Reject

_Fields = Iterable[tuple[str, str]]
_BODILESS = (204, 304)


class FileWrapper:
    """``wsgi.file_wrapper``: a file, from where it is at, as the body of an answer.

    If it is a real file, and is what the application returns, the kernel copies it.
    """

    def __init__(self, filelike: Any, block_size: int = 65536) -> None:
        self.filelike: Any = filelike
        self.block_size: int = block_size

    def __iter__(self) -> Iterator[bytes]:
        while block := self.filelike.read(self.block_size):
            yield block

    def close(self) -> None:
        """Close the file, if it can be."""
        close = getattr(self.filelike, "close", None)
        if close:
            close()

    @property
    def real(self) -> bool:
        """Whether the kernel may copy it."""
        return is_real(self.filelike)


class WSGIRequestHandler(HTTPRequestHandler):
    """Answers by calling the application of a ``PreforkWSGIServer``.

    Its limits are those of ``HTTPRequestHandler``: make a subclass with others, and give it
    to the server as ``handler_class``. An application that fails is answered for with a 500,
    and is a line in the log with the request, the client and the traceback. If a part of its
    answer has left already, the connection is cut, so that the client sees it.
    """

    server: Any
    _environ: dict[str, Any] | None = None  # of this connection
    _status: tuple[int, str | None] | None
    _lines: list[bytes]
    _length: int | None
    _said: list[str]  # of what we would say otherwise
    _over: bool  # whether the answer is complete, or was cut

    def dispatch(self) -> None:
        """Call the application, but for a tunnel, of which it could not even be told."""
        self._status = None
        self._over = False
        if self.command == "CONNECT":
            self.send_error(HTTPStatus.NOT_IMPLEMENTED, "Unsupported method")
            return
        result: Any = None
        try:
            try:
                result = self.server.get_app()(self.make_environ(), self.start_response)
                self._send_result(result)
            finally:
                close = getattr(result, "close", None)
                if close is not None:
                    close()
        except (SystemExit, KeyboardInterrupt):
            raise  # answered for, too, and then they mean what they mean
        except BaseException as error:  # user code
            self._failed(error)

    # What it is told

    def make_environ(self) -> dict[str, Any]:
        """Of each request anew. Override it to add something."""
        if self._environ is None:
            self._environ = self._make_environ_of_connection()
        environ = self._environ.copy()
        if self.forwarded_from:
            self._add_client(environ)
        environ["wsgi.input"] = self.rfile
        add_request(environ, self._http.asked, self.path)
        return environ

    def _make_environ_of_connection(self) -> dict[str, Any]:
        environ: dict[str, Any] = self.server.base_environ.copy()
        name = self.connection.getsockname()
        # PEP 3333 wants both, and a UNIX socket has neither.
        unix = "localhost", 443 if self.scheme == "https" else 80
        host, port = name[:2] if isinstance(name, tuple) else unix
        environ["SERVER_NAME"], environ["SERVER_PORT"] = host, str(port)
        environ["SERVER_SOFTWARE"] = self.version_string()
        self._add_client(environ)
        # Not in the base: whoever redirects it in a worker is heeded.
        environ["wsgi.errors"] = sys.stderr or sys.__stderr__ or _Nobody()
        return environ

    def _add_client(self, environ: dict[str, Any]) -> None:
        peer = self.client_address if isinstance(self.client_address, tuple) else None
        # Empty for a UNIX socket, as with gunicorn: Flask and Django take what is there, but
        # not nothing at all.
        environ["REMOTE_ADDR"] = str(peer[0]) if peer else ""
        environ["REMOTE_PORT"] = str(peer[1] or "") if peer else ""
        environ["wsgi.url_scheme"] = self.scheme

    # What it says

    def start_response(
        self, status: str, headers: _Fields, exc_info: Any = None, /
    ) -> Callable[[bytes], None]:
        """Of PEP 3333. Nothing leaves before there is something of a body, or its end."""
        if exc_info:
            try:
                if self._reply.begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # else it would hold its own frame
        elif self._status:
            raise RuntimeError("start_response was called twice, the second time without exc_info")
        said: list[str] = []
        lines: list[bytes] = []
        length = None
        for name, value in headers:
            line, number, told = line_of[name, value]
            lines.append(line)
            if told:
                if told in said:
                    raise ValueError(f"{name} is said twice")
                said.append(told)
                if told == "content-length":
                    length = number
        self._status = status_of[status]
        self._lines, self._length, self._said = lines, length, said
        return self._write

    def _begin(self, length: int | None = None) -> None:
        """Make the head; ``length``: of the body, where that is known."""
        if self._status is None:
            raise RuntimeError("the application did not call start_response")
        if self._http.body and self._http.body.fault:
            raise self._http.body.fault  # whatever it makes of a request that is malformed
        code, reason = self._status
        reply = self._reply
        if "date" in self._said or "server" in self._said:
            self._send_response_but(code, reason)
        else:
            self.send_response(code, reason)
        if self._length is not None:
            reply.length = self._length
        elif length is not None and code not in _BODILESS and (length or self.command != "HEAD"):
            reply.length = length
            self._lines.append(b"Content-Length: %d\r\n" % length)
        reply.lines += self._lines
        self.end_headers()

    def _send_response_but(self, code: int, reason: str | None) -> None:
        """Without a Date or Server that the application has its own of."""
        if self._http.service.tells:
            self.log_request(code)
        self.send_response_only(code, reason)
        for name, value in (("Server", self.version_string()), ("Date", self.date_time_string())):
            if name.lower() not in self._said:
                self.send_header(name, value)

    def _check_piece(self, piece: object) -> None:
        if not isinstance(piece, bytes):
            raise TypeError(f"an application answers in pieces of bytes, not {piece!r:.100}")

    def _write(self, piece: bytes) -> None:
        self._check_piece(piece)
        if piece:
            reply = self._reply
            if not (reply.begun or reply.pending):
                self._begin()
            if self.command != "HEAD":
                reply.write(piece)

    def _send_result(self, result: Any) -> None:
        reply = self._reply
        if type(result) is list or type(result) is tuple:
            self._send_all(result)
        elif isinstance(result, FileWrapper):
            self._send_file(result)
        else:
            for piece in result:
                self._write(piece)
                if reply.part == OVER or reply.wrong or (reply.pending and self.command == "HEAD"):
                    break
        if not (reply.begun or reply.pending):
            self._begin(0)
        if reply.left:
            raise RuntimeError(
                f"the answer is {reply.left} bytes shorter than the Content-Length of the "
                "application"
            )
        if reply.part == COUNTED and not (reply.pending or reply.wrong or self._http.body):
            self._over = True  # nearly every answer
        else:
            self._end(reply)

    def _send_all(self, pieces: list[bytes] | tuple[bytes, ...]) -> None:
        if self._reply.begun or self._reply.pending:
            for piece in pieces:
                self._write(piece)
            return
        for piece in pieces:
            if type(piece) is not bytes:
                self._check_piece(piece)
        whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._begin(len(whole))
        if whole and self.command != "HEAD":
            self._reply.write(whole)

    def _send_file(self, wrapper: FileWrapper) -> None:
        reply, most = self._reply, self._length
        file = wrapper.filelike
        size = size_of(file.fileno()) if wrapper.real else None
        if size is not None:
            at = file.tell()
            rest = max(0, size - at)
            if not (reply.begun or reply.pending):
                self._begin(rest)
            if self.command != "HEAD" and self._status and self._status[0] not in _BODILESS:
                reply.sendfile(file, at, rest if most is None else min(rest, most))
            return
        for piece in wrapper:
            self._write(piece if most is None else piece[:most])
            if most is not None:
                most -= len(piece)
                if most <= 0:
                    break

    # How it ends

    def _end(self, reply: Reply) -> None:
        if not self._over:
            self._over = True
            super()._end(reply)
        else:
            self._tell_wrong(reply)  # of write(), after the end

    def _failed(self, error: BaseException) -> None:
        reply = self._reply
        if isinstance(error, Reject) or getattr(error, "by_client", False):
            raise error
        if self._http.body and self._http.body.fault and not reply.begun:
            raise self._http.body.fault
        master = getattr(self.server, "master", None)
        if master:  # handle_request() has none
            master.heartbeat.fail(error)
        self._complain("the application failed", error)
        if self._over:
            return  # in close(), when the client had everything
        self._over = self.close_connection = True
        if not reply.begun:
            self._answer_with(500)


class _Nobody:
    """In place of a stderr that was closed."""

    def write(self, text: str) -> int:
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        pass

    def flush(self) -> None:
        pass
