"""Any http.server handler, in processes: the mix-in goes first. Open http://127.0.0.1:8000/"""

import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from prefork_server import PreforkMixIn, Settings


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"Hello from process {os.getpid()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(PreforkMixIn, HTTPServer):
    settings = Settings(workers=4, client_timeout=10)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    with Server(("127.0.0.1", port), Hello) as server:
        server.serve_forever()
