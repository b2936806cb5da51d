"""A real server inside a test: real forks, real sockets, and proof that nobody is left."""

import io
import logging
import os
import random
import select
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from .forks import drop, forking, keep_from_forks
from .listeners import parse
from .logfiles import lent, logger_named
from .mixin import PreforkMixIn
from .preforker import Preforker
from .scoreboard import memory_file

if TYPE_CHECKING:
    from .aio import PreforkAsyncioServer

_Server: TypeAlias = Union[Preforker, PreforkMixIn, "PreforkAsyncioServer"]

_SOON = 5.0  # seconds for what a stopped server leaves, to be gone, too
_MIB = 1 << 20


@contextmanager
def serving(
    server: _Server,
    *,
    timeout: float = 30.0,
    kill_a_worker_every: float | None = None,
) -> Iterator[Any]:
    """Serve in another thread; within, the server is ready, and this is its address.

    The address is what ``socket.connect`` takes: ``server.server_address``, or the first
    one of a ``Preforker``, None if it listens nowhere. Afterwards the server is shut down
    gracefully and closed. It has ``timeout`` seconds to get ready, and as many to stop.

    ``kill_a_worker_every`` so many seconds one of the workers that are ready is killed
    (SIGKILL): what your clients survive here, they survive in production. Those that had
    not served anybody yet come back slowly: leave them some tenths of a second.

    Raises what ``serve_forever()`` or ``run()`` raised, and ``AssertionError`` if the
    server does not get ready or does not stop, or if a process that it forked is still
    there; all of these are killed. Of several errors the first is raised, one of the block
    before all, and has the others as notes, which tracebacks show. The last note is the
    log of the server, its last MiB.
    """
    if kill_a_worker_every is not None and not kill_a_worker_every > 0:
        raise ValueError(f"kill_a_worker_every is seconds above 0, not {kill_a_worker_every!r}")
    run = _Run(server)
    with (
        _log_noted(server),
        _nobody_left(run.thread),
        _afterwards(lambda: run.stop(timeout)),
    ):
        run.start(timeout)
        every = kill_a_worker_every
        with _killing(server, run.thread, every) if every else nullcontext():
            yield _address(server)


@contextmanager
def _afterwards(look: Callable[[], BaseException | None]) -> Iterator[None]:
    """Whatever happens within, look afterwards what else is wrong. What was first is raised."""
    try:
        yield
    except BaseException as error:
        wrong = look()
        if wrong and wrong is not error:
            error.add_note(f"And then: {wrong!r}")
        raise
    if wrong := look():
        raise wrong


class _Run:
    """One run of a server, in a thread of its own."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._ended: list[BaseException] = []
        # Not wait_ready() alone: of a Preforker that ran before it would tell of that run.
        self._settled = threading.Event()
        remote = server._remote if isinstance(server, Preforker) else server._prefork_remote
        remote.when_ready = lambda _: self._settled.set()
        self.thread = threading.Thread(target=self._serve, name="master", daemon=True)

    def _serve(self) -> None:
        server = self._server
        try:
            server.run() if isinstance(server, Preforker) else server.serve_forever()
        except BaseException as error:
            self._ended.append(error)
        finally:
            self._settled.set()

    def start(self, timeout: float) -> None:
        """Returns when it is ready; raises why it is not."""
        self.thread.start()
        if not self._settled.wait(timeout):
            raise AssertionError(f"the server is not ready after {timeout:g} s")
        if not self._server.wait_ready(0):  # it has ended, and its thread is about to
            self.thread.join(timeout)
            raise self._ended[0] if self._ended else AssertionError("it served nobody")

    def stop(self, timeout: float) -> BaseException | None:
        """What went wrong, in the end or before."""
        if self.thread.is_alive():
            # shutdown() would wait for ever for one that does not stop.
            threading.Thread(target=self._server.shutdown, daemon=True).start()
            self.thread.join(timeout)
        if not isinstance(self._server, Preforker):
            self._server.server_close()
        if self.thread.is_alive():
            return AssertionError(f"the server did not stop within {timeout:g} s")
        return self._ended[0] if self._ended else None


def _address(server: _Server) -> Any:
    if not isinstance(server, Preforker):
        return server.server_address
    return parse(server.addresses[0]).name if server.addresses else None


@contextmanager
def _log_noted(server: _Server) -> Iterator[None]:
    """What is raised within is noted what the master and all workers logged meanwhile."""
    logger = server.logger if isinstance(server, Preforker) else logger_named(None)
    with open(memory_file("log"), "w+", encoding="utf-8", errors="replace") as file:
        handler: logging.StreamHandler[Any] = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
        try:
            with lent(logger, handler):
                yield
        except BaseException as error:
            error.add_note(f"The log of the server:\n{_end_of(file.fileno())}")
            raise
        finally:
            # The thread of another server may have found it just before it was taken away.
            handler.setStream(io.StringIO())


def _end_of(fd: int) -> str:
    """The last MiB of a file, by an offset of its own: the descriptor's is where workers write."""
    before = max(0, os.fstat(fd).st_size - _MIB)
    cut = f"[{before} bytes before this are left out]\n" if before else ""
    return cut + os.pread(fd, _MIB, before).decode("utf-8", "replace")


@contextmanager
def _nobody_left(master: threading.Thread) -> Iterator[None]:
    """What the master forks within inherits a pipe, whose end says that all of it is gone.

    Nobody else does: neither what the test forks, nor the workers of another server.
    """
    with forking:
        reader, writer = os.pipe()
        keep_from_forks(reader)
        keep_from_forks(writer, but=master)

    def look() -> AssertionError | None:
        drop(writer)
        end = select.poll()  # select() knows no descriptor above 1023
        end.register(reader, 0)  # POLLHUP is always told
        # A server that did not stop has had its time, and its workers with it.
        if end.poll(0 if master.is_alive() else _SOON * 1000):
            return None
        left: dict[int, str] = {}
        for _ in range(3):  # whoever is forked meanwhile is found the next time
            left |= _killed(_holders(os.readlink(f"/proc/self/fd/{reader}")))
            if end.poll(1000):
                break
        master.join(_SOON)  # it waited for those, perhaps
        return AssertionError(f"still there, now killed: {left}")

    try:
        with _afterwards(look):
            yield
    finally:
        drop(reader)


def _killed(pids: Iterable[int]) -> dict[int, str]:
    commands = {pid: _command(pid) for pid in pids}
    for pid in commands:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return commands


def _holders(pipe: str) -> Iterator[int]:
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        links: list[str] = []
        with suppress(OSError):  # gone by now, or another user's
            links = [entry.path for entry in os.scandir(f"/proc/{pid}/fd")]
        for link in links:
            with suppress(OSError):  # closed by now
                if pid != os.getpid() and os.readlink(link) == pipe:
                    yield pid
                    break


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode("utf-8", "replace")
    return "gone"


@contextmanager
def _killing(server: _Server, master: threading.Thread, every: float) -> Iterator[None]:
    over = threading.Event()

    def kill() -> None:
        while not over.wait(every):
            # On a crowded machine those that boot would be killed at it, and nobody ever serve.
            ready = [row.pid for row in server.stats().workers if row.state != "booting"]
            with suppress(OSError, IndexError):  # nobody there, or gone meanwhile
                pid = random.choice(ready)  # noqa: S311 - no secret
                pidfd = os.pidfd_open(pid)
                try:
                    if pid in _forked_by(master):  # and not a stranger with its number
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                finally:
                    os.close(pidfd)

    killer = threading.Thread(target=kill, name="killer", daemon=True)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()


def _forked_by(thread: threading.Thread) -> list[int]:
    with suppress(OSError):
        children = Path(f"/proc/self/task/{thread.native_id}/children").read_text()
        return [int(pid) for pid in children.split()]
    return []
