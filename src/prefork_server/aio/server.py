"""PreforkAsyncioServer, and ``run_asyncio`` for programs without a server."""

import asyncio
import inspect
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Unpack

from ..calls import check_call
from ..errors import BootError, ConfigError
from ..job import HOOKS, Hooks, nothing
from ..journal import Journal
from ..launch import Launch
from ..listeners import (
    Address,
    Addresses,
    Listener,
    address_text,
    check_status_address,
    listen,
    parse_all,
)
from ..logfiles import fill_standard_descriptors, logger_named
from ..plan import Death
from ..preforker import Preforker
from ..remote import Remote
from ..settings import Settings, SettingsKeywords, settle
from ..tls import terms
from ..worker.threads import check_threads
from .doors import Doors
from .handle import AsyncMasterHandle
from .life import Life
from .loops import LoopKind, LoopName, choose
from .turns import Shares

if TYPE_CHECKING:
    from ..stats import Stats

Visit = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]

_DATAGRAMS = {"udp:": "", "unixgram:": "unix:"}  # what such an address begins with


class PreforkAsyncioServer:
    """A server whose workers run an event loop each, and hold many connections at once.

    ``client_connected_cb(reader, writer)`` is that of ``asyncio.start_server``: a coroutine
    function or a plain one. Close the writer. Or ``protocol_factory=`` is that of
    ``loop.create_server``. ``addresses`` is one or a list, as for ``Preforker``; with a
    protocol factory also ``"udp:127.0.0.1:9000"`` and ``"unixgram:/run/x.sock"``, for which
    it makes one ``DatagramProtocol`` in each worker. All are bound by the constructor.

    ``loop`` is ``"asyncio"``, ``"uvloop"``, or ``"auto"``: uvloop where it can be imported.
    ``worker_connections`` is the most that a worker holds at once; who comes then is left to
    the others, or waits in the queue. ``limit`` is the reader's, in bytes; ``ssl_context``
    makes all connections TLS, and a client has ``ssl_handshake_timeout`` seconds for its
    handshake. ``client_timeout`` is not for coroutines, which say ``asyncio.timeout()``.

    Hooks are methods of a subclass, or keywords, and described in ``Hooks``; ``after_fork``
    and ``before_exit`` may be coroutine functions. A coroutine that stops the loop for ``timeout``
    seconds costs its worker the life, and all who are connected there their connections.

    Raises ConfigError and BindError.
    """

    settings: Settings = Settings()
    _prefork_inherited: "Sequence[Listener] | None" = None  # they were bound already
    _prefork_shares: Shares | None = None  # of all workers, if those make servers of their own

    def __init__(
        self,
        addresses: Addresses,
        client_connected_cb: Visit | None = None,
        *,
        protocol_factory: Callable[[], asyncio.BaseProtocol] | None = None,
        loop: LoopName = "auto",
        worker_connections: int = 1000,
        limit: int = 2**16,
        ssl_context: ssl.SSLContext | None = None,
        ssl_handshake_timeout: float = 10.0,
        logger: logging.Logger | None = None,
        settings: Settings | None = None,
        before_fork: Callable[[], object] | None = None,
        after_fork: Callable[[AsyncMasterHandle], object] | None = None,
        ready: Callable[[Sequence[str]], object] | None = None,
        after_worker_exit: Callable[[Death], object] | None = None,
        before_exit: Callable[[AsyncMasterHandle], object] | None = None,
        **keywords: Unpack[SettingsKeywords],
    ) -> None:
        self.settings = settle(self.settings if settings is None else settings, keywords)
        if logger is not None and self.settings.log_path is not None:
            raise ConfigError("log_path is the file of our own logger: give it, or logger")
        self._prefork_check(self.settings)
        if (client_connected_cb is None) == (protocol_factory is None):
            raise ConfigError("give client_connected_cb or protocol_factory, one of them")
        if protocol_factory is not None:
            check_call("protocol_factory", protocol_factory, "", "give a Protocol class")
        else:
            check_call(
                "client_connected_cb",
                client_connected_cb,
                "reader, writer",
                "give a coroutine function; a Protocol class is a protocol_factory=",
                awaited=True,
            )
        _check(worker_connections, limit, ssl_context, ssl_handshake_timeout)
        self._kind = choose(loop)
        # Where none is given, a method of a subclass is the hook.
        given: dict[str, Any] = {
            "before_fork": before_fork,
            "after_fork": after_fork,
            "ready": ready,
            "after_worker_exit": after_worker_exit,
            "before_exit": before_exit,
        }
        self._hooks: dict[str, Callable[..., object]] = {
            name: hook or getattr(self, name, nothing) for name, hook in given.items()
        }
        for name, hook in self._hooks.items():
            cure = "a hook is a plain function; after_fork and before_exit may be async"
            check_call(name, hook, HOOKS[name], cure, awaited=HOOKS[name] == "master")
        self._logger = logger_named(logger)
        self._prefork_remote = Remote()
        shares = self._prefork_shares
        self._shares = shares or Shares(self.settings.max_workers or self.settings.workers)
        self._doors = Doors(
            protocol_factory,
            client_connected_cb,
            worker_connections,
            limit,
            ssl_context,
            ssl_handshake_timeout,
            self._shares,
        )
        if self._prefork_inherited is None:
            check_status_address(self.settings.status, _parsed(addresses)[0])
            self._listeners = _bound(addresses, protocol_factory is not None and not ssl_context)
        else:
            self._listeners = list(self._prefork_inherited)
        self._named = [listener.socket.getsockname() for listener in self._listeners]

    @staticmethod
    def _prefork_check(settings: Settings) -> None:
        check_threads("coroutines share their loop: worker_connections says how many", settings)
        if "client_timeout" in vars(settings)["_said"]:
            raise ConfigError("client_timeout is for handlers that block: use asyncio.timeout()")

    # As our other servers have them

    def serve_forever(self) -> None:
        """Fork workers, and serve until a signal or ``shutdown()`` ends it.

        To be called where no loop runs (RuntimeError), in any thread. Returns when every
        worker is gone, and the server is closed. Raises ConfigError for a path that cannot be
        written, BootError if no worker gets ready.
        """
        _refuse_running_loop("serve_forever()")
        self._launch().run()

    def start(self) -> int:
        """Serve as a daemon; return its pid when its first worker is ready.

        As ``PreforkTCPServer.start()``: this server is closed, the sockets are the daemon's.
        """
        _refuse_running_loop("start()")
        with ExitStack() as stack:
            # After a Ctrl-C in between, nobody knows whether there is a daemon: a path that is
            # left behind is replaced at the next start, a lost one is not.
            for listener in self._listeners:
                stack.callback(listener.leave)
            try:
                return self._launch().start()
            except (BootError, ConfigError):
                stack.pop_all()  # there is none: the sockets and the paths are still ours
                raise

    def shutdown(self) -> None:
        """Stop gracefully, from any thread; returns when ``serve_forever()`` is about to.

        In a worker it asks the master to stop everything, and returns at once.
        """
        self._prefork_remote.shut_down()

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait, in another thread than ``serve_forever()``, until the first worker is ready.

        False if the time (seconds) is over, or the server ended, before.
        """
        return self._prefork_remote.wait_ready(timeout)

    def stats(self) -> "Stats":
        """What the server is doing, from any thread, or in a worker; after its end what it had
        done. RuntimeError before the start."""
        return self._prefork_remote.stats()

    def server_close(self) -> None:
        """Close the listening sockets, and remove their paths if we made them."""
        for listener in self._listeners:
            listener.close()

    def __enter__(self) -> "PreforkAsyncioServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.server_close()

    @property
    def addresses(self) -> list[str]:
        """Where it listens, streams first: ``127.0.0.1:9000``, ``unix:/path``."""
        return [address_text(name) for name in self._named]

    @property
    def server_address(self) -> Any:
        """The first of them, as ``socket.connect`` takes it."""
        return self._named[0]

    @property
    def logger(self) -> logging.Logger:
        """Where it logs."""
        return self._logger

    def _prefork_life(self) -> Life:
        return Life(
            self._kind, self._hooks["after_fork"], self._doors.serve, self._hooks["before_exit"]
        )

    def _launch(self) -> Launch:
        if any(listener.socket.fileno() < 0 for listener in self._listeners):
            raise ConfigError("this server has served already, and is closed; make a new one")
        hooks, life = self._hooks, self._prefork_life()

        def after_worker_exit(death: Death) -> None:
            self._shares.words[death.slot] = 0
            hooks["after_worker_exit"](death)

        return Launch(
            settings=self.settings,
            app_name=self.settings.app_name or type(self).__name__,
            logger=self._logger,
            remote=self._prefork_remote,
            work=life.live,
            hooks=Hooks(
                hooks["before_fork"],
                life.begin,
                _saying_which(self._kind, self._logger, hooks["ready"]),
                after_worker_exit,
            ),
            listening=self._listening,
        )

    @contextmanager
    def _listening(self) -> Iterator[Sequence[Listener]]:
        try:
            yield self._listeners
        finally:
            self.server_close()


def run_asyncio(
    main: Callable[[AsyncMasterHandle], Awaitable[object]],
    *,
    loop: LoopName = "auto",
    listen: Addresses | None = None,
    logger: logging.Logger | None = None,
    settings: Settings | None = None,
    **keywords: Unpack[SettingsKeywords],
) -> None:
    """Keep ``workers`` processes running ``await main(master)``, each in a loop of its own.

    What stands before it runs once, in the master. ``main`` must return soon after
    ``await master.wait_retired()`` does, or ``master.wants_me_alive()`` is False; it is
    cancelled shortly before ``graceful_timeout``. The loop itself gives the signs of life.
    ``listen`` gives sockets, ``master.listeners``, for a server of somebody else's. The
    other keywords, their defaults and what is raised are those of ``Preforker``; and
    RuntimeError where a loop runs.
    """
    _refuse_running_loop("run_asyncio()")
    kind = choose(loop)
    check_call("main", main, "master", "give a coroutine function", awaited=True)

    async def serve(master: AsyncMasterHandle, life: Life) -> None:
        try:
            result = main(master)
            if not inspect.isawaitable(result):
                its = getattr(main, "__qualname__", "main")
                raise TypeError(f"{its}() must be a coroutine function: it returned {result!r:.99}")
            await result
        except asyncio.CancelledError:
            life.warn("cancelling main(), which went on after it was told to go")
            raise

    life = Life(kind, nothing, serve)
    preforker = Preforker(
        life.live,
        listen=listen,
        logger=logger,
        settings=settings,
        after_fork=life.begin,
        ready=_saying_which(kind, logger_named(logger), nothing),
        **keywords,
    )
    preforker.run()


def _check(worker_connections: Any, limit: Any, context: Any, handshake: Any) -> None:
    for name, number in (("worker_connections", worker_connections), ("limit", limit)):
        if type(number) is not int or number < 1:
            raise ConfigError(f"{name} must be a whole number, 1 or more, not {number!r}")
    if context is not None:
        terms(context)  # or ConfigError
    if type(handshake) not in (int, float) or not handshake > 0:
        text = "ssl_handshake_timeout must be a number of seconds above 0"
        raise ConfigError(f"{text}, not {handshake!r}")


def _saying_which(
    kind: LoopKind, logger: logging.Logger, ready: Callable[[Sequence[str]], object]
) -> Callable[[Sequence[str]], object]:
    """The hook, and before it a line in the log."""

    def say(addresses: Sequence[str]) -> None:
        message = "the loop of each worker: %s"
        Journal(logger, os.getpid()).say(logging.INFO, "loop", None, message, kind.name)
        ready(addresses)

    return say


def _bound(addresses: Addresses, datagrams_too: bool) -> list[Listener]:
    """On all of them or on none. Raises ConfigError and BindError."""
    streams, datagrams = _parsed(addresses)
    if datagrams and not datagrams_too:
        raise ConfigError(f"{datagrams[0]} takes datagrams: it needs protocol_factory, no TLS")
    fill_standard_descriptors()
    listeners: list[Listener] = []
    with ExitStack() as undo:
        for address in streams:
            listeners.append(listen(address))
            undo.callback(listeners[-1].close)
        for address in datagrams:
            listeners.append(listen(address, kind=socket.SOCK_DGRAM, options=()))
            undo.callback(listeners[-1].close)
        undo.pop_all()
    return listeners


def _parsed(given: Addresses) -> tuple[tuple[Address, ...], tuple[Address, ...]]:
    """Those for streams, and those for datagrams. Raises ConfigError."""
    several = given if isinstance(given, list) else [given]
    streams: list[Any] = []
    datagrams: list[Any] = []
    for one in several:
        for mark, instead in _DATAGRAMS.items():
            if isinstance(one, str) and one.startswith(mark):
                datagrams.append(instead + one.removeprefix(mark))
                break
        else:
            streams.append(one)
    if not several:
        parse_all([])  # which says what is wrong
    return (parse_all(streams) if streams else ()), (parse_all(datagrams) if datagrams else ())


def _refuse_running_loop(call: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        f"{call} forks, and serves until it is stopped: no place for it in a running loop. Call "
        "it before asyncio.run(), or in a thread of its own; each worker makes a loop for itself"
    )
