"""Prefork network servers on the socketserver pattern.

The public names, and nothing else.
"""

import sys

if not sys.platform.startswith("linux"):
    raise ImportError(
        "prefork_server needs Linux (fork, epoll, memfd, pidfd); "
        "elsewhere socketserver.ThreadingMixIn serves the same handlers"
    )

from .connection import Connection
from .errors import BindError, BootError, ConfigError, PreforkError
from .job import Hooks
from .pool import Death
from .preforker import Preforker
from .servers import PreforkMixIn, PreforkTCPServer, PreforkUnixStreamServer
from .settings import Settings
from .worker import MasterHandle, current_master

__version__ = "0.1.0"

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
    "PreforkUnixStreamServer",
    "Preforker",
    "Settings",
    "current_master",
]
