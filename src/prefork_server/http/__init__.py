"""HTTP for prefork servers: the API of ``http.server``, strict, fast, and safe with slow clients.

The core never imports it.
"""

from .handler import HTTPRequestHandler
from .server import PreforkHTTPServer
from .wire import Limits

__all__ = ["HTTPRequestHandler", "Limits", "PreforkHTTPServer"]
