"""Debug mode: the worker is this process. Nothing is forked, nothing times out."""

import os
import signal
import socket
import socketserver
import threading
from pathlib import Path

import pytest

from prefork_server import (
    MasterHandle,
    Preforker,
    PreforkMixIn,
    PreforkTCPServer,
    PreforkUDPServer,
    Settings,
    current_master,
)
from prefork_server.testing import serving
from tests.conftest import PATIENCE, Starter, children, read_all

seen: list[str] = []


class Pid(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        seen.append(threading.current_thread().name)
        assert current_master().inline and current_master().wants_me_alive()
        self.wfile.write(b"%d" % os.getpid())


def asked(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address, PATIENCE) as client:
        return read_all(client)


def test_a_server_serves_in_this_very_process_and_shares_its_memory() -> None:
    seen.clear()
    with serving(PreforkTCPServer(("127.0.0.1", 0), Pid, inline=True, workers=4)) as address:
        for _ in range(3):
            assert asked(address) == b"%d" % os.getpid()
        assert not children(os.getpid())
    assert seen == ["master"] * 3


def test_any_class_with_the_mix_in_can_be_debugged() -> None:
    class Server(PreforkMixIn, socketserver.ThreadingTCPServer):
        settings = Settings(inline=True)
        daemon_threads = True

    with serving(Server(("127.0.0.1", 0), Pid)) as address:
        assert asked(address) == b"%d" % os.getpid()


def test_datagrams_are_served_inline_too() -> None:
    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request[1].sendto(b"%d" % os.getpid(), self.client_address)

    server = PreforkUDPServer(("127.0.0.1", 0), Answer, inline=True)
    with serving(server) as address, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.sendto(b"?", address)
        assert client.recv(100) == b"%d" % os.getpid()


def test_a_work_function_runs_here_with_its_hooks_and_may_return() -> None:
    said: list[object] = []

    def work(master: MasterHandle) -> None:
        said.append(("work", master.slot, master.wait(0), current_master() is master))

    Preforker(
        work,
        inline=True,
        before_fork=lambda: said.append("before_fork"),
        after_fork=lambda master: said.append("after_fork"),
        ready=lambda addresses: said.append("ready"),
        after_worker_exit=lambda death: said.append("after_worker_exit"),
    ).run()
    assert said == ["after_fork", "ready", ("work", 1, True, True)]
    assert not os.path.exists("preforker.pid")
    with pytest.raises(RuntimeError, match="in a worker process only"):
        current_master()


def test_what_the_work_raises_arrives_where_run_was_called() -> None:
    def work(master: MasterHandle) -> None:
        raise LookupError("of my own")

    with pytest.raises(LookupError, match="of my own"):
        Preforker(work, inline=True).run()


def test_silence_is_no_fault(start: Starter, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    server = start("""
        def work(master):
            print("silent")
            with open("gate") as gate:
                gate.read()
            print("still", master.wants_me_alive(), os.getpid())
        Preforker(work, timeout=0.1, inline=True).run()
    """)
    server.saw("silent")
    assert server.anyone_left(0.5)  # five times the timeout
    (tmp_path / "gate").write_text("go")
    server.saw(f"still True {server.pid}")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_ends_it_after_the_request_at_hand_and_is_given_back(
    start: Starter, tmp_path: Path, signum: signal.Signals
) -> None:
    os.mkfifo(tmp_path / "gate")
    server = start(
        """
        class Slow(socketserver.BaseRequestHandler):
            def handle(self):
                print("in the handler")
                with open("gate") as gate:
                    self.request.sendall(gate.read().encode())
        before = signal.getsignal(int(sys.argv[1]))
        serve(Slow, inline=True)
        print("back", signal.getsignal(int(sys.argv[1])) is before)
    """,
        str(int(signum)),
    )
    with server.connect() as client:
        server.saw("in the handler")
        server.signal(signum)
        (tmp_path / "gate").write_text("reply")
        assert client.recv(100) == b"reply"
    server.saw("back True")
    assert server.wait() == 0


def test_a_second_signal_interrupts_what_does_not_end(start: Starter) -> None:
    server = start("""
        def work(master):
            print("begins")
            try:
                while True:
                    if not master.wants_me_alive():
                        print("was asked")
                        time.sleep(1000)
            except KeyboardInterrupt:
                print("interrupted")
        Preforker(work, inline=True).run()
    """)
    server.saw("begins")
    server.signal(signal.SIGINT)
    server.saw("was asked")
    server.signal(signal.SIGINT)
    server.saw("interrupted")
    assert server.wait() == 0


def test_shutdown_from_a_handlers_thread_does_not_wait_for_itself(start: Starter) -> None:
    server = start("""
        class Stop(socketserver.BaseRequestHandler):
            def handle(self):
                self.server.shutdown()
                self.request.sendall(b"asked")

        class Threaded(socketserver.ThreadingMixIn, PreforkTCPServer):
            pass

        serve(Stop, Threaded, inline=True)
        print("over")
    """)
    with server.connect() as client:
        assert client.recv(100) == b"asked"
    server.saw("over")


def test_who_is_queued_when_it_is_told_to_stop_is_served_and_the_path_is_gone(
    start: Starter, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "gate")
    server = start("""
        class Slow(socketserver.BaseRequestHandler):
            def handle(self):
                print("in the handler")
                with open("gate") as gate:
                    gate.read()
                self.request.sendall(b"served")
        serve(Slow, PreforkUnixStreamServer, os.path.abspath("s.sock"), inline=True)
    """)
    with server.connect() as first, server.connect() as second:
        server.saw("in the handler")
        server.signal(signal.SIGTERM)
        (tmp_path / "gate").write_text("go")
        assert first.recv(100) == b"served"
        (tmp_path / "gate").write_text("go")
        assert second.recv(100) == b"served"
    assert server.wait() == 0
    assert not (tmp_path / "s.sock").exists()


def test_inline_within_a_worker_gives_the_workers_own_master_back(start: Starter) -> None:
    server = start("""
        def inner(master):
            assert current_master() is master and master.inline
        def work(master):
            Preforker(inner, inline=True).run()
            assert current_master() is master and not master.inline
            print("given back")
            while master.wait(60):
                pass
        Preforker(work, workers=1).run()
    """)
    server.saw("given back")


def test_shutdown_of_another_server_waits_while_one_is_inline() -> None:
    inline = PreforkTCPServer(("127.0.0.1", 0), Pid, inline=True)
    forked = PreforkTCPServer(("127.0.0.1", 0), Pid, workers=1)
    with serving(inline), serving(forked):
        stopper = threading.Thread(target=forked.shutdown)
        stopper.start()
        stopper.join(PATIENCE)
        assert not children(os.getpid())  # it came back when all were gone


def test_a_ready_hook_that_raises_is_logged_and_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def ready(addresses: object) -> None:
        raise LookupError("of my own")

    worked: list[int] = []
    Preforker(lambda master: worked.append(1), inline=True, ready=ready).run()
    assert worked and "ready failed" in caplog.text


def test_a_second_ctrl_c_in_a_handler_ends_the_program(start: Starter) -> None:
    server = start("""
        class Stuck(socketserver.BaseRequestHandler):
            def handle(self):
                print("in the handler")
                while current_master().wants_me_alive():
                    pass
                print("was asked")
                time.sleep(1000)
        try:
            serve(Stuck, inline=True)
        except KeyboardInterrupt:
            print("interrupted")
    """)
    with server.connect():
        server.saw("in the handler")
        server.signal(signal.SIGINT)
        server.saw("was asked")
        server.signal(signal.SIGINT)
        server.saw("interrupted")
    assert server.wait() == 0


def test_what_a_hook_cannot_open_is_told_as_it_was_raised() -> None:
    """And not as something that the system refuses."""

    def after_fork(master: MasterHandle) -> None:
        Path("/nonexistent/file").read_text()

    with pytest.raises(FileNotFoundError, match="/nonexistent/file"):
        Preforker(print, inline=True, pid_path=None, after_fork=after_fork).run()
