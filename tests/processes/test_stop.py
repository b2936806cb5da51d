"""Promises 2 and 3: a graceful stop loses nobody, and no worker outlives its master."""

import os
import select
import signal
import socket
from contextlib import ExitStack

import pytest

from prefork_server.listeners import Listener, listen, tcp_address
from tests.conftest import (
    HELLO,
    Server,
    Starter,
    alive,
    eventually,
    read_all,
    soak,
    title,
    unmeasured,
)
from tests.hammer import Hammer

STOPS = soak(2, 50)  # of each kind
ADDRESSES = {"tcp": '("127.0.0.1", 0)', "unix": '__file__ + ".sock"'}
CLASSES = {"tcp": "PreforkTCPServer", "unix": "PreforkUnixStreamServer"}

HELD = """
    import select

    class Held(socketserver.BaseRequestHandler):
        def handle(self):
            data = self.request.recv(65536)
            self.request.sendall(b"%d\\n" % os.getpid())
            while not select.select([self.request], [], [], 0.1)[0]:
                current_master().wants_me_alive()
            self.request.recv(10)  # what is unread at the close would reset the connection
            self.request.sendall(data)
"""


def hold(server: Server) -> socket.socket:
    """A client whose request is being served, until it says go."""
    client = server.connect()
    client.sendall(b"held")
    assert client.recv(100).strip().isdigit()
    return client


def door_shuts(kind: str) -> bool:
    """Whether nobody may be lost at all: the right to attach a filter to a TCP socket."""
    with listen(tcp_address(("127.0.0.1", 0))).socket as probe:
        return kind == "unix" or Listener(probe).shut_the_door()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_quit_finishes_what_is_being_served_and_refuses_who_comes_later(
    start: Starter, kind: str
) -> None:
    server = start(HELD + f"    serve(Held, {CLASSES[kind]}, {ADDRESSES[kind]}, workers=2)")
    address = server.ready().address
    with hold(server) as client:
        server.signal(signal.SIGQUIT)
        server.saw("reaped: exit code 0")  # the idle one is gone, the door is shut
        client.sendall(b"go")
        assert read_all(client) == b"held"
    assert server.wait() == 0
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        server.connect()
    if isinstance(address, str):
        assert not os.path.exists(address)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("hammering", [0, 8])
def test_two_hundred_who_wait_in_the_queue_get_two_hundred_full_replies(
    start: Starter, kind: str, hammering: int
) -> None:
    server = start(f"""
        import select

        class Held(Echo):
            def handle(self):
                data = self.request.recv(65536)
                if data == b"hold":
                    self.request.sendall(b"held")
                    select.select([self.request], [], [])
                    self.request.recv(10)
                self.request.sendall(data)

        serve(Held, {CLASSES[kind]}, {ADDRESSES[kind]}, workers=1)
    """).ready()
    with ExitStack() as stack:
        holder = stack.enter_context(server.connect())
        holder.sendall(b"hold")
        assert holder.recv(4) == b"held"
        queue = [stack.enter_context(server.connect()) for _ in range(200)]
        for number, client in enumerate(queue):
            client.sendall(b"%d" % number)
        with Hammer(server.address, hammering) as hammer:
            server.signal(signal.SIGQUIT)
            server.saw("SIGQUIT: stopping 1 workers gracefully")
            holder.sendall(b"go")
            for number, client in enumerate(queue):
                assert read_all(client) == b"%d" % number
            assert server.wait() == 0
            hammer.ended("refused", hammering)
    assert hammer.counts["lost"] <= (0 if door_shuts(kind) else 1)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_stop_under_fire_loses_nobody(start: Starter, kind: str) -> None:
    lost = served = 0
    for _ in range(STOPS):
        program = f"serve(Echo, {CLASSES[kind]}, {ADDRESSES[kind]}, workers=4)"
        server = start(program, env=unmeasured()).all_ready(4)
        with Hammer(server.address, 24) as hammer:
            hammer.ended("served", 500)
            server.signal(signal.SIGQUIT)
            assert server.wait() == 0
            hammer.ended("refused", 24)
        lost += hammer.counts["lost"]
        served += hammer.counts["served"]
    print(f"{kind}: {lost} of {served} lost in {STOPS} stops")
    assert lost <= (0 if door_shuts(kind) else STOPS)


@pytest.mark.soak
def test_workers_that_retire_under_fire_lose_nobody(start: Starter) -> None:
    server = start(
        """
        class Brief(Echo):
            served = 0

            def handle(self):
                super().handle()
                Brief.served += 1
                if Brief.served == 20:
                    sys.exit()

        serve(Brief, workers=4)
        """,
        env=unmeasured(),  # coverage writes a file for each worker
    ).all_ready(4)
    with Hammer(server.address, 8) as hammer:
        hammer.ended("served", served := soak(500, 20_000), patience=600)
    print(hammer.counts, server.count("reaped"), "workers")
    assert hammer.counts["lost"] == hammer.counts["refused"] == 0
    server.saw("reaped: exit code 0", times=served // 30)
    assert server.count("WARNING|ERROR") == 0


def test_an_idle_connection_ends_at_a_stop_and_one_that_has_begun_is_waited_for(
    start: Starter,
) -> None:
    server = start("""
        class Lines(socketserver.StreamRequestHandler):
            def handle(self):
                for line in self.rfile:
                    self.wfile.write(line)

        serve(Lines, workers=3)
    """).all_ready(3)
    with server.connect() as idle, server.connect() as fresh, server.connect() as begun:
        idle.sendall(b"one\n")
        assert idle.recv(10) == b"one\n"
        begun.sendall(b"not yet a line")
        eventually(lambda: server.count("accepted") or _queue_is_empty(server))
        server.signal(signal.SIGQUIT)
        assert idle.recv(10) == b""  # it was answered, and asks for nothing
        assert fresh.recv(10) == b""  # a second without a word
        begun.sendall(b", now it is\n")
        assert begun.recv(100) == b"not yet a line, now it is\n"
        assert begun.recv(10) == b""
    assert server.wait() == 0


def _queue_is_empty(server: Server) -> bool:
    """Whether the kernel's accept queue is empty, by the state of the listener."""
    assert isinstance(server.address, tuple)
    port = f":{server.address[1]:04X}"
    with open("/proc/net/tcp") as table:
        rows = [row.split() for row in table if port in row.split()[1]]
    return all(row[4].endswith(":00000000") for row in rows if row[3] == "0A")


SAID = "dict(workers=2, graceful_timeout=600)"
DEFERRED = {
    kind: f"from prefork_server.http import PreforkHTTPServer; said = {SAID}; {program}"
    for kind, program in {
        "http": "serve(Hello, PreforkHTTPServer, **said)",
        "http with threads": "serve(Hello, PreforkHTTPServer, threads=8, **said)",
        "mixin": "PreforkTCPServer.defer_accept = 5; serve(Hello, **said)",
    }.items()
}


@pytest.mark.parametrize("kind", DEFERRED)
@pytest.mark.parametrize("silence", [0.25, 0.8])
def test_clients_that_were_deferred_have_a_second_to_speak(
    start: Starter, kind: str, silence: float
) -> None:
    if not door_shuts("tcp"):
        pytest.skip("the kernel lets us attach no filter to a TCP socket")
    server = start(f"{HELLO}\n        {DEFERRED[kind]}\n").all_ready(2)
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(6)]
        server.signal(signal.SIGQUIT)
        server.saw("SIGQUIT: stopping 2 workers gracefully")
        assert select.select(clients, [], [], silence) == ([], [], [])  # none was closed
        for client in clients:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        for client in clients:
            assert b" 200 " in read_all(client)
        assert server.wait() == 0


def test_clients_that_were_deferred_and_say_nothing_keep_a_stop_for_a_second(
    start: Starter,
) -> None:
    server = start(f"{HELLO}\n        {DEFERRED['http']}\n").all_ready(2)
    with server.connect(), server.connect():
        assert server.quit() == 0


def test_without_clients_no_time_is_lost(start: Starter) -> None:
    server = start("""
        # Seconds: a wait for clients does not end in this test.
        put("worker.accept_loop.HANDSHAKES", 1000)
        put("worker.accept_loop.FAREWELL", 1000)
        put("sockets.connection.FAREWELL", 1000)
        serve(Echo, workers=2, graceful_timeout=4000)
    """).all_ready(2)
    assert server.quit() == 0


def test_where_no_filter_may_be_attached_the_queue_is_served_and_the_stop_is_prompt(
    start: Starter,
) -> None:
    server = start("""
        import select

        class Held(Echo):
            def handle(self):
                if self.request.recv(4) == b"hold":
                    self.request.sendall(b"held")
                    select.select([self.request], [], [])
                super().handle()

        class Locked(PreforkTCPServer):
            defer_accept = 0

            def server_activate(self):
                super().server_activate()
                self.socket.setsockopt(socket.SOL_SOCKET, 44, 1)  # SO_LOCK_FILTER

        serve(Held, Locked, workers=1, graceful_timeout=600)
    """).all_ready(1)
    with ExitStack() as stack:
        holder = stack.enter_context(server.connect())
        holder.sendall(b"hold")
        assert holder.recv(4) == b"held"
        queue = [stack.enter_context(server.connect()) for _ in range(20)]
        for client in queue:
            client.sendall(b"go  queued")
            client.shutdown(socket.SHUT_WR)
        server.signal(signal.SIGQUIT)
        server.saw("SIGQUIT: stopping 1 workers gracefully")
        holder.shutdown(socket.SHUT_WR)
        for client in queue:
            assert read_all(client) == b"queued"
        assert server.wait() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_term_does_not_wait(start: Starter, signum: int) -> None:
    server = start(HELD + "    serve(Held, workers=2, graceful_timeout=600)").ready()
    with hold(server) as client:
        server.signal(signum)
        assert server.wait() == 0
        assert client.recv(10) == b""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_hurries_a_slow_stop(start: Starter, second: int) -> None:
    server = start(HELD + "    serve(Held, workers=2)").ready()
    with hold(server) as client:
        server.signal(signal.SIGQUIT)
        server.signal(signal.SIGQUIT)  # a second one changes nothing
        server.saw("reaped: exit code 0")
        server.signal(signal.SIGTTIN)  # neither do these, now
        server.signal(signal.SIGHUP)
        server.signal(second)
        assert server.wait() == 0
        assert client.recv(10) == b""
    assert server.count("forked") == 2


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_term_is_graceful_where_it_is_said_and_a_second_one_hurries(
    start: Starter, second: int
) -> None:
    server = start(HELD + '    serve(Held, workers=2, term="graceful")').ready()
    with hold(server) as client:
        server.signal(signal.SIGTERM)
        server.saw("SIGTERM: stopping 2 workers gracefully")
        server.saw("reaped: exit code 0")
        client.sendall(b"go")
        assert read_all(client) == b"held"
    assert server.wait() == 0

    server = start(HELD + '    serve(Held, workers=2, term="graceful")').ready()
    with hold(server) as client:
        server.signal(signal.SIGTERM)
        server.saw("reaped: exit code 0")
        server.signal(second)
        assert read_all(client) == b""
    server.saw("stopping 1 workers now")
    server.saw("INFO .*reaped: killed by SIGKILL;")  # by us, and no error
    assert server.wait() == 0


def test_term_to_all_processes_loses_nobody_where_it_is_graceful(start: Starter) -> None:
    # As systemd sends it, unless told otherwise.
    server = start(HELD + '    serve(Held, workers=2, term="graceful")').all_ready(2)
    with ExitStack() as stack:
        held = [stack.enter_context(hold(server)) for _ in range(2)]
        queue = [stack.enter_context(server.connect()) for _ in range(20)]
        for client in queue:
            client.sendall(b"queued")
            client.shutdown(socket.SHUT_WR)
        os.killpg(server.pid, signal.SIGTERM)
        # A worker that heard it first may have a successor by then.
        server.saw("SIGTERM: stopping [234] workers gracefully")
        for client in held:
            client.sendall(b"go")
            assert read_all(client) == b"held"
        for client in queue:
            assert read_all(client).endswith(b"queued")
    assert server.wait() == 0


def test_term_to_all_processes_is_no_error_where_it_means_now(start: Starter) -> None:
    # The workers hear it as soon as the master does, and are often gone before it tells them.
    server = start("serve(Echo, workers=8)").ready()
    with ExitStack() as stack:  # a title comes before a worker is ready: each of them serves one
        clients = [stack.enter_context(server.connect()) for _ in range(8)]
        for client in clients:
            client.sendall(b"hello")
        assert [client.recv(5) for client in clients] == [b"hello"] * 8
    eventually(lambda: [title(pid)[-6:] for pid in server.workers()] == ["idle 1"] * 8)
    os.killpg(server.pid, signal.SIGTERM)
    assert server.wait() == 0
    assert len(server.saw("INFO .*reaped: killed by SIGTERM", times=8)) == 8


def test_a_worker_that_blocks_term_is_killed_a_second_later(start: Starter) -> None:
    server = start("""
        def work(master):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            master.logger.info("deaf")
            while True:
                master.wants_me_alive()
                time.sleep(0.05)

        Preforker(work, workers=1).run()
    """)
    server.expect_error("not gone after TERM, killing")
    server.saw("deaf")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    server.saw("reaped: killed by SIGKILL")


def test_past_graceful_timeout_the_rest_is_killed(start: Starter) -> None:
    server = start(HELD + "    serve(Held, workers=2, graceful_timeout=0.5, timeout=60)").ready()
    server.expect_error("not gone 0.5s after it was told to", "SIGKILL")
    with hold(server) as client:
        assert server.quit() == 0
        assert client.recv(10) == b""
    server.saw(r"not gone 0.5s after it was told to, killing; \d")


@pytest.mark.parametrize("bases", ["{0}, PreforkMixIn", "PreforkMixIn, {0}"])
@pytest.mark.parametrize("other", ["ThreadingMixIn", "ForkingMixIn"])
@pytest.mark.parametrize("told", ["stop", "retire"])
def test_what_threads_and_forks_of_a_worker_serve_is_finished(
    start: Starter, bases: str, other: str, told: str
) -> None:
    server = start(
        HELD
        + f"""
    class Server({bases.format("socketserver." + other)}, socketserver.TCPServer):
        settings = Settings(workers=1)
        daemon_threads = True

    serve(Held, Server)
    """
    ).all_ready(1)
    with hold(server) as first, hold(server) as second:  # one worker serves both at once
        worker = server.workers()[0]
        if told == "stop":
            server.signal(signal.SIGQUIT)
        else:
            server.signal(signal.SIGQUIT, worker)
            server.saw("forked", times=2)
        for client in (first, second):
            client.sendall(b"go")
            assert read_all(client) == b"held"
    server.saw(rf"pid={worker} reaped: exit code 0")
    server.quit()


def test_a_handler_in_the_middle_of_its_work_is_not_interrupted(start: Starter) -> None:
    server = start("""
        class Halves(socketserver.BaseRequestHandler):
            def handle(self):
                with open(__file__ + ".out", "w") as file:
                    file.write("first half, ")
                    self.request.sendall(b"half")
                    with open(__file__ + ".fifo") as fifo:
                        fifo.read()
                    file.write("second half")

        os.mkfifo(__file__ + ".fifo")
        serve(Halves, workers=1)
    """).ready()
    with server.connect() as client:
        assert client.recv(4) == b"half"
        server.signal(signal.SIGQUIT)
        server.saw("SIGQUIT: stopping")
        with open(start.directory / "app0.py.fifo", "w"):
            pass
        assert client.recv(4) == b""
    assert server.wait() == 0
    assert (start.directory / "app0.py.out").read_text() == "first half, second half"


@pytest.mark.soak
def test_a_stop_right_after_the_start_is_prompt(start: Starter) -> None:
    for number in range(STOPS):
        server = start("serve(Echo, workers=3, boot_timeout=600, graceful_timeout=600)")
        server.saw("worker=1 .*forked" if number % 2 else "ready")
        assert server.quit() == 0


def test_a_stop_before_anybody_is_ready_leaves_nobody(start: Starter) -> None:
    server = start("""
        def slow(master):
            master.logger.info("booting")
            time.sleep(1000)

        Preforker(lambda master: None, workers=2, after_fork=slow).run()
    """)
    server.saw("booting")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def test_a_thread_that_a_handler_left_does_not_keep_the_worker(start: Starter) -> None:
    server = start("""
        class Leaves(Echo):
            def handle(self):
                threading.Thread(target=time.sleep, args=(1000,)).start()
                super().handle()

        serve(Leaves, workers=1)
    """).ready()
    assert server.ask() == b"hello"
    assert server.quit() == 0


# Promise 3


def test_idle_workers_follow_a_killed_master_and_free_the_port(start: Starter) -> None:
    server = start("serve(Echo, workers=4)").all_ready(4)
    workers, address = server.workers(), server.address
    server.signal(signal.SIGKILL)
    server.wait()
    eventually(lambda: not any(map(alive, workers)), 2)
    assert isinstance(address, tuple)
    socket.create_server(address).close()


def test_a_busy_worker_finishes_for_its_client_and_follows(start: Starter) -> None:
    server = start(HELD + "    serve(Held, workers=3)").all_ready(3)
    workers = server.workers()
    with hold(server) as client:
        server.signal(signal.SIGKILL)
        server.wait()
        eventually(lambda: sum(map(alive, workers)) == 1)
        client.sendall(b"go")
        assert read_all(client) == b"held"
    eventually(lambda: not any(map(alive, workers)))


@pytest.mark.parametrize("how", ["time.sleep(1000)", "exec('while True: pass')"])
def test_one_that_hangs_without_a_master_is_gone_after_graceful_timeout(
    start: Starter, how: str
) -> None:
    server = start(f"""
        class Hangs(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.sendall(b"hanging")
                {how}

        serve(Hangs, workers=2, graceful_timeout=0.7)
    """).all_ready(2)
    with server.connect() as client:
        assert client.recv(100) == b"hanging"
        server.signal(signal.SIGKILL)
        server.wait()
        assert client.recv(100) == b""


def test_no_sibling_and_no_stranger_keeps_orphans_from_knowing(start: Starter) -> None:
    server = start("""
        class Server(PreforkTCPServer):
            def ready(self, addresses):
                if not os.fork():  # a child of the master that is no worker, and stays
                    print("a stranger stays", flush=True)
                    time.sleep(4)
                    os._exit(0)

        serve(Echo, Server, workers=3)
    """).all_ready(3)
    server.saw("a stranger stays")
    workers = [pid for pid in server.workers() if "worker" in title(pid)]
    server.signal(signal.SIGKILL)
    server.wait()
    eventually(lambda: not any(map(alive, workers)), 2)
