"""A pool that sizes itself: workers that come when they are needed, and go when they are not."""

import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.conftest import Server, Starter, alive, children, eventually, read_all, title, unmeasured
from tests.processes.test_control import asked

LONG = """
    class Long(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(b"%d" % os.getpid())
            self.server.master.wants_me_alive(60)
            os.read(released, 1)  # the end of a pipe

    released = int(sys.argv[1])
"""


@contextmanager
def held(start: Starter, program: str) -> Iterator[tuple[Server, "Hold"]]:
    reader, writer = os.pipe()
    try:
        hold = Hold(writer)
        server = start(program, str(reader), pass_fds=[reader], env=unmeasured())
        hold.server = server
        yield server, hold
    finally:
        hold.let_all_go()
        os.close(reader)


class Hold:
    """Long requests, which all end at the same moment."""

    def __init__(self, writer: int) -> None:
        self.server: Server
        self._writer = writer
        self._clients = ExitStack()

    def begin(self, count: int) -> None:
        """So many at once; returns when the last one is being served."""
        clients = [self._clients.enter_context(self.server.connect()) for _ in range(count)]
        for client in clients:
            assert client.recv(100)

    def let_all_go(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1
        self._clients.close()


def size(server: Server) -> int:
    return len([pid for pid in children(server.pid) if alive(pid) and "worker" in title(pid)])


def test_sixteen_long_requests_at_once_are_all_served_and_wait_for_no_tick_of_the_master(
    start: Starter,
) -> None:
    unhurried = """
    from prefork_server.master import Inbox

    class Unhurried(Inbox):  # it looks when it is woken, and else after hours
        def wait(self, seconds):
            return super().wait(10_000 * seconds)

    put("master.Inbox", Unhurried)
"""
    program = f"{LONG}{unhurried}\n    serve(Long, workers=2, max_workers=20)"
    with held(start, program) as (server, hold):
        server.all_ready(2)
        hold.begin(16)
        assert 16 <= size(server) <= 20


def test_it_shrinks_by_one_a_second_when_the_load_is_gone_and_cuts_nobody_off(
    start: Starter,
) -> None:
    with held(start, f"{LONG}\n    serve(Long, workers=1, max_workers=4)") as (server, hold):
        server.all_ready(1)
        hold.begin(3)
        server.saw("forked", times=3)
        hold.let_all_go()
        server.saw(r"no longer wanted, retiring", times=size(server) - 2)
        eventually(lambda: size(server) == 2)  # that is how many may be idle
        assert server.ask(b"")
        assert server.quit() == 0
    went = [m.string for m in server.saw("no longer wanted, retiring")]
    times = [float(line.partition(" ")[0].rpartition(":")[2]) for line in went]
    steps = [later - sooner for sooner, later in itertools.pairwise(times)]
    assert all(step > 0.9 or step < 0 for step in steps), "at most one a second"


def test_it_never_grows_above_max_workers_and_serves_on(start: Starter) -> None:
    with held(start, f"{LONG}\n    serve(Long, workers=1, max_workers=3)") as (server, hold):
        server.all_ready(1)
        hold.begin(3)
        waiting = server.connect()
        with waiting:
            server.signal(signal.SIGTTIN)
            server.saw("forked", times=3)
            assert size(server) == 3
            hold.let_all_go()
            assert waiting.recv(100)


def test_a_reload_while_it_has_grown_replaces_all_and_keeps_the_size(start: Starter) -> None:
    with held(start, f"{LONG}\n    serve(Long, workers=2, max_workers=6)") as (server, hold):
        server.all_ready(2)
        hold.begin(5)
        server.signal(signal.SIGHUP)
        server.saw("reloading . workers, generation 2")
        hold.let_all_go()
        server.saw("generation 2 serves")
        assert server.ask(b"")


def test_a_stop_while_it_grows_serves_who_is_there_and_leaves_nobody(start: Starter) -> None:
    with held(start, f"{LONG}\n    serve(Long, workers=1, max_workers=30)") as (server, hold):
        server.all_ready(1)
        clients = [server.connect() for _ in range(12)]
        server.saw("forked", times=3)
        server.signal(signal.SIGQUIT)
        server.saw("stopping . workers|stopping .. workers")
        hold.let_all_go()
        for client in clients:
            with client:
                assert read_all(client)
        assert server.wait() == 0


def test_ttin_and_ttou_move_the_floor_and_winch_sends_all_away(start: Starter) -> None:
    with held(start, f"{LONG}\n    serve(Long, workers=1, max_workers=3)") as (server, hold):
        server.all_ready(1)
        server.signal(signal.SIGTTIN)
        server.all_ready(2)
        server.signal(signal.SIGTTOU)
        eventually(lambda: size(server) == 1)
        server.signal(signal.SIGWINCH)
        eventually(lambda: size(server) == 0)
        client = server.connect()  # which is no reason to grow
        with client:
            server.signal(signal.SIGTTIN)
            assert client.recv(100)
            hold.let_all_go()


def test_scale_moves_the_floor_and_knows_the_most(start: Starter, tmp_path: Path) -> None:
    settings = "workers=1, max_workers=4, pid_path='x.pid'"
    with held(start, f"{LONG}\n    serve(Long, {settings})") as (server, hold):
        server.all_ready(1)
        hold.begin(2)
        said = asked(tmp_path, "scale", "3", "x.pid")
        assert (said.returncode, said.stderr) == (0, "")
        assert 3 <= size(server) <= 4
        hold.let_all_go()
        said = asked(tmp_path, "scale", "5", "x.pid")
        assert (said.returncode, "has 4 workers at most" in said.stderr) == (1, True)
        assert asked(tmp_path, "scale", "0", "x.pid").returncode == 0
        eventually(lambda: size(server) == 0)


def test_connections_that_are_parked_keep_nobody_busy(start: Starter) -> None:
    server = start("""
        from prefork_server.http import HTTPRequestHandler, PreforkHTTPServer

        class Hello(HTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"hi")

        serve(Hello, PreforkHTTPServer, workers=2, max_workers=9)
    """).all_ready(2)
    with ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(server.connect())
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(1000).endswith(b"hi")
        assert size(server) <= 4  # two may have been busy in the same moment
        before = size(server)
        held = [stack.enter_context(server.connect()) for _ in range(20)]
        assert len(held) == 20
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1000).endswith(b"hi")
        assert size(server) <= before


def test_a_worker_of_coroutines_is_busy_when_it_can_hold_no_more(start: Starter) -> None:
    server = start("""
        from prefork_server.aio import PreforkAsyncioServer

        async def hold(reader, writer):
            writer.write(b"%d" % os.getpid())
            await reader.read()
            writer.close()

        PreforkAsyncioServer(
            "127.0.0.1:0", hold, workers=1, max_workers=3, worker_connections=4, loop="asyncio"
        ).serve_forever()
    """).all_ready(1)
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(3)]
        assert len({client.recv(100) for client in clients}) == 1
        assert size(server) == 1
        clients += [stack.enter_context(server.connect()) for _ in range(9)]
        assert {len(client.recv(100)) > 0 for client in clients[3:]} == {True}
        assert size(server) == 3
