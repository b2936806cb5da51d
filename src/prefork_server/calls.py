"""Checks of the callables that a constructor is given: arguments, and no coroutine functions.

A wrong one would be called in a worker, at each connection or each start of one, and fail there
for ever, while the server says that it is ready.
"""

import functools
import inspect
import socketserver
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, Final

from .errors import ConfigError

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_STEPS: Final = ("setup", "handle", "finish")
_CALLERS: Final = ("http", "socketserver", __package__)


def check_call(
    name: str,
    value: Any,
    arguments: str,
    cure: str,
    awaited: bool = False,
    iterated: bool = False,
) -> None:
    """``name`` of a constructor is called as ``value(arguments)``; ``awaited``: a coroutine
    function will do; ``iterated``: a generator function will do, whose call runs nothing of it.
    Raises ConfigError with ``cure``."""
    wrong = ""
    if not callable(value):
        wrong = "cannot be called"
    elif not awaited and is_async(value):
        wrong = "is async, and would not be awaited"
    elif not iterated and inspect.isgeneratorfunction(value):
        wrong = "is a generator function: a call runs nothing of it"
    else:
        # One that is written in C may show no parameters.
        with suppress(TypeError, ValueError):
            signature = inspect.signature(value, follow_wrapped=False)
            if not takes(signature, len(arguments.split(", ")) if arguments else 0):
                wrong = f"takes {signature}"
    if wrong:
        its = getattr(value, "__qualname__", f"{value!r:.200}")
        raise ConfigError(f"{name} is called with ({arguments}), and {its} {wrong}: {cure}")


def check_handler(server: type[Any], handler: Any) -> None:
    """Whether this ``RequestHandlerClass`` is one for such a server. Raises ConfigError."""
    if server.finish_request is not socketserver.BaseServer.finish_request:
        return  # a way of its own to call it, or not to
    if isinstance(handler, type) and issubclass(handler, socketserver.BaseRequestHandler):
        datagrams = issubclass(server, socketserver.UDPServer)
        other: type[Any] = socketserver.DatagramRequestHandler
        if datagrams:
            other = socketserver.StreamRequestHandler
        if issubclass(handler, other):
            has = "datagrams" if datagrams else "streams"
            raise ConfigError(
                f"{handler.__name__} is a {other.__name__}, and {server.__name__} has {has}"
            )
        _check_names(handler)
        for name in dir(handler) if _is_called_by_us(handler) else _STEPS:
            if name in _STEPS or (name.startswith("do_") and name[3:].isupper()):
                its = f"{handler.__name__}.{name} is"
                if is_async(getattr(handler, name)):
                    raise ConfigError(
                        f"{its} async, and would not be awaited: coroutine functions are for "
                        "PreforkAsyncioServer"
                    )
                if inspect.isgeneratorfunction(getattr(handler, name)):
                    raise ConfigError(
                        f"{its} a generator function: a call runs nothing of it; write to wfile "
                        "what it yields"
                    )
    check_call(
        "RequestHandlerClass",
        handler,
        "request, client_address, server",
        "give a subclass of socketserver.BaseRequestHandler; a WSGI application is for "
        "PreforkWSGIServer, a coroutine function for PreforkAsyncioServer",
    )


def _check_names(handler: type[Any]) -> None:
    """A misspelt ``handle()`` or ``do_GET()`` would never be called, and each client would have
    nothing or a 501. Raises ConfigError."""
    plain = socketserver.StreamRequestHandler
    if handler.handle is plain.handle:
        own = [name for name in dir(handler) if not hasattr(plain, name)]
        methods = [name for name in own if callable(getattr(handler, name))]
        for name in get_close_matches("handle", methods, n=1, cutoff=0.8):
            raise ConfigError(f"{handler.__name__} has no handle(): did you mean that by {name}()?")
    for method in _METHODS:
        name, its = f"do_{method.lower()}", f"do_{method}"
        if hasattr(handler, name) and not hasattr(handler, its) and _is_called_by_us(handler):
            raise ConfigError(f"{handler.__name__}.{name} would not be called: write {its}")


def _is_called_by_us(handler: type[Any]) -> bool:
    """Whether ``do_GET()`` and all are called by code of ours, or of the standard library."""
    ways = [getattr(handler, name, None) for name in ("handle", "handle_one_request", "dispatch")]
    modules = [getattr(way, "__module__", None) or "" for way in ways if way is not None]
    return all(module.partition(".")[0] in _CALLERS for module in modules)


def is_async(value: Any) -> bool:
    """Whether a call of it returns a coroutine, or an asynchronous generator. A function that a
    wrapper has around it is not looked at: the wrapper may run it."""
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, type):
        return False
    return any(
        test(each)
        for each in (value, getattr(value, "__call__", None))  # noqa: B004 - to look at it
        for test in (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    )


def takes(signature: inspect.Signature, count: int) -> bool:
    """Whether it can be called with so many positional arguments."""
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True
