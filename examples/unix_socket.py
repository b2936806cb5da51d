"""Lines over a UNIX socket, which nobody but its owner may open; the kernel says who asks.

Serve: python unix_socket.py whoami.sock - ask, in another terminal: nc -U whoami.sock,
or python unix_socket.py whoami.sock hello. When the server stops, the path is removed.
"""

import os
import socket
import socketserver
import struct
import sys

from prefork_server import PreforkUnixStreamServer


class Whoami(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        # Taken down by the kernel at connect(): no client can claim to be another one.
        three = struct.Struct("3i")
        raw = self.request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, three.size)
        pid, uid, _gid = three.unpack(raw)
        for line in self.rfile:
            who = f"process {pid} of user {uid}, answered by {os.getpid()}: "
            self.wfile.write(who.encode() + line)


def ask(path: str, line: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(path)
        client.sendall(line.encode() + b"\n")
        with client.makefile() as answers:
            return answers.readline()


if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else "whoami.sock"
    if len(sys.argv) > 2:
        print(ask(path, " ".join(sys.argv[2:])), end="")
    else:
        with PreforkUnixStreamServer(path, Whoami, workers=2) as server:
            server.serve_forever()
