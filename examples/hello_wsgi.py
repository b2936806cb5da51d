"""A WSGI application by itself: python examples/hello_wsgi.py 127.0.0.1:8000 unix:hello.sock"""

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from prefork_server import serve


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = f"Hello {environ['PATH_INFO']} from process {os.getpid()}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    return [body]


if __name__ == "__main__":
    serve(app, *sys.argv[1:], workers=4, access_log=True)
