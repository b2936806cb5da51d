"""The time, to whoever sends a datagram. Ask: echo | nc -u -w1 127.0.0.1 9000"""

import os
import socketserver
import sys
from datetime import UTC, datetime

from prefork_server import PreforkUDPServer


class Time(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        _question, sock = self.request
        answer = f"{datetime.now(UTC).isoformat()} from process {os.getpid()}\n"
        sock.sendto(answer.encode(), self.client_address)


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9000"
    with PreforkUDPServer(address, Time, workers=2) as server:
        server.serve_forever()
