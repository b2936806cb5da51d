"""Work for the processor: what threads cannot do at once, since they share the GIL.

Send a number, get how many primes there are below it.
"""

import os
import socketserver
import sys

from prefork_server import PreforkTCPServer


def count_primes(below: int) -> int:
    below = max(2, below)
    sieve = bytearray([1]) * below
    sieve[:2] = b"\0\0"
    for n in range(2, int(below**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, len(sieve), n)))
    return sum(sieve)


class Primes(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            try:
                answer = str(count_primes(min(int(line), 10_000_000)))
            except ValueError:
                answer = "send a whole number"
            self.wfile.write(f"{answer} (process {os.getpid()})\n".encode())


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9000"
    with PreforkTCPServer(address, Primes, workers=os.cpu_count() or 1) as server:
        server.serve_forever()
