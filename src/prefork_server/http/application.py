"""``PreforkWSGIServer`` and ``serve``: an application, checked before anything is bound."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias, Unpack

from ..calls import check_call, is_async
from ..errors import ConfigError
from ..listeners import Addresses, AddressLike
from ..servers import ServerKeywords
from ..settings import Settings
from .forwarded import believed
from .server import PreforkHTTPServer
from .wsgi import FileWrapper, WSGIRequestHandler

Application: TypeAlias = Callable[..., Any]  # (environ, start_response)


class PreforkWSGIServer(PreforkHTTPServer):
    """A WSGI application, preforked: ``PreforkWSGIServer(("127.0.0.1", 8000), app, workers=4)``.

    Addresses and keywords are those of ``PreforkHTTPServer``; besides, ``handler_class``, a
    subclass of ``WSGIRequestHandler`` with limits of its own, and ``access_log`` and
    ``forwarded_from``, which are attributes of that class, too. ``set_app()``, ``get_app()``,
    ``application`` and ``base_environ`` are as ``wsgiref.simple_server.WSGIServer`` has them;
    change them before ``serve_forever()``. Raises ConfigError for what is no WSGI application.
    """

    base_environ: dict[str, Any]
    application: Application

    def __init__(
        self,
        server_address: Addresses,
        application: Application,
        bind_and_activate: bool = True,
        *,
        handler_class: type[WSGIRequestHandler] = WSGIRequestHandler,
        access_log: bool | None = None,
        forwarded_from: Sequence[str] | None = None,
        settings: Settings | None = None,
        **keywords: Unpack[ServerKeywords],
    ) -> None:
        if not (isinstance(handler_class, type) and issubclass(handler_class, WSGIRequestHandler)):
            raise ConfigError(f"handler_class must be a WSGIRequestHandler, not {handler_class!r}")
        said: dict[str, Any] = {}
        if access_log is not None:
            if type(access_log) is not bool:
                raise ConfigError(f"access_log must be True or False, not {access_log!r}")
            said["access_log"] = access_log
        if forwarded_from is not None:
            believed(forwarded_from)
            said["forwarded_from"] = forwarded_from
        self.set_app(application)
        super().__init__(
            server_address,
            type(handler_class.__name__, (handler_class,), said) if said else handler_class,
            bind_and_activate,
            settings=settings,
            **keywords,
        )
        self.setup_environ()

    def setup_environ(self) -> None:
        """Set ``base_environ``, of which each request has a copy."""
        settings = self._prefork_settled()
        self.base_environ = {
            "SCRIPT_NAME": "",
            "wsgi.version": (1, 0),
            "wsgi.multithread": settings.threads > 1 and not settings.inline,
            "wsgi.multiprocess": not settings.inline,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,  # it ends where the body ends: who likes may just read
            "wsgi.file_wrapper": FileWrapper,
        }

    def get_app(self) -> Application:
        """Asked for each request."""
        return self.application

    def set_app(self, application: Application) -> None:
        """Raises ConfigError for what is no WSGI application."""
        _check(application)
        self.application = application


def serve(
    app: Application,
    *addresses: AddressLike,
    handler_class: type[WSGIRequestHandler] = WSGIRequestHandler,
    access_log: bool | None = None,
    forwarded_from: Sequence[str] | None = None,
    settings: Settings | None = None,
    **keywords: Unpack[ServerKeywords],
) -> None:
    """Serve a WSGI application until a signal ends it: ``serve(app, "127.0.0.1:8000", workers=4)``.

    ``addresses`` are ``"host:port"`` or ``"unix:/path"``, as many as there are; without any it
    is ``127.0.0.1:8000``. The keywords are those of ``PreforkWSGIServer``. Signals are heard
    in the main thread. Raises ConfigError, BindError and BootError, before anybody is served.
    """
    with PreforkWSGIServer(
        list(addresses) or ["127.0.0.1:8000"],
        app,
        handler_class=handler_class,
        access_log=access_log,
        forwarded_from=forwarded_from,
        settings=settings,
        **keywords,
    ) as server:
        server.serve_forever()


def _check(application: Any) -> None:
    if callable(application) and _is_asgi(application):
        raise ConfigError(
            f"{application!r} looks like an ASGI application, and WSGI is spoken here: wrap it "
            "(a2wsgi.ASGIMiddleware does that), or serve it by an ASGI server"
        )
    cure = "if it is a factory, call it"
    check_call("application", application, "environ, start_response", cure, iterated=True)


def _is_asgi(application: Any) -> bool:
    if is_async(application) or is_async(getattr(application, "__call__", None)):  # noqa: B004 - of a class
        return True
    with suppress(TypeError, ValueError):  # one that is written in C shows no parameters
        names = [*inspect.signature(application, follow_wrapped=False).parameters]
        return names == ["scope", "receive", "send"] or names == ["scope"]
    return False
