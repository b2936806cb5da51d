"""The socketserver pattern: handlers plug in, and nothing they do ends the loop."""

import os
import re
import signal
import socket
import socketserver
import struct
import subprocess
import time
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from prefork_server import (
    ConfigError,
    PreforkMixIn,
    PreforkTCPServer,
    PreforkUDPServer,
    PreforkUnixDatagramServer,
    PreforkUnixStreamServer,
)
from prefork_server.testing import serving
from tests.conftest import FATES, HELLO, Starter, alive, children, eventually, read_all, title
from tests.hammer import Hammer, ask_once


@pytest.mark.parametrize(
    "error",
    ["Exception", "KeyboardInterrupt", "GeneratorExit", "RecursionError", "OSError"],
)
def test_a_handler_that_raises_costs_one_connection_and_not_the_worker(
    start: Starter, error: str
) -> None:
    server = start(FATES + "    serve(Fate, workers=1)").ready()
    server.expect_error("handler failed", "Traceback")
    with server.connect() as client:
        client.sendall(f"raise {error}".encode())
        assert read_all(client) == b""
        peer = re.escape("{}:{}".format(*client.getsockname()))
    server.saw(f"ERROR .*handler failed for {peer}")
    server.saw(f"{error}: of my own")
    assert server.ask(b"who?").isdigit()
    assert server.count("forked") == server.count("Traceback") == 1


def test_a_system_exit_closes_the_connection_and_asks_for_a_new_worker(start: Starter) -> None:
    server = start(FATES + "    serve(Fate, workers=1)").ready()
    first = server.ask(b"who?")
    assert server.ask(b"leave") == b""
    server.saw("reaped: exit code 0;")
    assert server.ask(b"who?") not in (first, b"")
    assert server.count("ERROR|WARNING") == 0


def test_a_client_that_is_gone_is_no_error_of_the_handler(start: Starter) -> None:
    server = start("""
        import logging
        logging.basicConfig(level="DEBUG")

        class Long(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.recv(10)
                while True:
                    self.request.sendall(bytes(100_000))

        serve(Long, workers=1)
    """).ready()
    with server.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(b"x")
        client.recv(10)
    server.saw(r"DEBUG.*127.0.0.1:\d+ is gone: .*(reset|Broken)")
    assert server.count("Traceback") == 0


def test_a_silent_client_is_closed_after_client_timeout_with_one_quiet_line(
    start: Starter,
) -> None:
    server = start("""
        import logging
        logging.basicConfig(level="DEBUG")
        serve(Echo, workers=1, timeout=1, client_timeout=2.5)
    """).ready()
    with server.connect() as client:
        began = time.monotonic()
        assert client.recv(10) == b""
        assert time.monotonic() - began > 2
    server.saw(r"DEBUG.*is gone: timed out")
    assert server.ask() == b"hello"
    assert server.count("forked") == 1


def test_an_error_of_the_handlers_own_connection_keeps_its_traceback(start: Starter) -> None:
    server = start("""
        class Proxy(socketserver.BaseRequestHandler):
            def handle(self):
                socket.create_connection(("127.0.0.1", 1))

        serve(Proxy, workers=1)
    """).ready()
    server.expect_error("handler failed", "Traceback")
    assert server.ask(b"") == b""  # nothing unread, which would make the close a reset
    server.saw("ConnectionRefusedError")


def test_a_reset_in_the_queue_is_nobodys_error(start: Starter) -> None:
    server = start("serve(Echo, workers=1)").all_ready(1)
    worker = server.workers()[0]
    server.signal(signal.SIGSTOP, worker)
    for _ in range(20):
        with server.connect() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.signal(signal.SIGCONT, worker)
    assert server.ask() == b"hello"
    assert server.workers() == [worker]


def test_binary_noise_is_the_handlers_matter(start: Starter) -> None:
    server = start("serve(Echo, workers=1)").ready()
    noise = os.urandom(200_000)
    with server.connect() as client:
        received = b""
        for at in range(0, len(noise), 20_000):
            client.sendall(noise[at : at + 20_000])
        client.shutdown(socket.SHUT_WR)
        received = read_all(client)
    assert received == noise


def test_megabytes_are_exact_under_a_rain_of_signals(start: Starter) -> None:
    server = start("serve(Echo, workers=1)").all_ready(1)
    worker = server.workers()[0]
    size, chunk = 100 << 20, os.urandom(1 << 20)
    with server.connect() as client:
        client.setblocking(False)
        sent = received = rounds = 0
        while received < size:
            rounds += 1
            for pid in (worker, worker, worker, server.pid):
                server.signal(signal.SIGUSR1, pid)
            try:
                if sent < size:
                    at = sent % len(chunk)
                    sent += client.send(chunk[at : at + min(size - sent, 1 << 18)])
            except BlockingIOError:
                pass
            try:
                data = client.recv(1 << 18)
            except BlockingIOError:
                continue
            at = received % len(chunk)
            assert data == (chunk + chunk)[at : at + len(data)]
            received += len(data)
    assert rounds > 400  # so there were more than a thousand signals to the worker
    assert server.workers() == [worker]


def test_verify_request_false_closes_politely(start: Starter) -> None:
    server = start("""
        class Picky(PreforkTCPServer):
            def verify_request(self, request, client_address):
                if client_address[0] == "127.0.0.1":
                    request.sendall(b"not you")
                    return False
                return True

        serve(Echo, Picky, workers=1)
    """).ready()
    with server.connect() as client:
        assert read_all(client) == b"not you"


@pytest.mark.parametrize(
    "method",
    [
        "verify_request(self, *args)",
        "get_request(self)",
        "handle_error(self, *args)",
        "shutdown_request(self, request)",
    ],
)
def test_a_method_of_the_class_that_raises_is_contained(start: Starter, method: str) -> None:
    server = start(f"""
        class Broken(PreforkTCPServer):
            def {method}:
                if os.path.exists("broken"):
                    os.remove("broken")
                    sys.exc_info()[0] or self.socket.accept()[0].close()
                    raise ValueError("broken on purpose")
                return super().{method.replace("self, ", "").replace("self", "")}

        class Raises(Echo):
            def handle(self):
                if os.path.exists("broken"):
                    raise RuntimeError("to be handled")
                super().handle()

        os.chdir(os.path.dirname(__file__))
        serve(Raises, Broken, workers=1)
    """).all_ready(1)
    server.expect_error("failed", "Traceback", "Exception occurred")
    (start.directory / "broken").touch()
    with suppress(OSError):
        server.ask()
    eventually(lambda: not (start.directory / "broken").exists())
    assert server.ask() == b"hello"
    assert server.count("forked") == 1


def test_a_handle_error_of_the_classs_own_is_asked(start: Starter) -> None:
    server = start("""
        class Mine(PreforkTCPServer):
            def handle_error(self, request, client_address):
                request.sendall(str(sys.exc_info()[1]).encode())

        class Raises(socketserver.BaseRequestHandler):
            def handle(self):
                raise RuntimeError("told by handle_error")

        serve(Raises, Mine, workers=1)
    """).ready()
    # Nothing that it leaves unread: the kernel would answer that with a reset.
    assert server.ask(b"") == b"told by handle_error"


@pytest.mark.parametrize(
    "handler",
    ["def Wrong(*args): args()", "class Wrong(Echo):\n    def __init__(self, *a): a()"],
)
def test_a_handler_class_that_cannot_be_built_closes_each_connection(
    start: Starter, handler: str
) -> None:
    server = start(f"\n{handler}\nserve(Wrong, workers=1)\n").ready()
    server.expect_error("handler failed", "Traceback")
    assert server.ask(b"") == b""  # nothing unread, which would make the close a reset
    server.saw("TypeError")
    assert server.count("forked") == 1


def test_a_flush_that_fails_at_the_end_costs_nothing(start: Starter) -> None:
    server = start("""
        class Buffered(socketserver.StreamRequestHandler):
            wbufsize = -1
            def handle(self):
                self.rfile.read(1)
                self.wfile.write(bytes(50))
                self.connection.shutdown(socket.SHUT_WR)

        serve(Buffered, workers=1)
    """).ready()
    assert server.ask(b"x") == server.ask(b"x") == b""
    assert server.count("forked") == 1


def test_a_handler_that_forks_never_makes_a_second_accept_loop(start: Starter) -> None:
    server = start("""
        class Forks(Echo):
            def handle(self):
                for _ in range(3):
                    os.fork()  # and all come back into our loop
                super().handle()

        serve(Forks, workers=1)
    """).all_ready(1)
    worker = server.workers()[0]
    server.ask()
    eventually(lambda: not any(map(alive, children(worker))))
    assert server.workers() == [worker]


def test_a_process_that_a_handler_leaves_behind_keeps_no_door_open(start: Starter) -> None:
    server = start(
        """
        class Forks(Echo):
            def handle(self):
                if not os.fork():
                    self.request.close()
                    os.read(0, 1)  # the end of our input: the test's
                    os._exit(0)
                super().handle()

        serve(Forks, workers=1)
    """,
        stdin=subprocess.PIPE,
    ).ready()
    address = server.address
    assert server.ask() == b"hello"
    assert server.quit() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 5)
    server.process.stdin.close()


def test_what_a_fork_of_a_worker_says_does_not_count_for_it(start: Starter) -> None:
    server = start("""
        class Forks(Echo):
            def handle(self):
                master = current_master()
                if not os.fork():
                    while os.getppid() == self.parent and master.wants_me_alive():
                        time.sleep(0.01)
                    os._exit(0)
                time.sleep(1000)  # the worker hangs, however lively its child is

            parent = property(lambda self: self.server.master_of)

        class Server(PreforkTCPServer):
            def after_fork(self, master):
                self.master_of = os.getpid()

        serve(Forks, Server, workers=1, timeout=0.5)
    """).ready()
    server.expect_error("silent for more than 0.5s", "SIGKILL")
    with server.connect() as client:
        server.saw("silent for more than 0.5s")
        assert client.recv(1) == b""


@pytest.mark.parametrize(
    "harm",
    ["self.server.socket.close()", "os.close(self.server.fileno())", "os.closerange(3, 100)"],
)
def test_a_worker_whose_listener_was_closed_is_replaced(start: Starter, harm: str) -> None:
    server = start(f"""
        class Harms(socketserver.BaseRequestHandler):
            def handle(self):
                word = self.request.recv(100)
                self.request.sendall(b"%d" % os.getpid())
                if word == b"harm":
                    {harm}

        serve(Harms, workers=1)
    """).all_ready(1)
    server.expect_error("reaped: exit code 1", "Traceback", "failed")
    worker = server.workers()[0]
    with server.connect() as client:
        client.sendall(b"harm")
        assert client.recv(100) == str(worker).encode()
        server.saw(rf"worker=1 pid={worker} reaped: exit code")
    with server.connect() as client:
        client.sendall(b"who?")
        assert int(client.recv(100)) != worker


def test_what_a_handler_does_to_its_process_reaches_no_other(start: Starter) -> None:
    server = start("""
        class Harms(socketserver.BaseRequestHandler):
            def handle(self):
                if self.request.recv(100) == b"harm":
                    os.chdir("/"); os.umask(0o777); os.environ.clear()
                    signal.signal(signal.SIGTERM, signal.SIG_IGN); os.close(0)
                    sys.exit()
                mask = os.umask(0o22)
                self.request.sendall(f"{os.getcwd()} {mask:o} {'HOME' in os.environ}".encode())

        os.umask(0o22)
        serve(Harms, workers=1)
    """).ready()
    before = server.ask(b"look")
    server.ask(b"harm")
    assert server.ask(b"look") == before


def test_a_program_started_by_a_handler_cannot_keep_the_connection(start: Starter) -> None:
    server = start("""
        import subprocess

        class Starts(socketserver.BaseRequestHandler):
            def handle(self):
                self.server.child = subprocess.Popen(["sleep", "3"])
                self.request.sendall(b"started")

        serve(Starts, workers=1)
    """).ready()
    with server.connect() as client:
        assert read_all(client) == b"started"  # and not in 3 seconds: end-of-file is here
    address = server.address
    assert server.quit() == 0
    assert isinstance(address, tuple)
    socket.create_server(address).close()  # nor the port


def test_service_actions_are_called_between_connections(start: Starter) -> None:
    server = start("""
        class Serviced(PreforkTCPServer):
            def service_actions(self):
                self.count = getattr(self, "count", 0) + 1
                if self.count == 4:
                    self.master.logger.info("serviced")

        serve(Echo, Serviced, workers=1, timeout=1)
    """).ready()
    server.saw("serviced")


def test_the_title_says_what_a_worker_is_doing(start: Starter) -> None:
    server = start("serve(Echo, workers=1, app_name='app')").all_ready(1)
    worker = server.workers()[0]
    with server.connect() as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert title(worker) == "app worker 1 busy 1"
    eventually(lambda: title(worker) == "app worker 1 idle 1")


def test_where_accepting_is_deferred_a_client_that_has_only_connected_costs_no_worker(
    start: Starter,
) -> None:
    server = start("""
        class Deferred(PreforkTCPServer):
            defer_accept = 10

        serve(Echo, Deferred, ["127.0.0.1:0", "unix:sock", "127.0.0.1:0"], workers=1)
    """).ready()
    with server.connect() as silent:
        assert server.ask(b"who speaks") == b"who speaks"
        silent.sendall(b"at last")
        silent.shutdown(socket.SHUT_WR)
        assert read_all(silent) == b"at last"


def test_accepting_is_deferred_on_every_tcp_socket_of_a_server_that_says_so(
    tmp_path: Path,
) -> None:
    class Deferred(PreforkTCPServer):
        defer_accept = 10

    where = ["127.0.0.1:0", f"unix:{tmp_path}/sock", "127.0.0.1:0"]
    deferred = socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT
    for kind, says in ((Deferred, True), (PreforkTCPServer, False)):
        with kind(where, socketserver.BaseRequestHandler) as server:
            others = [each.socket for each in server._prefork_more]
            sockets = [sock for sock in (server.socket, *others) if sock.family == socket.AF_INET]
            assert [sock.getsockopt(*deferred) > 0 for sock in sockets] == [says, says]


# Anyone's server


def test_a_stdlib_http_server_runs_under_the_mix_in_unchanged(start: Starter) -> None:
    server = start(
        HELLO
        + """
        class Server(PreforkMixIn, HTTPServer):
            settings = Settings(workers=2)
            def after_fork(self, master):
                assert self.request_queue_size == 2048
                assert self._prefork_settled().client_timeout is None

        serve(Hello, Server)
    """
    ).all_ready(2)
    host, port = server.address
    for _ in range(5):
        with urllib.request.urlopen(f"http://{host}:{port}/", timeout=10) as reply:
            assert int(reply.read()) in server.workers()


def test_a_class_that_says_otherwise_keeps_its_own_queue_size_and_hooks(start: Starter) -> None:
    server = start("""
        class Theirs(socketserver.TCPServer):
            request_queue_size = 7
            allow_reuse_address = False
            def ready(self):
                raise AssertionError("not a hook")

        class Server(PreforkMixIn, Theirs):
            settings = Settings(workers=1)

        server = Server(("127.0.0.1", 0), Echo)
        assert (server.request_queue_size, server.allow_reuse_address) == (7, False)
        server.serve_forever()
        server.server_close()
    """)
    assert server.ask() == b"hello"
    assert server.count("hook|failed") == 0


def test_a_get_request_of_the_classs_own_is_used(start: Starter) -> None:
    server = start("""
        class Server(PreforkTCPServer):
            def get_request(self):
                connection, peer = self.socket.accept()
                connection.sendall(b"taken by hand: ")
                return connection, peer

        serve(Echo, Server, workers=2)
    """).ready()
    assert server.ask() == b"taken by hand: hello"


def test_settings_may_be_a_class_attribute_a_keyword_or_both(start: Starter) -> None:
    server = start("""
        class Server(PreforkTCPServer):
            settings = Settings(workers=3, timeout=7)

        for server in (
            Server(("127.0.0.1", 0), Echo),
            Server(("127.0.0.1", 0), Echo, workers=2),
            Server(("127.0.0.1", 0), Echo, settings=Settings(workers=5), timeout=9),
        ):
            print("has", server.settings.workers, server.settings.timeout, flush=True)
            server.server_close()
        Mixed = type("Mixed", (PreforkMixIn, socketserver.TCPServer), {"settings": 4})
        with Mixed(("127.0.0.1", 0), Echo) as server:
            try:
                server.serve_forever()
            except ConfigError as error:
                print("refused:", error, flush=True)
    """)
    server.process.wait(20)
    assert [m[1] for m in server.saw("has (.*)", times=3)] == ["3 7", "2 7", "5 9"]
    server.saw("refused: settings must be a Settings object, not 4")


def test_binding_may_be_left_to_the_caller(start: Starter) -> None:
    server = start("""
        server = PreforkTCPServer(("127.0.0.1", 0), Echo, False, workers=1)
        server.allow_reuse_port = True
        server.server_bind()
        server.server_activate()
        with server:
            server.serve_forever()
    """)
    assert server.ask() == b"hello"


def test_handle_request_still_serves_one_request_in_this_process(start: Starter) -> None:
    server = start("""
        with PreforkTCPServer(("127.0.0.1", 0), Echo, workers=1) as server:
            print("ready, listening on %s:%d" % server.server_address, flush=True)
            server.handle_request()
            print("served by", os.getpid(), flush=True)
    """)
    assert server.ask() == b"hello"
    server.saw(f"served by {server.pid}")
    assert server.wait() == 0


def test_a_unix_stream_server_serves_and_leaves_no_path(start: Starter) -> None:
    server = start("""
        path = __file__ + ".sock"
        serve(Echo, PreforkUnixStreamServer, "unix:" + path, workers=2)
        print("path is gone:", not os.path.exists(path), flush=True)
    """).ready()
    assert server.ask() == b"hello"
    assert server.quit() == 0
    server.saw("path is gone: True")


def test_a_wrong_kind_of_address_is_refused_in_a_sentence(start: Starter) -> None:
    server = start("""
        for given in ("unix:/tmp/x", 9000, ("127.0.0.1", 70000)):
            try:
                PreforkTCPServer(given, Echo)
            except ConfigError as error:
                print("refused:", error, flush=True)
    """)
    server.process.wait(20)
    server.saw(
        "refused: unix:/tmp/x alone is for a PreforkUnixStreamServer, and not for PreforkTCP"
    )
    server.saw("refused:", times=3)


@pytest.mark.parametrize(
    ("base", "cure"),
    [
        (PreforkTCPServer, "PreforkUnixStreamServer"),
        (PreforkUDPServer, "PreforkUnixDatagramServer"),
    ],
)
def test_a_subclass_with_any_name_is_told_which_server_takes_a_path(
    base: type[PreforkTCPServer], cure: str
) -> None:
    Quote = type("QuoteOfTheDayTCP", (base,), {})  # noqa: N806 - a class
    with pytest.raises(ConfigError, match=rf"unix:/x alone is for a {cure}, and not for Quote"):
        Quote("unix:/x", socketserver.BaseRequestHandler)


class Foreign(PreforkMixIn, socketserver.TCPServer):
    """Somebody's server."""


class ForeignUDP(PreforkMixIn, socketserver.UDPServer):
    """The same."""


UNBOUND = [
    PreforkTCPServer,
    PreforkUDPServer,
    PreforkUnixStreamServer,
    PreforkUnixDatagramServer,
    Foreign,
    ForeignUDP,
]


@pytest.mark.parametrize("cls", UNBOUND)
def test_a_server_that_was_never_bound_is_refused(
    cls: type[socketserver.TCPServer], tmp_path: Path
) -> None:
    unix = cls.address_family == socket.AF_UNIX
    address: Any = str(tmp_path / "s") if unix else ("127.0.0.1", 0)
    with cls(address, socketserver.BaseRequestHandler, False) as server:
        with pytest.raises(ConfigError, match=r"call server_bind.. and server_activate.. before"):
            server.serve_forever()
        if cls is Foreign:
            server.server_bind()
            with pytest.raises(ConfigError, match="not bound or does not listen"):
                server.serve_forever()
    with cls(address, socketserver.BaseRequestHandler, False) as server:
        server.server_bind()
        server.server_activate()
        with serving(server):  # type: ignore[arg-type]
            pass


def test_the_mix_in_behind_the_server_class_is_refused() -> None:
    with pytest.raises(TypeError, match="Wrong: PreforkMixIn goes before the server class"):
        type("Wrong", (socketserver.TCPServer, PreforkMixIn), {})


def test_a_server_that_has_served_says_so(start: Starter) -> None:
    server = start("""
        class Stops(PreforkTCPServer):
            def ready(self, addresses):
                self.shutdown()

        with Stops(("127.0.0.1", 0), Echo, workers=1) as server:
            server.serve_forever()
            try:
                server.serve_forever()
            except ConfigError as error:
                print("refused:", error, flush=True)
    """)
    assert server.wait() == 0
    server.saw("refused: this server has served already, and is closed; make a new one")


def test_a_slow_client_of_a_get_request_of_ones_own_does_not_kill_the_worker(
    start: Starter,
) -> None:
    server = start("""
        class Server(PreforkTCPServer):
            def get_request(self):
                return self.socket.accept()

        serve(Echo, Server, workers=1, timeout=1, client_timeout=20)
    """).ready()
    with server.connect() as client:
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(2.5)
        client.sendall(b"slow")
        assert client.recv(10) == b"slow"
    assert server.count("forked") == 1


# Fairness


def test_a_connection_stranded_by_a_killed_worker_is_taken_by_an_idle_sibling(
    start: Starter,
) -> None:
    # The kernel wakes the worker that enlisted first; stopped, it cannot take it.
    server = start("serve(Echo, workers=4)").all_ready(4)
    server.expect_error("SIGKILL")
    with server.connect() as probe:
        probe.sendall(b"x")
        probe.recv(1)
    for pid in server.workers():
        server.signal(signal.SIGSTOP, pid)
        with server.connect() as client:
            client.sendall(b"stranded")
            client.shutdown(socket.SHUT_WR)
            server.signal(signal.SIGKILL, pid)
            assert read_all(client) == b"stranded"


HOLDING = """
    def work(master):
        kept = []
        for connection, peer in master.connections():
            connection.sendall(b"%d" % master.slot)
            kept.append(connection)
        for connection in kept:
            connection.close()

    Preforker(work, workers=4, listen="127.0.0.1:0").run()
"""


def test_a_crowd_that_is_held_is_spread_over_all_workers(start: Starter) -> None:
    server = start(HOLDING).all_ready(4)
    with ExitStack() as stack:
        crowd = [stack.enter_context(server.connect()) for _ in range(400)]
        slots = [client.recv(10) for client in crowd]
    counts = sorted(slots.count(slot) for slot in set(slots))
    # 90 to 110 as a rule; on a busy machine some worker is asleep for most of it.
    assert len(counts) == 4 and counts[-1] < 300, counts


def test_held_connections_are_spread_evenly_over_idle_workers(start: Starter) -> None:
    server = start(HOLDING).all_ready(4)
    slots = []
    with ExitStack() as stack:
        for _ in range(16):
            client = stack.enter_context(server.connect())
            slots.append(client.recv(10))
    counts = sorted(slots.count(slot) for slot in set(slots))
    # 4 4 4 4 as a rule; on a busy machine a sibling may be woken too late for its turn.
    assert len(counts) == 4 and counts[-1] < 8, slots


def test_a_worker_that_is_busy_for_long_takes_none(start: Starter) -> None:
    server = start("""
        class Slow(socketserver.BaseRequestHandler):
            def handle(self):
                if self.request.recv(10) == b"hold":
                    self.request.sendall(b"%d" % os.getpid())
                    self.server.master.wait(30)
                self.request.sendall(b"%d" % os.getpid())

        serve(Slow, workers=2)
    """).all_ready(2)
    with server.connect() as holder:
        holder.sendall(b"hold")
        busy = holder.recv(10)
        assert all(server.ask(b"who?") != busy for _ in range(50))


def test_two_busy_listeners_are_both_served(start: Starter) -> None:
    server = start("""
        def work(master):
            for connection, peer in master.connections():
                with connection:
                    connection.sendall(connection.recv(100))

        Preforker(work, workers=2, listen=["127.0.0.1:0", "127.0.0.1:0"]).run()
    """)
    line = server.saw(r"listening on (\S+), (\S+)")[0]
    first, second = (("127.0.0.1", int(line[n].rpartition(":")[2])) for n in (1, 2))
    with Hammer(first, 8) as hammer:
        hammer.ended("served", 100)
        for _ in range(20):
            assert ask_once(second, b"second") == "served"


def test_a_full_queue_makes_clients_wait_and_not_fail(start: Starter) -> None:
    server = start("""
        class Small(PreforkTCPServer):
            request_queue_size = 1

        serve(Echo, Small, workers=1)
    """).all_ready(1)
    worker = server.workers()[0]
    server.signal(signal.SIGSTOP, worker)
    clients = []
    for _ in range(4):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(server.address)
        clients.append(client)
    server.signal(signal.SIGCONT, worker)
    for client in clients:
        client.settimeout(20)
        client.sendall(b"x")
        client.shutdown(socket.SHUT_WR)
    for client in clients:
        assert read_all(client) == b"x"
        client.close()


# From any thread


THREADED = """
    def in_thread(server, **kwargs):
        thread = threading.Thread(target=server.serve_forever, kwargs=kwargs, name="server")
        thread.start()
        return thread
"""


def test_it_serves_from_a_thread_and_shutdown_returns_when_all_are_gone(start: Starter) -> None:
    server = start(
        THREADED
        + """
    from pathlib import Path
    handlers = {s: signal.getsignal(s) for s in signal.valid_signals()}
    command = Path("/proc/self/cmdline").read_bytes()
    with PreforkTCPServer(("127.0.0.1", 0), Echo, workers=2) as server:
        thread = in_thread(server, poll_interval=0.1)
        assert server.wait_ready(20) is True
        with socket.create_connection(server.server_address) as client:
            client.sendall(b"hello")
            assert client.recv(10) == b"hello"
        assert {s: signal.getsignal(s) for s in signal.valid_signals()} == handlers
        assert Path("/proc/self/cmdline").read_bytes() == command
        server.shutdown()
        thread.join(1)
        assert not thread.is_alive()
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("nobody is left", flush=True)
        server.shutdown()  # a second one has nothing to do
    """
    )
    server.saw("nobody is left")
    assert server.wait() == 0


def test_a_shutdown_before_the_start_is_kept_in_mind(start: Starter) -> None:
    server = start("""
        server = PreforkTCPServer(("127.0.0.1", 0), Echo, workers=2)
        stopper = threading.Thread(target=server.shutdown)
        stopper.start()
        while not server._prefork_remote.stop_asked:
            time.sleep(0.001)
        server.serve_forever()
        stopper.join(10)
        print("stopped at once:", not stopper.is_alive(), server.wait_ready(0), flush=True)
    """)
    server.saw("stopped at once: True False")
    assert server.wait() == 0


def test_shutdown_in_a_handler_stops_the_whole_server(start: Starter) -> None:
    server = start("""
        class Stops(socketserver.BaseRequestHandler):
            def handle(self):
                self.server.shutdown()
                self.request.sendall(b"stopping")

        serve(Stops, workers=3)
        print("serve_forever returned", flush=True)
    """).ready()
    assert server.ask(b"") == b"stopping"
    assert server.wait() == 0
    server.saw("shutdown.. was called: stopping 3 workers gracefully")
    server.saw("serve_forever returned")


def test_shutdown_in_a_hook_does_not_wait_for_itself(start: Starter) -> None:
    server = start("""
        class Server(PreforkTCPServer):
            def ready(self, addresses):
                self.shutdown()

        serve(Echo, Server, workers=1)
    """)
    assert server.wait() == 0


def test_wait_ready_is_false_when_the_server_ended_before(start: Starter) -> None:
    server = start(
        THREADED
        + """
    class Broken(PreforkTCPServer):
        def after_fork(self, master):
            raise RuntimeError("cannot boot")

    def excepthook(args):
        print(f"raised {args.exc_type.__name__}\\n", end="", flush=True)

    threading.excepthook = excepthook
    server = Broken(("127.0.0.1", 0), Echo, workers=1)
    assert server.wait_ready(0.01) is False
    in_thread(server)
    print(f"ready: {server.wait_ready(20)}\\n", end="", flush=True)
    server.server_close()
    """
    )
    server.expect_error("before it was ready", "Traceback")
    server.saw("ready: False")
    server.saw("raised BootError")
    assert server.wait() == 0


def test_two_servers_run_in_two_threads(start: Starter) -> None:
    server = start(
        THREADED
        + """
    servers = [PreforkTCPServer(("127.0.0.1", 0), Echo, workers=2) for _ in range(2)]
    threads = []
    for server in servers:
        threads.append(in_thread(server))
        assert server.wait_ready(20)
    for server in servers:
        with socket.create_connection(server.server_address) as client:
            client.sendall(b"hello")
            assert client.recv(10) == b"hello"
    servers[0].shutdown()
    threads[0].join()
    with socket.create_connection(servers[1].server_address) as client:
        client.sendall(b"still")
        assert client.recv(10) == b"still"
    try:  # the workers of the second do not keep the door of the first open
        socket.create_connection(servers[0].server_address, 5)
    except ConnectionRefusedError:
        print("refused", flush=True)
    servers[1].shutdown()
    print("both stopped", flush=True)
    """
    )
    server.saw("refused")
    server.saw("both stopped")
    assert server.wait() == 0


def test_of_two_servers_in_threads_one_says_where_prints_go(start: Starter) -> None:
    server = start(
        THREADED
        + """
    for number in range(2):
        server = PreforkTCPServer(("127.0.0.1", 0), Echo, workers=1, stdout_path=f"out{number}")
        thread = in_thread(server)
        if number:
            thread.join()
        else:
            assert server.wait_ready(20)
            first = server
    first.shutdown()
    """
    )
    server.expect_error("Traceback")
    server.saw("ConfigError: stdout_path .*out1: a server in another thread has .*out0, and there")
    assert server.wait() == 0


# In a terminal


def test_resizing_the_terminal_of_a_foreground_server_changes_nothing(start: Starter) -> None:
    controller, terminal = os.openpty()
    server = start(
        """
        import fcntl, termios
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        serve(Echo, workers=2)
        """,
        stdin=terminal,
    ).all_ready(2)
    workers = server.workers()
    server.signal(signal.SIGWINCH)
    assert server.ask() == b"hello"
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(0.3)
    assert server.workers() == workers
    os.write(controller, b"\x03")  # Ctrl-C goes to the whole group
    assert server.wait() == 0
    assert server.count("SIGINT: stopping 2 workers now") == 1
    assert server.count("Traceback") == 0
    os.close(controller)
    os.close(terminal)


def test_closing_the_terminal_stops_a_foreground_server(start: Starter) -> None:
    controller, terminal = os.openpty()
    server = start(
        """
        import fcntl, termios
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        serve(Echo, workers=2)
        """,
        stdin=terminal,
    ).all_ready(2)
    os.close(terminal)
    os.close(controller)
    assert server.wait() == 0
    server.saw("SIGHUP: stopping 2 workers gracefully")
