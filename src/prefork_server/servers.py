"""The socketserver pattern, preforked.

``PreforkMixIn`` turns any ``socketserver`` server, written by anyone, into a
supervised multi-process one; the servers here are the standard library's with it.
"""

import os
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Unpack

from .acceptor import ENTRANCE, Acceptor
from .connection import Waiting
from .errors import ConfigError
from .job import HOOKS, Hooks, Job, nothing
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
from .master import Master
from .remote import Remote
from .settings import Settings, SettingsKeywords, settle
from .worker import MasterHandle

if TYPE_CHECKING:
    from .tls import Terms

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

    ``socket`` may be one that ``SSLContext.wrap_socket(..., server_side=True)`` made. The
    handshake is then made in the worker, right before the handler.

    A subclass may define hooks: ``before_fork()``, ``after_fork(master)``,
    ``ready(addresses)``, ``after_worker_exit(death)``; see ``Hooks``. In a worker
    ``server.master`` is the MasterHandle.
    """

    settings: Settings = Settings()
    master: MasterHandle
    _prefork_listener: Listener | None = None
    _prefork_terms: "Terms | None" = None  # if this is a TLS server

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.serve_forever is socketserver.BaseServer.serve_forever:
            raise TypeError(f"{cls.__name__}: PreforkMixIn goes before the server class")

    def __init__(self, *args: Any, settings: Settings | None = None, **kwargs: Any) -> None:
        if settings is not None:
            self.settings = settings
        self._prefork_remote = Remote()
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
        logger = logger_named(None)
        with self._prefork_remote.running(), speaking(logger):
            settings = self._prefork_settled()
            try:
                job = Job(
                    settings=settings,
                    app_name=settings.app_name or type(self).__name__,
                    logger=logger,
                    work=self._prefork_work,
                    listeners=[self._prefork_listening()],
                    hooks=Hooks(**{name: self._prefork_hook(name) for name in HOOKS}),
                )
                Master(job, self._prefork_remote).run()
            finally:
                if self._prefork_terms:
                    self.socket.close()  # handle_request() would serve it in plain text

    def shutdown(self) -> None:
        """Stop the server gracefully; returns when ``serve_forever()`` is about to.

        May be called from any thread, and, unlike the standard library's, from a
        handler: in a worker it asks the master, and returns at once.
        """
        self._prefork_remote.shut_down()

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait, in another thread than ``serve_forever()``, until the first worker is ready.

        False if the time (seconds) is over, or the server ended, before.
        """
        return self._prefork_remote.wait_ready(timeout)

    def _prefork_listening(self) -> Listener:
        sock = self.socket
        if sock.fileno() < 0:
            raise ConfigError("this server has served already, and is closed; make a new one")
        if sock.type != socket.SOCK_STREAM:
            raise ConfigError(f"stream servers only, and {type(self).__name__} has a {sock.type!r}")
        listener = self._prefork_listener
        # Whoever wrapped the socket since we bound it has emptied ours.
        wrapped = listener and listener.socket.fileno() < 0 and sock.getsockname()
        if not listener or (listener.socket is not sock and wrapped != self.server_address):
            listener = adopt(sock)
        self._prefork_terms = None
        if _is_tls(sock):
            from .tls import take_apart

            # socket.accept() below an SSLSocket would speak plain text on a TLS port, and
            # its own would wait there for the handshake of one client, and for nobody else.
            self.socket, self._prefork_terms = take_apart(sock)
        elif type(sock) is not socket.socket:
            raise ConfigError(
                f"the listener must be a plain socket or an SSLSocket, not a {type(sock).__name__}"
            )
        listener.socket = self.socket
        return listener

    def _prefork_settled(self) -> Settings:
        # Under the mix-in alone a client may be silent for as long as the class had it.
        return settle(self.settings, {}, client_timeout=None)

    def _prefork_hook(self, name: str) -> Callable[..., object]:
        """A hook as the user's classes define it. The foreign class behind the mix-in may
        have something of its own by that name, which is not meant."""
        ours = takewhile(lambda cls: cls is not PreforkMixIn, type(self).__mro__)
        if any(name in vars(cls) for cls in ours):
            hook: Callable[..., object] = getattr(self, name)
            return hook
        return nothing

    # In the worker

    def _prefork_work(self, master: MasterHandle) -> None:
        self.master = master
        acceptor = master._accepting()
        settings = self._prefork_settled()
        # An overridden get_request is the class's own business, and is asked; the
        # standard one is replaced by an accept that makes a Connection.
        foreign = type(self).get_request is not socketserver.TCPServer.get_request
        elsewhere = _Elsewhere(self)
        terms = self._prefork_terms
        if terms:
            acceptor.wrap = terms.wrap
            self._prefork_shake_hands_first()
        if foreign or terms:
            acceptor.lend()
        for listener in master._waiting(self.service_actions):
            try:
                taken = self._prefork_ask(acceptor) if foreign else acceptor.accept(listener)
            except OSError as error:
                acceptor.failed(error)
            except Exception:  # user code, before there is anybody to answer
                master.logger.exception("get_request failed", extra={"event": "request_failed"})
            else:
                if taken is None:
                    continue
                master._took(taken[1])
                known = isinstance(taken[0], Waiting)
                if not known and settings.timeout and settings.client_timeout:
                    # Reading from it and writing to it gives no signs of life.
                    master.wants_me_alive(max(settings.timeout, settings.client_timeout))
                self._prefork_serve(master, *taken)
        while elsewhere.is_busy():
            master._beat()

    def _prefork_ask(self, acceptor: Acceptor) -> tuple[Any, Any] | None:
        """Let the class take a connection, and see to it that waiting for that is ours."""
        timeout = self._prefork_settled().timeout
        if timeout:
            self.master.wants_me_alive(timeout + ENTRANCE)  # it may make a handshake of its own
        taken = self.get_request()
        if not taken:
            return None
        request, peer = taken
        if isinstance(request, socket.socket):
            acceptor.let_in(request)
            if _is_tls(request):
                from .tls import adopt

                request = adopt(request, acceptor.vigil, request.gettimeout())
            elif self._prefork_terms:
                request = self._prefork_terms.wrap(request, acceptor.vigil)
        acceptor.took(request)
        return request, peer

    def _prefork_shake_hands_first(self) -> None:
        """In the handler's time and place, which with ThreadingMixIn is a thread of its own:
        a silent client must not keep others from being accepted."""
        from .tls import shake_hands

        finish, terms = self.finish_request, self._prefork_terms

        def finish_request(request: Any, peer: Any) -> None:
            try:
                if terms and terms.handshake:
                    shake_hands(request)
            except OSError as error:
                self._prefork_report(self.master, request, peer, error)
            else:
                finish(request, peer)

        vars(self)["finish_request"] = finish_request

    def _prefork_serve(self, master: MasterHandle, request: Any, peer: Any) -> None:
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
                self._prefork_report(master, request, peer, error)
            try:
                self.shutdown_request(request)
            except Exception:
                master.logger.exception("shutdown_request failed", extra={"event": "close_failed"})
                with suppress(Exception):
                    request.close()

    def _prefork_report(
        self, master: MasterHandle, request: Any, peer: Any, error: BaseException
    ) -> None:
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


def _is_tls(sock: object) -> bool:
    ssl = sys.modules.get("ssl")  # who has one of its sockets has imported it
    return ssl is not None and isinstance(sock, ssl.SSLSocket)


class _Elsewhere:
    """Requests that ThreadingMixIn or ForkingMixIn serve besides the accept loop.

    Nobody joins the daemon threads of ThreadingHTTPServer, for one. But who has begun
    is to be finished, so the worker waits for them before it goes.
    """

    def __init__(self, server: Any) -> None:
        self._children = server if isinstance(server, socketserver.ForkingMixIn) else None
        self._count = 0
        self._changed = threading.Condition()
        if isinstance(server, socketserver.ThreadingMixIn):
            self._begin, self._serve = server.process_request, server.process_request_thread
            vars(server)["process_request"] = self._begin_counted
            vars(server)["process_request_thread"] = self._serve_counted

    def _begin_counted(self, request: Any, peer: Any) -> None:
        self._add(1)  # it is under way before its thread is
        try:
            self._begin(request, peer)
        except BaseException:
            self._add(-1)
            raise

    def _serve_counted(self, request: Any, peer: Any) -> None:
        try:
            self._serve(request, peer)
        finally:
            self._add(-1)

    def _add(self, number: int) -> None:
        with self._changed:
            self._count += number
            self._changed.notify_all()

    def is_busy(self) -> bool:
        """Whether somebody is still being served; waits for a moment if so."""
        if self._children and self._children.active_children:
            self._children.collect_children()
        with self._changed:
            forked = bool(self._children and self._children.active_children)
            if self._count or forked:
                self._changed.wait(0.05)
            return bool(self._count) or forked


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
        address = self._prefork_checked(server_address)
        settled = settle(self.settings if settings is None else settings, keywords)
        if type(self).address_family == socket.AF_INET:
            self.address_family = address.family
        super().__init__(address.name, RequestHandlerClass, bind_and_activate, settings=settled)

    def server_bind(self) -> None:
        """Bind and listen. Raises BindError; an address in use is tried for 2 s."""
        address = self._prefork_checked(self.server_address)
        if self.allow_reuse_address:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if getattr(self, "allow_reuse_port", False):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._prefork_listener = bind(self.socket, address, self.request_queue_size)
        self.server_address = self.socket.getsockname()

    def server_close(self) -> None:
        """Close the listening socket, and remove its path if we made it."""
        if self._prefork_listener:
            self._prefork_listener.unlink()
        super().server_close()

    def _prefork_settled(self) -> Settings:
        return self.settings

    @staticmethod
    def _prefork_checked(given: Any) -> Address:
        raise NotImplementedError


class PreforkTCPServer(_OwnServer, socketserver.TCPServer):
    """``socketserver.TCPServer``, preforked.

    ``server_address`` is ``(host, port)``, or a text: ``"127.0.0.1:9000"``,
    ``"[::1]:9000"``. The keywords are those of ``Settings``. ``bind_and_activate``
    is the standard library's: False means that you call ``server_bind()`` yourself.
    Raises ConfigError and BindError, which is an ``OSError``.
    """

    @staticmethod
    def _prefork_checked(given: Any) -> Address:
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
    def _prefork_checked(given: Any) -> Address:
        if isinstance(given, str):
            given = given.removeprefix("unix:")
        return unix_address(given)
