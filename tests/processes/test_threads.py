"""``threads=N``: a worker serves so many at once, and knows of each whether it lives."""

import os
import signal
import socket
import socketserver
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from prefork_server import (
    ConfigError,
    PreforkAsyncioServer,
    Preforker,
    PreforkHTTPServer,
    PreforkMixIn,
    PreforkTCPServer,
    PreforkWSGIServer,
    Settings,
)
from tests.certificates import make_certificate
from tests.conftest import Starter, alive, children, eventually, read_all, title
from tests.hammer import HTTPHammer
from tests.processes.test_http import GET, HTTP, Client

WHO = """
    class Who(socketserver.BaseRequestHandler):
        def handle(self):
            while word := self.request.recv(100):
                master, thread = current_master(), threading.current_thread()
                if word == b"hang":
                    time.sleep(1000)
                elif word == b"hold":  # Python itself, from C, where no other thread has a turn
                    ctypes.PyDLL(None).sleep(100)
                elif word == b"exit":
                    sys.exit()
                elif word == b"raise":
                    raise ValueError("of my own")
                elif word == b"soon":
                    master.wants_me_alive(within=0.3)
                    time.sleep(1000)
                elif word == b"later":
                    master.wants_me_alive(within=30)
                    ctypes.PyDLL(None).usleep(1_500_000)
                elif word == b"fork":
                    os.fork()
                elif word == b"wait":
                    self.request.sendall(b"waits ")
                    master.wait(1000)
                self.request.sendall(f"{thread.name} of {os.getpid()}".encode())

    import ctypes
"""
HELD = """
    class Held(socketserver.BaseRequestHandler):
        def handle(self):
            said = b""
            self.request.sendall(b"began ")
            while len(said) < 2 and (data := self.request.recv(2)):
                said += data
            self.request.sendall(said)
"""


def said(client: socket.socket, word: bytes = b"hello") -> str:
    client.sendall(word)
    return client.recv(100).decode()


def test_a_worker_serves_as_many_at_once_as_it_has_threads_and_the_next_one_waits(
    start: Starter,
) -> None:
    server = start(WHO + "    serve(Who, workers=1, threads=3)").all_ready(1)
    (worker,) = server.workers()
    with ExitStack() as stack:
        first, *others = [stack.enter_context(server.connect()) for _ in range(3)]
        names = {said(client) for client in (first, *others)}
        assert names == {f"worker 1 thread {number} of {worker}" for number in (1, 2, 3)}
        fourth = stack.enter_context(server.connect())
        fourth.sendall(b"hello")
        fourth.settimeout(0.2)  # it is in the queue, and has no other sign of that
        with pytest.raises(TimeoutError):
            fourth.recv(100)
        assert "busy 3" in title(worker)
        first.close()
        fourth.settimeout(20)
        assert "worker 1 thread" in fourth.recv(100).decode()
    eventually(lambda: "idle" in title(worker))


def test_who_comes_is_for_a_sibling_that_has_a_free_thread(start: Starter) -> None:
    server = start(WHO + "    serve(Who, workers=2, threads=2)").all_ready(2)
    with ExitStack() as stack:
        for _ in range(5):
            clients = [stack.enter_context(server.connect()) for _ in range(4)]
            assert len({said(client) for client in clients}) == 4
            for client in clients:
                client.close()


def test_a_handler_that_raises_costs_its_connection_and_no_thread(start: Starter) -> None:
    server = start(WHO + "    serve(Who, workers=1, threads=2)").all_ready(1)
    server.expect_error("handler failed for", "Traceback")
    with server.connect() as other:
        said(other)
        for _ in range(5):
            assert server.ask(b"raise") == b""
        with server.connect() as client:  # so both are still there
            assert said(client)[:17] != said(other)[:17]
    server.saw("handler failed for", times=5)


def test_a_system_exit_closes_its_connection_and_asks_for_a_new_worker(start: Starter) -> None:
    server = start(WHO + "    serve(Who, workers=1, threads=2)").all_ready(1)
    with server.connect() as other:
        said(other)
        assert server.ask(b"exit") == b""
        server.saw("worker=2 .* forked")
        assert "worker 1" in said(other, b"who?")  # its time is not over yet
    server.saw("worker=1 .* reaped: exit code 0")
    assert b"worker 2" in server.ask()


def test_a_method_that_raises_beyond_a_handler_ends_the_worker_and_not_a_thread(
    start: Starter,
) -> None:
    server = start("""
        class Fatal(PreforkTCPServer):
            def handle_error(self, request, client_address):
                raise SystemExit("nobody may raise here")

        class Fails(socketserver.BaseRequestHandler):
            def handle(self):
                raise ValueError

        serve(Fails, Fatal, workers=1, threads=2)
    """).ready()
    server.expect_error("reaped: exit code 1")
    with suppress(ConnectionResetError):
        server.ask()
    server.saw("nobody may raise here")
    server.saw("forked", times=2)


def test_of_a_silent_thread_the_log_says_where_and_the_others_finish(start: Starter) -> None:
    server = start(
        WHO + "    serve(Who, workers=1, threads=3, timeout=0.5, graceful_timeout=30)"
    ).all_ready(1)
    server.expect_error("thread . silent for more than 0.5s")
    (worker,) = server.workers()
    with server.connect() as hung, server.connect() as other:
        said(other)
        other.sendall(b"wait")
        hung.sendall(b"hang")
        server.saw(r"worker=1 .* thread \d silent for more than 0\.5s at .*app0\.py:\d+ in handle, "
                   r"retiring; [0-9.]+s with 127\.0\.0\.1:\d+")  # fmt: skip
        for name in ("worker 1 thread 1", "worker 1 thread 2", "worker 1 thread 3", "MainThread"):
            server.saw(rf"Thread {name} \(most recent call first\):")
        server.saw("worker=2 .* forked")  # at once
        assert "waits worker 1 thread" in read_all(other).decode()
        server.saw(rf"pid={worker} reaped: exit code 0")  # long before graceful_timeout
        assert read_all(hung) == b""
    assert server.count("killing") == 0
    assert b"worker 2" in server.ask()


def test_if_the_others_never_finish_it_ends_at_graceful_timeout(start: Starter) -> None:
    server = start(
        WHO + "    serve(Who, workers=1, threads=2, timeout=0.4, graceful_timeout=1)"
    ).all_ready(1)
    server.expect_error("silent for more than", "not gone 1s after", "reaped: killed by SIGKILL")
    with server.connect() as hung, server.connect() as other:
        hung.sendall(b"hang")
        server.saw("thread . silent for more than 0.4s")
        other.close()
        server.saw("worker=1 .* reaped")
    with server.connect() as hung, server.connect() as busy:
        busy.sendall(b"hello")
        busy.recv(100)
        hung.sendall(b"hang")
        server.saw("thread . silent for more than 0.4s", times=2)
        while server.count("reaped") < 2:  # it asks on, and so is never idle
            try:
                said(busy)
            except OSError:
                break
    server.saw("worker=2 .* reaped")


def test_a_thread_says_of_itself_alone_for_how_long_it_will_be_silent(start: Starter) -> None:
    server = start(WHO + "    serve(Who, workers=1, threads=2, timeout=30)").all_ready(1)
    server.expect_error("thread . silent for more than 30s")
    with server.connect() as client:
        client.sendall(b"soon")
        server.saw(r"thread \d silent for more than 30s at .*; [0-9.]+s with")


def test_code_that_lets_no_other_thread_run_is_found_by_the_master(start: Starter) -> None:
    server = start(WHO + "    serve(Who, workers=1, threads=2, timeout=0.5)").all_ready(1)
    server.expect_error("silent for more than 0.5s", "reaped: killed by SIGKILL")
    assert server.ask(b"later")  # unless it was announced
    assert server.count("silent") == 0
    assert server.ask(b"hold") == b""
    server.saw("worker=1 .*silent for more than 0.5s.*, killing")
    server.saw("Thread 0x.*most recent call first")


def test_a_client_that_is_silent_is_no_reason_to_think_ill_of_a_thread(start: Starter) -> None:
    server = start(
        WHO + "    serve(Who, workers=1, threads=2, timeout=1, client_timeout=2.5)"
    ).all_ready(1)
    with server.connect() as one, server.connect() as other:
        said(one)
        said(other)
        assert read_all(one) == read_all(other) == b""
    assert server.workers() and server.count("silent|reaped") == 0


def test_nobody_answers_for_a_silence_that_the_whole_server_slept_through(start: Starter) -> None:
    server = start(WHO + "    serve(Who, workers=1, threads=2, timeout=1)").all_ready(1)
    (worker,) = server.workers()
    with server.connect() as client:
        client.sendall(b"wait")
        assert client.recv(6) == b"waits "
        for pid in (server.pid, worker):
            server.signal(signal.SIGSTOP, pid)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(2.2)  # here time itself is what is tested
        for pid in (worker, server.pid):
            server.signal(signal.SIGCONT, pid)
        assert b"worker 1" in server.ask()
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(0.5)
        assert server.workers() == [worker] and server.count("silent") == 0
        server.quit()


@pytest.mark.parametrize("told", ["stop", "retire"])
def test_what_the_threads_serve_is_finished_and_who_waits_is_served(
    start: Starter, told: str
) -> None:
    server = start(HELD + "    serve(Held, workers=1, threads=2)").all_ready(1)
    (worker,) = server.workers()
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(4)]
        for client in clients[:2]:
            assert client.recv(10) == b"began "
            client.sendall(b"o")  # it has begun to ask
        if told == "stop":
            server.signal(signal.SIGQUIT)
            server.saw("stopping 1 workers")
            with pytest.raises(subprocess.TimeoutExpired):  # for longer than a queue is quiet
                server.process.wait(0.5)
        else:
            server.signal(signal.SIGQUIT, worker)
            server.saw("forked", times=2)
        for client in clients[:2]:
            client.sendall(b"n")
            assert read_all(client) == b"on"
        for client in clients[2:]:
            client.sendall(b"on")
            assert read_all(client) == b"began on"
    server.saw(rf"pid={worker} reaped: exit code 0")
    server.quit()


def test_past_graceful_timeout_a_worker_with_threads_is_killed(start: Starter) -> None:
    server = start(
        WHO + "    serve(Who, workers=1, threads=2, graceful_timeout=0.5)"
    ).all_ready(1)  # fmt: skip
    server.expect_error("not gone 0.5s after it was told to")
    with server.connect() as client:
        said(client)
        client.sendall(b"hang")
        eventually(lambda: "busy" in title(server.workers()[0]))
        assert server.quit() == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_a_thread_that_a_handler_left_behind_keeps_no_worker(start: Starter, threads: int) -> None:
    server = start(f"""
        class Leaves(Echo):
            def handle(self):
                threading.Thread(target=time.sleep, args=(1000,), daemon=False).start()
                super().handle()

        serve(Leaves, workers=1, threads={threads}, graceful_timeout=600)
    """).all_ready(1)
    assert server.ask(b"hello") == b"hello"
    assert server.quit() == 0
    assert server.count("killing") == 0


def test_a_fork_that_a_handler_makes_never_comes_back_into_a_thread(start: Starter) -> None:
    server = start(
        WHO.replace('"fork":', '"fork":  # of one thread')
        + """
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of forks beside threads
    serve(Who, workers=1, threads=2)
    """
    ).all_ready(1)
    (worker,) = server.workers()
    with server.connect() as client:
        said(client, b"fork")
    eventually(lambda: not any(map(alive, children(worker))))
    assert server.workers() == [worker] and server.ask()


def test_datagrams_are_answered_by_as_many_threads(start: Starter) -> None:
    server = start("""
        class Meets(socketserver.BaseRequestHandler):
            both = threading.Barrier(2)
            def handle(self):
                data, sock = self.request
                self.both.wait(20)
                sock.sendto(threading.current_thread().name.encode(), self.client_address)

        serve(Meets, PreforkUDPServer, workers=1, threads=2)
    """).ready()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        for _ in range(2):
            client.sendto(b"x", server.address)
        assert {client.recv(100) for _ in range(2)} == {b"worker 1 thread 1", b"worker 1 thread 2"}


def test_a_worker_with_threads_is_replaced_after_max_requests(start: Starter) -> None:
    server = start(WHO + "    serve(Who, workers=1, threads=4, max_requests=10)").ready()
    for _ in range(30):
        assert b"thread" in server.ask()
    server.saw(r"served \d+ requests, replaced, retiring")


# HTTP


@pytest.mark.parametrize("handler", ["Hello", "Plain"])
def test_sixty_four_who_are_kept_leave_a_place_for_the_next_one(
    start: Starter, handler: str
) -> None:
    server = start(
        HTTP + f"\n    serve({handler}, PreforkHTTPServer, workers=2, threads=4)\n",
        env={**os.environ, "KEEP": "600"},
    ).all_ready(2)
    with ExitStack() as stack:
        kept = [Client(server) for _ in range(64)]
        for client in kept:
            stack.callback(client.close)
            assert client.get().isdigit()
        for _ in range(20):
            newcomer = Client(server)
            assert newcomer.get().isdigit()
            newcomer.close()
        for client in kept:
            assert client.get().isdigit()
    assert len(server.workers()) == 2


def test_each_request_is_counted_once_whichever_thread_answers(start: Starter) -> None:
    server = start(
        HTTP + "\n    serve(Hello, PreforkHTTPServer, workers=1, threads=4, graceful_timeout=20)\n"
    ).all_ready(1)
    with HTTPHammer(server.address, 8, keeping=True) as hammer:
        hammer.ended("served", 2000)
    assert set(hammer.counts) == {"served"}
    server.quit()
    (counted,) = server.saw(r"reaped: exit code 0; .*requests=(\d+)")
    assert int(counted[1]) == hammer.counts["served"]


def test_requests_that_wait_in_one_connection_are_answered_in_their_order(start: Starter) -> None:
    server = start(HTTP + "\n    serve(Hello, PreforkHTTPServer, workers=1, threads=4)\n").ready()
    post = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n%03d"
    with ExitStack() as stack:
        for _ in range(4):
            client = Client(server)
            stack.callback(client.close)
            client.send(b"".join(post % number for number in range(100)))
            answers = [client.answer()[2] for _ in range(100)]
            assert answers == [b"%03d" % number for number in range(100)]


def test_no_request_is_lost_while_workers_with_threads_come_and_go(start: Starter) -> None:
    server = start(
        HTTP + "\n    serve(Hello, PreforkHTTPServer, workers=2, threads=3, max_requests=300)\n"
    ).all_ready(2)
    coming = HTTPHammer(server.address, 3)
    keeping = HTTPHammer(server.address, 6, keeping=True)
    with coming, keeping:
        for number in range(1, 5):
            coming.ended("served", 100 * number)
            server.signal(signal.SIGHUP)
            server.saw(rf"generation {number + 1} serves")
    assert set(coming.counts) == {"served"}
    assert set(keeping.counts) <= {"served"}, keeping.counts


def test_a_stop_finishes_the_requests_of_all_threads(start: Starter, tmp_path: Path) -> None:
    server = start(
        HTTP
        + """
    def do_GET(self):
        print("in the handler")
        while current_master().wants_me_alive():
            time.sleep(0.01)
        self.answer(b"done")
    Hello.do_GET = do_GET
    serve(Hello, PreforkHTTPServer, workers=1, threads=3)
    """
    ).all_ready(1)
    clients = [Client(server) for _ in range(3)]
    for client in clients:
        client.send(GET)
    server.saw("in the handler", times=3)
    server.signal(signal.SIGQUIT)
    for client in clients:
        status, fields, body = client.answer()
        assert (status, fields["connection"], body) == (200, "close", b"done")
        client.close()
    assert server.wait() == 0


def test_who_is_idle_for_too_long_is_let_go_though_all_threads_are_busy_now_and_then(
    start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEP", "0.3")
    server = start(HTTP + "\n    serve(Hello, PreforkHTTPServer, workers=1, threads=2)\n").ready()
    idle = [Client(server) for _ in range(8)]
    for client in idle:
        client.get()
    for client in idle:
        assert client.is_closed()
        client.close()


def test_an_application_is_told_that_it_is_called_in_threads(start: Starter) -> None:
    server = start("""
        def app(environ, start_response):
            start_response("200 OK", [])
            return [f"{environ['wsgi.multithread']} {threading.current_thread().name}".encode()]

        from prefork_server import serve
        serve(app, "127.0.0.1:0", workers=1, threads=2)
    """).ready()
    client = Client(server)
    assert client.get().startswith(b"True worker 1 thread")
    client.close()
    with PreforkWSGIServer(
        ("127.0.0.1", 0), lambda environ, start: [], False, threads=2, inline=True
    ) as inline:
        assert inline.base_environ["wsgi.multithread"] is False


def test_handshakes_and_introductions_are_made_in_threads_too(
    start: Starter, tmp_path: Path
) -> None:
    trusting = make_certificate(tmp_path)
    server = start(
        HTTP
        + """
    class Who(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(10)
            self.request.sendall(f"{self.client_address[0]} of TCP".encode())
    Hello.do_GET = lambda self: self.answer(f"{self.client_address[0]}".encode())
    options = dict(certfile="server.pem", proxy_protocol_from=["127.0.0.1"], workers=1, threads=2)
    serve(*((Hello, PreforkHTTPServer) if sys.argv[1] == "http" else (Who,)), **options)
    """,
        "http",
    ).ready()
    plain = start.script(tmp_path / "app0.py", "tcp").ready()
    for one, asks in ((server, GET), (plain, b"who?")):
        silent = one.connect()  # and keeps nobody out
        client = one.connect()
        client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 5 6\r\n")
        with trusting.wrap_socket(client, server_hostname="localhost") as secure:
            secure.sendall(asks)
            assert b"192.0.2.7" in secure.recv(1000)
        silent.close()


# What cannot be

Handler = socketserver.BaseRequestHandler


class Threading(PreforkMixIn, socketserver.ThreadingTCPServer):
    settings = Settings(workers=1, threads=2)


def test_where_we_cannot_serve_in_threads_it_is_refused_before_anything_is_bound() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    address = taken.getsockname()  # whoever tried to bind it would say so
    with taken:
        with pytest.raises(ConfigError, match="Threading has a process_request"):
            Threading(address, Handler)
        with pytest.raises(ConfigError, match="a work function does by itself what it does"):
            Preforker(lambda master: None, listen=[f"127.0.0.1:{address[1]}"], threads=2)
        with pytest.raises(ConfigError, match="coroutines share their loop"):
            PreforkAsyncioServer(address, lambda reader, writer: None, threads=2)
        for wrong in (0, 100, True, 1.5, "4", None):
            with pytest.raises(ConfigError, match="threads must be a whole number, 1 to 99"):
                PreforkTCPServer(address, Handler, threads=wrong)  # type: ignore[arg-type]
    PreforkHTTPServer(("127.0.0.1", 0), Handler, False, threads=99).server_close()


def test_inline_there_is_one_thread_and_it_is_the_debuggers(start: Starter) -> None:
    server = start(WHO + "    serve(Who, threads=4, inline=True)").ready()
    assert server.ask() == f"MainThread of {server.pid}".encode()
    server.signal(signal.SIGINT)
    assert server.wait() == 0
