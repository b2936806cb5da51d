"""The mix-in that turns any ``socketserver`` server, written by anyone, into a supervised
multi-process one."""

import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from .calls import check_handler
from .elsewhere import Elsewhere
from .errors import ConfigError
from .imports import load
from .inheritance import as_heir
from .job import HOOKS, Hooks, nothing
from .launch import Launch
from .listeners import (
    BACKLOG,
    Address,
    Listener,
    address_text,
    adopt,
    check_status_address,
    is_deaf,
    key_of,
)
from .logfiles import fill_standard_descriptors, logger_named
from .lost import tell_of_lost_state
from .reception import Reception, is_tls
from .remote import Remote
from .settings import Settings, settle
from .text import printable
from .worker.accept_loop import AcceptLoop
from .worker.master_handle import MasterHandle
from .worker.threads import check_threads

if TYPE_CHECKING:
    from .peers import Peers
    from .stats import Stats
    from .tls import Terms

    _Base = socketserver.BaseServer
else:
    _Base = object


_Socket = socket.socket  # the class below has an attribute of that name


class _ShutDownByName(threading.Event):
    """In the place of the event that ``BaseServer.shutdown`` waits for."""

    def __init__(self, remote: Remote) -> None:
        super().__init__()
        self._remote = remote

    def wait(self, timeout: float | None = None) -> bool:
        self._remote.shut_down()
        return True


class PreforkMixIn(_Base):
    """Put it first: ``class Server(PreforkMixIn, socketserver.TCPServer): ...``

    ``serve_forever()`` then forks workers that share the listening socket, each serving
    ``threads`` connections at a time, one by default, and replaces those that end or hang.
    It works from any thread; it returns after a signal (on the main thread) or
    ``shutdown()`` when every worker is gone. The server is closed by then.

    How many workers, and how patient it is, says the class attribute ``settings``
    or the keyword argument of that name. Nothing else about the class changes, but
    that memory is not shared: what a handler changes, it changes in its worker.

    ``socket`` may be one that ``SSLContext.wrap_socket(..., server_side=True)`` made. The
    handshake is then made in the worker, right before the handler.

    A subclass may define hooks: ``before_fork()``, ``after_fork(master)``,
    ``before_exit(master)``, ``ready(addresses)``, ``after_worker_exit(death)``; see ``Hooks``.
    In a worker ``server.master`` is the MasterHandle.
    """

    settings: Settings = Settings()
    master: MasterHandle
    socket: _Socket
    socket_type: int
    request_queue_size: int
    allow_reuse_address: bool
    max_packet_size: int  # of a datagram server
    _prefork_listener: Listener | None = None
    _prefork_key: str = ""  # by which a successor finds the socket
    _prefork_more: "list[Listener]"
    _prefork_terms: "Terms | None" = None  # if this is a TLS server
    _prefork_proxies: "Peers | tuple[()]" = ()  # who begin with a PROXY header

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.serve_forever is socketserver.BaseServer.serve_forever:
            raise TypeError(f"{cls.__name__}: PreforkMixIn goes before the server class")

    def __init__(self, *args: Any, settings: Settings | None = None, **kwargs: Any) -> None:
        if settings is not None:
            self.settings = settings
        check_threads(type(self), self.settings)
        load()  # now: the program may change its root directory or its user before it serves
        self._prefork_remote = Remote()
        self._prefork_more = []
        fill_standard_descriptors()
        # The standard library's own defaults (a queue of 5, and 60 s before a port can be
        # had again) are for another kind of server; any other class means what it says.
        # Of datagram servers it would let two have one port.
        stream = self.socket_type == socket.SOCK_STREAM
        for name, value in (("request_queue_size", BACKLOG), ("allow_reuse_address", stream)):
            if not self._prefork_means(name):
                setattr(self, name, value)
        super().__init__(*args, **kwargs)
        self._prefork_answer_to(self._prefork_remote)

    def _prefork_means(self, name: str) -> bool:
        """Whether a class that is not the standard library's says something of this."""
        return any(name in vars(c) for c in type(self).__mro__ if c.__module__ != "socketserver")

    def _prefork_answer_to(self, remote: Remote) -> None:
        self._prefork_remote = remote
        # Some call the shutdown() of their base by its full name, past ours: there it waits.
        vars(self)["_BaseServer__is_shut_down"] = _ShutDownByName(remote)

    def server_bind(self) -> None:
        """Bind as the class does; after an upgrade, take over what the old master left."""
        self._prefork_key = key_of(self.socket, self.server_address)
        with as_heir(self.socket, self._prefork_key):
            super().server_bind()  # type: ignore[misc]

    def serve_forever(self, poll_interval: float = 0.5, *args: Any, **kwargs: Any) -> None:
        """Fork workers, and serve until a signal or ``shutdown()`` ends it.

        This stands in the place of the class's own, and takes what that may have taken;
        nothing is polled for. Raises ConfigError for settings that cannot be, BootError
        if no worker gets ready.
        """
        try:
            # Settings that cannot be end it, too, for whoever waits for it in another thread.
            with self._prefork_remote.running():
                self._prefork_launch().run()
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

    def stats(self) -> "Stats":
        """What the server is doing, from any thread, or in a worker; after its end what it had
        done. RuntimeError before the start."""
        return self._prefork_remote.stats()

    def _prefork_launch(self) -> Launch:
        settings = self._prefork_settled()
        check_threads(type(self), settings)
        check_handler(type(self), self.RequestHandlerClass)
        if self.socket.fileno() >= 0 and self.socket_type == socket.SOCK_STREAM:
            bound = self.socket.getsockname()
            bound = bound[:2] if isinstance(bound, tuple) else bound
            check_status_address(settings.status, [Address(self.socket.family, bound)])
        name = settings.app_name or type(self).__name__
        return Launch(
            settings=settings,
            app_name=name,
            logger=logger_named(None),
            remote=self._prefork_remote,
            work=self._prefork_work,
            hooks=Hooks(**{name: self._prefork_hook(name) for name in HOOKS}),
            listening=self._prefork_listening,
            renew=self._prefork_renew,
        )

    @contextmanager
    def _prefork_listening(self) -> Iterator[list[Listener]]:
        yield [self._prefork_first(), *self._prefork_more]

    def _prefork_renew(self) -> None:
        """Read anew, in the master, what is read from files: for workers forked from then on.
        Raises ConfigError if it cannot be; then all stays as it is."""

    def _prefork_first(self) -> Listener:
        """The listener of ``self.socket``, taken apart if it is one for TLS."""
        sock = self.socket
        if sock.fileno() < 0:
            raise ConfigError("this server has served already, and is closed; make a new one")
        if not (is_tls(sock) or type(sock) is socket.socket):
            raise ConfigError(
                f"the listener must be a plain socket or an SSLSocket, not a {type(sock).__name__}"
            )
        if is_deaf(sock):
            raise ConfigError(
                "nobody could come in, since the socket is not bound or does not listen: "
                "call server_bind() and server_activate() before, or let the constructor do it"
            )
        listener = self._prefork_listener
        # Whoever wrapped the socket since we bound it has emptied ours.
        wrapped = listener and listener.socket.fileno() < 0 and sock.getsockname()
        if not listener or (listener.socket is not sock and wrapped != self.server_address):
            listener = adopt(sock, listener.key if listener else self._prefork_key)
        if is_tls(sock):
            from .tls import take_apart

            if self._prefork_terms:
                raise ConfigError(
                    "the listener is wrapped already: either wrap it, or give ssl_context or "
                    "certfile to the server, which wraps each connection"
                )
            # socket.accept() below an SSLSocket would speak plain text on a TLS port, and
            # its own would wait there for the handshake of one client, and for nobody else.
            plain, self._prefork_terms = take_apart(sock)
            self.socket = plain
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
        loop, heartbeat = master.accept_loop, master.heartbeat
        if self._prefork_terms:
            loop.acceptor.wrap = self._prefork_terms.wrap
        self._prefork_greet_first()
        if master.inline:
            vars(self)["finish_request"] = self._prefork_remote.handing(self.finish_request)
        elsewhere = Elsewhere(self, heartbeat.fail, heartbeat.exited, heartbeat.hold)
        verify = getattr(self.verify_request, "__func__", None)
        always = verify is socketserver.BaseServer.verify_request
        process = (
            self.process_request if always else self._prefork_if_verified(self.process_request)
        )
        park = self._prefork_parking(loop)
        if park and not always:
            park = self._prefork_if_verified(park)
        reception = Reception(self, loop, self._prefork_settled(), process)
        loop.accept = reception.accept
        if not master.inline:
            tell_of_lost_state(self, master)
        each_time = self.service_actions
        if getattr(each_time, "__func__", None) is socketserver.BaseServer.service_actions:
            each_time = nothing  # which is not called
        loop.run(reception.process, park, self._prefork_failed, each_time)
        while elsewhere.is_busy():
            heartbeat.beat()
        loop.close()

    def _prefork_if_verified(self, serve: Callable[[Any, Any], object]) -> Callable[..., object]:
        def verified(request: Any, peer: Any) -> None:
            if self.verify_request(request, peer):
                serve(request, peer)
            else:
                self.shutdown_request(request)

        return verified

    def _prefork_parking(self, loop: AcceptLoop) -> Callable[[Any, Any], object] | None:
        """What is called with a connection that costs no worker until it asks for something;
        None if each has a worker from its first byte to its last."""
        return None

    def _prefork_greet_first(self) -> None:
        """In the handler's time and place, which with ThreadingMixIn is a thread of its own:
        a silent client must not keep others from being accepted."""
        if not (self._prefork_terms or self._prefork_proxies):
            return
        finish = self.finish_request

        def finish_request(request: Any, peer: Any) -> None:
            try:
                peer = self._prefork_greet(request, peer)
            except OSError as error:
                self._prefork_report(request, peer, error)
            else:
                finish(request, peer)

        vars(self)["finish_request"] = finish_request

    def _prefork_greet(self, request: Any, peer: Any) -> Any:
        """What comes before anything the handler reads. Returns for whom the client speaks."""
        terms = self._prefork_terms
        if peer in self._prefork_proxies:
            from .proxy import introduced

            peer = introduced(request, peer, self._prefork_patience())
            self.master.heartbeat.meet(peer)
        if terms and terms.handshake:
            from .tls import shake_hands

            shake_hands(request, self._prefork_patience())
        return peer

    def _prefork_patience(self) -> float:
        """Seconds for all of a handshake. What a foreign class calls so is not asked."""
        from .tls import HANDSHAKE

        return HANDSHAKE

    def _prefork_failed(self, request: Any, peer: Any, error: BaseException) -> None:
        """What a handler raised. Nothing that happens in a connection ends the worker."""
        master = self.master
        try:
            self._prefork_report(request, peer, error)
        finally:
            try:
                self.shutdown_request(request)
            except Exception:
                master.logger.exception("shutdown_request failed", extra={"event": "close_failed"})
                with suppress(Exception):
                    request.close()

    def _prefork_report(self, request: Any, peer: Any, error: BaseException) -> None:
        master = self.master
        if isinstance(error, KeyboardInterrupt) and master.inline:
            raise error  # a second Ctrl-C, which ends a program that is being debugged
        if isinstance(error, SystemExit):
            master.heartbeat.exited(error)  # it asks for a new worker, after this one's manners
            return
        text = address_text(peer) if peer else "a client"
        extra = {"event": "request_failed", "worker": master.slot, "pid": os.getpid()}
        if getattr(error, "by_client", False):
            master.logger.debug("%s is gone: %s", text, printable(str(error)), extra=extra)
            return
        master.heartbeat.fail(error)
        logger = logger_named(master.logger)
        if type(self).handle_error is socketserver.BaseServer.handle_error:
            logger.error("handler failed for %s", text, exc_info=error, extra=extra)
        else:
            try:
                self.handle_error(request, peer)
            except Exception:
                logger.exception("handle_error failed for %s", text, extra=extra)
