"""HTTP for prefork servers: the API of ``http.server``, strict, fast, and safe with slow clients,
and WSGI on top of it.

The core never imports it.
"""

from .application import PreforkWSGIServer, serve
from .handler import HTTPRequestHandler
from .server import PreforkHTTPServer
from .wire import Limits
from .wsgi import WSGIRequestHandler

__all__ = [
    "HTTPRequestHandler",
    "Limits",
    "PreforkHTTPServer",
    "PreforkWSGIServer",
    "WSGIRequestHandler",
    "serve",
]
