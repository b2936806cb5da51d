"""The socketserver pattern, preforked.

``PreforkMixIn`` turns any ``socketserver`` server, written by anyone, into a
supervised multi-process one; the servers here are the standard library's with it.
"""

import os
import socket
import socketserver
from collections.abc import Callable
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Unpack

from .errors import ConfigError
from .job import Hooks, Job, nothing
from .listeners import (
    BACKLOG,
    Address,
    AddressLike,
    Listener,
    address_text,
    adopt,
    bind,
    parse,
    unix_address,
)
from .logfiles import logger_named, speaking
from .master import Master, Remote
from .settings import Settings, SettingsKeywords, settle
from .worker import MasterHandle

if TYPE_CHECKING:
    _Base = socketserver.TCPServer
else:
    _Base = object

HandlerClass = Callable[[Any, Any, Any], socketserver.BaseRequestHandler]


class PreforkMixIn(_Base):
    """Put it first: ``class Server(PreforkMixIn, socketserver.TCPServer): ...``

    ``serve_forever()`` then forks workers that share the listening socket, each
    serving one connection at a time, and replaces those that end or hang. It works
    from any thread; it returns after a signal (on the main thread) or ``shutdown()``
    when every worker is gone. The server is closed by then.

    How many workers, and how patient it is, says the class attribute ``settings``
    or the keyword argument of that name. Nothing else about the class changes, but
    that memory is not shared: what a handler changes, it changes in its worker.

    A subclass may define hooks: ``before_fork()``, ``after_fork(master)``,
    ``ready(addresses)``, ``after_worker_exit(death)``; see ``Hooks``. In a worker
    ``server.master`` is the MasterHandle.
    """

    settings: Settings = Settings()
    master: MasterHandle
    _listener: Listener | None = None

    def __init__(self, *args: Any, settings: Settings | None = None, **kwargs: Any) -> None:
        if settings is not None:
            self.settings = settings
        self._remote = Remote()
        # The standard library's own defaults (a queue of 5, and 60 s before a port can be
        # had again) are for another kind of server; any other class means what it says.
        for name, value in (("request_queue_size", BACKLOG), ("allow_reuse_address", True)):
            if not any(
                name in vars(c) for c in type(self).__mro__ if c.__module__ != "socketserver"
            ):
                setattr(self, name, value)
        super().__init__(*args, **kwargs)

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Fork workers, and serve until a signal or ``shutdown()`` ends it.

        ``poll_interval`` is there for compatibility: nothing is polled for. Raises
        ConfigError for settings that cannot be, BootError if no worker gets ready.
        """
        settings = self._settled()
        logger = logger_named(None)
        name = settings.app_name or type(self).__name__
        listener = self._listener or adopt(self.socket)
        hooks = Hooks(*map(self._hook, ("before_fork", "after_fork", "ready", "after_worker_exit")))
        with speaking(logger):
            Master(Job(settings, name, logger, self._work, [listener], hooks), self._remote).run()

    def shutdown(self) -> None:
        """Stop the server gracefully; returns when ``serve_forever()`` is about to.

        May be called from any thread, and, unlike the standard library's, from a
        handler: in a worker it asks the master, and returns at once.
        """
        self._remote.shut_down()

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait, in another thread than ``serve_forever()``, until the first worker is ready.

        False if the time (seconds) is over, or the server ended, before.
        """
        return self._remote.wait_ready(timeout)

    def _settled(self) -> Settings:
        # Under the mix-in alone a client may be silent for as long as the class had it.
        return settle(self.settings, {}, client_timeout=None)

    def _hook(self, name: str) -> Callable[..., object]:
        """A hook as the user's classes define it. The foreign class behind the mix-in may
        have something of its own by that name, which is not meant."""
        ours = takewhile(lambda cls: cls is not PreforkMixIn, type(self).__mro__)
        if any(name in vars(cls) for cls in ours):
            hook: Callable[..., object] = getattr(self, name)
            return hook
        return nothing

    # In the worker

    def _work(self, master: MasterHandle) -> None:
        self.master = master
        acceptor = master._accepting()
        # An overridden get_request is the class's own business, and is asked; the
        # standard one is replaced by an accept that makes a Connection.
        foreign = type(self).get_request is not socketserver.TCPServer.get_request
        for listener in master._waiting(self.service_actions):
            try:
                if foreign:
                    taken = self.get_request()
                    acceptor.took(taken[0])
                else:
                    found = acceptor.accept(listener)
                    if found is None:
                        continue
                    taken = found
            except OSError as error:
                acceptor.failed(error)
            except Exception:  # user code, before there is anybody to answer
                master.logger.exception("get_request failed", extra={"event": "request_failed"})
            else:
                master._took(taken[1])
                self._serve(master, *taken)

    def _serve(self, master: MasterHandle, request: Any, peer: Any) -> None:
        """One connection, and nothing that happens in it ends the worker, or the loop."""
        try:
            if self.verify_request(request, peer):
                self.process_request(request, peer)
            else:
                self.shutdown_request(request)
        except BaseException as error:
            # User code. SystemExit asks for a new worker, after this one's manners.
            if isinstance(error, SystemExit):
                master.retire()
            else:
                self._report(master, request, peer, error)
            try:
                self.shutdown_request(request)
            except Exception:
                master.logger.exception("shutdown_request failed", extra={"event": "close_failed"})
                with suppress(Exception):
                    request.close()

    def _report(self, master: MasterHandle, request: Any, peer: Any, error: BaseException) -> None:
        text = address_text(peer) if peer else "a client"
        extra = {"event": "request_failed", "worker": master.slot, "pid": os.getpid()}
        if getattr(error, "by_client", False):
            master.logger.debug("%s is gone: %s", text, error, extra=extra)
        elif type(self).handle_error is socketserver.BaseServer.handle_error:
            master.logger.error("handler failed for %s", text, exc_info=error, extra=extra)
        else:
            try:
                self.handle_error(request, peer)
            except Exception:
                master.logger.exception("handle_error failed for %s", text, extra=extra)


class _OwnServer(PreforkMixIn):
    """What our own stream servers share: addresses checked, bound by our rules, and the
    settings as keywords, too."""

    def __init__(
        self,
        server_address: AddressLike,
        RequestHandlerClass: HandlerClass,  # noqa: N803 - socketserver's name
        bind_and_activate: bool = True,
        *,
        settings: Settings | None = None,
        **keywords: Unpack[SettingsKeywords],
    ) -> None:
        address = self._checked(server_address)
        settled = settle(self.settings if settings is None else settings, keywords)
        if type(self).address_family == socket.AF_INET:
            self.address_family = address.family
        super().__init__(address.name, RequestHandlerClass, bind_and_activate, settings=settled)

    def server_bind(self) -> None:
        """Bind and listen. Raises BindError; an address in use is tried for 2 s."""
        address = self._checked(self.server_address)
        if self.allow_reuse_address:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if getattr(self, "allow_reuse_port", False):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._listener = bind(self.socket, address, self.request_queue_size)
        self.server_address = self.socket.getsockname()

    def server_close(self) -> None:
        """Close the listening socket, and remove its path if we made it."""
        if self._listener:
            self._listener.unlink()
        super().server_close()

    def _settled(self) -> Settings:
        return self.settings

    @staticmethod
    def _checked(given: Any) -> Address:
        raise NotImplementedError


class PreforkTCPServer(_OwnServer, socketserver.TCPServer):
    """``socketserver.TCPServer``, preforked.

    ``server_address`` is ``(host, port)``, or a text: ``"127.0.0.1:9000"``,
    ``"[::1]:9000"``. The keywords are those of ``Settings``. ``bind_and_activate``
    is the standard library's: False means that you call ``server_bind()`` yourself.
    Raises ConfigError and BindError, which is an ``OSError``.
    """

    @staticmethod
    def _checked(given: Any) -> Address:
        address = parse(given)
        if address.family == socket.AF_UNIX:
            raise ConfigError(f"{address} is for PreforkUnixStreamServer, this one serves TCP")
        return address


class PreforkUnixStreamServer(_OwnServer, socketserver.UnixStreamServer):
    """``socketserver.UnixStreamServer``, preforked.

    ``server_address`` is a path, of 107 bytes at most; ``"@name"`` is an abstract
    one. The socket has mode 0600. The one of a dead server is replaced, anything
    else that is there is left alone (BindError); it is removed when the server stops.
    """

    @staticmethod
    def _checked(given: Any) -> Address:
        if isinstance(given, str):
            given = given.removeprefix("unix:")
        return unix_address(given)
