"""Checks of the callables that a constructor is given: arguments, and no coroutine functions.

A wrong one would be called in a worker, at each connection or each start of one, and fail there
for ever, while the server says that it is ready.
"""

import inspect
import socketserver
from contextlib import suppress
from typing import Any, Final

from .errors import ConfigError

_CALLERS: Final = ("http", "socketserver", __package__)


def check_call(name: str, value: Any, arguments: str, cure: str, awaited: bool = False) -> None:
    """``name`` of a constructor is called as ``value(arguments)``; ``awaited``: a coroutine
    function will do. Raises ConfigError with ``cure``; also for a generator function, whose call
    runs nothing of it."""
    its = getattr(value, "__qualname__", f"{value!r:.200}")
    wrong = ""
    if not callable(value):
        wrong = "cannot be called"
    elif not awaited and is_async(value):
        wrong = "is async, and would not be awaited"
    elif inspect.isgeneratorfunction(value):
        wrong = "is a generator function: a call runs nothing of it"
    else:
        # One that is written in C may show no parameters.
        with suppress(TypeError, ValueError):
            signature = inspect.signature(value, follow_wrapped=False)
            if not takes(signature, len(arguments.split(", ")) if arguments else 0):
                wrong = f"takes {signature}"
    if wrong:
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
        for name in dir(handler) if _is_called_by_us(handler) else ["handle"]:
            if (name == "handle" or name.startswith("do_")) and is_async(getattr(handler, name)):
                raise ConfigError(
                    f"{handler.__name__}.{name} is async, and would not be awaited: coroutine "
                    "functions are for PreforkAsyncioServer"
                )
    check_call(
        "RequestHandlerClass",
        handler,
        "request, client_address, server",
        "give a subclass of socketserver.BaseRequestHandler; a WSGI application is for "
        "PreforkWSGIServer, a coroutine function for PreforkAsyncioServer",
    )


def _is_called_by_us(handler: type[Any]) -> bool:
    """Whether ``do_GET()`` and all are called by code of ours, or of the standard library."""
    ways = [getattr(handler, name, None) for name in ("handle", "handle_one_request", "dispatch")]
    return all(way is None or way.__module__.partition(".")[0] in _CALLERS for way in ways)


def is_async(value: Any) -> bool:
    """Whether a call of it returns a coroutine, or an asynchronous generator. A function that a
    wrapper has around it is not looked at: the wrapper may run it."""
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
