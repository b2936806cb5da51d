"""The socketserver pattern, preforked.

``PreforkMixIn`` turns any ``socketserver`` server, written by anyone, into a
supervised multi-process one; the servers here are the standard library's with it.
"""

import os
import socket
import socketserver
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Unpack

from .acceptor import Acceptor
from .elsewhere import Elsewhere
from .errors import ConfigError
from .job import HOOKS, Hooks, Job, nothing
from .launch import Launch
from .listeners import (
    BACKLOG,
    Address,
    AddressLike,
    Listener,
    address_text,
    adopt,
    bind,
    listen,
    parse,
    parse_all,
    unix_address,
)
from .logfiles import fill_standard_descriptors, logger_named
from .remote import Remote
from .settings import Settings, SettingsKeywords, settle
from .worker import MasterHandle

if TYPE_CHECKING:
    _Base = socketserver.BaseServer
else:
    _Base = object

HandlerClass = Callable[[Any, Any, Any], socketserver.BaseRequestHandler]


_Taken = tuple[Any, Any] | None
_STANDARD = (socketserver.TCPServer.get_request, socketserver.UDPServer.get_request)


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
    socket_type: int
    request_queue_size: int
    allow_reuse_address: bool
    max_packet_size: int  # of a datagram server
    _prefork_listener: Listener | None = None
    _prefork_more: "list[Listener]"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.serve_forever is socketserver.BaseServer.serve_forever:
            raise TypeError(f"{cls.__name__}: PreforkMixIn goes before the server class")

    def __init__(self, *args: Any, settings: Settings | None = None, **kwargs: Any) -> None:
        if settings is not None:
            self.settings = settings
        self._prefork_remote = Remote()
        self._prefork_more = []
        fill_standard_descriptors()
        # The standard library's own defaults (a queue of 5, and 60 s before a port can be
        # had again) are for another kind of server; any other class means what it says.
        # Of datagram servers it would let two have one port.
        stream = self.socket_type == socket.SOCK_STREAM
        for name, value in (("request_queue_size", BACKLOG), ("allow_reuse_address", stream)):
            if not any(
                name in vars(c) for c in type(self).__mro__ if c.__module__ != "socketserver"
            ):
                setattr(self, name, value)
        super().__init__(*args, **kwargs)

    def serve_forever(self, poll_interval: float = 0.5, *args: Any, **kwargs: Any) -> None:
        """Fork workers, and serve until a signal or ``shutdown()`` ends it.

        This stands in the place of the class's own, and takes what that may have taken;
        nothing is polled for. Raises ConfigError for settings that cannot be, BootError
        if no worker gets ready.
        """
        self._prefork_launch().run()

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

    def _prefork_launch(self) -> Launch:
        settings = self._prefork_settled()
        name = settings.app_name or type(self).__name__
        return Launch(settings, name, logger_named(None), self._prefork_remote, self._prefork_job)

    @contextmanager
    def _prefork_job(self) -> Iterator[Job]:
        launch = self._prefork_launch()
        yield Job(
            settings=launch.settings,
            app_name=launch.app_name,
            logger=launch.logger,
            work=self._prefork_work,
            listeners=[self._prefork_listening(), *self._prefork_more],
            hooks=Hooks(**{name: self._prefork_hook(name) for name in HOOKS}),
        )

    def _prefork_listening(self) -> Listener:
        sock = self.socket
        if sock.fileno() < 0:
            raise ConfigError("this server has served already, and is closed; make a new one")
        if type(sock) is not socket.socket:
            # socket.accept() below an SSLSocket would speak plain text on a TLS port.
            raise ConfigError(
                f"the listener must be a plain socket, not a {type(sock).__name__}: "
                "wrap each connection instead, in get_request()"
            )
        listener = self._prefork_listener
        return listener if listener and listener.socket is sock else adopt(sock)

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
        take = self._prefork_taking(master, acceptor)
        elsewhere = Elsewhere(self)
        for listener in master._waiting(self.service_actions):
            try:
                taken = take(listener)
            except OSError as error:
                acceptor.failed(error)
            except Exception:  # user code, before there is anybody to answer
                master.logger.exception("get_request failed", extra={"event": "request_failed"})
            else:
                if taken is not None:
                    self._prefork_serve(master, *taken)
        while elsewhere.is_busy():
            master._beat()
        acceptor.hang_up()

    def _prefork_taking(
        self, master: MasterHandle, acceptor: Acceptor
    ) -> Callable[[socket.socket], _Taken]:
        """How to take a request. The standard ``get_request`` is replaced by what makes a
        Connection, or never waits for a datagram; an overridden one is the class's own
        business, and is asked."""
        settings = self._prefork_settled()

        long = max(settings.timeout or 0, settings.client_timeout or 0)

        def accept(listener: socket.socket) -> _Taken:
            taken = acceptor.accept(listener)
            if taken:
                master._took(taken[1])
            return taken

        def receive(listener: socket.socket) -> _Taken:
            taken = acceptor.receive(listener, self.max_packet_size)
            if taken:
                master._took(taken[1])
            return taken

        def ask(listener: socket.socket) -> _Taken:
            self.socket = listener  # all that it knows
            if listener.type == socket.SOCK_STREAM:
                taken = self.get_request()
            else:
                # Who loses the race for a datagram must not wait for the next one.
                self.socket = answering = acceptor.answering(listener)
                with answering.without_waiting():
                    taken = self.get_request()
            acceptor.took(taken[0])
            master._took(taken[1])
            if settings.timeout and settings.client_timeout:
                # Reading from it and writing to it may give no signs of life.
                master.wants_me_alive(long)
            return taken

        if type(self).get_request not in _STANDARD:
            return ask
        return accept if self.socket_type == socket.SOCK_STREAM else receive

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


class _OwnServer(PreforkMixIn):
    """What our own servers share: addresses checked, and bound by our rules; a list of them;
    the settings as keywords, too; ``start()``."""

    address_family: int
    server_address: Any

    def __init__(
        self,
        server_address: AddressLike | list[AddressLike],
        RequestHandlerClass: HandlerClass,  # noqa: N803 - socketserver's name
        bind_and_activate: bool = True,
        *,
        settings: Settings | None = None,
        **keywords: Unpack[SettingsKeywords],
    ) -> None:
        if isinstance(server_address, list):
            self._prefork_addresses = parse_all(server_address, self._prefork_parse)
        else:
            self._prefork_addresses = (self._prefork_checked(server_address),)
        first = self._prefork_addresses[0]
        settled = settle(self.settings if settings is None else settings, keywords)
        if type(self).address_family != socket.AF_INET6 or first.family == socket.AF_UNIX:
            self.address_family = first.family
        super().__init__(first.name, RequestHandlerClass, bind_and_activate, settings=settled)

    @property
    def addresses(self) -> list[str]:
        """Where it listens, each as one would write it: ``127.0.0.1:9000``, ``unix:/path``."""
        listeners = [self._prefork_listening(), *self._prefork_more]
        return [listener.address for listener in listeners]

    def start(self) -> int:
        """Serve as a daemon; return its pid when its first worker is ready.

        What it prints goes to ``/dev/null``, and its log to ``./<app_name>.log``, unless
        the settings, or the logging of the program, say otherwise. It never comes back
        here. This server is closed: the sockets are the daemon's. Raises BootError, which
        says why, if it ends before it is ready. To be called in the main thread.
        """
        pid = self._prefork_launch().start()
        for listener in (self._prefork_listening(), *self._prefork_more):
            listener.leave()
        return pid

    def server_bind(self) -> None:
        """Bind and listen. Raises BindError; an address in use is tried for 2 s."""
        first, *more = self._prefork_addresses
        if self.server_address != first.name:  # changed between the making and this
            first = self._prefork_checked(self.server_address)
        if self.allow_reuse_address:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if getattr(self, "allow_reuse_port", False):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._prefork_listener = bind(self.socket, first, self.request_queue_size)
        self.server_address = self.socket.getsockname()
        for address in more:
            kind = socket.SocketKind(self.socket_type)
            self._prefork_more.append(listen(address, self.request_queue_size, kind))

    def server_close(self) -> None:
        """Close the listening sockets, and remove their paths if we made them."""
        if self._prefork_listener:
            self._prefork_listener.unlink()
        for listener in self._prefork_more:
            listener.close()
        super().server_close()

    def _prefork_settled(self) -> Settings:
        return self.settings

    @classmethod
    def _prefork_checked(cls, given: Any) -> Address:
        """The one address of a server, which must be of its own kind."""
        address = cls._prefork_parse(given)
        if address.family == socket.AF_UNIX:
            cure = cls.__name__.replace("TCP", "UnixStream").replace("UDP", "UnixDatagram")
            raise ConfigError(f"{address} alone is for a {cure}, this is a {cls.__name__}")
        return address

    @staticmethod
    def _prefork_parse(given: Any) -> Address:
        return parse(given)


class PreforkTCPServer(_OwnServer, socketserver.TCPServer):
    """``socketserver.TCPServer``, preforked.

    ``server_address`` is ``(host, port)``, or a text: ``"127.0.0.1:9000"``,
    ``"[::1]:9000"``. It may be a list of addresses, among them ``"unix:/path"``; then
    ``server_address`` and ``socket`` are the first one's, and ``addresses`` says all. The
    keywords are those of ``Settings``. ``bind_and_activate`` is the standard library's:
    False means that you call ``server_bind()`` yourself. Raises ConfigError and
    BindError, which is an ``OSError``.
    """


class PreforkUDPServer(_OwnServer, socketserver.UDPServer):
    """``socketserver.UDPServer``, preforked; addresses as with ``PreforkTCPServer``.

    ``self.request`` is ``(data, socket)``: answer by ``socket.sendto(answer,
    self.client_address)``. Each datagram goes to one worker. What is longer than
    ``max_packet_size`` bytes (8192) is cut, as in the standard library.
    """


class _UnixServer(_OwnServer):
    @classmethod
    def _prefork_checked(cls, given: Any) -> Address:
        if isinstance(given, str):
            given = given.removeprefix("unix:")
        return unix_address(given)

    @classmethod
    def _prefork_parse(cls, given: Any) -> Address:
        return parse(given) if isinstance(given, tuple) else cls._prefork_checked(given)


class PreforkUnixStreamServer(_UnixServer, socketserver.UnixStreamServer):
    """``socketserver.UnixStreamServer``, preforked.

    ``server_address`` is a path, of 107 bytes at most; ``"@name"`` is an abstract
    one. The socket has mode 0600. The one of a dead server is replaced, anything
    else that is there is left alone (BindError); it is removed when the server stops.
    In a list of addresses a text is a path, too, and a ``(host, port)`` is TCP.
    """


class PreforkUnixDatagramServer(_UnixServer, socketserver.UnixDatagramServer):
    """``socketserver.UnixDatagramServer``, preforked; paths as with
    ``PreforkUnixStreamServer``, requests as with ``PreforkUDPServer``.

    Only clients that have bound a path of their own can be answered.
    """
