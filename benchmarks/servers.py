"""Who is compared: a name, how it is started, what it offers for its price.

One more server is one more line of ``CONTESTANTS``, and perhaps a function in ``serving``.
All have ``Place.workers`` workers (threads, in a pool), and otherwise the settings they are
shipped with, but for access logs, which are off, and the queue of ``socketserver``, whose 5
places would drop connections. The ``tuned`` ones have what is recommended for speed.

    python -m benchmarks.servers NAME FAMILY ADDRESS DIRECTORY WORKERS

is how the runner starts one.
"""

import importlib.util
import socketserver
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from . import apps, serving
from .serving import Place, program

MODULE = "benchmarks.servers"
LIMIT_SOURCE = Path(__file__).with_name("limit") / "limit.c"
_PROGRAMS = ("nginx", "cc")  # the other needs are modules


@dataclass(frozen=True)
class Contestant:
    name: str
    serve: Callable[[Place], None]
    families: tuple[str, ...]
    offers: str
    needs: tuple[str, ...] = ()  # modules and programs
    holds: Literal["many", "one each", "one"] = "many"  # open connections, each worker or all
    hands: int = 1  # of each worker, for one connection each
    parks: tuple[str, ...] = ()  # the families in which it holds many all the same
    share: float = 1.0  # of the requests, for those that take many times as long
    is_wsgi: bool = False
    tuned: bool = False

    def absent(self) -> tuple[str, ...]:
        """What it needs and does not find."""
        return tuple(need for need in self.needs if not _is_here(need))

    def can_hold(self, family: str, connections: int, workers: int) -> bool:
        """Whether so many may stay open, and all of them be answered."""
        if self.holds == "many" or family in self.parks:
            return True
        return connections <= (workers * self.hands if self.holds == "one each" else 1)


def _is_here(need: str) -> bool:
    if need in _PROGRAMS:
        return program(need) is not None
    return importlib.util.find_spec(need) is not None


STREAMS, WEB = ("tcp", "unix"), ("http",)
ECHO, LOOPS, ALL = (*STREAMS, "udp"), ("tcp", "udp", "http"), (*STREAMS, "udp", "http")

OURS = "respawn, timeout, stats, drain, reload, upgrade, TLS"
GUNICORN = "respawn, timeout, drain, reload, upgrade, TLS"
NOTHING = "-"

# The first is the one that all others are compared with.
PREFORK, PREFORK_WSGI = "prefork_server", "prefork_server, WSGI"
PREFORK_THREADS = "prefork_server, 4 threads each"
PREFORK_ASYNCIO, PREFORK_UVLOOP = "prefork_server, asyncio", "prefork_server, uvloop"
C_BLOCK, C_EPOLL, NGINX = "C, blocking accept", "C, epoll", "nginx"
THREADS, FORKS = "socketserver, ThreadingMixIn", "socketserver, ForkingMixIn"
POOL = "socketserver, ThreadPoolExecutor"
HTTP_THREADS, BUFFERED = "ThreadingHTTPServer", "ThreadingHTTPServer, buffered"
ASYNCIO, UVLOOP = "asyncio, bare", "uvloop, bare"
SYNC, GTHREAD = "gunicorn sync", "gunicorn gthread"
UVICORN = "uvicorn, uvloop + httptools"
GRANIAN, GRANIAN_ASGI = "granian, WSGI", "granian, ASGI"
WAITRESS, BJOERN = "waitress", "bjoern"

_threading = partial(serving.stdlib, mixin=socketserver.ThreadingMixIn)
_forking = partial(serving.stdlib, mixin=socketserver.ForkingMixIn)
_pooled = partial(serving.stdlib, mixin=serving.Pooled)
_tuned = partial(serving.ours, defer_accept=10, timeout=None, client_timeout=None)
_gthread = partial(serving.gunicorn, more=("-k", "gthread", "--threads", "4"))
_more_gthread = partial(
    serving.gunicorn,
    more=("-k", "gthread", "--threads", "8", "--keep-alive", "75", "--worker-tmp-dir", "/dev/shm"),
)
_one_thread = partial(
    serving.granian, interface="wsgi", more=("--blocking-threads", "1", "--http", "1")
)
_wsgi = partial(Contestant, families=WEB, is_wsgi=True)

# fmt: off
CONTESTANTS: tuple[Contestant, ...] = (
    Contestant(PREFORK, serving.ours, ALL, OURS, holds="one each", parks=WEB),
    _wsgi(PREFORK_WSGI, serving.our_wsgi, offers=OURS),
    Contestant(PREFORK_THREADS, partial(serving.ours, threads=4), ALL, OURS, holds="one each",
               hands=4, parks=WEB),
    Contestant(PREFORK_ASYNCIO, partial(serving.our_loop, loop="asyncio"), ALL, OURS),
    Contestant(PREFORK_UVLOOP, partial(serving.our_loop, loop="uvloop"), ALL, OURS, ("uvloop",)),
    Contestant(C_BLOCK, partial(serving.limit, mode="block"), ALL, NOTHING, ("cc",),
               holds="one each"),
    Contestant(C_EPOLL, partial(serving.limit, mode="epoll"), (*STREAMS, *WEB), NOTHING, ("cc",)),
    Contestant(NGINX, serving.nginx, WEB, "respawn, stats, drain, reload, upgrade, TLS",
               ("nginx",)),
    Contestant("socketserver", serving.stdlib, ECHO, NOTHING, holds="one"),
    Contestant(THREADS, _threading, ECHO, NOTHING, share=0.5),
    Contestant(FORKS, _forking, STREAMS, "a crash costs one", share=0.05),
    Contestant(POOL, _pooled, STREAMS, NOTHING, holds="one each"),
    # It sends head and body apart; the body waits 40 ms for the client's acknowledgement.
    Contestant(HTTP_THREADS, _threading, WEB, NOTHING, share=0.02),
    Contestant(ASYNCIO, partial(serving.bare_loop, loop="asyncio"), LOOPS, NOTHING),
    Contestant(UVLOOP, partial(serving.bare_loop, loop="uvloop"), LOOPS, NOTHING, ("uvloop",)),
    _wsgi(SYNC, serving.gunicorn, offers=GUNICORN, needs=("gunicorn",), share=0.4),
    _wsgi(GTHREAD, _gthread, offers=GUNICORN, needs=("gunicorn",), share=0.4),
    Contestant(UVICORN, serving.uvicorn, WEB, "respawn, timeout, drain, reload, TLS",
               ("uvicorn", "uvloop", "httptools")),
    _wsgi(GRANIAN, partial(serving.granian, interface="wsgi"), offers="drain, reload, TLS",
          needs=("granian",)),
    Contestant(GRANIAN_ASGI, partial(serving.granian, interface="asgi"), WEB,
               "drain, reload, TLS", ("granian",)),
    _wsgi(WAITRESS, serving.waitress, offers=NOTHING, needs=("waitress",), share=0.5),
    _wsgi(BJOERN, serving.bjoern, offers=NOTHING, needs=("bjoern",)),
    Contestant("prefork_server, defer_accept, no timeouts", _tuned, ALL,
               "respawn, stats, drain, reload, upgrade, TLS",
               holds="one each", parks=WEB, tuned=True),
    Contestant(BUFFERED, partial(_threading, handler=apps.BufferedWeb),
               WEB, NOTHING, tuned=True),
    _wsgi("gunicorn gthread, 8 threads, long keep-alive", _more_gthread, offers=GUNICORN,
          needs=("gunicorn",), share=0.4, tuned=True),
    _wsgi("granian, WSGI, one blocking thread", _one_thread, offers="drain, reload, TLS",
          needs=("granian",), tuned=True),
    _wsgi("waitress, 8 threads", partial(serving.waitress, threads=8), offers=NOTHING,
          needs=("waitress",), share=0.5, tuned=True),
)
# fmt: on


def named(name: str) -> Contestant:
    return next(each for each in CONTESTANTS if each.name == name)


def main() -> None:
    name, family, address, directory, workers = sys.argv[1:]
    named(name).serve(Place(family, address, directory, int(workers)))


if __name__ == "__main__":
    main()
