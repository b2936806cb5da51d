"""PreforkHTTPServer against others, in alternated rounds: GET of 13 bytes.

How to read it. The figure that ranks servers is their CPU time a request: of the whole
server, all its processes, user and system; wrk's is not in it. wrk has one CPU of its own
as long as the server leaves it one, so requests a second say less. Other things that run
on the machine slow all servers down, some more than others, so each round measures every
server in turn, and the ratios are those of a round to the reference in the same round;
their median is shown. All servers have as many workers as there are CPUs, and otherwise
the settings they are shipped with; access logs are off. It is no equal work: nginx has a
fixed answer; uvicorn, gunicorn and PreforkWSGIServer call an application, not a handler. gunicorn
sync keeps no connection, and in H1 wrk connects anew for each request; http.server sends a
head and a body in two pieces, and the second waits for the client's delayed acknowledgement.
"""

import argparse
import importlib.util
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from prefork_server.http import HTTPRequestHandler, PreforkHTTPServer, PreforkWSGIServer

from .load import connect
from .processes import ServerProcess
from .report import machine, print_markdown

MODULE = "benchmarks.http"
BODY = b"Hello, World!"
WORKERS = os.cpu_count() or 1
REFERENCE = "nginx"
PATIENCE = 3.0  # seconds in which idle connections are answered, or count as unanswered
GET = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

NGINX = """\
daemon off;
worker_processes {workers};
pid {directory}/pid;
error_log {directory}/errors;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    default_type text/plain;
    server {{
        listen 127.0.0.1:{port};
        location / {{ return 200 "{body}"; }}
    }}
}}
"""


class Hello(HTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)


class Plain(BaseHTTPRequestHandler):
    """The standard library's, as it is but for HTTP/1.1 and its log."""

    protocol_version = "HTTP/1.1"
    do_GET = Hello.do_GET

    def log_message(self, *_: Any) -> None:
        pass


class _Quiet:
    """The standard library's servers say on stderr that wrk has gone. Their own queue of 5
    would drop connections."""

    request_queue_size = 2048

    def handle_error(self, *_: Any) -> None:
        pass


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))])
    return [BODY]


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    fields = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": BODY})


# The servers. Each of these functions runs in the server's process, and serves until TERM.


def serve_ours(port: int, directory: str) -> None:
    with PreforkHTTPServer(("127.0.0.1", port), Hello, workers=WORKERS) as server:
        server.serve_forever()


def serve_wsgi(port: int, directory: str) -> None:
    with PreforkWSGIServer(("127.0.0.1", port), wsgi, workers=WORKERS) as server:
        server.serve_forever()


def serve_nginx(port: int, directory: str) -> None:
    text = NGINX.format(workers=WORKERS, directory=directory, port=port, body=BODY.decode())
    config = Path(directory, "nginx.conf")
    config.write_text(text)
    program = _nginx() or "nginx"
    os.execv(program, [program, "-p", directory, "-e", f"{directory}/errors", "-c", str(config)])


def serve_gunicorn(port: int, directory: str) -> None:
    _become("gunicorn", "-w", WORKERS, "-b", f"127.0.0.1:{port}", "--log-level", "error",
            f"{MODULE}:wsgi")  # fmt: skip


def serve_uvicorn(port: int, directory: str) -> None:
    _become("uvicorn", "--workers", WORKERS, "--port", port, "--loop", "uvloop", "--http",
            "httptools", "--lifespan", "off", "--no-access-log", "--log-level", "error",
            f"{MODULE}:asgi")  # fmt: skip


def serve_threading(port: int, directory: str) -> None:
    with type("Server", (_Quiet, ThreadingHTTPServer), {})(("127.0.0.1", port), Plain) as server:
        server.serve_forever()


def serve_forked(port: int, directory: str) -> None:
    """``http.server`` with nothing but forks: who has a connection serves it to its end."""
    server = type("Server", (_Quiet, HTTPServer), {})(("127.0.0.1", port), Plain)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    children = []
    for _ in range(WORKERS):
        pid = os.fork()
        if not pid:
            while True:
                server.handle_request()
        children.append(pid)
    signal.sigwait({signal.SIGTERM})
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _become(module: str, *arguments: object) -> None:
    os.execv(sys.executable, [sys.executable, "-m", module, *map(str, arguments)])


def _nginx() -> str | None:
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def _has(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) for module in modules)


class Contestant(NamedTuple):
    serve: Callable[[int, str], None]
    is_here: bool = True


# One more server is one more line, and its function above.
CONTESTANTS: dict[str, Contestant] = {
    REFERENCE: Contestant(serve_nginx, _nginx() is not None),
    "PreforkHTTPServer": Contestant(serve_ours),
    "PreforkWSGIServer": Contestant(serve_wsgi),
    "uvicorn, uvloop + httptools": Contestant(
        serve_uvicorn, _has("uvicorn", "uvloop", "httptools")
    ),
    "http.server, forked": Contestant(serve_forked),
    "ThreadingHTTPServer": Contestant(serve_threading),
    "gunicorn sync": Contestant(serve_gunicorn, _has("gunicorn")),
}


@dataclass(frozen=True)
class Workload:
    name: str
    connections: int
    closes: bool = False
    idle: int = 0  # connections that are kept beside the load


WORKLOADS = (
    Workload("H1: kept connections, 4 at a time", 4),
    Workload("H1: kept connections, 32 at a time", 32),
    Workload("H2: Connection: close, 4 at a time", 4, closes=True),
    Workload("S1: 4 at a time, beside 64 idle ones", 4, idle=64),
)


@dataclass(frozen=True)
class Sample:
    """One server in one round."""

    cpu_us: float  # of the server, a request; NaN if none was answered
    per_second: float
    errors: int
    idle_answered: int


def measure(server: ServerProcess, port: int, workload: Workload, seconds: int) -> Sample:
    with ExitStack() as stack:
        idle = [
            stack.enter_context(connect(f"127.0.0.1:{port}", PATIENCE))
            for _ in range(workload.idle)
        ]
        answered(idle)
        before_ns = server.cpu_ns()
        requests, per_second, errors = put_load_on(port, workload, seconds)
        cpu_ns = server.cpu_ns() - before_ns
        cpu_us = cpu_ns / 1000 / requests if requests else float("nan")
        return Sample(cpu_us, per_second, errors, answered(idle))


def put_load_on(port: int, workload: Workload, seconds: int) -> tuple[int, float, int]:
    """Requests in all, requests a second, and those that failed."""
    fields = ("-H", "Connection: close") if workload.closes else ()
    command = ["wrk", "-t1", f"-c{workload.connections}", f"-d{seconds}s", *fields]
    text = subprocess.check_output([*command, f"http://127.0.0.1:{port}/"], text=True)
    requests = re.search(r"(\d+) requests in", text)
    per_second = re.search(r"Requests/sec: +([\d.]+)", text)
    if not requests or not per_second:
        raise RuntimeError(f"wrk says something else: {text}")
    failed = re.findall(r"(?:Non-2xx or 3xx responses:|connect|read|write|timeout) (\d+)", text)
    return int(requests[1]), float(per_second[1]), sum(map(int, failed))


def answered(connections: Sequence[socket.socket]) -> int:
    """Ask on each; how many were answered in time. All have the same time, together."""
    asked = []
    for connection in connections:
        try:
            connection.sendall(GET)
        except OSError:
            continue  # it was closed
        asked.append(connection)
    deadline, count = time.monotonic() + PATIENCE, 0
    for connection in asked:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        with suppress(OSError):  # silent, or gone
            count += connection.recv(65536).endswith(BODY)
    return count


def start(name: str, directory: str) -> tuple[ServerProcess, int]:
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    server = ServerProcess(MODULE, "--serve", name, "--port", port, "--directory", directory)
    deadline = time.monotonic() + 30
    while True:
        try:
            connect(f"127.0.0.1:{port}").close()
            return server, port
        except OSError:
            if time.monotonic() > deadline or not server.pids():
                server.end()
                raise
            time.sleep(0.05)


def compare(names: Sequence[str], workload: Workload, rounds: int, seconds: int) -> None:
    """Print one table."""
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    with ExitStack() as stack:
        running = {}
        for name in names:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            server, port = start(name, directory)
            running[name] = stack.enter_context(server), port
            put_load_on(port, workload, 1)  # not counted
        for number in range(rounds):
            print(f"{workload.name}: round {number + 1} of {rounds}", file=sys.stderr)
            for name, its in samples.items():
                its.append(measure(*running[name], workload, seconds))
    header = ["server", "CPU us/request", "to nginx", "requests/s", "to nginx", "errors"]
    if workload.idle:
        header.append(f"idle answered, of {workload.idle}")
    rows = [(name, *_cells(its, samples.get(REFERENCE), workload)) for name, its in samples.items()]
    rows = [tuple(cell.replace("nan", "-") for cell in row) for row in rows]
    print_markdown(f"{workload.name}; {rounds} rounds of {seconds} s", [header, *rows])


def _cells(its: list[Sample], reference: list[Sample] | None, workload: Workload) -> list[str]:
    cells = [f"{statistics.median(sample.cpu_us for sample in its):.1f}"]
    cells.append(_ratio(its, reference, lambda sample: sample.cpu_us))
    cells.append(f"{statistics.median(sample.per_second for sample in its):,.0f}")
    cells.append(_ratio(its, reference, lambda sample: sample.per_second))
    cells.append(str(sum(sample.errors for sample in its)))
    if workload.idle:
        cells.append(str(min(sample.idle_answered for sample in its)))
    return cells


def _ratio(
    its: list[Sample], reference: list[Sample] | None, figure: Callable[[Sample], float]
) -> str:
    if reference is None:
        return "-"
    pairs = zip(its, reference, strict=True)
    return f"{statistics.median(figure(ours) / figure(theirs) for ours, theirs in pairs):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--seconds", type=int, default=2, help="for how long each time")
    parser.add_argument("--serve", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        CONTESTANTS[asked.serve].serve(asked.port, asked.directory)
        return
    if not shutil.which("wrk"):
        sys.exit("wrk makes the load, and it is not here")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the servers, too
    print(f"{machine()}, {WORKERS} workers each")
    here = [name for name, contestant in CONTESTANTS.items() if contestant.is_here]
    absent = [name for name in CONTESTANTS if name not in here]
    print(f"Not here, so not measured: {', '.join(absent) or 'nobody'}.")
    for workload in WORKLOADS:
        compare(here, workload, asked.rounds, asked.seconds)


if __name__ == "__main__":
    main()
