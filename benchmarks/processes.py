"""A server in a process of its own: started, heard, measured, ended, and proved gone.

The server says on its standard output what happens to it, with the moment, so that
nothing here depends on how soon the reader wakes up. It runs in a session of its
own, by which all its processes are found, orphans too. It never signals a process
outside that session, and none by name.
"""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

SECOND = 1_000_000_000  # ns: all moments here are time.monotonic_ns(), the same in all processes
_NS_PER_TICK = SECOND // os.sysconf("SC_CLK_TCK")
_SETTLING = 0.03  # seconds in which a server finishes what clients do not wait for

# Where the fields of proc_pid_stat(5) are, counted from the third, the state.
_STATE, _SESSION, _CUTIME, _CSTIME = 0, 3, 13, 14


@dataclass(frozen=True)
class Event:
    """One line that a server said."""

    name: str
    pid: int
    at_ns: int
    text: str


def tell(name: str, text: str = "") -> None:
    """In any process of a server: say that something happens now.

    One write, shorter than a pipe takes in one piece: lines of several processes
    never mix.
    """
    os.write(1, f"{name} {os.getpid()} {time.monotonic_ns()} {text}\n".encode())


def wait_gone(pidfd: int, seconds: float) -> int:
    """When this process was seen to be gone. Raises TimeoutError.

    Not ``Popen.wait(timeout)``, which looks every 50 ms.
    """
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(seconds * 1000):
        raise TimeoutError(f"not gone after {seconds}s")
    return time.monotonic_ns()


def cpu_clock_ns(pid: int) -> int:
    """The processor time of one process, to the nanosecond: threads that ended are in
    it, children are not. 0 for a process that is gone."""
    try:
        # As clock_getcpuclockid(3) computes it, which Python does not offer.
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:
        return 0


@contextmanager
def compiled_files() -> Iterator[None]:
    """Have all processes from here on read compiled files, as an installed package does,
    and write them where they are removed afterwards: not to compile anew at each start
    is a good part of what importing takes."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["PYTHONPYCACHEPREFIX"] = directory
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        yield


class ServerProcess:
    """``python -m module arguments``, which is expected to ``tell`` and to end on TERM."""

    def __init__(self, module: str, *arguments: object) -> None:
        self._lines: deque[str] = deque()
        self._torn = b""
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
            signal.signal(signal.SIGHUP, lambda *_: None)  # which servers do not inherit
        self.started_ns = time.monotonic_ns()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it if that was not done; see ``end``."""
        if self._process.returncode is None:
            self.end()
        os.close(self._pidfd)
        assert self._process.stdout
        self._process.stdout.close()

    def hear(self, name: str, seconds: float = 30.0) -> Event:
        """The next event of this name; others before it are passed over.

        Raises TimeoutError, or EOFError when the server ended instead.
        """
        deadline = time.monotonic() + seconds
        while True:
            while self._lines:
                found, pid, at_ns, text = self._lines.popleft().split(" ", 3)
                if found == name:
                    return Event(found, int(pid), int(at_ns), text)
            self._read(deadline - time.monotonic(), name)

    def pids(self) -> list[int]:
        """The processes of this server, its first one included, that run or could."""
        return [pid for pid, stat in self._members() if stat[_STATE] != b"Z"]

    def cpu_ns(self) -> int:
        """User and system time of all its processes so far, with those that ended.

        Read it twice and take the difference. Living processes and zombies are known
        to the nanosecond; reaped children only in ticks of 10 ms, summed by their
        parent: for a server that forks for each request take hundreds of them. A
        child that nobody waits for would be missed; none of our servers has any.
        """
        time.sleep(_SETTLING)
        return sum(
            cpu_clock_ns(pid) + (int(stat[_CUTIME]) + int(stat[_CSTIME])) * _NS_PER_TICK
            for pid, stat in self._members()
        )

    def pin(self, cpus: Collection[int]) -> None:
        """Have all its threads run on these CPUs, and those that they start from now on."""
        for pid in self.pids():
            with suppress(FileNotFoundError):  # it has ended
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with suppress(ProcessLookupError):
                        os.sched_setaffinity(int(thread), cpus)

    def pss_bytes(self) -> int:
        """What all its processes hold now; what several share is counted once."""
        total = 0
        for pid in self.pids():
            with suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as rollup:
                total += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        return total * 1024

    def end(self, signum: int = signal.SIGTERM, seconds: float = 30.0) -> int:
        """Signal the first process; return the nanoseconds until it was gone.

        Raises RuntimeError, after killing them, if it does not end or leaves a process.
        """
        begin = time.monotonic_ns()
        os.kill(self.pid, signum)
        try:
            gone = wait_gone(self._pidfd, seconds)
        except TimeoutError:
            self._kill_all()
            raise RuntimeError(f"signal {signum} did not end it in {seconds}s") from None
        self._process.wait()
        deadline = time.monotonic() + 5.0
        while left := self.pids():
            if time.monotonic() > deadline:
                self._kill_all()
                raise RuntimeError(f"it left processes behind: {left}")
            time.sleep(0.001)
        return gone - begin

    def _read(self, seconds: float, name: str) -> None:
        assert self._process.stdout
        fd = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(max(0.0, seconds) * 1000):
            raise TimeoutError(f"the server did not say {name}")
        chunk = os.read(fd, 65536)
        if not chunk:
            raise EOFError(f"the server ended before it said {name}")
        *whole, self._torn = (self._torn + chunk).split(b"\n")
        self._lines.extend(line.decode() for line in whole)

    def _members(self) -> list[tuple[int, list[bytes]]]:
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    stat = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            if int(stat[_SESSION]) == self.pid:
                found.append((int(name), stat))
        return found

    def _kill_all(self) -> None:
        while left := self.pids():
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        self._process.wait()
