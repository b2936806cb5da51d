"""Prefork network servers on the socketserver pattern.

The public names, and nothing else. Each is loaded when it is first asked for
(PEP 562), so that the import itself costs about a millisecond.
"""

import sys

TYPE_CHECKING = False  # for type checkers it is True; typing itself takes longer than all of this
if TYPE_CHECKING:
    from .aio import PreforkAsyncioServer as PreforkAsyncioServer
    from .aio import run_asyncio as run_asyncio
    from .counter import SharedCounter
    from .errors import BindError, BootError, ConfigError, PreforkError
    from .here import current_master
    from .http import HTTPRequestHandler as HTTPRequestHandler
    from .http import PreforkHTTPServer as PreforkHTTPServer
    from .http import PreforkWSGIServer as PreforkWSGIServer
    from .http import serve as serve
    from .job import Hooks
    from .mixin import PreforkMixIn
    from .plan import Death
    from .preforker import Preforker
    from .servers import (
        PreforkTCPServer,
        PreforkUDPServer,
        PreforkUnixDatagramServer,
        PreforkUnixStreamServer,
    )
    from .settings import Settings
    from .sockets.connection import Connection
    from .stats import Stats
    from .worker.master_handle import MasterHandle

if not sys.platform.startswith("linux"):
    raise ImportError(
        "prefork_server needs Linux (fork, epoll, memfd, pidfd); "
        "elsewhere socketserver.ThreadingMixIn serves the same handlers"
    )
if sys.implementation.name == "pypy":
    raise ImportError(
        "prefork_server does not support PyPy, which has no gc.freeze(): "
        "each worker would copy what the master has loaded; CPython serves the same program"
    )

from . import origin as _origin  # noqa: E402 - before the program changes anything
from . import patches as _patches  # noqa: E402

if _patches.patched():  # modules that are loaded now would fail, by an AttributeError
    raise ImportError(_patches.patched())

if _origin.VARIABLE in _origin.ENVIRONMENT:  # before it starts anything
    from . import inheritance as inheritance

__version__ = "0.1.0"

_HOMES = {
    "sockets.connection": ("Connection",),
    "counter": ("SharedCounter",),
    "errors": ("BindError", "BootError", "ConfigError", "PreforkError"),
    "job": ("Hooks",),
    "plan": ("Death",),
    "preforker": ("Preforker",),
    "mixin": ("PreforkMixIn",),
    "servers": (
        "PreforkTCPServer",
        "PreforkUDPServer",
        "PreforkUnixDatagramServer",
        "PreforkUnixStreamServer",
    ),
    "settings": ("Settings",),
    "worker.master_handle": ("MasterHandle",),
    "here": ("current_master",),
    "stats": ("Stats",),
}
# Not in __all__: http.server and email, which these load, are heavy, and who takes everything
# may want no HTTP.
_HTTP = ("HTTPRequestHandler", "PreforkHTTPServer", "PreforkWSGIServer", "serve")
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_HOME_OF |= dict.fromkeys(_HTTP, "http")
# Not in __all__, since they load asyncio.
_AIO = ("PreforkAsyncioServer", "run_asyncio")
_HOME_OF |= dict.fromkeys(_AIO, "aio")

__all__ = [
    "BindError",
    "BootError",
    "ConfigError",
    "Connection",
    "Death",
    "Hooks",
    "MasterHandle",
    "PreforkError",
    "PreforkMixIn",
    "PreforkTCPServer",
    "PreforkUDPServer",
    "PreforkUnixDatagramServer",
    "PreforkUnixStreamServer",
    "Preforker",
    "Settings",
    "SharedCounter",
    "Stats",
    "current_master",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _patches.patched():
        raise ImportError(_patches.patched())
    from importlib import import_module

    value: object = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
