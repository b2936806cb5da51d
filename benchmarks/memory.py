"""What four workers share of 200 MB that the master has loaded, and what makes it their own.

How to read it. ``private`` is the mean over the workers of what each holds for itself alone
(USS), less the same of a server that has loaded nothing: what the load costs each worker. It
is measured right after the fork, after a collection, and after a walk that looks at every
object. ``in all`` is the sum of the shares (PSS) of master and workers, after the collection and
after the walk: what the machine needs for the server. Both are of ``smaps_rollup``.

One process walks at a time, each worker once. Objects are a list of dictionaries, with a
text, a number and a list of floats in each; the other kinds are as large as those are.
"""

import argparse
import array
import gc
import logging
import mmap
import socket
import socketserver
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from prefork_server import PreforkTCPServer

from .processes import ServerProcess, tell
from .report import machine, print_table

MODULE = "benchmarks.memory"
WORKERS = 4
MIB = 1 << 20
SIZE = 200 * MIB
_EACH = 458  # bytes of one of the objects, with all that is in it

loaded: Any = None


def objects() -> Any:
    return [
        {"number": n + 1000, "name": f"the name of {n}", "places": [n + 0.25, n + 0.5]}
        for n in range(SIZE // _EACH)
    ]


def one_array() -> Any:
    return array.array("d", bytes(SIZE))


def one_mmap() -> Any:
    area = mmap.mmap(-1, SIZE)
    for at in range(0, SIZE, MIB):
        area[at : at + MIB] = b"x" * MIB
    return area


KINDS: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "objects": objects,
    "bytes": lambda: b"x" * SIZE,
    "array": one_array,
    "mmap": one_mmap,
}


def walk(thing: Any) -> int:
    """Look at all of it, and change nothing."""
    if isinstance(thing, list):
        return sum(len(each["name"]) + each["number"] + int(sum(each["places"])) for each in thing)
    if thing is None:
        return 0
    with memoryview(thing) as view, view.cast("B") as octets:
        return sum(octets[:: mmap.PAGESIZE])


class Do(socketserver.StreamRequestHandler):
    """One client keeps one worker, and says what it is to do."""

    def handle(self) -> None:
        self.wfile.write(b"here\n")
        for word in self.rfile:
            if word == b"collect\n":
                gc.collect()
            elif word == b"walk\n":
                walk(loaded)
            self.wfile.write(b"%d %d\n" % (_rollup("Private_"), _rollup("Pss:")))


class Server(PreforkTCPServer):
    def ready(self, addresses: Sequence[str]) -> None:
        tell("ready", addresses[0])


def serve(kind: str, freeze: bool) -> None:
    """In the server process."""
    global loaded
    loaded = KINDS[kind]()
    logging.getLogger("prefork_server").addHandler(logging.NullHandler())
    with Server("127.0.0.1:0", Do, workers=WORKERS, gc_freeze=freeze, timeout=None) as server:
        server.serve_forever()


def _rollup(name: str, pid: int | str = "self") -> int:
    """Bytes."""
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        found = [line.split() for line in lines if line.startswith(name)]
    return sum(int(words[1]) for words in found) * 1024


class Measured:
    def __init__(self, kind: str, freeze: bool) -> None:
        self.private: list[float] = []
        self.in_all: list[int] = []
        with ServerProcess(MODULE, "--serve", kind, *([] if freeze else ["--no-freeze"])) as server:
            host, _, port = server.hear("ready", 60).text.rpartition(":")
            with ExitStack() as stack:
                clients = []
                for _ in range(WORKERS):
                    connection = stack.enter_context(socket.create_connection((host, int(port))))
                    clients.append(stack.enter_context(connection.makefile("rwb", 0)))
                    clients[-1].readline()
                for word in (b"nothing\n", b"collect\n", b"walk\n"):
                    for client in clients:
                        client.write(word)
                        client.readline()
                    answers = [_asked(client) for client in clients]
                    self.private.append(sum(own for own, _ in answers) / WORKERS)
                    shares = sum(share for _, share in answers)
                    self.in_all.append(shares + _rollup("Pss:", server.pid))


def cost(kind: str, freeze: bool) -> tuple[list[float], list[int]]:
    """Bytes: what the load costs each worker, forked, collected, walked; and what all need."""
    bare, full = Measured("nothing", freeze), Measured(kind, freeze)
    own = [max(0.0, a - b) for a, b in zip(full.private, bare.private, strict=True)]
    return own, full.in_all


def worker_percent() -> float:
    """M1: what objects cost each worker after a collection, in percent of them."""
    own, _ = cost("objects", freeze=True)
    return 100 * own[1] / SIZE


def _asked(client: Any) -> tuple[int, int]:
    client.write(b"measure\n")
    own, share = client.readline().split()
    return int(own), int(share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--no-freeze", action="store_true", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.serve:
        serve(words.serve, not words.no_freeze)
        return
    print(machine())
    heads = ("what is loaded", "gc_freeze", "forked", "collected", "walked", "in all", "walked")
    rows: list[tuple[str, ...]] = [heads]
    for kind in list(KINDS)[1:]:
        for freeze in (False, True):
            own, in_all = cost(kind, freeze)
            rows.append(
                (
                    kind,
                    "yes" if freeze else "no",
                    *(f"{each / MIB:.1f}" for each in own),
                    *(f"{each / MIB:.0f}" for each in in_all[1:]),
                )
            )
    print_table(f"MiB that {SIZE // MIB} MiB cost each of {WORKERS} workers", rows)


if __name__ == "__main__":
    main()
