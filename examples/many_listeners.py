"""One server behind several doors: IPv4, IPv6 and a UNIX socket, all served by every worker.

Knock: nc 127.0.0.1 9000, nc ::1 9000, nc -U door.sock. Other doors: as arguments.
"""

import os
import socketserver
import sys

from prefork_server import PreforkTCPServer


class Door(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        door = self.request.getsockname()  # (host, port ...), or a path
        for line in self.rfile:
            self.wfile.write(f"{door} of process {os.getpid()}: ".encode() + line)


if __name__ == "__main__":
    addresses = sys.argv[1:] or ["127.0.0.1:9000", "[::1]:9000", "unix:door.sock"]
    with PreforkTCPServer(addresses, Door, workers=2) as server:
        print("\n".join(server.addresses), flush=True)
        server.serve_forever()
