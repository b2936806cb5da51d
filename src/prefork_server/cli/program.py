"""``run``: a program that knows nothing of us, whose ``serve_forever()`` preforks.

The program is run as Python itself would run it: its ``sys.argv`` and ``sys.path``, as
``__main__``, and with its own tracebacks. One thing is different: the first
``socketserver.BaseServer.serve_forever()`` that it comes to is ours, on that very server.
"""

import importlib.machinery
import importlib.util
import os
import socket
import socketserver
import sys
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any, NoReturn

from ..errors import ConfigError, PreforkError
from ..job import nothing
from ..listeners import BACKLOG
from ..mixin import PreforkMixIn
from ..remote import Remote
from ..settings import Settings, settle
from ..text import printable
from .options import PROG, Options, shown


def run(options: Options) -> None:
    """Returns when the program has come to its end. What it raises is raised; what it prints
    of that, if it is no exit, is printed already, with its own frames alone."""
    settings = options.settings()  # what is wrong is told before anything of it runs
    program, code = _found(options.rest)
    name = os.path.basename(options.rest[0]).removesuffix(".py")
    if options.rest[0] == "-m":
        name = options.rest[1]
    door = _Door(settings, shown(name))
    door.open()
    # As Python has it: left in place, since threads and atexit functions come after us.
    sys.modules["__main__"] = program
    try:
        exec(code, vars(program))  # noqa: S102 - it is what we were asked to run
    except SystemExit:
        raise
    except BaseException as error:  # user code
        if error is door.failure:  # it is ours: a line says it
            raise
        below = error.__traceback__ and error.__traceback__.tb_next
        sys.excepthook(type(error), error.with_traceback(below), below)
        sys.excepthook = nothing  # Python does the rest, exit code and signal, and says no more
        raise


def _found(words: Sequence[str]) -> tuple[ModuleType, CodeType]:
    """The program as a module that was not run yet, and ``sys`` as it is to find it.

    Exits as Python does for one that is not there.
    """
    path = words[0]
    if path == "-m":
        if len(words) < 2:
            _leave("which module? It comes after -m", 2)
        sys.argv = list(words[1:])
        _search(os.getcwd())
        program, code = _of_spec(_spec(words[1]), words[1])
        sys.argv[0] = vars(program)["__file__"]
        return program, code
    sys.argv = list(words)
    if os.path.isdir(path) or zipfile.is_zipfile(path):
        _search(os.path.abspath(path))
        return _of_spec(importlib.machinery.PathFinder.find_spec("__main__", sys.path[:1]), path)
    _search(os.path.dirname(os.path.realpath(path)))
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError as error:
        hint = ""
        if ":" in path and os.path.exists(path.partition(":")[0]):
            hint = f": did you mean {PROG} serve {path}?"
        _leave(f"can't open file {path!r}: {error.strerror}{hint}", 2)
    path = os.path.abspath(path)
    program = _module(path)
    vars(program).update(
        __loader__=importlib.machinery.SourceFileLoader("__main__", path), __spec__=None
    )
    return program, _compiled(text, path)


def _compiled(text: bytes, path: str) -> CodeType:
    try:
        return compile(text, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        sys.excepthook(type(error), error.with_traceback(None), None)
        raise SystemExit(1) from error


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Of a module, or of the ``__main__`` of a package."""
    try:
        spec = importlib.util.find_spec(name)
        if spec and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except (ImportError, ValueError) as error:  # of a parent that is no package
        _leave(f"cannot find {name}: {error}", 1)
    return spec


def _of_spec(spec: importlib.machinery.ModuleSpec | None, name: str) -> tuple[ModuleType, CodeType]:
    get_code = spec and getattr(spec.loader, "get_code", None)
    code: CodeType | None = get_code(spec.name) if spec and get_code else None
    if not spec or not code:
        _leave(f"No module named {name}", 1)
    program = _module(spec.origin or name)
    vars(program).update(
        __loader__=spec.loader, __spec__=spec, __package__=spec.parent, __cached__=spec.cached
    )
    return program, code


def _module(path: str) -> ModuleType:
    program = ModuleType("__main__", None)
    vars(program).update(__file__=path, __cached__=None, __builtins__=__builtins__)
    return program


def _search(first: str) -> None:
    """``sys.path`` begins with what Python would have put there, in place of our own."""
    if not sys.flags.safe_path:
        sys.path[0] = first


def _leave(text: str, code: int) -> NoReturn:
    sys.stderr.write(f"{PROG} run: {printable(text)}\n")
    raise SystemExit(code)


@dataclass
class _Door:
    """What stands where ``BaseServer.serve_forever`` was."""

    settings: Settings
    name: str

    failure: PreforkError | None = None

    def __post_init__(self) -> None:
        self._turn = threading.Lock()

    def open(self) -> None:
        def serve_forever(
            server: socketserver.BaseServer, poll_interval: float = 0.5, *_: Any, **__: Any
        ) -> None:
            self._serve(server)

        socketserver.BaseServer.serve_forever = serve_forever  # type: ignore[assignment, method-assign]

    def _serve(self, server: Any) -> None:
        if not self._turn.acquire(blocking=False):
            raise RuntimeError(
                f"{PROG} run preforks one server of a program, and this {type(server).__name__} "
                "is its second: make that a program of its own"
            )
        over = vars(server).get("_BaseServer__is_shut_down", threading.Event())
        asked = bool(vars(server).get("_BaseServer__shutdown_request"))
        try:
            _prefork(server, self.settings, self.name)
            server._prefork_remote.stop_asked = asked  # a shutdown() that came before us
            server.serve_forever()
        except PreforkError as error:
            self.failure = error
            raise
        finally:
            over.set()  # for that one


def _prefork(server: Any, settings: Settings, name: str) -> None:
    """Make this very object a preforked server, as if its class had been one from the start."""
    cls = type(server)
    if not hasattr(server, "socket_type") or not isinstance(server.socket, socket.socket):
        raise ConfigError(f"{cls.__name__} has no listening socket that could be shared")

    def settled(self: Any) -> Settings:
        return settle(settings, {}, client_timeout=None, app_name=name)

    # The class may have something of its own by a name that the mix-in has, too.
    its_own = {n: getattr(cls, n) for n in ("settings", "wait_ready", "master") if hasattr(cls, n)}
    body = {"__module__": cls.__module__, "_prefork_settled": settled, **its_own}
    server.__class__ = type(cls.__name__, (PreforkMixIn, cls), body)
    server._prefork_more = []
    server._prefork_answer_to(Remote())
    if server.socket_type == socket.SOCK_STREAM and not server._prefork_means("request_queue_size"):
        server.socket.listen(BACKLOG)  # the standard library's own 5 is for another kind of server
