"""Echo lines, in four processes. Talk to it: nc 127.0.0.1 9000 - stop it: Ctrl-C."""

import socketserver
import sys

from prefork_server import PreforkTCPServer


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9000"
    with PreforkTCPServer(address, Echo, workers=4) as server:
        server.serve_forever()
