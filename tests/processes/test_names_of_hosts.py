"""Servers whose address is the name of a host: all its addresses are listened on."""

import socket
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Starter, read_all
from tests.processes.test_upgrade import stopped, upgraded

pytestmark = pytest.mark.executed

RESOLVER = """
    def getaddrinfo(host, port, family=0, kind=0, *_):
        found = {"six.test": ["::1"], "both.test": ["::1", "127.0.0.1"]}[host]
        return [(socket.AF_INET6, kind, 6, "", (each, port, 0, 0)) if ":" in each
                else (socket.AF_INET, kind, 6, "", (each, port)) for each in found]
    socket.getaddrinfo = getaddrinfo
    sys.path.insert(0, '.')
    from served import Tell
    name, port = sys.argv[1:]
"""
SERVED = """
import os, socketserver

class Tell(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"%d" % os.getppid())
"""
KINDS = {
    "a server": "serve(Tell, address=f'{name}:{port}', workers=1)",
    "a pair": "serve(Tell, address=(name, int(port)), workers=1)",
    "the command": """from prefork_server.cli import main
    sys.exit(main(["serve", "served:Tell", "-b", f"{name}:{port}", "-w", "1"]))
    """,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["six.test", "both.test"])
def test_a_name_is_served_on_all_its_addresses_and_after_an_upgrade_too(
    start: Starter, tmp_path: Path, kind: str, name: str
) -> None:
    (tmp_path / "served.py").write_text(SERVED)
    with socket.socket(socket.AF_INET6) as free:
        free.bind(("::", 0))
        port = free.getsockname()[1]
    server = start(f"{RESOLVER}    {KINDS[kind]}", name, str(port)).ready()
    hosts = ["::1"] if name == "six.test" else ["::1", "127.0.0.1"]
    assert {asked(host, port) for host in hosts} == {server.pid}
    successor = upgraded(server, server.pid)
    assert {asked(host, port) for host in hosts} == {successor}
    stopped(server, successor)


def asked(host: str, port: int) -> int:
    client = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    with client:
        client.settimeout(PATIENCE)
        client.connect((host, port))
        return int(read_all(client))
