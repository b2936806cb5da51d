"""A shop that shows what it does: python examples/shop.py 127.0.0.1:8000 127.0.0.1:9100"""

import sys
import time

from prefork_server import (
    HTTPRequestHandler,
    PreforkHTTPServer,
    SharedCounter,
    current_master,
)

orders = SharedCounter("orders")  # before the fork: all workers add to it


class Shop(HTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802
        current_master().note(f"GET {self.path}")
        match self.path:
            case "/order":
                orders.add()
            case "/lost":
                raise LookupError("no such thing in this shop")
            case "/hang":
                time.sleep(1000)
        time.sleep(0.004)  # what a database takes
        body = b"%d orders so far\n" % orders.value
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    address, status = [*sys.argv[1:], "127.0.0.1:8000", "127.0.0.1:9100"][:2]
    with PreforkHTTPServer(
        address, Shop, workers=8, timeout=2, status=status, app_name="shop"
    ) as server:
        server.serve_forever()
