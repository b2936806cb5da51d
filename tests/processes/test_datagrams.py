"""Datagram servers, and several addresses in one server."""

import os
import signal
import socket
import socketserver
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prefork_server import (
    BindError,
    ConfigError,
    PreforkTCPServer,
    PreforkUDPServer,
    PreforkUnixStreamServer,
)
from prefork_server.listeners import address_text
from tests.conftest import PATIENCE, Server, Starter, alive, eventually, read_all

ANSWER = """
    class Answer(socketserver.BaseRequestHandler):
        def handle(self):
            data, sock = self.request
            if data == b"hang":
                time.sleep(1000)
            if data == b"where":
                data = repr(sock.getsockname()).encode()
            sock.sendto(b"%d %s" % (os.getpid(), data), self.client_address)
"""
UDP = ANSWER + "    serve(Answer, PreforkUDPServer, workers=2, timeout=float(sys.argv[1]))"


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address in use is not waited for."""
    monkeypatch.setattr("prefork_server.listeners._PAUSE", 0.0)


@contextmanager
def client(address: tuple[str, int] | str, own: Path | None = None) -> Iterator[socket.socket]:
    """A datagram socket connected to ``address``; on a UNIX socket it needs a path, too."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        if own:
            sock.bind(str(own))
        sock.connect(address)
        yield sock


def ask(sock: socket.socket, data: bytes) -> bytes:
    sock.send(data)
    return sock.recv(65536).partition(b" ")[2]


def pids_of(sock: socket.socket) -> set[bytes]:
    """Who answers, when many ask at once."""
    for _ in range(50):
        sock.send(b"?")
    return {sock.recv(100).partition(b" ")[0] for _ in range(50)}


def test_datagrams_are_answered_from_several_processes(start: Starter) -> None:
    server = start(UDP, "30").all_ready(2)
    with client(server.address) as sock:
        pids: set[bytes] = set()
        eventually(lambda: len(pids.update(pids_of(sock)) or pids) == 2)


@pytest.mark.parametrize("size", [0, 1, 8192])
def test_a_datagram_arrives_as_it_was_sent(start: Starter, size: int) -> None:
    server = start(UDP, "30").ready()
    with client(server.address) as sock:
        assert ask(sock, b"x" * size) == b"x" * size


def test_what_is_longer_than_max_packet_size_is_cut(start: Starter) -> None:
    server = start(
        ANSWER
        + """
    class Small(PreforkUDPServer):
        max_packet_size = 100
    serve(Answer, Small, workers=1)
    """
    ).ready()
    with client(server.address) as sock:
        assert ask(sock, b"x" * 60_000) == b"x" * 100


def test_the_loser_of_the_race_for_a_datagram_waits_for_nothing(start: Starter) -> None:
    server = start(UDP, "1").all_ready(2)
    with client(server.address) as sock:
        for n in range(500):  # each wakes somebody, and sometimes both
            assert ask(sock, b"%d" % n) == b"%d" % n
    assert server.quit() == 0  # which one that waits in recvfrom would not hear
    assert server.count("forked") == 2 and not server.count("silent")


def test_an_overridden_get_request_cannot_wait_for_a_datagram_either(start: Starter) -> None:
    server = start(
        ANSWER
        + """
    class Mine(PreforkMixIn, socketserver.UDPServer):
        settings = Settings(workers=2, timeout=1)
        def get_request(self):
            request, peer = super().get_request()
            return (b"got " + request[0], request[1]), peer
    with Mine(("127.0.0.1", 0), Answer) as server:
        server.serve_forever()
    """
    ).all_ready(2)
    with client(server.address) as sock:
        for n in range(500):
            assert ask(sock, b"%d" % n) == b"got %d" % n
    assert server.quit() == 0
    assert server.count("forked") == 2 and not server.count("silent")


def test_a_handler_that_hangs_costs_its_own_datagram_alone(start: Starter) -> None:
    server = start(UDP, "0.5").all_ready(2)
    server.expect_error("silent for more than", "killed by SIGKILL")
    with client(server.address) as sock:
        sock.send(b"hang")
        assert ask(sock, b"hello") == b"hello"
        server.saw("silent for more than 0.5s at .* in handle, killing; .* with 127.0.0.1")
        server.saw("forked", times=3)
        assert ask(sock, b"hello") == b"hello"


def test_datagrams_that_wait_at_the_stop_are_answered(start: Starter, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    server = start("""
        class Slow(socketserver.BaseRequestHandler):
            def handle(self):
                if self.request[0] == b"first":
                    print("in the handler")
                    with open("gate") as gate: gate.read()
                self.request[1].sendto(self.request[0], self.client_address)
        serve(Slow, PreforkUDPServer, workers=1)
    """).ready()
    with client(server.address) as sock:
        sock.send(b"first")
        server.saw("in the handler")
        for n in range(100):
            sock.send(b"%d" % n)
        server.signal(signal.SIGQUIT)
        server.saw("stopping 1 workers gracefully")
        (tmp_path / "gate").write_text("go")
        assert sock.recv(100) == b"first"
        assert [sock.recv(100) for n in range(100)] == [b"%d" % n for n in range(100)]
    assert server.wait() == 0


def test_a_unix_datagram_server_answers_those_who_have_a_path(
    start: Starter, tmp_path: Path
) -> None:
    server = start(
        ANSWER + "    serve(Answer, PreforkUnixDatagramServer, './sock', workers=2)"
    ).ready()
    path = tmp_path / "sock"
    assert path.stat().st_mode & 0o777 == 0o600
    with client(str(path), tmp_path / "client") as sock:
        assert ask(sock, b"hello") == b"hello"
    with client(str(path)) as nameless:
        server.expect_error("handler failed", "Traceback")
        nameless.send(b"nobody to answer")
        server.saw("handler failed")
    assert server.quit() == 0
    assert not path.exists()


def test_a_client_whose_path_is_gone_is_no_error_of_the_handler(
    start: Starter, tmp_path: Path
) -> None:
    server = start(
        "    import logging\n"
        "    logging.basicConfig(level='DEBUG', format='%(levelname)s %(message)s')\n"
        + ANSWER
        + "    serve(Answer, PreforkUnixDatagramServer, './sock', workers=1)"
    )
    server.saw("ready, listening")
    with client(str(tmp_path / "sock"), tmp_path / "client") as sock:
        (tmp_path / "client").unlink()
        sock.send(b"hello")
        server.saw("DEBUG unix:.*client is gone")


def test_a_live_datagram_server_keeps_its_path_and_a_dead_one_is_replaced(
    start: Starter, tmp_path: Path
) -> None:
    program = (
        ANSWER
        + """
    try:
        serve(Answer, PreforkUnixDatagramServer, "./sock", workers=1)
    except BindError as error:
        print("refused:", error)
    """
    )
    first = start(program).ready()
    second = start(program)
    second.saw("refused: cannot listen on unix:./sock: a live server has it")
    first.signal(signal.SIGKILL)
    first.wait()
    assert not first.anyone_left()
    third = start(program).ready()
    with client(str(tmp_path / "sock"), tmp_path / "client") as sock:
        assert ask(sock, b"hello") == b"hello"
    assert third.quit() == 0


def test_two_udp_servers_cannot_have_one_port(no_pauses: None) -> None:
    with (
        PreforkUDPServer(("127.0.0.1", 0), socketserver.DatagramRequestHandler) as first,
        pytest.raises(BindError, match=r"cannot listen on .*: Address already in use"),
    ):
        PreforkUDPServer(first.server_address, socketserver.DatagramRequestHandler)


# Several addresses


def test_a_server_on_several_addresses_answers_on_each(start: Starter, tmp_path: Path) -> None:
    server = start("""
        where = ["127.0.0.1:0", ("127.0.0.1", 0), "[::1]:0", "unix:./sock"]
        where += ["unix:@%d" % os.getpid()]
        with PreforkTCPServer(where, Echo, workers=2) as server:
            print("socket", server.server_address[1], "of", *server.addresses)
            server.serve_forever()
    """).ready()
    said = server.saw(r"socket (\d+) of (.*)")[0]
    where = said[2].split()
    assert where[0] == f"127.0.0.1:{said[1]}" and len(set(where)) == 5
    server.saw("ready, listening on " + ", ".join(where).replace("[", r"\[").replace("./", ".*"))
    for address in where:
        with connected(address, tmp_path) as sock:
            sock.sendall(address.encode())
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock).decode() == address
    assert server.quit() == 0
    assert not (tmp_path / "sock").exists()


def connected(address: str, directory: Path) -> socket.socket:
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        name = address.removeprefix("unix:")
        sock.connect("\0" + name[1:] if name.startswith("@") else str(directory / name))
        return sock
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), PATIENCE)


def test_datagram_servers_answer_from_the_address_that_was_asked(
    start: Starter, tmp_path: Path
) -> None:
    server = start(
        ANSWER + "    serve(Answer, PreforkUDPServer, ['127.0.0.1:0', 'unix:./sock'], workers=1)"
    ).ready()
    with client(server.address) as inet, client(str(tmp_path / "sock"), tmp_path / "c") as unix:
        assert ask(inet, b"where") == repr(inet.getpeername()).encode()
        assert ask(unix, b"where") == b"'./sock'"


def test_an_overridden_get_request_serves_several_addresses(start: Starter) -> None:
    server = start("""
        class Mine(PreforkTCPServer):
            def get_request(self):
                return self.socket.accept()
        with Mine(["127.0.0.1:0", "127.0.0.1:0"], Echo, workers=1) as server:
            print("ports", *(a.rpartition(":")[2] for a in server.addresses))
            server.serve_forever()
    """).ready()
    for port in map(int, server.saw(r"ports (\d+) (\d+)")[0].groups()):
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            sock.sendall(b"hello")
            assert sock.recv(100) == b"hello"


def test_if_one_address_cannot_be_had_none_is_kept(no_pauses: None, tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(BindError, match="Address already in use"),
    ):
        PreforkUnixStreamServer(
            [str(tmp_path / "s"), taken.getsockname()], socketserver.BaseRequestHandler
        )
    assert not list(tmp_path.iterdir())


def test_after_an_address_in_use_binding_may_be_tried_again(
    no_pauses: None, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = ["127.0.0.1:0", f"unix:{tmp_path / 's'}", taken.getsockname()]
        server = PreforkTCPServer(where, socketserver.BaseRequestHandler, False)
        for _ in range(2):
            with pytest.raises(BindError, match="Address already in use"):
                server.server_bind()
            assert not list(tmp_path.iterdir())
        last = taken.getsockname()
    with server:
        server.server_bind()
        assert server.addresses[1:] == [where[1], address_text(last)]
        assert server.server_address[1] != 0 and (tmp_path / "s").is_socket()
    assert not list(tmp_path.iterdir())


def test_the_attributes_of_a_class_hold_for_all_its_addresses(tmp_path: Path) -> None:
    class Mine(PreforkTCPServer):
        allow_reuse_address = False
        allow_reuse_port = True

    where = ["127.0.0.1:0", "127.0.0.1:0", f"unix:{tmp_path / 's'}"]
    for cls, said in ((Mine, (0, 1)), (PreforkTCPServer, (1, 0)), (PreforkUDPServer, (0, 0))):
        with cls(where, socketserver.BaseRequestHandler) as server:  # type: ignore[operator]
            for sock in (server.socket, server._prefork_more[0].socket):
                options = (socket.SO_REUSEADDR, socket.SO_REUSEPORT)
                assert tuple(sock.getsockopt(socket.SOL_SOCKET, o) for o in options) == said, cls


def test_a_class_for_ipv6_means_it_of_all_but_ipv4_addresses() -> None:
    class Six(PreforkTCPServer):
        address_family = socket.AF_INET6

    for where in ([":0", "127.0.0.1:0", ":0"], ["127.0.0.1:0", ":0", ":0"]):
        with Six(where, socketserver.BaseRequestHandler) as server:  # type: ignore[arg-type]
            hosts = [address.rpartition(":")[0] for address in server.addresses]
        assert hosts == [address.rpartition(":")[0] or "[::]" for address in where]


def test_the_ipv4_and_the_ipv6_clients_of_one_port_may_be_listed_apart(start: Starter) -> None:
    server = start("""
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        with PreforkTCPServer([f"0.0.0.0:{port}", f"[::]:{port}"], Echo, workers=1) as server:
            server.serve_forever()
    """)
    port = int(server.saw(r"listening on 0.0.0.0:(\d+), \[::\]:\1$")[0][1])
    for host in ("127.0.0.1", "::1"):
        with socket.create_connection((host, port), PATIENCE) as sock:
            sock.sendall(b"hello")
            assert sock.recv(100) == b"hello"


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ([], "at least one address"),
        (["127.0.0.1:1", ("127.0.0.1", 1)], "127.0.0.1:1 is given twice"),
        (["127.0.0.1:1", 7], "not 7"),
    ],
)
def test_a_wrong_list_is_one_sentence(where: list[object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        PreforkTCPServer(where, object)  # type: ignore[arg-type]


def test_a_datagram_server_without_its_master_leaves(start: Starter) -> None:
    server: Server = start(UDP, "30").all_ready(2)
    workers = server.workers()
    server.signal(signal.SIGKILL)
    server.wait()
    eventually(lambda: not any(alive(pid) for pid in workers))
