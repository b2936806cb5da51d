"""A handler with the API of ``http.server``'s: strict, fast, and safe with slow clients.

It runs in any ``socketserver`` server. How a connection is parked is known to ``visit``.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property, lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BufferedReader
from typing import Any

from ..listeners import address_text
from ..logfiles import leads_nowhere, logger_named
from ..reception import is_tls
from ..sockets.connection import Connection, size_of
from ..text import escape, printable, users_part
from .access import log_answer
from .asked import Asked
from .connection import Held
from .heads import NO_PHRASE, beginnings, fields, status_line
from .reply import COUNTED, HEAD, JOINED, NOTHING, OVER, TUNNEL, Reply, is_real
from .stream import Rest, is_connection
from .wire import LIMITS, Limits, Reject

_CLOSE, _KEEP = b"Connection: close\r\n", b"Connection: keep-alive\r\n"
_REFUSED = ("code %d, message %s", "Request timed out: %r")  # http.server's words
_PECULIAR = frozenset((*range(100, 200), 204, 205, 304))  # of whose bodies rules of their own say
_ASKED = "the request: "  # begins a note of an exception
_new = object.__new__


class HTTPRequestHandler(Asked):
    """``BaseHTTPRequestHandler`` for use in production: write ``do_GET()`` and all as for that.

    What it does otherwise: HTTP/1.1 with connections that are kept; only what is a request by
    RFC 9112 arrives at ``do_GET()``, all else is refused. ``rfile`` ends where the body ends.
    Head and body of an answer leave in one piece; without a Content-Length it goes in chunks.
    What cannot stand in a head raises ValueError in ``send_header()``. An error is answered
    with a 500, if nothing has left yet. Requests are logged if ``logs_requests`` says so.

    The limits are class attributes. Times are seconds of waiting for the client:
    ``head_timeout`` for a head from its first byte; ``body_timeout`` for all of a body, and a
    second more per ``minimum_rate`` bytes; ``write_timeout`` until it takes more of an answer;
    ``keep_alive_timeout`` between two requests. After ``max_requests`` a connection is closed.

    ``access_log``: after each answer a line of Apache's combined format, to the logger
    ``prefork_server.access``, or else to stdout. ``forwarded_from``: the proxies that are
    believed when they say for whom they ask; see ``docs/http.md``.

    After a 101, or a 2xx of ``do_CONNECT()``, ``rfile`` goes on with what comes, without limits.
    A handler whose ``setup()`` sets another ``wfile``, or that is made without a socket, is
    served by http.server's own methods, as it is.
    """

    client_address: Any
    protocol_version: str = "HTTP/1.1"
    server_version: str = "prefork_server"
    sys_version: str = ""  # which version it is helps only those who look for a hole
    limits: Limits = LIMITS
    head_timeout: float = 10.0
    body_timeout: float = 30.0
    write_timeout: float = 30.0
    keep_alive_timeout: float = 5.0
    minimum_rate: float = 500  # bytes a second
    max_requests: int = 1000
    logs_requests: bool = False
    access_log: bool = False

    rfile: Any
    wfile: Any
    command: str
    path: str
    request_version: str
    requestline: str
    connection: Any
    close_connection: bool
    target: str  # as it was sent; ``path`` never begins with two slashes
    _reply: Any
    _theirs: type | None = None  # the class for which this one serves, see ``standard``

    @classmethod
    def has_own(cls, *names: str) -> bool:
        """Whether a class has any of these methods of its own."""
        return any(getattr(cls, name) is not getattr(HTTPRequestHandler, name) for name in names)

    def __new__(cls, *args: Any, **keywords: Any) -> Any:
        kind: Any = cls
        made_for = (*args, *keywords.values())  # among them the request
        made = super().__new__(kind if any(map(is_connection, made_for)) else unchanged(kind))
        made._http = None
        return made

    def setup(self) -> None:
        connection = self.connection = self.request
        http = self._http = self._http or Held(self)
        self.wfile = self._reply = http.reply = reply = _new(Reply)
        reply.prepare(connection, self.write_timeout)
        self.close_connection, self.command, self.path = True, "", ""
        self.request_version = "HTTP/1.1"
        if type(connection) is not Connection and is_tls(connection):
            self.scheme = "https"
        if self.timeout is not None:
            connection.settimeout(self.timeout)
        if self.disable_nagle_algorithm and connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)

    def handle(self) -> None:
        if self._http and self.wfile is self._http.reply:
            super().handle()
            return
        kind: Any = type(self)
        other = object.__new__(unchanged(kind))
        vars(other).update(vars(self), rfile=self.rfile)
        BaseHTTPRequestHandler.handle(other)

    # One request

    def handle_one_request(self) -> None:
        """Wait for one request, and answer it; ``close_connection``: it was the last one."""
        self._http.serve_one()

    def parse_request(self) -> bool:
        """Override it to look at a request before ``do_GET()`` does; ``command``, ``path`` and
        the others are set. False: it was answered."""
        return True

    def handle_expect_100(self) -> bool:
        """Whether the body is welcome. Override it to refuse: send an answer, return False.
        The client is told to go on when the body is first read, and not before."""
        return True

    def dispatch(self) -> None:
        """Call ``do_GET()``, or whatever it is."""
        method = getattr(self, f"do_{self.command}", None)
        if method is None:
            self.send_error(HTTPStatus.NOT_IMPLEMENTED, "Unsupported method")
        else:
            method()

    def _end(self, reply: Reply) -> None:
        """After the answer: finish it."""
        if reply.part == HEAD:
            self.end_headers()
        if reply.part != NOTHING:
            reply.end()
        elif self.close_connection:
            return  # it has spoken by itself, or does not want to
        else:
            reply.fault("nothing was answered", True)
        if reply.broken:
            self.close_connection = True
        elif reply.wrong:
            self._tell_wrong(reply)
            if not reply.begun:
                self._answer_with(HTTPStatus.INTERNAL_SERVER_ERROR)
        if self.close_connection:
            self._linger()

    def _linger(self) -> None:
        body = self._http.body
        if body and not body.finished:
            self._http.lingers = True

    def _tell_wrong(self, reply: Reply) -> None:
        """Log what the handler did that is no answer, if it did; then the connection ends."""
        if reply.wrong:
            self.close_connection = True
            self._complain(f"the answer is wrong, closing the connection: {reply.wrong}")

    def _note_request(self, error: BaseException) -> None:
        """For the traceback in the log, which does not tell one request from the other."""
        notes = [n for n in getattr(error, "__notes__", ()) if not n.startswith(_ASKED)]
        with suppress(AttributeError):  # of a frozen dataclass
            error.__notes__ = [*notes, f'{_ASKED}"{escape(self.requestline, 2048)}"']

    def _complain(
        self, what: str, error: BaseException | None = None, level: int = logging.ERROR
    ) -> None:
        peer = address_text(self.client_address) if self.client_address else "a UNIX socket"
        extra = {"event": "request_failed", "pid": os.getpid()}
        asked = escape(self.requestline, 2048)
        logger_named(None).log(
            level,
            '%s: "%s" of %s',
            printable(what),
            asked,
            peer,
            exc_info=error and users_part(error),
            extra=extra,
        )

    # The answer

    def respond(
        self,
        status: int,
        body: bytes,
        content_type: str,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Send a whole answer: ``self.respond(200, b"hello", "text/plain")``.

        It is what ``send_response()``, ``send_header()`` for ``Content-Type``,
        ``Content-Length`` and each of ``headers``, ``end_headers()`` and ``wfile.write(body)``
        send, at half the cost; methods of these names in a subclass are called. To a HEAD the
        body is not sent. Nothing may be said before or after it. Raises TypeError for a body
        that is not bytes, and ValueError for what no field can hold: then nothing has left.
        """
        reply, service, size = self._reply, self._http.service, len(body)
        second = int(time.time())
        key = type(self), self.protocol_version, status, content_type, size
        head = beginnings.get(key) if second == beginnings.second else None
        if (
            head is not None
            and not (headers or reply.part or self.close_connection or self._http.is_last())
            and self.command != "HEAD"
            and self.request_version != "HTTP/1.0"
        ):
            reply.send_whole(status, head, body)
            return
        if not isinstance(body, bytes):
            raise TypeError(f"the body of an answer is bytes, not {body!r:.100}")
        once = reply.part or headers or status in _PECULIAR or size > JOINED
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(size))
        for name, value in headers:
            self.send_header(name, value)
        if service.repeats and not once:
            beginnings.keep(key, b"".join((*reply.lines, b"\r\n")))
        self.end_headers()
        self.wfile.write(body)

    def send_response(self, code: int, message: str | None = None) -> None:
        reply, service = self._reply, self._http.service
        if service.tells:
            self.log_request(code)
        if message is None and service.plain:
            if reply.part:
                self._answer_again(reply, code)
                return
            now = int(time.time())
            if now != beginnings.second:  # later, or earlier: a clock may be set back
                beginnings.renew(now)
            known = beginnings.get((type(self), self.protocol_version, code))
            reply.lines.append(known or beginnings.make(self, code, now))
            reply.status, reply.part = code, HEAD
        else:
            self.send_response_only(code, message)
            self.send_header("Server", self.version_string())
            self.send_header("Date", self.date_time_string())

    def send_response_only(self, code: int, message: str | None = None) -> None:
        reply = self._reply
        if reply.part:
            self._answer_again(reply, code)
            return
        if message is None:
            message = self.responses.get(code, NO_PHRASE)[0]
        reply.lines.append(status_line[self.protocol_version, code, message])
        reply.status, reply.part = code, HEAD

    def _answer_again(self, reply: Reply, code: int) -> None:
        if reply.part != OVER:
            reply.fault(f"a {code} was begun after a {reply.status}, and was dropped", True)

    def send_header(self, keyword: str, value: str, *, _is_extra: bool = False) -> None:
        """Add a field. Raises ValueError for what no field can hold."""
        reply = self._reply
        if reply.part != HEAD:
            self._head_is_over(reply, f"the field {keyword!r:.100}")
            return
        line, length, framing = fields[keyword, value if type(value) is str else str(value)]
        if framing == "content-length" and reply.length is None and not reply.handmade:
            reply.length = length
        elif framing:
            self._frame(framing, str(value))
        reply.lines.append(line)

    @property
    def _default_response_headers(self) -> list[list[str]]:
        """What ``SimpleHTTPRequestHandler`` (3.15) leaves out of its extra fields: those here."""
        head = b"".join(self._reply.lines).decode("latin-1")
        return [line.split(": ", 1) for line in head.split("\r\n")[1:-1]]

    @_default_response_headers.setter
    def _default_response_headers(self, empty: list[list[str]]) -> None:
        pass

    def _frame(self, name: str, text: str) -> None:
        reply = self._reply
        reply.unusual = True
        if name == "connection":
            reply.said_connection = True
            options = text.lower()
            self.close_connection = "close" in options or (
                self.close_connection and "keep-alive" not in options
            )
            return
        wrong = ""
        if reply.handmade or reply.length is not None:
            wrong = f"there is one way to say how long a body is, and {name} is another"
        elif text.strip(" \t").lower() != "chunked":
            wrong = f"the only Transfer-Encoding of an answer is chunked, not {text!r:.100}"
        if wrong:
            reply.fault(wrong)  # whether the handler minds the exception or not
            raise ValueError(wrong)
        reply.handmade = True  # a handler that says Transfer-Encoding makes the chunks

    def _head_is_over(self, reply: Reply, what: str) -> None:
        if reply.part == NOTHING:
            reply.fault(f"{what} came before send_response()", True)
        elif reply.part != OVER:
            reply.fault(f"{what} came after the end of the head, and was dropped")

    def end_headers(self) -> None:
        """The head is complete. It leaves with the first of the body, or at the end."""
        reply = self._reply
        if reply.part != HEAD:
            self._head_is_over(reply, "end_headers()")
            return
        if reply.length is not None and reply.status not in _PECULIAR and self.command != "HEAD":
            reply.part, reply.left = COUNTED, reply.length
        elif not self._choose_mode(reply):
            return
        if not self.close_connection:
            self.close_connection = self._http.is_last()
        if not reply.said_connection:
            if self.close_connection:
                reply.lines.append(_CLOSE)
            elif self.request_version == "HTTP/1.0":
                reply.lines.append(_KEEP)
        reply.pending = True

    def _choose_mode(self, reply: Reply) -> bool:
        """How the body goes, where that is not plain. False: there is none, and the head left."""
        status = reply.status
        old = self.request_version == "HTTP/1.0" or self.protocol_version < "HTTP/1.1"
        if old and status == 101:
            reply.fault("a 101 is not for HTTP/1.0", True)
            return False
        if status == 101 or (self.command == "CONNECT" and 200 <= status < 300):
            # What is spoken now has an end, and limits, of its own.
            self.close_connection = reply.said_connection = reply.unusual = True
            self._http.allow(float("inf"))
            self.rfile = BufferedReader(Rest(self._http))
            reply.unframe()
            reply.part, reply.pending = TUNNEL, True
            reply.flush()  # its client speaks when it has come, and not before
            return False
        if 100 <= status < 200:
            reply.unframe()
            if not old:  # which knows no interim answers (RFC 9110 15.2)
                reply.interim(b"".join((*reply.lines, b"\r\n")))
            wrong = reply.wrong
            reply.reset()
            reply.wrong, reply.unusual = wrong, True
            return False
        self.close_connection |= reply.frame(
            status, self.command == "HEAD", old, self.close_connection
        )
        return True

    def version_string(self) -> str:
        return f"{self.server_version} {self.sys_version}".rstrip()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Of ``SimpleHTTPRequestHandler``: a real file goes by ``os.sendfile``. Where the kernel
        makes a file as it is read, it goes in chunks, though the head says what ``stat`` does."""
        if is_real(source) and isinstance(outputfile, Reply):
            size, at = size_of(source.fileno()), source.tell()
            if size is not None:
                outputfile.sendfile(source, at, max(0, size - at))
                return
            if outputfile.pending and outputfile.length == os.fstat(source.fileno()).st_size:
                outputfile.forget_length()
                self._choose_mode(outputfile)
                if self.close_connection and _KEEP in outputfile.lines:
                    outputfile.lines[outputfile.lines.index(_KEEP)] = _CLOSE
        super().copyfile(source, outputfile)  # type: ignore[misc]

    def address_string(self) -> str:
        return self.client_address[0] if type(self.client_address) is tuple else "a UNIX socket"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Called for each answer; by itself it logs if ``logs_requests`` says so."""
        if self.logs_requests:
            super().log_request(code, size)

    def log_error(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """To ``log_message()``, if ``logs_requests`` says so or a class has one of its own.
        Otherwise to the log of the server: a refused request, as ``send_error()`` tells of it,
        as a DEBUG line, since a client did that; anything else as an ERROR."""
        own = type(self).log_message is not HTTPRequestHandler.log_message
        if own or self.logs_requests:
            self.log_message(format, *args)
            return
        level = logging.DEBUG if format in _REFUSED else logging.ERROR
        self._complain(format % args, level=level)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """A line on stderr, as ``http.server`` has it, with all that is not printable escaped;
        in the log, if what goes to stderr is dropped, as that of a daemon is."""
        who, when = self.address_string(), self.log_date_time_string()
        text = (format % args).replace("\\", r"\\")  # so that no text looks like an escape
        line = printable(f"{who} - - [{when}] {text}", "\xa0")
        if leads_nowhere(2):
            logger_named(None).info("%s", line, extra={"event": "request", "pid": os.getpid()})
        elif sys.stderr:
            sys.stderr.write(f"{line}\n")

    # Where there is no request to answer, or no answer

    def refuse(self, fault: Reject) -> None:
        """Answer what is not even the head of a request."""
        self.forget_request()
        self.command, self.path, self.requestline = "", "", ""
        self.client_address = self._http.peer
        self._reply.reset()
        self.answer_fault(fault)
        if self.access_log:
            log_answer(self, bytes(self._http.buffer))

    def answer_fault(self, fault: Reject) -> None:
        """What is no request ends the connection."""
        self.close_connection = self._http.lingers = True
        if not self._reply.begun:
            self._answer_with(fault.status, fault.reason)

    def answer_failure(self, error: BaseException) -> None:
        """User code has raised; CancelledError is no Exception."""
        self.close_connection = True
        if not getattr(error, "by_client", False):
            self._note_request(error)
            self._tell_wrong(self._reply)
            if not self._reply.begun:
                self._answer_with(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _answer_with(self, status: int, reason: str | None = None) -> None:
        self._reply.reset()
        self.send_error(status, None, reason)
        self._reply.end()
        self._linger()

    def finish(self) -> None:
        if self._http and self.wfile is self._http.reply:
            self._http.end()
        else:
            super().finish()


class _Unchanged(HTTPRequestHandler):
    """http.server's own methods, before those of ``HTTPRequestHandler``."""

    setup = BaseHTTPRequestHandler.setup
    handle = BaseHTTPRequestHandler.handle
    finish = BaseHTTPRequestHandler.finish
    handle_one_request = BaseHTTPRequestHandler.handle_one_request
    parse_request = BaseHTTPRequestHandler.parse_request
    handle_expect_100 = BaseHTTPRequestHandler.handle_expect_100
    send_response = BaseHTTPRequestHandler.send_response
    send_response_only = BaseHTTPRequestHandler.send_response_only
    send_header: Any = BaseHTTPRequestHandler.send_header
    end_headers = BaseHTTPRequestHandler.end_headers
    log_request = BaseHTTPRequestHandler.log_request
    _default_response_headers: Any = cached_property(lambda self: [])


@lru_cache
def unchanged(kind: Any) -> Any:
    """This class of a program with http.server's own methods below it, for files not ours."""
    if kind._theirs or issubclass(kind, _Unchanged):
        return kind._theirs or kind
    return type(kind.__name__, (kind, _Unchanged), {"__module__": kind.__module__})
