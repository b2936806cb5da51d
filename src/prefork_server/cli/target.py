"""The thing that is served: found, loaded, and recognised.

What is wrong in the user's code is told with his frames alone. Nothing here forks or binds.
"""

import importlib
import importlib.util
import inspect
import itertools
import os
import socketserver
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from types import FunctionType, ModuleType
from typing import Any

from ..calls import takes
from ..errors import PreforkError
from .options import PROG, Misuse, shown
from .selfserving import refused

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_NOBODYS = (_OURS, "<frozen importlib.", os.path.dirname(importlib.__file__) + os.sep)
_USUAL = ("application", "app")  # names that are tried where none is said

KINDS = {
    "handler": "a request handler class",
    "server": "a server class",
    "wsgi": "a WSGI application",
    "asyncio": "an asyncio callback",
    "protocol": "an asyncio protocol",
    "work": "a work function",
}


class LoadError(PreforkError):
    """The target could not be loaded. ``report`` is the traceback, of the user's frames."""

    def __init__(self, text: str, report: str = "") -> None:
        super().__init__(text)
        self.report = report


@dataclass(frozen=True)
class Target:
    """``module:thing``, ``module:factory()``, ``path/to/file.py:thing``. Without a thing it is
    ``application`` or ``app``."""

    module: str
    thing: str
    called: bool
    is_file: bool

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Raises Misuse."""
        module, _, thing = text.rpartition(":") if ":" in text else (text, "", "")
        called = thing.endswith("()")
        name = thing.removesuffix("()")
        is_file = module.endswith(".py") or os.sep in module
        parts = [*name.split(".")] if name else []
        if not is_file:
            parts += module.split(".")
        if not module or not all(part.isidentifier() for part in parts) or (called and not name):
            raise Misuse(
                f"a target is module:thing, module:factory() or path/to/file.py:thing, not {text!r}"
            )
        return cls(module, name, called, is_file)

    def __str__(self) -> str:
        thing = self.thing and f":{self.thing}{'()' if self.called else ''}"
        return f"{self.module}{thing}"

    @property
    def app_name(self) -> str:
        """What ``ps`` shows, and default files are named after."""
        name = os.path.basename(self.module).removesuffix(".py") if self.is_file else self.module
        return shown(name)

    def load(self) -> "Thing":
        """Import it, now. Raises LoadError."""
        _forget_directories()
        with refused(__file__) as places:
            return self._load(places)

    def _load(self, places: list[str]) -> "Thing":
        try:
            module = self._import()
            name = self.thing or next(filter(lambda n: hasattr(module, n), _USUAL), "")
            if not name:
                own = [n for n, v in vars(module).items() if _may_be_meant(v, module.__name__)]
                hint = (
                    f": did you mean {' or '.join(f'{self}:{n}' for n in own[:3])}?" if own else ""
                )
                raise LoadError(f"{self} names no thing, and has neither application nor app{hint}")
            thing = module
            for part in name.split("."):
                thing = _attribute(self, thing, part)
            if self.called:
                thing = thing()
        except LoadError:
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # user code, and it may even call sys.exit()
            if places:
                raise LoadError(
                    f"cannot load {self}: it starts a server when it is loaded, at {places[0]}: "
                    'move that below if __name__ == "__main__":, or run the whole program by '
                    f"python or by {PROG} run"
                ) from error
            last = traceback.format_exception_only(error)[-1].strip()
            parent, _, last_part = self.module.rpartition(".")
            missing = isinstance(error, ModuleNotFoundError) and not self.thing
            if missing and hasattr(sys.modules.get(parent), last_part):
                last += f": did you mean {parent}:{last_part}?"
            where = "" if self.is_file else f" (looked in {os.getcwd()} and on sys.path)"
            gone = isinstance(error, ModuleNotFoundError) and self.module.startswith(
                error.name or "?"
            )
            raise LoadError(
                f"cannot load {self}: {last}{where if gone else ''}", users_traceback(error)
            ) from error
        return Thing(thing, f"{self.module}:{name}{'()' if self.called else ''}")

    def _import(self) -> Any:
        if not self.is_file:
            return importlib.import_module(self.module)
        name = os.path.basename(self.module).removesuffix(".py")
        if name in sys.modules:  # a module of Python's own, or one of ours
            name = f"target_{name}"
        path = os.path.abspath(self.module)
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise LoadError(f"cannot load {self}: it is no Python file")
        if os.path.dirname(path) not in sys.path:
            sys.path.insert(0, os.path.dirname(path))  # as for python path/to/file.py
        module: ModuleType = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look it up there
        spec.loader.exec_module(module)
        return module


def _forget_directories() -> None:
    """A file may be newer than this process. ``importlib.invalidate_caches()`` would do it, and
    loads ``importlib.metadata`` (CPython 3.13), thirty modules, in each worker."""
    for path, finder in list(sys.path_importer_cache.items()):
        if finder is None:
            del sys.path_importer_cache[path]  # there was no such directory
        elif hasattr(finder, "invalidate_caches"):
            finder.invalidate_caches()


def _attribute(target: Target, owner: Any, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        if hasattr(type(owner), name):  # its own code raised it
            raise
        nearest = get_close_matches(name, dir(owner), n=1)
        hint = f": did you mean {nearest[0]}?" if nearest else ""
        raise LoadError(f"cannot load {target}: there is no {name}{hint}") from None


def users_traceback(error: BaseException) -> str:
    """The traceback as if nobody had called the user's code; no more than the error if that
    was not reached."""
    told = traceback.TracebackException.from_exception(error)
    trimmed = [told]  # each, and then those it comes from
    for each in trimmed:
        each.stack[:] = [f for f in each.stack if not f.filename.startswith(_NOBODYS)]
        trimmed += filter(None, (each.__cause__, each.__context__, *(each.exceptions or ())))
    reached = any(each.stack for each in trimmed)
    lines = told.format() if reached else told.format_exception_only()
    return "".join(lines).rstrip()


def _may_be_meant(value: Any, module: str) -> bool:
    """Whether it is a class or a function of this module."""
    return isinstance(value, type | FunctionType) and value.__module__ == module


def users_stack(stack: str) -> str:
    """What faulthandler has written of a process that loads a target: the frames of that."""
    lines = stack.splitlines()
    before_ours = itertools.takewhile(lambda line: f'File "{_OURS}' not in line, lines)
    return "\n".join(line for line in before_ours if "importlib" not in line)


@dataclass(frozen=True)
class Thing:
    """What was loaded, and its full name."""

    value: Any
    name: str

    def recognise(self, said: str | None) -> str:
        """One of those that there are words for. Raises Misuse if it is none of them, or more
        than one, or not what was said."""
        value, name = self.value, self.name
        bases: dict[str, list[type[Any]]] = {
            "handler": [socketserver.BaseRequestHandler],
            "server": [socketserver.BaseServer, *_of("prefork_server.aio", "PreforkAsyncioServer")],
            "protocol": _of("asyncio", "BaseProtocol"),
        }
        if not callable(value):
            extra = ""
            if isinstance(value, tuple(bases["server"])):
                extra = ", since it has an address of its own: give its class"
                if isinstance(value, socketserver.BaseServer):
                    extra += ", or `prefork-server run` the program"
            raise Misuse(f"{name} is of type {type(value).__name__}, and cannot be served{extra}")
        for kind, of in bases.items():
            is_one = isinstance(value, type) and issubclass(value, tuple(of))
            if said == kind and not is_one:
                whose = "asyncio.BaseProtocol"
                if kind != "protocol":
                    whose = f"socketserver.{of[0].__name__}"
                raise Misuse(f"{name} is no subclass of {whose}: --as {said}")
            if is_one and said in (None, kind):
                return kind
        return said or self._by_arguments()

    def _by_arguments(self) -> str:
        value, name = self.value, self.name
        try:
            signature = inspect.signature(value)
        except (TypeError, ValueError):
            raise Misuse(f"{name} does not tell its arguments: say what it is by --as") from None
        if _is_async(value):
            if takes(signature, 2):
                return "asyncio"
            if takes(signature, 3):
                raise Misuse(
                    f"{name} is an ASGI application (scope, receive, send): give a work function, "
                    "def work(master), that runs an ASGI server's own Server on the listeners it "
                    "is given, and asks master.wants_me_alive() now and then"
                )
            raise Misuse(
                f"{name} is a coroutine function: an asyncio callback takes (reader, writer), and "
                "what has no server is for run_asyncio(), in a program of its own"
            )
        counts = {"work": 1, "wsgi": 2}
        if isinstance(value, type):  # whose objects are iterables of the body
            del counts["work"]
        kinds = [kind for kind, count in counts.items() if takes(signature, count)]
        factory = takes(signature, 0)  # create_app(config=None) would pass for a work function
        if len(kinds) == 1 and not factory:
            return kinds[0]
        if kinds:
            words = " or ".join(KINDS[kind] for kind in kinds)
            cure = f", or write {name}() if it is a factory" if factory else ""
            raise Misuse(f"{name}{signature} may be {words}: say which by --as{cure}")
        raise Misuse(
            f"{name}{signature} is nothing that can be served: a work function takes (master), "
            "a WSGI application (environ, start_response), and an asyncio callback is an async "
            "def that takes (reader, writer)"
            + (f"; if it is a factory, write {name}()" if factory else "")
        )


def _of(module: str, name: str) -> list[type[Any]]:
    """The class, if anybody can have one of it: who has has imported it."""
    found = sys.modules.get(module)
    return [getattr(found, name)] if found else []


def _is_async(value: Any) -> bool:
    """A coroutine function, or something whose call is one."""
    call: Callable[..., Any] = getattr(value, "__call__", value)  # noqa: B004 - not its callability
    if isinstance(value, type):
        call = vars(value).get("__call__", value)
    return any(
        test(each)
        for each in (inspect.unwrap(value), inspect.unwrap(call))
        for test in (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    )


def words_for(kind: str) -> str:
    return KINDS[kind]
