"""``status`` and ``stacks``: what a running server does, looked at from outside.

A worker's stack is written by its own crash handler, on a signal that is for this alone: it
needs no tracing, stops nobody, and works while C code holds the GIL. It goes to a file of its
own: in the worker's report it would stand in the log before whatever that dies of later, and
many of them would run on into the next worker's.
"""

import fcntl
import json
import os
import re
import select
import signal
import socket
import sys
import time
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPException
from typing import Any

from ..listeners import Address, parse
from ..reports import STACKS, cleaned
from ..signals import SHOW
from ..stats import WorkerStats
from ..status.table import table
from ..text import one_record
from .holder import Holder, NotDone, hears, held, links, others, parent_of, signals_of, wait
from .options import Misuse, Options

_PATIENCE = 2.0  # seconds for one worker to answer; one that is stopped never does
_TURN = 30.0  # seconds for others who look, too
_PAPER = 1 << 20  # bytes of one worker's stacks
_LONGEST = 16 << 20  # bytes of figures; a worker takes a few hundred


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
        sys.stdout.write(f"\033[H\033[J{text}\n" if terminal else f"{text}\n")
        sys.stdout.flush()
        if not watch:
            return 0
        select.poll().poll(1000)  # of nothing


def _table(where: str, stacks: bool) -> list[str]:
    if not (where.startswith("unix:") or re.fullmatch(r".+:\d+", where)):
        with held(where) as server:  # anew each time: an upgrade changes it
            return table(server.stats().as_dict(), stacks)
    address = parse(where)
    try:
        return table(_asked(address), stacks)
    except OSError as error:
        raise Misuse(f"{where}: {error.strerror or error}") from error
    except (HTTPException, LookupError, TypeError, ValueError, AttributeError) as error:
        raise Misuse(f"{where} shows no status of this version") from error


def _asked(address: Address) -> Any:
    """What the status page of a server says there. Raises what can go wrong."""
    with socket.socket(address.family) as sock:
        sock.settimeout(_PATIENCE)
        sock.connect(address.name)
        connection = HTTPConnection("localhost")
        connection.sock = sock
        connection.request("GET", "/stats.json", headers={"Connection": "close"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(answer.status)
        return json.loads(answer.read(_LONGEST))


def _stacks(server: Holder) -> int:
    silent = 0
    with ExitStack() as closing:
        try:
            (link,) = links(server.pid, STACKS)
            paper = os.open(link, os.O_RDWR)
        except (PermissionError, ValueError) as error:
            raise Misuse(others(server.pid, server.path)) from error
        closing.callback(os.close, paper)
        if not wait("waiting for others who look", _TURN, lambda: _locked(paper)):
            raise NotDone(f"somebody else has looked at its stacks for more than {_TURN:g}s")
        closing.callback(os.ftruncate, paper, 0)
        for row in server.stats().workers:
            os.ftruncate(paper, 0)
            try:
                stack = _shown(row, server.pid, paper)
            except NotDone as error:
                stack = f"({error})"
                silent += 1
            said = one_record(f"worker={row.slot} pid={row.pid} {row.state}\n{stack}")
            sys.stdout.write(f"{said}\n\n")
            sys.stdout.flush()
    return 1 if silent else 0


def _locked(paper: int) -> bool:
    """One at a time: the workers write to one file."""
    try:
        fcntl.flock(paper, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _shown(row: WorkerStats, master: int, paper: int) -> str:
    """Ask one worker, and wait until it has said everything."""
    try:
        pidfd = os.pidfd_open(row.pid)
    except (OSError, OverflowError):
        raise NotDone("it is gone") from None
    try:
        if parent_of(row.pid) != master:  # looked at when we have hold of it
            raise NotDone("it is gone")
        if not hears(row.pid, SHOW):
            raise NotDone("it is only just starting")
        deaf = _deaf(row.pid)
        signal.pidfd_send_signal(pidfd, SHOW)
        end = time.monotonic() + _PATIENCE
        # The kernel blocks a signal in the thread that handles it, for as long as that takes.
        while SHOW in _pending(row.pid) or _deaf(row.pid) - deaf or not os.fstat(paper).st_size:
            if time.monotonic() > end:
                raise NotDone(f"it has not answered within {_PATIENCE:g}s")
            select.poll().poll(2)  # of nothing
        return _workers_own(cleaned(os.pread(paper, _PAPER, 0)))
    except ProcessLookupError:
        raise NotDone("it is gone") from None
    except PermissionError:
        raise NotDone("it is another user's") from None
    finally:
        os.close(pidfd)


def _workers_own(stack: str) -> str:
    """Without the frames below the worker, which were the master's at the fork."""
    return re.sub(r"\n  File .* in become_worker(\n  File .*)*", "", stack)


def _pending(pid: int) -> set[int]:
    return signals_of(f"/proc/{pid}/status", "ShdPnd")


def _deaf(pid: int) -> set[str]:
    """The threads that have it blocked."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return set()
    return {t for t in threads if SHOW in signals_of(f"/proc/{pid}/task/{t}/status", "SigBlk")}
