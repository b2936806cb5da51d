"""The verbs that change a running server: each asks by a signal, waits for what comes of it,
and says by its exit code whether it happened.

Which server is meant is said by its pid file, and how far it is by its scoreboard.
"""

import signal
import sys
import time
from collections.abc import Callable
from functools import partial

from ..errors import PreforkError
from ..pidfds import Process
from ..scoreboard import (
    FAILED,
    FLOOR,
    GENERATION,
    LEFT,
    MOST,
    ROTATED,
    ROTATION,
    SERVED,
    SERVING,
    STATE,
    STOPPING,
    SUCCESSOR,
    UPGRADES_FAILED,
    WANTED,
)
from ..text import printable
from .holder import Holder, NotDone, hears, held, holder, names, others, parent_of, wait
from .options import PROG, Misuse, Options

_REAPED = 5.0  # seconds until a master that serves on has written its pid
_HOLDERS = 5  # that are stopped one after another: a successor, and its predecessors
_ANSWER = 0.5  # seconds after which a signal is sent again: one that was pending is one


def control(options: Options) -> int:
    """Exit code 0 when it has happened, 1 if not within the time. Raises NotDone as soon as it
    has failed, and Misuse if no server runs there."""
    if options.verb == "stop":
        return _stop(options)
    path, within = options.values["pid_file"], options.values["within"]
    with held(path) as server:
        try:
            what, done = _VERBS[options.verb](server, options)
            happened = wait(what, within, done)
        except PermissionError as error:
            raise Misuse(others(server.pid, path)) from error
        if not happened:
            sys.stderr.write(f"{PROG}: {printable(what)}: not done after {within:g}s\n")
        return 0 if happened else 1


_Begun = tuple[str, Callable[[], bool]]  # what is waited for, and whether it is there


def _reload(server: Holder, options: Options) -> _Begun:
    _must_serve(server)
    before = server.word(GENERATION)
    server.signal(signal.SIGHUP)

    def done() -> bool:
        _must_stay(server)
        # One that is under way comes first: ours is the next.
        if server.word(GENERATION) > before and server.word(FAILED) > max(
            before, server.word(SERVED)
        ):
            raise NotDone(f"the reload failed: the log of pid {server.pid} says why")
        alone = all(worker.generation > before for worker in server.stats().workers)
        return server.word(SERVED) > before and alone

    return f"reloading pid {server.pid}", done


def _upgrade(server: Holder, options: Options) -> _Begun:
    # A master that is starting remembers it, as one whose predecessor has not left yet.
    _must_stay(server)
    if successor := server.word(SUCCESSOR):
        raise NotDone(f"an upgrade is under way, pid {successor}")
    failures = server.word(UPGRADES_FAILED)
    server.signal(signal.SIGUSR2)

    def done() -> bool:
        gone, state = server.is_gone(), server.word(STATE)  # in this order
        if server.word(UPGRADES_FAILED) > failures:
            raise NotDone(f"the upgrade failed, pid {server.pid} serves on: its log says why")
        if state == STOPPING:
            raise NotDone(f"pid {server.pid} is stopping")
        # A master that was killed has left everything, too.
        if state != LEFT and not gone:
            return False
        try:
            with held(server.path) as now:
                return now.pid != server.pid and now.word(STATE) == SERVING
        except PreforkError as error:
            if gone:
                raise NotDone(f"pid {server.pid} is gone, and {error}") from error
            return False  # it changes hands

    return f"upgrading pid {server.pid}", done


def _reopen(server: Holder, options: Options) -> _Begun:
    before = server.word(ROTATION)
    server.signal(signal.SIGUSR1)

    def done() -> bool:
        _must_stay(server, or_stop=True)
        ended = server.signed(ROTATED)
        if -ended > before:
            raise NotDone(f"old files are still in use: the log of pid {server.pid} says by whom")
        return ended > before

    return f"reopening the logs of pid {server.pid}", done


def _scale(server: Holder, options: Options) -> _Begun:
    _must_serve(server)
    number = options.values["number"]
    if number > (most := server.word(MOST)):
        raise NotDone(f"pid {server.pid} has {most} workers at most")
    seen, sent = -1, 0.0  # how many there were to be when we last asked, and when

    def done() -> bool:
        nonlocal seen, sent
        _must_stay(server)
        floor, now = server.word(FLOOR), time.monotonic()
        if floor != number:
            if floor != seen or now - sent > _ANSWER:
                seen, sent = floor, now
                server.signal(signal.SIGTTIN if floor < number else signal.SIGTTOU)
            return False
        wanted = server.word(WANTED)  # more than that, in an adaptive pool that is busy
        states = [worker.state for worker in server.stats().workers]
        staying = [state for state in states if state != "retiring"]
        return len(staying) == wanted >= number and "booting" not in staying

    return f"scaling pid {server.pid} to {number}", done


def _must_serve(server: Holder) -> None:
    if server.word(STATE) != SERVING:
        raise NotDone(f"pid {server.pid} is only just starting, or stopping")


def _must_stay(server: Holder, or_stop: bool = False) -> None:
    if server.is_gone():
        raise NotDone(f"pid {server.pid} has ended")
    if server.word(STATE) in (STOPPING, LEFT) and not or_stop:
        raise NotDone(f"pid {server.pid} is stopping")


_VERBS = {"reload": _reload, "upgrade": _upgrade, "reopen": _reopen, "scale": _scale}


def _stop(options: Options) -> int:
    """Of any process that holds the file, of whatever version it is; of a successor in its
    first seconds, and then of its predecessor, who would serve on."""
    path, within = options.values["pid_file"], options.values["within"]
    end = float("inf") if within is None else time.monotonic() + within
    signum = signal.SIGINT if options.values["now"] else signal.SIGQUIT
    for _ in range(_HOLDERS):
        pid, parent, gone = _stop_holder(path, signum, end)
        if not gone:
            sys.stderr.write(f"{PROG}: pid {pid} is still there after {within:g}s\n")
            return 1
        written = partial(_is_renewed, path, pid)
        wait(f"waiting for who started pid {pid}", _REAPED, written)
        if not (names(path, pid) or names(path, parent)):
            return 0
    raise NotDone(f"{path} has had {_HOLDERS} holders, and is held by another")


def _is_renewed(path: str, pid: int) -> bool:
    return not names(path, pid)


def _stop_holder(path: str, signum: int, end: float) -> tuple[int, int, bool]:
    """Its pid, that of its parent, which is the old master's of a successor, and whether it is
    gone."""
    process = holder(path)
    pid = process.pid
    parent = parent_of(pid)
    try:
        # Until it has handlers of its own, a signal is its end, and the file stays.
        if not wait(f"pid {pid} is only just starting", _REAPED, lambda: hears(pid, signum)):
            raise NotDone(f"pid {pid} does not hear {signal.Signals(signum).name}")
        process.send(signum)
        return pid, parent, _wait(process, end)
    except ProcessLookupError:
        return pid, parent, True  # it went by itself
    except PermissionError as error:
        raise Misuse(others(pid, path)) from error
    finally:
        process.close()


def _wait(process: Process, end: float) -> bool:
    pid = process.pid
    terminal = sys.stderr.isatty()
    start = time.monotonic()
    while not process.ends_within(0.2):
        passed = time.monotonic() - start
        if time.monotonic() >= end:
            return False
        if terminal:
            sys.stderr.write(f"\rstopping pid {pid}: {passed:.0f}s ")
            sys.stderr.flush()
    if terminal:
        sys.stderr.write(f"\rpid {pid} has stopped   \n")
    return True
