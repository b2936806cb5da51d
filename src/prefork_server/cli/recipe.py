"""From a thing to a server of it: which class, and built around sockets that are bound already."""

import inspect
import os
import socket
import socketserver
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConfigError
from ..listeners import Listener
from ..mixin import PreforkMixIn
from ..remote import Remote
from ..servers import PreforkTCPServer, PreforkUDPServer
from ..settings import Settings
from ..worker.threads import WORKS, check_threads
from .options import Misuse
from .target import LoadError, Thing, users_traceback, words_for

_FILES = ("certfile", "keyfile")


@dataclass(frozen=True)
class Recipe:
    """``server`` is None for a work function, which is ``handler`` then. Else that is what
    the class is given besides the address: None if nothing."""

    name: str
    kind: str
    server: type[Any] | None
    handler: Any
    keywords: Mapping[str, Any]

    @property
    def datagram(self) -> bool:
        if self.kind == "protocol":
            import asyncio

            return issubclass(self.handler, asyncio.DatagramProtocol)
        return getattr(self.server, "socket_type", None) == socket.SOCK_DGRAM

    @property
    def loops(self) -> bool:
        """Whether its workers run event loops."""
        return hasattr(self.server, "_prefork_shares")

    def check(self, settings: Settings) -> None:
        """Whether the settings, with those of the class, are for this. Raises ConfigError."""
        if self.loops:
            self.server._prefork_check(settings)  # type: ignore[union-attr]
        else:
            check_threads(self.server or WORKS, settings)

    def __str__(self) -> str:
        by = f", by {self.server.__name__}" if self.server and self.kind != "server" else ""
        if by and self.loops:
            from ..aio.loops import choose

            by += f", in loops of {choose(self.keywords.get('loop', 'auto')).name}"
        return f"{self.name}, {words_for(self.kind)}{by}"

    @property
    def said(self) -> dict[str, Any]:
        """The settings that the class itself says."""
        settings = getattr(self.server, "settings", None)
        if not isinstance(settings, Settings):
            return {}
        said = vars(settings)["_said"]
        return {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in said.items()}

    @property
    def alpn(self) -> Sequence[str] | None:
        """What is offered over TLS; None of a class that has its own way with certificates."""
        if self.server is None or self.kind == "server":
            return None
        return getattr(self.server, "_prefork_alpn", ())

    def over_tls(self, context: Any) -> "Recipe":
        """The same with a context in place of the files."""
        return replace(self, keywords={**self._without_files(), "ssl_context": context})

    def _without_files(self) -> dict[str, Any]:
        return {name: self.keywords[name] for name in self.keywords if name not in _FILES}

    def try_out(self) -> None:
        """Make one of our own classes, and bind nothing: it looks at its keywords. What a class
        of the user's would do, nobody knows. Raises ConfigError."""
        if self.loops and self.kind != "server":
            self.make_loop((), Settings(), Remote(), None)
        elif self.server and self.kind != "server":
            keywords = self._without_files()  # which the master reads by itself
            self.server(["127.0.0.1:0"], self.handler, False, **keywords).server_close()

    def make(self, listeners: Sequence[Listener], settings: Settings, remote: Remote) -> Any:
        """The server, on these sockets. Raises LoadError, and ConfigError."""
        served = _around(self.server, listeners, settings)  # type: ignore[arg-type]
        address = _as_written(listeners, several=hasattr(served, "_prefork_inherited"))
        try:
            args = [address] if self.handler is None else [address, self.handler]
            server = served(*args, **self.keywords)
            if not _same(server.socket, listeners[0].socket):
                server.socket.close()
                raise Misuse(
                    f"{self.name} binds a socket of its own: to be served by this command it "
                    "must bind by the server_bind() of socketserver.TCPServer, when it is made"
                )
            server._prefork_first()  # one for TLS is taken apart
        except Exception as error:  # user code: the constructor
            if isinstance(error, ConfigError) and (self.kind != "server" or type(error) is Misuse):
                raise
            last = f"{type(error).__name__}: {error}"
            text = f"cannot make a server of {self.name}: {last}"
            raise LoadError(text, users_traceback(error)) from error
        # What is closed when the queue is drained must be all there is.
        server.socket.close()
        server.socket = listeners[0].socket
        server._prefork_more = list(listeners[1:])
        server._prefork_answer_to(remote)
        return server

    def make_loop(
        self, listeners: Sequence[Listener], settings: Settings, remote: Remote, shares: Any
    ) -> Any:
        """What a worker lives by, of a server with loops. ``shares`` are those of all workers.
        Raises as ``make`` does."""
        said = {"settings": settings, "_prefork_inherited": listeners, "_prefork_shares": shares}
        its = {"asyncio": "client_connected_cb", "protocol": "protocol_factory"}
        handler = {its[self.kind]: self.handler} if self.kind in its else {}
        cls: Any = self.server
        try:
            addresses = [listener.address for listener in listeners]
            server = _with(cls, said)(addresses, **handler, **self._without_files())
        except Exception as error:  # user code: the constructor
            if isinstance(error, ConfigError) and self.kind != "server":
                raise
            text = f"cannot make a server of {self.name}: {type(error).__name__}: {error}"
            raise LoadError(text, users_traceback(error)) from error
        server._prefork_remote = remote
        return server._prefork_life()


def recipe(thing: Thing, said: str | None, udp: bool, keywords: Mapping[str, Any]) -> Recipe:
    """Raises Misuse. ``udp``: the addresses are for datagrams."""
    kind = thing.recognise(said)
    server: type[Any] | None = None
    handler = None
    if kind == "handler":
        server = _for_handler(thing.value, udp)
        its = {name: keywords[name] for name in keywords if hasattr(thing.value, name)}
        keywords = {name: keywords[name] for name in keywords if name not in its}
        handler = _with(thing.value, its)
    elif kind == "work":
        handler = thing.value
    elif kind == "server":
        server = _preforked(thing)
    elif kind in ("asyncio", "protocol"):
        from ..aio import PreforkAsyncioServer

        server, handler = PreforkAsyncioServer, thing.value
    elif kind == "wsgi":
        from ..http import PreforkWSGIServer

        server, handler = PreforkWSGIServer, thing.value
    if "keyfile" in keywords and "certfile" not in keywords and kind != "server":
        raise Misuse("--keyfile is for a --certfile, and there is none")
    what = server.__name__ if server else words_for(kind)
    for name in keywords:
        its_name = "ssl_context" if name in _FILES and kind in ("asyncio", "protocol") else name
        if server is None or not _knows(server, its_name):
            option = name.replace("_", "-")
            raise Misuse(f"--{option} is nothing for {what}, which takes no {name}=")
    if server and kind == "server":
        handler = _its_handler(thing.name, server, keywords)
    made = Recipe(thing.name, kind, server, handler, keywords)
    if udp and not made.datagram:
        raise Misuse(f"{thing.name} wants streams, and an address is for udp: ({what})")
    return made


def _with(handler: type[Any], said: Mapping[str, Any]) -> type[Any]:
    """The class, with these attributes."""
    named = {"__module__": handler.__module__, "__qualname__": handler.__qualname__}
    return type(handler.__name__, (handler,), {**said, **named}) if said else handler


def _for_handler(handler: type[Any], udp: bool) -> type[Any]:
    http = sys.modules.get("http.server")  # who has a handler of its kind has imported it
    if udp and issubclass(handler, socketserver.StreamRequestHandler):
        raise Misuse(f"{handler.__name__} wants streams, and an address is for udp:")
    if udp or issubclass(handler, socketserver.DatagramRequestHandler):
        return PreforkUDPServer
    if http and issubclass(handler, http.BaseHTTPRequestHandler):
        from ..http import PreforkHTTPServer

        return PreforkHTTPServer
    return PreforkTCPServer


def _preforked(thing: Thing) -> type[Any]:
    cls: type[Any] = thing.value
    if hasattr(cls, "_prefork_shares"):
        return cls
    if not hasattr(cls, "socket_type"):
        raise Misuse(f"{thing.name} is no subclass of socketserver.TCPServer or UDPServer")
    if issubclass(cls, PreforkMixIn):
        return cls
    return type(cls.__name__, (PreforkMixIn, cls), {"__module__": cls.__module__})


def _its_handler(name: str, server: type[Any], keywords: Mapping[str, Any]) -> Any:
    """What the class is to be given besides an address: None if it wants nothing more."""
    handler = getattr(server, "RequestHandlerClass", None) or getattr(server, "handler_class", None)
    made = next(c for c in server.__mro__ if "__init__" in vars(c) and c is not PreforkMixIn)
    signature = inspect.signature(vars(made)["__init__"])
    for args in ([handler] if handler else [], []):
        try:
            signature.bind(None, None, *args, **keywords)  # self and the address
        except TypeError:
            continue
        return args[0] if args else None
    raise Misuse(
        f"{name} is made of an address and a handler class, and names none: set its "
        "handler_class, or give the handler class itself"
    )


def _knows(server: type[Any], keyword: str) -> bool:
    made = [vars(cls)["__init__"] for cls in server.__mro__ if "__init__" in vars(cls)]
    return any(keyword in inspect.signature(one).parameters for one in made)


class _Bound(socket.socket):
    """Whoever wants to bind it, or sets it up for that, finds that done."""

    __slots__ = ()

    def bind(self, address: Any) -> None:
        pass


def _around(server: type[Any], listeners: Sequence[Listener], settings: Settings) -> type[Any]:
    """The same class, which finds its socket bound."""
    first = listeners[0].socket

    class Served(server):  # type: ignore[misc]
        socket: Any
        address_family = first.family
        _prefork_inherited = listeners

        def server_bind(self) -> None:
            self.socket.close()
            # A copy, for whatever the class does to it: wrap it for TLS, for instance.
            bound: Any = first.dup()
            bound.__class__ = _Bound
            self.socket = bound
            super().server_bind()
            bound.__class__ = socket.socket

        def _prefork_settled(self) -> Settings:
            return settings

    Served.__name__, Served.__qualname__ = server.__name__, server.__qualname__
    Served.__module__ = server.__module__
    return Served


def _as_written(listeners: Sequence[Listener], several: bool) -> Any:
    """The addresses, as a constructor takes them: ours a list, any other the first one."""
    names = [listener.socket.getsockname() for listener in listeners]
    inet = [name[:2] if isinstance(name, tuple) else None for name in names]
    if several:
        return [one or listener.address for one, listener in zip(inet, listeners, strict=True)]
    return inet[0] or names[0]


def _same(one: Any, other: socket.socket) -> bool:
    return one.fileno() >= 0 and os.path.sameopenfile(one.fileno(), other.fileno())
