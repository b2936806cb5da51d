"""Many requests at once in each worker: python examples/threads_http.py 127.0.0.1:8000"""

import sys
import threading
import time

from prefork_server import HTTPRequestHandler, PreforkHTTPServer, current_master


class Slow(HTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        if self.path == "/slow":
            time.sleep(1)  # a database, or a service of somebody else's
        name, generation = threading.current_thread().name, current_master().generation
        body = f"{name}, generation {generation}\n".encode()
        self.respond(200, body, "text/plain; charset=utf-8")


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8000"
    with PreforkHTTPServer(address, Slow, workers=2, threads=8) as server:
        server.serve_forever()
