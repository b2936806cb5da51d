"""``serve``: the master binds, and each worker imports the target by itself.

So what was edited is there when a worker is replaced, and an import that fails is a boot
that fails. The master finds out what the target is in a child of its own before it binds
anything: whoever made a mistake hears of it once, and not from each worker, and the answer
decides which sockets are bound. It costs one import more at the start.
"""

import faulthandler
import logging
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from .. import exits
from ..errors import BootError, ConfigError, PreforkError, refusals_told
from ..forks import drop, fork, keep_from_forks
from ..imports import load
from ..inheritance import inheritance
from ..job import Hooks, nothing
from ..journal import Journal
from ..launch import Launch
from ..listeners import (
    BACKLOG,
    Address,
    Listener,
    check_status_address,
    is_deaf,
    listen,
    parse,
    resolved_all,
)
from ..logfiles import logger_named
from ..origin import directory
from ..output import flush_streams, unhindered
from ..patches import patched
from ..plan import Death
from ..privileges import Identity, identity_of
from ..remote import Remote
from ..reports import cleaned, in_debugger
from ..settings import Settings
from ..signals import WHERE, all_blocked, ask_anew, end_within, when_it_ends
from ..systemd import OF_THE_SERVICE, handed_over
from ..text import encodable, printable
from ..worker.master_handle import MasterHandle
from . import answer
from .options import DEFAULT_BIND, KEYWORDS, Misuse, Options
from .recipe import Recipe, recipe
from .target import LoadError, Target, users_stack, users_traceback

_TICK = 0.005  # seconds between two looks at the process that imports the target
_SAYING_WHERE = 0.2  # seconds for a target that does not load to write down where it is
_STACK = 1 << 16  # bytes of that


class _Late(LoadError):
    """The target was not loaded in time."""


@dataclass(frozen=True)
class Bind:
    """One ``--bind``: an address, or ``fd``, a socket that we were started with. ``udp``:
    it is for datagrams; an address that does not say so may be for both."""

    text: str
    address: Address | None = None
    udp: bool = False
    fd: int = -1

    @classmethod
    def parse(cls, text: str) -> "Bind":
        """Raises ConfigError."""
        if text.startswith("fd://"):
            fd, datagram = _inherited(text)
            return cls(text, None, datagram, fd)
        address = parse(text.removeprefix("udp:"))
        return cls(text, address, text.startswith("udp:"))

    def listen(self, datagram: bool) -> Listener:
        """Raises BindError."""
        if self.address is None:
            inheritance().take(self.text)  # after an upgrade it has the same number
            os.set_inheritable(self.fd, False)
            return _Lent(socket.socket(fileno=self.fd), key=self.text)
        if datagram:
            return listen(self.address, BACKLOG, socket.SOCK_DGRAM, ())
        return listen(self.address)


class _Lent(Listener):
    """It is whoever started us's, too: what closes the door would close his. Connections that
    are left in its queue are for whom he starts next."""

    def shut_the_door(self) -> bool:
        return False


def _inherited(text: str) -> tuple[int, bool]:
    """The descriptor, and whether it is for datagrams."""
    number = text.removeprefix("fd://")
    if not (number.isascii() and number.isdigit() and 3 <= int(number) < 1 << 20):
        raise Misuse(f"a socket that we were started with is fd://3 or above, not {text}")
    fd = int(number)
    try:
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError as error:
        raise Misuse(f"{text}: {error.strerror}: was it passed on?") from error
    if not is_socket:
        raise Misuse(f"{text} is no socket")
    with socket.socket(fileno=os.dup(fd)) as sock:
        if is_deaf(sock) or sock.type not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            raise Misuse(f"{text} is a socket that does not listen")
        return fd, sock.type == socket.SOCK_DGRAM


def binds(texts: Sequence[str]) -> list[Bind]:
    """Raises ConfigError."""
    found = [Bind.parse(text) for text in texts]
    named = resolved_all([(bind, bind.address) for bind in found if bind.address])
    found = [bind for bind in found if not bind.address]
    found = [*(replace(bind, address=address) for bind, address in named), *found]
    inherited = [bind.fd for bind in found if bind.address is None]
    if len(set(inherited)) < len(inherited):
        raise Misuse(f"each socket may be given once: {', '.join(bind.text for bind in found)}")
    if len({bind.udp for bind in found if bind.address}) > 1:
        raise Misuse("a server has streams or datagrams: all addresses are udp:, or none is")
    return found


def _handed_over() -> list[str]:
    """The sockets of an init system: what it handed to us, or, after an upgrade, to the master
    before us. Out of the environment with them: what the target starts is not who was meant."""
    return [f"fd://{fd}" for fd in handed_over()] or inheritance().keys("fd://")


def serve(options: Options) -> None:
    """Returns when the server has stopped, or runs as a daemon. Raises a PreforkError."""
    values = options.values
    place, path = _enter(values["chdir"] or "")
    target = Target.parse(values["target"])
    settings = options.settings()  # those of the class come later; what is wrong is told now
    if settings.inline and values["daemon"]:
        raise Misuse("--inline is for the foreground, and --daemon leaves it")
    handed = _handed_over()
    found = binds(values["bind"] or handed or values["platform"])
    keywords = {name: values[name] for name in KEYWORDS if values[name] is not None}
    for name in ("certfile", "keyfile"):
        if name in keywords:
            keywords[name] = os.path.join(place, keywords[name])
    udp = any(bind.udp for bind in found)

    def find() -> Recipe:
        with suppress(OSError):  # not there any more, or not for the workers' user
            os.chdir(place)  # by its name: a link may lead to the next release by now
        sys.path[:] = path
        thing = target.load()
        if patched():
            raise Misuse(patched())
        made = recipe(thing, values["kind"], udp, keywords)
        made.check(options.settings(**made.said))
        return made

    here = find() if values["preload"] or settings.inline else None
    told = _told(here) if here else _ask_a_child(find, settings)
    # Its import is trusted if it ran with the rights of this process, here or in the child.
    trusted = bool(here) or not _drops(settings)
    settings = options.settings(**answer.taken(told, settings, options.said, trusted))
    if not found and told["kind"] != "work":
        found = binds([DEFAULT_BIND])
    for bind in found:
        if bind.address is None and bind.udp != told["datagram"]:
            raise Misuse(f"{bind.text} is no socket for {told['words']}")
    if not told["datagram"]:
        check_status_address(settings.status, [each.address for each in found if each.address])
    if told["kind"] in ("asyncio", "protocol") and "uvloop" not in told["modules"]:
        keywords["loop"] = "asyncio"  # so that no worker looks for uvloop again
    run = _Run(target, find, here, told, found, settings, keywords)
    run.load_certificate()
    if values["check"]:
        where = f" on {', '.join(bind.text for bind in found)}" if found else ""
        line = printable(f"{told['words']}{where}: could be served")
        sys.stdout.write(encodable(f"{line}\n", sys.stdout))
        return
    run.go(values["daemon"])


def _enter(given: str) -> tuple[str, list[str]]:
    """Go there. Returns the directory, by the names of links, and the ``sys.path`` of the
    target, which begins with it.

    This process does not import from there, nor from the directory that it leaves, by whatever
    name they are on its path: whoever may write there runs code as the workers, and this process
    may be root. Raises Misuse.
    """
    path = list(sys.path)
    kept = [each for each in path if not _is_here(each)]
    try:
        entered = os.path.join(directory(), given) if given else directory()
        os.chdir(entered)
    except OSError as error:
        raise Misuse(f"--chdir {given or '.'}: {error.strerror}") from error
    sys.path[:] = [each for each in kept if not _is_here(each)]
    return entered, path if entered in path else [entered, *path]


def _is_here(entry: str) -> bool:
    """Whether this entry of ``sys.path`` is the working directory."""
    try:
        return os.path.samefile(entry or ".", ".")
    except OSError:
        return False


def _drops(settings: Settings) -> bool:
    """Whether the workers have another user or group than this process. Raises ConfigError."""
    identity = identity_of(settings)
    return identity is not None and identity.drops


def _readable_by_all() -> bool:
    """Whether the workers' user, whichever it is, can read our package and Python's library."""
    files = [Path(each).resolve() for each in (__file__, os.__file__)]
    through = {parent for file in files for parent in file.parents}
    return all(each.stat().st_mode & 0o001 for each in through) and all(
        each.stat().st_mode & 0o004 for each in files
    )


def _load_modules(names: Sequence[str]) -> None:
    """In this process, so that the workers have them from the fork on."""
    for name in names:
        with suppress(ImportError):  # it is the target's own, and it says so itself
            import_module(name)


def _told(made: Recipe) -> dict[str, Any]:
    """What the master has to know of it. Raises ConfigError."""
    made.try_out()
    return {
        "words": str(made),
        "kind": made.kind,
        "datagram": made.datagram,
        "settings": made.said,
        "alpn": made.alpn,
        "loops": made.loops,
        "modules": answer.loaded(),
    }


def _ask_a_child(find: Callable[[], Recipe], settings: Settings) -> dict[str, Any]:
    """What the target is, found out where its import leaves nothing behind.

    Raises what ``find`` raises, and LoadError if it takes too long, with its stack, or dies.
    """
    seconds, identity = settings.boot_timeout, identity_of(settings)
    drops = _drops(settings)
    if drops:
        load()
        if not _readable_by_all():
            _load_modules(answer.OURS)
    flush_streams()  # what is in a buffer now would be written twice
    # No pipe: it may be full, and what the import has started may hold its other end.
    with refusals_told():
        paper = answer.new_paper()
    try:
        with refusals_told():
            status = _in_child(
                seconds, lambda life, mask: _answer(find, paper, settings, identity, life, mask)
            )
        told = answer.read(paper, _ending(status))
    except _Late as late:
        stack = cleaned(os.pread(paper, _STACK, 0).rstrip(b"\0"))
        raise LoadError(f"{late}{in_debugger(stack)}", users_stack(stack)) from None
    finally:
        os.close(paper)
    return told


def _in_child(seconds: float, answer: Callable[[int, set[int]], NoReturn]) -> int | None:
    """Wait for its end, and return its exit code; None if nobody knows. A Ctrl-C ends it, too.

    ``answer`` is given a pipe that ends when we do, and the signal mask. Raises LoadError if
    it takes longer.
    """
    child = 0
    life, lifeline = os.pipe()
    keep_from_forks(lifeline)
    try:
        try:
            with all_blocked() as mask:  # a Ctrl-C in a function that runs at forks would be lost
                child = fork()
                if child == 0:
                    answer(life, mask)
            ended, status = _ended_within(child, seconds)
            if not ended:
                with suppress(OSError):  # root without CAP_KILL
                    os.kill(child, WHERE)
                _ended_within(child, _SAYING_WHERE)
                raise _Late(
                    f"the target was not loaded after {seconds:g}s (boot_timeout): does it start a "
                    "server, or wait for something, when it is imported?"
                )
            return status
        finally:
            os.close(life)
            drop(lifeline)  # if it has not ended, the kernel kills it now, with or without CAP_KILL
    except (_Late, KeyboardInterrupt):
        if child:
            with suppress(OSError):  # it is killed already, or root lacks CAP_KILL
                os.kill(child, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(child, 0)
        raise


def _ended_within(child: int, seconds: float) -> tuple[bool, int | None]:
    """Whether it has ended, and its exit code, None if nobody knows."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            gone, status = os.waitpid(child, os.WNOHANG)
        except ChildProcessError:  # where SIGCHLD is ignored the system reaps it
            return True, None
        if gone:
            return True, os.waitstatus_to_exitcode(status)
        time.sleep(_TICK)
    return False, None


def _answer(
    find: Callable[[], Recipe],
    paper: int,
    settings: Settings,
    identity: Identity | None,
    life: int,
    mask: set[int],
) -> NoReturn:
    """In the child, which never comes back."""
    try:
        exits.begin()
        # Wherever the import hangs, and whatever it blocks.
        if when_it_ends(life, signal.SIGKILL):
            os._exit(1)
        faulthandler.register(WHERE, paper, chain=False)
        for variable in OF_THE_SERVICE:  # as the workers, it is not to speak for the service
            os.environ.pop(variable, None)
        try:
            if identity:  # it imports the program, as the workers do
                identity.leave()
                identity.assume()
                if ask_anew():
                    os._exit(1)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            told = _told(find())
        except ConfigError as error:
            told = {"misuse": str(error)}
        except BootError as error:
            told = {"error": str(error)}
        except LoadError as error:
            told = {"error": str(error), "report": error.report}
        except Exception as error:  # user code: a class may object to being looked at
            last = f"{type(error).__name__}: {error}"
            told = {"error": f"cannot tell what it is: {last}", "report": users_traceback(error)}
        answer.write(paper, told)
    finally:
        end_within(settings.graceful_timeout)
        exits.end(0)


def _ending(status: int | None) -> str:
    if status is None:
        return "nobody knows how"
    if status >= 0:
        return f"exit code {status}"
    known = signal.Signals.__members__.values()
    return f"killed by {signal.Signals(-status).name if -status in known else f'signal {-status}'}"


@dataclass
class _Run:
    target: Target
    find: Callable[[], Recipe]
    here: Recipe | None  # if it was imported once and for all
    told: Mapping[str, Any]
    binds: Sequence[Bind]
    settings: Settings
    keywords: Mapping[str, Any]
    context: Any = None  # of TLS, for the workers that are forked from now on
    shares: Any = None  # of connections, among workers with loops
    remote: Remote = field(default_factory=Remote)
    listeners: list[Listener] = field(default_factory=list)
    serve: Callable[[MasterHandle], object] = nothing
    before_exit: Callable[[MasterHandle], object] = nothing  # of the server, in the worker

    def go(self, daemon: bool) -> None:
        _load_modules(self.told["modules"])
        if self.told["loops"]:
            from ..aio.turns import Shares

            self.shares = Shares(self.settings.max_workers or self.settings.workers)
        launch = Launch(
            settings=self.settings,
            app_name=self.settings.app_name or self.target.app_name,
            logger=logger_named(None),
            remote=self.remote,
            work=self.work,
            hooks=Hooks(
                after_fork=self.boot,
                after_worker_exit=self.count_out,
                before_exit=self.leave,
            ),
            listening=self.listening,
            renew=self.renew,
        )
        if daemon:
            pid = launch.start()
            with unhindered():  # the daemon runs, whoever reads of it
                line = f"{printable(launch.app_name)} runs, pid {pid}\n"
                sys.stdout.write(encodable(line, sys.stdout))
        else:
            launch.run()

    def count_out(self, death: Death) -> None:
        """In the master: a dead worker holds no connections."""
        if self.shares:
            self.shares.words[death.slot] = 0

    def renew(self) -> None:
        """In the master, at a reload."""
        if self.here:
            journal = Journal(logger_named(None), os.getpid())
            message = "the code was imported once (--preload), and stays as it is: USR2 upgrades it"
            journal.say(logging.INFO, "preloaded", None, message)
        self.load_certificate()

    def load_certificate(self) -> None:
        """Here, since a worker may be another user by then, who must not read the key."""
        if self.told["alpn"] is not None and "certfile" in self.keywords:
            from .. import tls  # noqa: F401 - for the workers
            from ..credentials import credentials

            files = self.keywords["certfile"], self.keywords.get("keyfile")
            self.context = credentials(*files, None, self.told["alpn"]).context()

    @contextmanager
    def listening(self) -> Iterator[list[Listener]]:
        journal = Journal(logger_named(None), os.getpid())
        journal.say(logging.INFO, "target", None, "serves %s", self.told["words"])
        with ExitStack() as closing:
            for bind in self.binds:
                self.listeners.append(bind.listen(self.told["datagram"]))
                closing.callback(self.listeners[-1].close)
            yield self.listeners

    # In the worker

    def boot(self, master: MasterHandle) -> None:
        try:
            made = self.here or self.find()
            if made.server is None:
                self.serve = made.handler
                return
            if self.context:
                made = made.over_tls(self.context)
            if made.loops:
                life = made.make_loop(self.listeners, self.settings, self.remote, self.shares)
                life.begin(master)
                self.serve = life.live
            else:
                server = made.make(self.listeners, self.settings, self.remote)
                self.serve = server._prefork_work
                self.before_exit = server._prefork_hook("before_exit")
                server._prefork_hook("after_fork")(master)
        except BaseException as error:  # user code
            if master.inline or isinstance(error, SystemExit):
                raise
            ours = isinstance(error, PreforkError)
            report = getattr(error, "report", "") or (str(error) if ours else "")
            # The master's log has it, with nobody's frames but the user's.
            raise SystemExit(report or users_traceback(error)) from error

    def work(self, master: MasterHandle) -> None:
        self.serve(master)

    def leave(self, master: MasterHandle) -> None:
        self.before_exit(master)
