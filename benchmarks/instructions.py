"""Instructions that a request takes in a worker: ``python -m benchmarks.instructions [E1 ...]``.

Counted by callgrind in the worker of a real server, in user mode, as the slope between two
numbers of requests: so what a start takes is not in it, and no load of the machine is. They
belong to one interpreter and one C library; the bars are for CPython 3.11 as Debian builds it.

One above its bar by more than 3 % fails; one below it by more says that the bar can be lowered.
Needs valgrind.
"""

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from prefork_server import titles
from prefork_server.worker import accept_loop

BARS = {"E1": 47_300, "E1w": 47_500, "E3": 46_500, "H1": 52_100, "H2": 78_500}
"""By case: an echo on TCP, the same with a client that speaks late, and on a UNIX socket; a GET
on a connection that is kept, and on one that is not."""
SLACK = 0.03
ECHO = b"\0\1" + bytes(62)
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
LATE = 0.01  # seconds after connecting
PATIENCE = 300.0  # seconds for a server to start: under callgrind it takes 50 times as long


def serve(case: str, address: str) -> None:
    """In the process under callgrind, until TERM."""
    from prefork_server import PreforkTCPServer, PreforkUnixStreamServer
    from prefork_server.http import PreforkHTTPServer

    from . import apps

    # Under callgrind a request takes so long that it would be looked around in each.
    accept_loop._LONG_NS = accept_loop._LOOK_NS = 1 << 60
    # Valgrind reads its options from where the title is written.
    titles.Title.show = lambda *_, **__: 0  # type: ignore[method-assign]
    titles.Title.show_worker = lambda *_: None  # type: ignore[method-assign]
    if case.startswith("H"):
        server = PreforkHTTPServer(address, apps.Web, workers=1)
    elif case.startswith("E3"):
        server = PreforkUnixStreamServer(address, apps.Echo, workers=1)  # type: ignore[assignment]
    else:
        server = PreforkTCPServer(address, apps.Echo, workers=1)  # type: ignore[assignment]
    with server:
        server.serve_forever()


def connected(address: str) -> socket.socket:
    if address.startswith("/"):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE)
        client.connect(address)
        return client
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE)


def ask(case: str, address: str, requests: int) -> None:
    if case == "H1":
        with connected(address) as client:
            for _ in range(requests):
                client.sendall(GET)
                if not client.recv(4096).startswith(b"HTTP/1.1 200 "):
                    raise RuntimeError("no answer")
        return
    for _ in range(requests):
        with connected(address) as client:
            time.sleep(LATE * case.endswith("w"))
            client.sendall(LAST if case == "H2" else ECHO)
            answer = b""
            while data := client.recv(4096):
                answer += data
            if not answer:
                raise RuntimeError("no answer")


def total(case: str, requests: int) -> int:
    """Instructions in all of the worker that has served so many."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        address = str(place / "socket") if case.startswith("E3") else address
        command = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={place}/out.%p"]
        command += [sys.executable, "-m", "benchmarks.instructions", "--serve", address, case]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        server = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        stack.callback(server.wait)
        stack.callback(server.send_signal, signal.SIGKILL)
        for line in server.stderr or ():
            if b" ready, listening on " in line:
                break
        else:
            raise RuntimeError("the server did not start")
        ask(case, address, requests)
        server.send_signal(signal.SIGQUIT)
        server.communicate(timeout=PATIENCE)
        outs = {int(path.suffix[1:]): path.read_text() for path in place.glob("out.*")}
        outs.pop(server.pid, None)
        counts = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)
        return max(int(count) for out in outs.values() for count in counts.findall(out))


def per_request(case: str) -> float:
    few, many = (100, 400) if case.endswith("w") else (200, 800)
    return (total(case, many) - total(case, few)) / (many - few)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", choices=[*BARS, []], help="all, if none is named")
    parser.add_argument("--serve", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.cases[0], options.serve)
        return 0
    if not shutil.which("valgrind"):
        print("valgrind is needed, and is not here", file=sys.stderr)
        return 2
    failed = False
    for case in options.cases or BARS:
        found, bar = per_request(case), BARS[case]
        word = (
            "above"
            if found > bar * (1 + SLACK)
            else "well below"
            if found < bar * (1 - SLACK)
            else "at"
        )
        print(f"{case}: {found:.0f} instructions a request, {word} its bar of {bar}", flush=True)
        failed |= word == "above"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
