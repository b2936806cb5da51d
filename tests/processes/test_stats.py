"""What real servers say of themselves: figures, deaths, counters."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from prefork_server.scoreboard import (
    SECOND,
    Scoreboard,
)
from prefork_server.stats import read
from tests.conftest import PATIENCE, Server, Starter, alive, eventually, read_all, unmeasured

ASKED = """
    import json
    orders = SharedCounter("orders")

    class Asked(socketserver.BaseRequestHandler):
        def handle(self):
            master = current_master()
            word = self.request.recv(100)
            if word == b"order":
                orders.add()
            elif word == b"hold":
                master.note("holding \\u00e9")
                self.request.sendall(b"held")
                self.request.recv(100)
            elif word == b"raise":
                raise ValueError("of mine")
            elif word == b"hang":
                time.sleep(1000)
            elif word == b"die":
                os._exit(3)
            self.request.sendall(json.dumps(master.stats().as_dict()).encode())
"""


def asked(server: Server, word: bytes = b"stats") -> Any:
    return json.loads(server.ask(word))


# Real servers


def test_a_worker_and_the_master_say_the_same_before_the_start_nothing_and_after_the_end_the_last(
    start: Starter,
) -> None:
    server = start(
        f"""{ASKED}
    server = PreforkTCPServer(("127.0.0.1", 0), Asked, workers=2)
    try:
        server.stats()
    except RuntimeError as error:
        print("before:", error)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.wait_ready()
    for line in sys.stdin:
        print("now", json.dumps(server.stats().as_dict()))
    server.shutdown()
    thread.join()
    print("end", json.dumps(server.stats().as_dict()))
    """,
        stdin=-1,
    )
    assert server.process.stdin
    server.saw("before: stats.. tells of a server that runs")
    with server.connect() as client:
        client.sendall(b"hold")
        assert client.recv(100) == b"held"
        seen = asked(server)
        server.process.stdin.write(b"\n")
        server.process.stdin.flush()
        now = json.loads(server.saw(r"^now (.*)")[0][1])
        port = client.getsockname()[1]
        for one in (seen, now):
            (busy,) = (w for w in one["workers"] if w["note"])
            assert busy["note"] == "holding é"
            assert busy["peer"] == f"127.0.0.1:{port}"
            assert busy["state"] == "busy"
            assert 0 < busy["busy_for"] <= busy["busy"] <= one["busy"]
            assert one["pid"] == server.pid
            assert one["requests"] == 2
            assert (one["state"], one["wanted"], one["forks"]) == ("serving", 2, 2)
        client.sendall(b"go")
        read_all(client)
    server.process.stdin.close()
    end = json.loads(server.saw(r"^end (.*)")[0][1])
    assert (end["requests"], end["state"], end["workers"]) == (2, "stopping", [])
    assert end["deaths"] == 2
    assert server.wait() == 0


def test_totals_never_go_down_while_workers_are_killed(start: Starter) -> None:
    server = start(f"{ASKED}\n    serve(Asked, workers=2)", env=unmeasured()).all_ready(2)
    server.expect_error("killed by SIGKILL")
    now, over = threading.Semaphore(0), threading.Event()

    def kill() -> None:
        while now.acquire() and not over.is_set():
            for pid in server.workers()[:1]:
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    last: dict[str, Any] = {}
    try:
        for number in range(200):
            if number % 20 == 10:
                now.release()  # while this one is served, or just before or after
            try:
                told = json.loads(server.ask(b"order") or b"{}")
            except OSError:
                continue  # it was killed just then
            for name in ("requests", "busy", "forks", "deaths"):
                assert told.get(name, 1 << 60) >= last.get(name, 0), name
            last = told or last
    finally:
        over.set()
        now.release()
        killer.join()
    final = asked(server)
    assert final["deaths"] > 0
    eventually(lambda: (now := asked(server))["forks"] - now["deaths"] == 2)
    assert final["requests"] >= final["counters"]["orders"] > 0


def test_how_many_wait_at_a_listener_is_told(start: Starter) -> None:
    server = start(f"""{ASKED}
    serve(Asked, address=["127.0.0.1:0", "unix:x.sock"], workers=1)
    """)
    server.ready()
    host, port = server.saw(r"listening on ([\d.]+):(\d+), unix:")[0].groups()
    with server.connect() as client:
        client.sendall(b"hold")
        client.recv(100)
        waiting = [server.connect() for _ in range(3)]
        client.sendall(b"go")
        told = json.loads(read_all(client))
        for one in waiting:
            one.close()
    # The master looks once a second, and the last time may have been before they came.
    assert told["listeners"][1]["queue"] is None
    assert told["listeners"][0]["address"] == f"{host}:{port}"
    with server.connect() as client:
        client.sendall(b"hold")
        client.recv(100)
        waiting = [server.connect() for _ in range(3)]
        eventually(lambda: read(board_of(server), SECOND).listeners[0].queue == 3)
        for one in waiting:
            one.close()


def board_of(server: Server) -> Scoreboard:
    for entry in Path(f"/proc/{server.pid}/fd").iterdir():
        if "prefork-scoreboard" in os.readlink(entry):
            fd = os.open(entry, os.O_RDONLY)
            try:
                return Scoreboard.read_only(fd)
            finally:
                os.close(fd)
    raise AssertionError("it has none")


@pytest.mark.parametrize("kind", ["", "socketserver.ThreadingMixIn, "])
def test_handlers_that_raise_are_counted_and_clients_that_go_are_not(
    start: Starter, kind: str
) -> None:
    server = start(f"""{ASKED}
    class Server({kind}PreforkTCPServer):
        def handle_error(self, request, peer):
            pass  # counted before it is asked
    serve(Asked, Server, workers=1)
    """)
    server.ready()
    for _ in range(3):
        assert server.ask(b"raise") == b""
    with server.connect() as client:
        client.sendall(b"hold")
        client.recv(100)
        client.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER: a reset
    eventually(lambda: asked(server)["errors"] == 3)
    assert asked(server)["workers"][0]["errors"] == 3


@pytest.mark.parametrize("kind", ["own", "plain", "wsgi"])
def test_over_http_handlers_that_raise_are_counted_too(start: Starter, kind: str) -> None:
    server = start(f"""
    from http.server import BaseHTTPRequestHandler
    from prefork_server import HTTPRequestHandler, PreforkHTTPServer, PreforkWSGIServer
    def fail(*_):
        raise ValueError("of mine")
    class Own(HTTPRequestHandler):
        do_GET = fail
    class Plain(BaseHTTPRequestHandler):
        do_GET = fail
    served = {{"own": Own, "plain": Plain, "wsgi": fail}}["{kind}"]
    kind = PreforkWSGIServer if served is fail else PreforkHTTPServer
    with kind("127.0.0.1:0", served, workers=1) as server:
        server.serve_forever()
    """).ready()
    server.expect_error("of mine", "failed", "^Traceback")
    for _ in range(2):
        server.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    eventually(lambda: read(board_of(server), SECOND).errors == 2)


def test_a_worker_whose_threads_serve_is_busy(start: Starter) -> None:
    server = start(f"""{ASKED}
    class Server(socketserver.ThreadingMixIn, PreforkTCPServer):
        pass
    serve(Asked, Server, workers=1)
    """)
    server.ready()
    with server.connect() as client:
        client.sendall(b"hold")
        assert client.recv(100) == b"held"
        (worker,) = asked(server)["workers"]
        assert (worker["state"], worker["requests"]) == ("busy", 2)
        client.sendall(b"go")
        read_all(client)
    eventually(lambda: read(board_of(server), SECOND).workers[0].state == "idle")


def test_the_deaths_of_workers_are_told_with_cause_and_stack(start: Starter) -> None:
    server = start(f"{ASKED}\n    serve(Asked, workers=1, timeout=1)").ready()
    server.expect_error(
        "silent for more than", "exit code 3", "killed by SIGKILL", "handler failed"
    )
    server.ask(b"die")
    assert server.ask(b"hang") == b""
    hung, died = asked(server)["last_deaths"]
    assert died["cause"] == "exit code 3"
    assert (died["slot"], died["status"], died["requests"]) == (1, 3, 1)
    assert not died["expected"]
    assert hung["cause"] == "killed by SIGKILL: silent for more than 1s"
    assert hung["status"] == -9
    assert "in handle" in hung["report"]
    assert hung["cpu"] > 0
    assert hung["memory"] > 1 << 20
    assert 0 <= hung["ago"] <= died["ago"] < PATIENCE


def test_what_workers_and_their_threads_have_counted_survives_them(start: Starter) -> None:
    server = start(
        """
    orders = SharedCounter("orders")

    class Count(socketserver.BaseRequestHandler):
        def handle(self):
            word = self.request.recv(100)
            if word == b"die":
                os._exit(3)
            def count():
                for _ in range(1000):
                    orders.add()
            threads = [threading.Thread(target=count) for _ in range(8)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            self.request.sendall(b"%d" % orders.value)

    orders.add(5)  # before the fork, in the master
    sys.setswitchinterval(1e-6)
    serve(Count, workers=3)
    """,
        env=unmeasured(),
    )
    server.ready()
    server.expect_error("exit code 3")
    for number in range(1, 6):
        assert server.ask(b"count") == b"%d" % (8000 * number + 5)
        server.ask(b"die")


def test_a_counter_is_for_workers_and_not_for_what_they_fork_or_make(start: Starter) -> None:
    server = start("""
    orders = SharedCounter("orders")

    class Late(socketserver.BaseRequestHandler):
        def handle(self):
            try:
                SharedCounter("late")
            except RuntimeError as error:
                self.request.sendall(str(error).encode() + b"\\n")
            if os.fork() == 0:
                try:
                    orders.add()
                except RuntimeError as error:
                    self.request.sendall(str(error).encode())
                os._exit(0)
            os.wait()

    serve(Late, workers=1)
    """)
    made, forked = server.ready().ask(b"").decode().splitlines()
    assert "is made in a worker, and nobody else would see it" in made
    assert forked == "this process is a fork of worker 1, and no worker"


def test_a_counter_counts_inline_and_so_do_stats(start: Starter) -> None:
    server = start(f"{ASKED}\n    serve(Asked, inline=True)").ready()
    asked(server, b"order")
    told = asked(server, b"order")
    assert told["counters"] == {"orders": 2}
    assert (told["requests"], told["state"], told["wanted"]) == (2, "serving", 1)
    assert [worker["pid"] for worker in told["workers"]] == [server.pid]
    assert told["listeners"][0]["queue"] == 0


def test_a_loop_tells_what_it_holds_for_how_long_and_what_raised(start: Starter) -> None:
    server = start("""
    import json
    from prefork_server.aio import PreforkAsyncioServer
    orders = SharedCounter("orders")

    async def visit(reader, writer):
        word = await reader.read(100)
        if word == b"raise":
            raise ValueError("of mine")
        if word == b"hold":
            writer.write(b"held")
            await reader.read(100)
        orders.add()
        current_master().note("last order")
        writer.write(json.dumps(current_master().stats().as_dict()).encode())
        writer.close()

    with PreforkAsyncioServer("127.0.0.1:0", visit, workers=1) as server:
        server.serve_forever()
        print("end", json.dumps(server.stats().as_dict()))
    """).ready()
    server.expect_error("client_connected_cb failed", "Traceback")
    server.ask(b"raise")
    with server.connect() as client:
        client.sendall(b"hold")
        assert client.recv(100) == b"held"
        told = asked(server)
        (worker,) = told["workers"]
        assert (worker["state"], worker["errors"], worker["requests"]) == ("busy", 1, 3)
        assert worker["note"] == "last order"
        assert worker["busy"] > 0
        assert told["counters"] == {"orders": 1}
    eventually(lambda: read(board_of(server), SECOND).workers[0].state == "idle")
    assert server.quit() == 0
    assert json.loads(server.saw("^end (.*)")[0][1])["requests"] == 3


def test_a_work_function_without_listeners_has_notes_and_stats(start: Starter) -> None:
    server = start("""
    def work(master):
        master.note(f"job {master.slot}")
        while master.wait(0.1):
            if all(worker.note for worker in preforker.stats().workers):
                print([worker.note for worker in master.stats().workers])

    preforker = Preforker(work, workers=2, pid_path=None)
    preforker.run()
    """)
    server.saw(r"^\['job 1', 'job 2'\]")
    assert all(map(alive, server.workers()))
