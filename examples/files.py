"""The files of a directory, sent by the kernel: python examples/files.py 127.0.0.1:8000 docs

The standard library's handler on top of ours: strict, kept alive, and limited.
"""

import functools
import sys
from http.server import SimpleHTTPRequestHandler

from prefork_server import HTTPRequestHandler, PreforkHTTPServer


class Files(HTTPRequestHandler, SimpleHTTPRequestHandler):
    access_log = True
    keep_alive_timeout = 15.0


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8000"
    handler = functools.partial(Files, directory=sys.argv[2] if len(sys.argv) > 2 else ".")
    with PreforkHTTPServer(address, handler, workers=4) as server:
        server.serve_forever()
