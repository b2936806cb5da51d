"""``serving``, with which users test their own servers, and we some of ours."""

import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from prefork_server import (
    BootError,
    ConfigError,
    MasterHandle,
    Preforker,
    PreforkMixIn,
    PreforkTCPServer,
    PreforkUnixStreamServer,
    Settings,
)
from prefork_server.forks import fork
from prefork_server.testing import serving
from tests.conftest import PATIENCE, alive, children, eventually, read_all


class Pid(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"%d" % os.getpid())


class Fails(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        raise LookupError("in the handler")


def asked(address: object, family: int = socket.AF_INET) -> bytes:
    with socket.socket(family) as client:
        client.settimeout(PATIENCE)
        client.connect(address)  # type: ignore[arg-type]
        return read_all(client)


def test_within_it_answers_and_afterwards_nobody_is_left() -> None:
    server = PreforkTCPServer(("127.0.0.1", 0), Pid, workers=2)
    with serving(server) as address:
        assert address == server.server_address
        assert int(asked(address)) in children(os.getpid())
    assert not children(os.getpid())
    assert server.fileno() == -1
    with pytest.raises(ConnectionRefusedError):
        asked(address)


def test_it_serves_foreign_classes_paths_and_work_functions(tmp_path: object) -> None:
    class Server(PreforkMixIn, socketserver.TCPServer):
        settings = Settings(workers=1)

    def work(master: MasterHandle) -> None:
        for connection, _ in master.connections():
            with connection:
                connection.sendall(b"%d" % os.getpid())

    with serving(Server(("127.0.0.1", 0), Pid)) as address:
        assert int(asked(address)) != os.getpid()
    with serving(PreforkUnixStreamServer(f"{tmp_path}/s", Pid, workers=1)) as address:
        assert int(asked(address, socket.AF_UNIX)) != os.getpid()
    with serving(Preforker(work, workers=1, listen="127.0.0.1:0")) as address:
        assert int(asked(address)) != os.getpid()
    with serving(Preforker(lambda master: master.wait(60), workers=1)) as address:
        assert address is None


def test_a_failed_test_shows_what_the_workers_logged() -> None:
    with (
        pytest.raises(AssertionError, match="the test's own") as caught,
        serving(PreforkTCPServer(("127.0.0.1", 0), Fails, workers=1)) as address,
    ):
        assert asked(address) == b""
        raise AssertionError("the test's own")
    (note,) = caught.value.__notes__
    assert "ready, listening on" in note
    assert "handler failed for 127.0.0.1" in note
    assert "LookupError: in the handler" in note


def test_of_a_long_log_the_note_has_the_end_and_says_so() -> None:
    server = Preforker(lambda master: master.wait(60), workers=1)
    with pytest.raises(LookupError) as caught, serving(server):
        for number in range(2000):
            server.logger.info("line %d: %s", number, "x" * 1000)
        raise LookupError
    (note,) = caught.value.__notes__
    assert "bytes before this are left out]" in note and len(note) < 1.1 * 2**20
    assert "line 0:" not in note and "line 1999:" in note
    assert note.rstrip().endswith("stopped")


def test_the_handlers_that_the_program_has_are_given_the_log_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(PreforkTCPServer(("127.0.0.1", 0), Pid, workers=1)):
        pass
    assert "ready, listening on 127.0.0.1" in caplog.text


def test_a_server_that_cannot_start_raises_what_it_raises() -> None:
    def bad(master: MasterHandle) -> None:
        raise LookupError("no table")

    with (
        pytest.raises(BootError, match="LookupError: no table") as caught,
        serving(Preforker(lambda master: None, workers=1, after_fork=bad)),
    ):
        pass
    assert "no table" in caught.value.__notes__[0]


def test_a_server_whose_settings_cannot_be_raises_at_once_and_leaves_no_thread() -> None:
    class Server(PreforkMixIn, socketserver.TCPServer):
        settings = "none"  # type: ignore[assignment]

    server = Server(("127.0.0.1", 0), Pid)
    before = threading.enumerate()
    timeout = 2 * PATIENCE  # which it would take if nobody were told, and the test may not
    with pytest.raises(ConfigError, match="Settings object"), serving(server, timeout=timeout):
        pass
    assert not server.wait_ready()
    eventually(lambda: threading.enumerate() == before)


def test_one_preforker_can_serve_many_times() -> None:
    preforker = Preforker(lambda master: master.wait(60), workers=1)
    for _ in range(5):
        with serving(preforker):
            assert preforker.wait_ready(0)


def test_one_that_does_not_get_ready_in_time_is_stopped() -> None:
    def slow(master: MasterHandle) -> None:
        master.wait(60)

    with (
        pytest.raises(AssertionError, match=r"not ready after 0\.2 s"),
        serving(Preforker(slow, workers=1, after_fork=slow), timeout=0.2),
    ):
        pass
    eventually(lambda: not children(os.getpid()))


class Leaves(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        pid = fork()
        if pid == 0:
            signal.pause()
        self.wfile.write(b"%d" % pid)


@pytest.mark.parametrize("fails", [False, True])
def test_a_process_that_a_handler_left_is_found_named_and_killed(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr("prefork_server.testing._SOON", 0.2)
    with (
        pytest.raises(LookupError if fails else AssertionError) as caught,
        serving(PreforkTCPServer(("127.0.0.1", 0), Leaves, workers=1)) as address,
        socket.create_connection(address, PATIENCE) as client,
    ):
        pid = int(client.recv(100))
        if fails:
            raise LookupError("the test's own")
    said = caught.value.__notes__[0] if fails else str(caught.value)
    assert f"still there, now killed: {{{pid}: " in said
    assert "The log of the server" in caught.value.__notes__[-1]
    eventually(lambda: not alive(pid))


@pytest.mark.parametrize("fails", [False, True])
def test_the_workers_of_a_server_that_does_not_stop_are_named_and_killed(fails: bool) -> None:
    def deaf(master: MasterHandle) -> None:
        threading.Event().wait()

    preforker = Preforker(deaf, workers=2, timeout=None, graceful_timeout=2 * PATIENCE)
    with (
        pytest.raises(LookupError if fails else AssertionError) as caught,
        serving(preforker, timeout=2),
    ):
        eventually(lambda: len(children(os.getpid())) == 2)
        pids = children(os.getpid())
        if fails:
            raise LookupError("the test's own")
    *said, log = [str(caught.value), *caught.value.__notes__]
    assert "the server did not stop within 2 s" in said[fails]
    killed = said[fails + 1]
    assert "now killed" in killed and all(f"{pid}: " in killed for pid in pids)
    assert "stopped" in log and not children(os.getpid())


def test_what_the_server_raised_is_noted_on_what_the_test_raised() -> None:
    class Server(PreforkTCPServer):
        def serve_forever(self, *args: object, **kwargs: object) -> None:
            super().serve_forever()
            raise OSError("the server's own")

    server = Server(("127.0.0.1", 0), Pid, workers=1)
    with pytest.raises(LookupError) as caught, serving(server):
        server.shutdown()
        raise LookupError("the test's own")
    assert 'OSError("the server\'s own")' in caught.value.__notes__[0]


def test_another_server_and_a_fork_of_the_test_are_not_taken_for_what_is_left() -> None:
    first = serving(PreforkTCPServer(("127.0.0.1", 0), Pid, workers=2))
    first.__enter__()
    while (pid := fork()) == 0:
        signal.pause()
    try:
        with serving(PreforkTCPServer(("127.0.0.1", 0), Pid, workers=2)) as address:
            worker = int(asked(address))
            first.__exit__(None, None, None)
            assert alive(worker) and alive(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_log_of_a_server_is_whole_when_another_has_ended_before() -> None:
    first = serving(Preforker(lambda master: master.wait(60), workers=1))
    first.__enter__()
    with pytest.raises(LookupError) as caught, serving(PreforkTCPServer(("127.0.0.1", 0), Pid)):
        first.__exit__(None, None, None)
        raise LookupError
    assert caught.value.__notes__[-1].count(" stopped\n") == 2


def test_of_two_servers_the_second_to_stop_is_not_held_up_by_new_workers_of_the_first() -> None:
    with serving(PreforkTCPServer(("127.0.0.1", 0), Pid, workers=2)) as address:
        with serving(PreforkTCPServer(("127.0.0.1", 0), Pid, workers=2)):
            old = int(asked(address))
            os.kill(old, signal.SIGKILL)
            eventually(lambda: len(set(children(os.getpid())) - {old}) == 4)
            new = children(os.getpid())
        assert int(asked(address)) in new


def test_workers_are_killed_all_the_time_and_clients_that_ask_again_are_served() -> None:
    server = PreforkTCPServer(("127.0.0.1", 0), Pid, workers=2)
    with serving(server, kill_a_worker_every=0.1) as address:
        pids: set[bytes] = set()

        def ask() -> bool:
            with suppress(ConnectionError):  # its worker was killed: it asks again
                pids.add(asked(address))
            return len(pids) > 4

        eventually(ask)
    assert not children(os.getpid())


@pytest.mark.parametrize("never", [0, -1, float("nan")])
def test_a_wrong_interval_is_refused(never: float) -> None:
    server = PreforkTCPServer(("127.0.0.1", 0), Pid)
    with server, pytest.raises(ValueError, match="seconds above 0"):
        serving(server, kill_a_worker_every=never).__enter__()


def test_what_the_log_said_before_and_after_goes_where_it_went() -> None:
    program = """
import socketserver
from prefork_server import PreforkTCPServer
from prefork_server.testing import serving
with serving(PreforkTCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler, workers=1)):
    print("served")
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, check=True, text=True
    )
    assert (result.stdout, result.stderr) == ("served\n", "")


def test_a_program_with_many_files_open_can_serve() -> None:
    program = """
import os, resource, socketserver
from prefork_server import PreforkTCPServer
from prefork_server.testing import serving
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(2000, most), most))
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(1024)]
with serving(PreforkTCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler, workers=1)):
    print("served")
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_nobody_forks_between_the_making_of_a_descriptor_and_the_word_that_it_is_kept() -> None:
    program = """
import os, threading, warnings
from prefork_server.forks import forking, keep_from_forks
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
at_the_door = threading.Event()
os.register_at_fork(before=at_the_door.set)  # comes before ours, which was registered before
kept = []
def has_it():
    try:
        return bool(os.fstat(kept[0]))
    except OSError:
        return False
def forks():
    if (pid := os.fork()) == 0:
        os._exit(not kept or has_it())
    print(os.waitpid(pid, 0)[1])
thread = threading.Thread(target=forks)
with forking:
    thread.start()
    at_the_door.wait()
    kept.append(keep_from_forks(os.pipe()[1]))
thread.join()
"""
    command = [sys.executable, "-W", "error", "-c", program]
    assert subprocess.check_output(command, text=True) == "0\n"
