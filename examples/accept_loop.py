"""The accept loop itself: no handler class, one generator."""

import sys

from prefork_server import MasterHandle, Preforker


def work(master: MasterHandle) -> None:
    served = 0
    for connection, _peer in master.connections():
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data.upper())
        served += 1
    # Reached when the master wants us to go, after what waited was served.
    master.logger.info("worker=%d served %d connections", master.slot, served)


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9000"
    Preforker(work, workers=4, listen=address, app_name="accept_loop").run()
