"""Warm interpreters: a process that has loaded the package, and forks one program after another.

To execute an interpreter and load the package takes 0.15 to 0.25 s of CPU; a fork of a process
that has done so takes a few milliseconds. A program that is forked finds what it would find
after ``exec``: its own session, arguments, environment, directory, standard streams, and no
descriptor but those passed to it. What it cannot have anew is what an interpreter decides when
it starts: so there is one zygote for each set of such variables, and what is tested at the start
itself (the command as installed, flags, daemons, upgrades) is executed.
"""

import atexit
import fcntl
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Any

FLAGS = ("-W", "error")
_LOADED = (  # by the zygote, so that no program has to
    "prefork_server.http",
    "prefork_server.aio",
    "prefork_server.cli.serve",
    "prefork_server.imports",
    "prefork_server.master",
    "prefork_server.status.server",
    "asyncio",
    "http.client",
    "wsgiref.validate",
)
_HIGH = 400  # descriptors are moved here before they get the numbers that were asked for
_WORD = struct.Struct("i")


class Program:
    """A program that a zygote has forked, as ``subprocess.Popen`` has it."""

    def __init__(self, pid: int, status: IO[bytes], stdin: Any, stdout: Any, stderr: Any) -> None:
        self.pid = pid
        self.stdin: IO[bytes] | None = stdin
        self.stdout: IO[bytes] | None = stdout
        self.stderr: IO[bytes] | None = stderr
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            ready, _, _ = select.select([self._status], [], [], timeout)
            if not ready:
                raise subprocess.TimeoutExpired("a program of a zygote", timeout or 0)
            word = self._status.read(_WORD.size)
            self._status.close()
            # A zygote that was killed tells nothing more.
            self.returncode = os.waitstatus_to_exitcode(*_WORD.unpack(word)) if word else -9
        return self.returncode


_zygotes: dict[str, "Zygote"] = {}


def fork_program(
    args: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str | os.PathLike[str] | None,
    stdin: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    two_pipes: bool = False,
) -> Program:
    """Start ``python -W error ARGS`` in a session of its own, with its output in one pipe."""
    # What an interpreter reads when it starts, and coverage.
    decided = {k: v for k, v in sorted(env.items()) if k.startswith(("PYTHON", "COVERAGE", "LANG"))}
    key = json.dumps(decided)
    if key not in _zygotes:
        _zygotes[key] = Zygote(env)
    return _zygotes[key].fork(args, env, cwd, stdin, pass_fds, two_pipes)


def run_program(
    args: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str | os.PathLike[str] | None,
    timeout: float,
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run(["python", "-W", "error", *args], capture_output=True, text=True)``."""
    program = fork_program(args, env=env, cwd=cwd, two_pipes=True)
    assert program.stdout and program.stderr
    texts = {program.stdout: b"", program.stderr: b""}
    deadline = time.monotonic() + timeout
    try:
        with program.stdout, program.stderr:
            waiting = list(texts)
            while waiting:
                left = deadline - time.monotonic()
                ready, _, _ = select.select(waiting, [], [], max(0, left))
                if not ready:
                    raise subprocess.TimeoutExpired(list(args), timeout)
                for pipe in ready:
                    texts[pipe] += (more := os.read(pipe.fileno(), 65536))
                    if not more:
                        waiting.remove(pipe)
        code = program.wait(max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()
        raise
    out, err = (text.decode().replace("\r\n", "\n") for text in texts.values())
    return subprocess.CompletedProcess(list(args), code, out, err)


class Zygote:
    def __init__(self, env: Mapping[str, str]) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # Its arguments leave room for the titles of programs.
            padding = "a place for the titles of programs".ljust(100, ".")
            subprocess.run(
                [sys.executable, *FLAGS, __file__, str(theirs.fileno()), padding],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=dict(env),
                start_new_session=True,
                check=True,
            )

    def fork(
        self,
        args: Sequence[str],
        env: Mapping[str, str],
        cwd: str | os.PathLike[str] | None,
        stdin: int,
        pass_fds: Sequence[int],
        two_pipes: bool,
    ) -> Program:
        status, say = os.pipe()
        out, write = os.pipe()
        err, complain = os.pipe() if two_pipes else (-1, os.dup(write))
        if stdin == subprocess.PIPE:
            read, feed = os.pipe()
        else:
            read, feed = os.open(os.devnull, os.O_RDONLY) if stdin < 0 else os.dup(stdin), -1
        theirs = [say, read, write, complain, *pass_fds]
        order = {"args": list(args), "env": dict(env), "cwd": str(cwd or os.getcwd())}
        order["fds"] = [0, 1, 2, *pass_fds]
        try:
            socket.send_fds(self._requests, [json.dumps(order).encode()], theirs)
            (pid,) = _WORD.unpack(self._requests.recv(_WORD.size))
        finally:
            for fd in (say, read, write, complain):
                os.close(fd)
        return Program(
            pid,
            open(status, "rb", buffering=0),
            open(feed, "wb") if feed >= 0 else None,
            open(out, "rb"),
            open(err, "rb", buffering=0) if two_pipes else None,
        )


# In the zygote


def _serve(requests: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork at each request; the fork returns what was asked for, the zygote never returns."""
    told: dict[int, int] = {}  # the pipe that is told the status, by pid
    wake, woken = os.pipe()
    for fd in (wake, woken):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    events = select.poll()
    events.register(requests, select.POLLIN)
    events.register(wake, select.POLLIN)
    while True:
        ready = dict(events.poll())
        if wake in ready:
            with suppress(BlockingIOError):
                os.read(wake, 4096)
            _reap(told)
        if requests.fileno() in ready:
            text, fds, _, _ = socket.recv_fds(requests, 1 << 20, 100)
            if not text:
                os._exit(0)  # the tests are over
            pid = os.fork()
            if pid == 0:
                requests.close()
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return json.loads(text), fds
            told[pid] = fds[0]
            for fd in fds[1:]:
                os.close(fd)
            requests.send(_WORD.pack(pid))


def _reap(told: dict[int, int]) -> None:
    for pid in list(told):
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone:
            fd = told.pop(pid)
            with suppress(BrokenPipeError):  # nothing waits for it
                os.write(fd, _WORD.pack(status))
            os.close(fd)


def _become(order: dict[str, Any], fds: list[int]) -> list[str]:
    """In the fork: be as if executed. Returns the arguments of the program."""
    os.setsid()
    numbers = order["fds"]
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, _HIGH) for fd in fds[1:]]
    os.closerange(0, _HIGH)
    for fd, number in zip(high, numbers, strict=True):
        os.dup2(fd, number, inheritable=True)
        os.close(fd)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    random.seed()
    sys.orig_argv[:] = [sys.executable, *FLAGS, *order["args"]]
    at_once = sys.stdout.write_through  # PYTHONUNBUFFERED
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = open(  # noqa: SIM115
            number,
            "w" if number else "r",
            buffering=1 if number == 2 else -1,
            errors="backslashreplace" if number == 2 else None,
            closefd=False,
        )
        if at_once and number:
            stream.reconfigure(write_through=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    return list(order["args"])


def _run(args: list[str]) -> None:
    """As the interpreter does it: a script, or ``-m`` and a module."""

    ours = (__file__, runpy.__file__, "<frozen runpy>")  # gone from 3.15's __main__ by then

    def told(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        """Without the frames of this file and of runpy, which an interpreter does not show."""
        while traceback and traceback.tb_frame.f_code.co_filename in ours:
            traceback = traceback.tb_next
        sys.__excepthook__(kind, error, traceback)

    sys.excepthook = told
    if args[0] == "-m":
        sys.argv = args[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = args
        sys.path[0] = str(Path(args[0]).resolve().parent)
        text = Path(args[0]).read_bytes()
        main = ModuleType("__main__")
        vars(main).update(__file__=args[0], __builtins__=__builtins__)
        sys.modules["__main__"] = main
        exec(compile(text, args[0], "exec", dont_inherit=True), vars(main))


class _Leave:
    """Ends a program after all else that ends it: threads, what is registered with atexit.

    An interpreter would take apart each module now, and copy each page for that.
    """

    status = 0

    def __call__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream:
                    stream.flush()
            except (OSError, ValueError):
                return  # the interpreter tells of it, and has an exit code for it
        os._exit(self.status)


def _main() -> None:
    if os.fork():
        os._exit(0)  # the zygote is no child of the tests, which look at their children
    leave = _Leave()
    atexit.register(leave)  # first: the last to run
    for name in _LOADED:
        __import__(name)
    sys.modules["prefork_server.imports"].load()
    if coverage := sys.modules.get("coverage"):
        coverage.Coverage.current().save()  # of the imports: once, and not by each program
    gc.collect()
    gc.freeze()  # a collection in a program would copy every page of this
    order, fds = _serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        _run(_become(order, fds))
    except KeyboardInterrupt:
        atexit.unregister(leave)  # the interpreter ends by the signal
        raise
    except SystemExit as error:
        leave.status = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    except BaseException:
        leave.status = 1
        raise


if __name__ == "__main__":
    _main()
