"""``status`` and ``stacks``: what a running server does, looked at from outside.

A worker's stack is written by its own crash handler, on a signal that is for this alone: it
needs no tracing, stops no thread, and works while C code holds the GIL. It goes to a memory of
its own: in the worker's report it would stand in the log before what the worker dies of later.
The command only reads. Where a dump begins and ends is the position of the open description that
the master and its workers share, which the kernel tells.
"""

import fcntl
import json
import os
import re
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from itertools import islice
from typing import Any

from ..listeners import Address, parse, resolved
from ..pidfds import Process
from ..reports import STACKS, cleaned
from ..settings import MAX_THREADS
from ..signals import AGAIN, SHOW
from ..stats import WorkerStats
from ..status.table import table
from ..text import encodable, one_record
from .holder import (
    Holder,
    NotDone,
    hears,
    held,
    infos,
    memories,
    others,
    parent_of,
    signals_of,
    user_of,
    wait,
)
from .options import Misuse, Options

_PATIENCE = 2.0  # seconds for one worker to answer; one that is stopped never does
_REWIND = 0.2  # seconds for one worker to run its handler
_TURN = 5.0  # seconds for other lookers; after that, two dumps may get mixed up
_ALL = 300.0  # seconds for all workers
_ANSWER = 10.0  # seconds for the whole answer of a status page
_PAPER = 1 << 20  # bytes of one worker's stacks
_LONGEST = 16 << 20  # bytes of figures; a worker takes a few hundred
_NO_FIGURES = (
    *(HTTPException, LookupError, TypeError, ValueError, AttributeError, ArithmeticError),
    RecursionError,
)


def look(options: Options) -> int:
    """Exit code 0 when all there is was shown, 1 if a worker did not answer. Raises Misuse if
    no server runs there."""
    if options.verb == "stacks":
        with held(options.values["pid_file"]) as server:
            return _stacks(server)
    watch = options.values["watch"]
    terminal = watch and sys.stdout.isatty()
    while True:
        text = "\n".join(_table(options.values["pid_file"], not watch))
        text = encodable(f"{text}\n", sys.stdout)
        sys.stdout.write(f"\033[H\033[J{text}" if terminal else text)
        sys.stdout.flush()
        if not watch:
            return 0
        select.poll().poll(1000)  # of nothing


def _table(where: str, stacks: bool) -> list[str]:
    if not (where.startswith("unix:") or re.fullmatch(r".+:\d+", where)):
        with held(where) as server:  # anew each time: an upgrade changes it
            return table(server.stats().as_dict(), stacks)
    address = resolved(parse(where))[0]
    try:
        return table(_asked(address), stacks)
    except OSError as error:
        raise Misuse(f"{where}: {error.strerror or error}") from error
    except _NO_FIGURES as error:
        raise Misuse(f"{where} shows no status of this version") from error


def _asked(address: Address) -> Any:
    """What the status page of a server says there. Raises what can go wrong."""
    with ExitStack() as closing:
        sock = closing.enter_context(socket.socket(address.family))
        sock.settimeout(_PATIENCE)  # for each part of the answer; and for all of it:
        timer = threading.Timer(_ANSWER, _end, [sock])
        timer.daemon = True
        closing.callback(timer.join)
        closing.callback(timer.cancel)
        timer.start()
        sock.connect(address.name)
        connection = HTTPConnection("localhost")
        connection.sock = sock
        connection.request("GET", "/stats.json", headers={"Connection": "close"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(answer.status)
        return json.loads(answer.read(_LONGEST))


def _end(sock: socket.socket) -> None:
    with suppress(OSError):  # it is not connected yet, or not any more
        sock.shutdown(socket.SHUT_RDWR)


def _stacks(server: Holder) -> int:
    silent = 0
    end = time.monotonic() + _ALL
    with ExitStack() as closing:
        try:
            found = closing.enter_context(memories(server.pid, STACKS))
        except PermissionError as error:
            raise Misuse(others(server.pid, server.path)) from error
        except OSError as error:
            raise Misuse(f"pid {server.pid}: {error.strerror}") from error
        if len(found) != 1:
            raise Misuse(f"pid {server.pid} shows no stacks of this version")
        paper = _Paper(server, *found[0])
        for row in server.stats().workers:
            try:
                if time.monotonic() > end:
                    raise NotDone(f"not asked: the others took more than {_ALL:g}s")
                stack = _shown(row, server, paper)
            except NotDone as error:
                stack = f"({error})"
                silent += 1
            said = one_record(f"worker={row.slot} pid={row.pid} {row.state}\n{stack}")
            sys.stdout.write(encodable(f"{said}\n\n", sys.stdout))
            sys.stdout.flush()
    return 1 if silent else 0


class _Paper:
    """The memory that the workers write their stacks to, and where the next dump will go."""

    def __init__(self, server: Holder, fd: int, number: int) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size
        self._info = f"/proc/{server.pid}/fdinfo/{number}"

    @property
    def position(self) -> int:
        return int((infos(self._info, b"pos") or [b"0"])[0])

    def read(self, start: int, end: int) -> str:
        return cleaned(os.pread(self.fd, min(max(0, end - start), _PAPER), start))

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One looker at a time, since the dumps of two workers would get mixed up. A process that
        keeps the lock does not keep others from looking."""
        wait("waiting for others who look", _TURN, self._locked)
        try:
            yield
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def _locked(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _shown(row: WorkerStats, server: Holder, paper: _Paper) -> str:
    """Ask one worker, and wait until it has said everything."""
    try:
        process = Process(row.pid)
    except ProcessLookupError:
        raise NotDone("it is gone") from None
    try:
        # Looked at when we have hold of it. A program that changes the user may be a child, too.
        if parent_of(row.pid) != server.pid:
            raise NotDone("it is gone")
        if user_of(server.pid) not in (0, user_of(row.pid)):
            raise NotDone("it is another user's")
        if not hears(row.pid, SHOW):
            raise NotDone("it is only just starting")
        with paper.turn():
            return _workers_own(_dump(process, paper))
    except ProcessLookupError:
        raise NotDone("it is gone") from None
    except PermissionError:
        raise NotDone("it is another user's") from None
    except OSError as error:
        raise NotDone(f"it cannot be asked: {error.strerror}") from None
    finally:
        process.close()


def _dump(process: Process, paper: _Paper) -> str:
    pid = process.pid
    if paper.position > paper.size // 4 and hears(pid, AGAIN):
        process.send(AGAIN)
        wait("waiting for room", _REWIND, lambda: paper.position <= paper.size // 4)
    start = paper.position
    if start > paper.size // 2:
        raise NotDone("there is no room for its stacks until a worker runs Python code")
    deaf = _deaf(pid)
    process.send(SHOW)
    end = time.monotonic() + _PATIENCE
    # The kernel blocks a signal in the thread that handles it, for as long as that takes.
    while SHOW in _pending(pid) or _deaf(pid) - deaf or paper.position == start:
        if time.monotonic() > end:
            raise NotDone(f"it has not answered within {_PATIENCE:g}s")
        select.poll().poll(2)  # of nothing
    return paper.read(start, paper.position)


def _workers_own(stack: str) -> str:
    """Without the frames below the worker, which were the master's at the fork."""
    return re.sub(r"\n  File .* in become_worker(\n  File .*)*", "", stack)


def _pending(pid: int) -> set[int]:
    return signals_of(f"/proc/{pid}/status", "ShdPnd")


def _deaf(pid: int) -> set[str]:
    """The threads that have it blocked, of the first that there are."""
    try:
        with os.scandir(f"/proc/{pid}/task") as tasks:
            threads = [task.name for task in islice(tasks, MAX_THREADS + 100)]
    except FileNotFoundError:
        return set()
    return {t for t in threads if SHOW in signals_of(f"/proc/{pid}/task/{t}/status", "SigBlk")}
