"""What is counted where there is no worker."""

import socket
import threading

from prefork_server import PreforkWSGIServer
from tests.conftest import PATIENCE, read_all

# Counters


def test_a_wsgi_application_may_fail_where_there_is_no_worker() -> None:
    def fail(*_: object) -> list[bytes]:
        raise ValueError("of mine")

    with PreforkWSGIServer("127.0.0.1:0", fail) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        host, port = server.server_address
        with socket.create_connection((host, port), PATIENCE) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert read_all(client).startswith(b"HTTP/1.1 500 ")
        answering.join()
