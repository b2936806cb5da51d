"""What the service serves: a page for people, figures for machines, and whether all is well."""

import ipaddress
import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from ..http.handler import HTTPRequestHandler
from ..http.server import PreforkHTTPServer
from ..http.wire import Limits
from ..inheritance import inheritance
from ..listeners import Listener, parse
from ..settings import Settings
from ..stats import Stats
from ..worker.master_handle import MasterHandle
from .page import CSP, page

_MOST = 256  # connections at once; a page needs one
_TEXT = "text/plain; charset=utf-8"


class _Handler(HTTPRequestHandler):
    """Read alone: GET and HEAD, no body, nothing that anybody could set."""

    limits = Limits(line=4096, head=16384, body=0)
    head_timeout = 5.0
    write_timeout = 5.0
    server: "_Server"

    def dispatch(self) -> None:
        answer = self._ANSWERS.get(self.path.partition("?")[0])
        if not self.server.is_meant(self.headers["Host"]):
            self._send(421, _TEXT, "This is not the host that was asked for.\n")
        elif self.command not in ("GET", "HEAD"):
            self._send(405, _TEXT, "There is only GET.\n", ("Allow", "GET, HEAD"))
        elif answer is None:
            self._send(404, _TEXT, f"There are {', '.join(self._ANSWERS)}\n")
        else:
            answer(self, self.server.master.stats())

    def _page(self, stats: Stats) -> None:
        text = page(stats, self.server.app_name)
        self._send(200, "text/html; charset=utf-8", text, ("Content-Security-Policy", CSP))

    def _metrics(self, stats: Stats) -> None:
        self._send(200, "text/plain; version=0.0.4; charset=utf-8", stats.prometheus())

    def _json(self, stats: Stats) -> None:
        self._send(200, "application/json", json.dumps(stats.as_dict()))

    def _health(self, stats: Stats) -> None:
        alive = os.getppid() == self.server.master.pid
        self._send(200 if alive else 503, _TEXT, "alive\n" if alive else "the master is gone\n")

    def _readiness(self, stats: Stats) -> None:
        # Two serve from the same sockets in an upgrade: then there is always one who is ready.
        other = stats.state == "leaving" or (stats.state == "booting" and self.server.succeeds)
        ready = stats.state == "serving" or other
        self._send(200 if ready else 503, _TEXT, f"{stats.state}\n")

    _ANSWERS: ClassVar[dict[str, Callable[["_Handler", Stats], None]]] = {
        "/": _page,
        "/metrics": _metrics,
        "/stats.json": _json,
        "/healthz": _health,
        "/readyz": _readiness,
    }

    def _send(self, status: int, kind: str, text: str, *fields: tuple[str, str]) -> None:
        always = (
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Referrer-Policy", "no-referrer"),
        )
        self.respond(status, text.encode(), kind, (*always, *fields))

    def log_error(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        pass  # what strangers ask for here is no news


class _Server(PreforkHTTPServer):
    defer_accept = 0
    app_name: str
    succeeds: bool
    hosts: frozenset[str] | None  # by which it may be asked for; None: by any

    def is_meant(self, host: str | None) -> bool:
        """Whether this Host is one of ours. A page in somebody's browser whose name was made to
        mean our address (DNS rebinding) would be asked by that name; checks by machines may
        say none."""
        if self.hosts is None or host is None:
            return True
        name = host.strip().rpartition(":")[0] if not host.endswith("]") else host
        name = (name or host).strip("[]").lower().rstrip(".")
        try:
            return name in self.hosts or ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self.master.accept_loop.parked < _MOST


def serve(master: MasterHandle, settings: Settings, app_name: str, listener: Listener) -> None:
    """In the service: until it is told to go."""
    address = parse(str(settings.status))
    alone = replace(settings, threads=1, status=None)
    server = _Server(str(settings.status), _Handler, False, settings=alone)
    server.socket.close()
    server.socket = listener.socket
    server.app_name, server.succeeds = app_name, inheritance().is_successor()
    server.hosts = None
    if isinstance(address.name, tuple) and not settings.status_public:
        server.hosts = frozenset({"localhost", address.name[0].lower()})
    server._prefork_work(master)
