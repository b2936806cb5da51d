"""How each server is started: one function for each, which runs in the server's process
and serves until TERM."""

import asyncio
import logging
import os
import shutil
import signal
import socketserver
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from prefork_server import PreforkTCPServer, PreforkUDPServer, PreforkUnixStreamServer
from prefork_server.aio import PreforkAsyncioServer
from prefork_server.http import PreforkHTTPServer, PreforkWSGIServer

from . import apps

LIMIT_PROGRAM = "BENCH_LIMIT"  # the variable that says where the runner built the C server
BACKLOG = 2048

NGINX = """\
daemon off;
worker_processes {workers};
pid {directory}/pid;
error_log {directory}/errors;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    default_type text/plain;
    sendfile on;
    server {{
        listen 127.0.0.1:{port};
        location = / {{ return 200 "{body}"; }}
        location = /file {{ alias {file}; }}
    }}
}}
"""


class Place(NamedTuple):
    """Where a server serves, and what: ``family`` is tcp, unix, udp (all echo) or http."""

    family: str
    address: str  # 127.0.0.1:port, or the path of a UNIX socket
    directory: str  # its own, for whatever it writes
    workers: int

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def socket_address(self) -> Any:
        return self.address if self.family == "unix" else ("127.0.0.1", self.port)


def program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def ours(place: Place, defer_accept: int | None = None, **settings: Any) -> None:
    logging.basicConfig()  # warnings and errors are to be seen
    kind: Any = {
        "tcp": PreforkTCPServer,
        "unix": PreforkUnixStreamServer,
        "udp": PreforkUDPServer,
        "http": PreforkHTTPServer,
    }[place.family]
    handler = {"udp": apps.EchoDatagram, "http": apps.Web}.get(place.family, apps.Echo)
    settings = {"workers": place.workers} | settings
    if defer_accept is not None:
        kind = type(kind.__name__, (kind,), {"defer_accept": defer_accept})
    with kind(place.socket_address, handler, **settings) as server:
        server.serve_forever()


def our_wsgi(place: Place) -> None:
    logging.basicConfig()
    with PreforkWSGIServer(place.socket_address, apps.wsgi, workers=place.workers) as server:
        server.serve_forever()


def our_loop(place: Place, loop: Any) -> None:
    logging.basicConfig()
    prefix = {"unix": "unix:", "udp": "udp:"}.get(place.family, "")
    factory = _protocol(place.family)
    address = prefix + place.address
    PreforkAsyncioServer(
        address, protocol_factory=factory, loop=loop, workers=place.workers, worker_connections=5000
    ).serve_forever()


def _protocol(family: str) -> type[asyncio.BaseProtocol]:
    others = {"udp": apps.EchoDatagramProtocol, "http": apps.WebProtocol}
    return others.get(family, apps.EchoProtocol)


class Pooled:
    """``ThreadPoolExecutor`` in place of a thread for each connection."""

    threads = 0

    def process_request(self: Any, request: Any, client_address: Any) -> None:
        if not hasattr(self, "pool"):
            self.pool = ThreadPoolExecutor(self.threads)
        self.pool.submit(self._serve, request, client_address)

    def _serve(self: Any, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)


def stdlib(place: Place, mixin: type | None = None, handler: Any = None) -> None:
    """``socketserver`` and ``http.server``. They say on stderr that a client has gone."""
    base: Any = {
        "tcp": socketserver.TCPServer,
        "unix": socketserver.UnixStreamServer,
        "udp": socketserver.UDPServer,
        "http": HTTPServer,
    }[place.family]
    handlers = {"udp": apps.EchoDatagram, "http": handler or apps.PlainWeb}
    attributes = {
        "request_queue_size": BACKLOG,
        "allow_reuse_address": place.family != "unix",
        "daemon_threads": True,
        "handle_error": lambda *_: None,
        "threads": place.workers,
    }
    kind = type("Server", (mixin, base) if mixin else (base,), attributes)
    with kind(place.socket_address, handlers.get(place.family, apps.Echo)) as server:
        server.serve_forever()


def bare_loop(place: Place, loop: str) -> None:
    """A loop in each process, each with a listener of its own by SO_REUSEPORT."""

    async def serve() -> None:
        running = asyncio.get_running_loop()
        factory: Any = _protocol(place.family)
        if place.family == "udp":
            await running.create_datagram_endpoint(
                factory, local_addr=place.socket_address, reuse_port=True
            )
        else:
            await running.create_server(
                factory, "127.0.0.1", place.port, reuse_port=True, backlog=BACKLOG
            )
        await asyncio.Event().wait()

    def run() -> None:
        if loop == "uvloop":
            import uvloop

            uvloop.run(serve())
        else:
            asyncio.run(serve())

    _fork(place.workers, run)


def _fork(workers: int, work: Callable[[], object]) -> None:
    """The least of a master: it ends its children on TERM, and knows nothing else."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    children = []
    for _ in range(workers):
        pid = os.fork()
        if not pid:
            work()
            os._exit(1)
        children.append(pid)
    signal.sigwait({signal.SIGTERM})
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def gunicorn(place: Place, more: Sequence[str] = ()) -> None:
    _become("gunicorn", "-w", place.workers, "-b", place.address, "--log-level", "critical",
            *more, "benchmarks.apps:wsgi")  # fmt: skip


def uvicorn(place: Place) -> None:
    _become("uvicorn", "--workers", place.workers, "--port", place.port, "--loop", "uvloop",
            "--http", "httptools", "--lifespan", "off", "--no-access-log", "--log-level",
            "error", "benchmarks.apps:asgi")  # fmt: skip


def granian(place: Place, interface: str, more: Sequence[str] = ()) -> None:
    _become("granian", "--interface", interface, "--workers", place.workers, "--port",
            place.port, "--no-access-log", "--log-level", "error", *more,
            f"benchmarks.apps:{interface}")  # fmt: skip


def waitress(place: Place, **settings: Any) -> None:
    import waitress

    logging.disable()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    waitress.serve(apps.wsgi, host="127.0.0.1", port=place.port, **settings)


def bjoern(place: Place) -> None:
    import bjoern

    bjoern.listen(apps.wsgi, "127.0.0.1", place.port)
    _fork(place.workers, bjoern.run)


def _become(module: str, *arguments: object) -> None:
    os.execv(sys.executable, [sys.executable, "-m", module, *map(str, arguments)])


def nginx(place: Place) -> None:
    text = NGINX.format(workers=place.workers, directory=place.directory, port=place.port,
                        body=apps.BODY.decode(), file=apps.FILE)  # fmt: skip
    config = Path(place.directory, "nginx.conf")
    config.write_text(text)
    errors = f"{place.directory}/errors"
    found = program("nginx") or "nginx"
    os.execv(found, [found, "-p", place.directory, "-e", errors, "-c", str(config)])


def limit(place: Place, mode: str) -> None:
    what = {"udp": "udp", "http": "http"}.get(place.family, "echo")
    where = place.address if place.family == "unix" else str(place.port)
    found = os.environ[LIMIT_PROGRAM]
    os.execv(found, [found, what, mode, str(place.workers), where])
