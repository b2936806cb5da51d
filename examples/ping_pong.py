"""A loop of your own: each worker answers ping with pong, as preforker's example does."""

import select
import socket
import sys

from prefork_server import MasterHandle, Preforker

listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 9000))
listener.setblocking(False)  # it is shared: whoever loses the race must not wait


def work(master: MasterHandle) -> None:
    while master.wants_me_alive():
        ready, _, _ = select.select([listener], [], [], 1)
        if ready:
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                continue
            with client:
                client.settimeout(2)
                if client.recv(64).strip() == b"ping":
                    client.sendall(f"pong from worker {master.slot}\n".encode())
    master.logger.info("worker=%d leaves the loop", master.slot)


if __name__ == "__main__":
    print(f"ping 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    Preforker(work, workers=3, timeout=5, app_name="ping_pong").run()
