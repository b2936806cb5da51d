"""Promise 1: a hung or crashed worker costs only its own connection, and is replaced."""

import os
import random
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import (
    FATES,
    PATIENCE,
    PRELUDE,
    Server,
    Starter,
    alive,
    children,
    eventually,
    open_files,
    pipes_of,
    read_all,
    soak,
    title,
    unmeasured,
)
from tests.hammer import Hammer


def test_a_worker_that_dies_is_replaced_in_its_slot(start: Starter) -> None:
    server = start(FATES + "    serve(Fate, workers=2)").all_ready(2)
    victim = server.workers()[0]
    server.signal(signal.SIGKILL, victim)
    server.expect_error("SIGKILL")
    line = server.saw(rf"worker=1 pid={victim} reaped")[0].string
    assert re.search(
        r"killed by SIGKILL, not by us: perhaps out of memory; age=.*s requests=0 held=\d+MiB", line
    )
    server.saw("worker=1 .*forked", times=2)
    assert server.ask(b"who?") != str(victim).encode()


@pytest.mark.parametrize(
    ("word", "cause", "stack"),
    [
        (b"die", "exit code 3;", ""),
        (b"abort", "killed by SIGABRT;", "Fatal Python error: Aborted"),
        (b"segfault", "killed by SIGSEGV;", "Fatal Python error: Segmentation fault"),
    ],
)
def test_a_crash_costs_one_connection_and_leaves_its_stack_in_the_log(
    start: Starter, word: bytes, cause: str, stack: str
) -> None:
    server = start(FATES + "    serve(Fate, workers=2)").ready()
    server.expect_error("reaped")
    with server.connect() as other:
        assert server.ask(word) == b""
        server.saw(rf"reaped: {cause} age=.* requests=\d")
        if stack:
            server.saw(stack)
            server.saw(r"app0\.py.* in handle")
        other.sendall(b"who?")
        assert read_all(other).isdigit()
    assert server.ask(b"who?").isdigit()


def test_a_handler_that_exits_with_0_is_told_of_too(start: Starter) -> None:
    server = start(FATES + "    serve(Fate, workers=1)").ready()
    assert server.ask(b"zero") == b""
    server.saw("WARNING .*reaped: exit code 0, its function returned")
    assert server.ask(b"who?").isdigit()


@pytest.mark.parametrize("word", [b"hang", b"spin"])
def test_a_worker_that_stops_asking_is_killed_and_the_log_says_where_it_hung(
    start: Starter, word: bytes
) -> None:
    server = start(FATES + "    serve(Fate, workers=2, timeout=0.5)").ready()
    server.expect_error("silent for more than", "killed by SIGKILL;")
    source = (start.directory / "app0.py").read_text().splitlines()
    at = next(n for n, line in enumerate(source, 1) if word + b'"' in line.encode()) + 1
    with server.connect() as client:
        client.sendall(word)
        assert client.recv(1) == b""
        peer = "{}:{}".format(*client.getsockname())
    line = server.saw("silent for more than 0.5s")[0].string
    assert f"app0.py:{at} in handle, killing; " in line
    assert line.endswith(f"s with {peer}")
    server.saw(rf'  File ".*app0.py", line {at} in handle')
    server.saw("reaped: killed by SIGKILL; .*requests=1")
    assert server.ask(b"who?").isdigit()
    server.saw("forked", times=3)


def test_a_worker_that_recovered_and_hangs_again_is_named_with_the_second_place(
    start: Starter,
) -> None:
    server = start("""
        def work(master):
            time.sleep(0.55)  # asked where it is, and just in time
            master.wants_me_alive()
            time.sleep(1000)  # line X

        Preforker(work, workers=1, timeout=0.5).run()
    """)
    server.expect_error("silent for more than", "killed by SIGKILL")
    source = (start.directory / "app0.py").read_text().splitlines()
    at = next(n for n, line in enumerate(source, 1) if "line X" in line)
    server.saw(rf"silent for more than 0.5s at .*app0.py:{at} in work, killing")


@pytest.mark.parametrize("after", [0.05, 0.1, 0.15, 0.2])
def test_a_handler_of_the_programs_own_that_raises_leaves_nobody(
    start: Starter, after: float
) -> None:
    server = start(
        """
        class TooLate(BaseException):  # so that no log handler catches it
            pass

        def too_late(*_):
            raise TooLate("of the program's own")

        signal.signal(signal.SIGALRM, too_late)
        signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))
        try:
            serve(Echo, workers=50)
        except TooLate as error:
            print("raised", error, flush=True)
    """,
        str(after),
        env=unmeasured(),
    )
    server.expect_error("^Traceback")  # a ResourceWarning, if it is raised while a module is read
    server.saw("raised of the program's own")
    assert server.wait() == 0  # and the end of the test proves that nobody is left


def test_one_that_hears_no_signal_is_killed_all_the_same(start: Starter) -> None:
    server = start(FATES + "    serve(Fate, workers=1, timeout=0.5)").ready()
    server.expect_error("silent for more than", "killed by SIGKILL")
    assert server.ask(b"deaf") == b""
    server.saw("silent for more than 0.5s, killing; ")
    assert server.ask(b"who?").isdigit()


def test_a_stopped_worker_is_killed_and_replaced(start: Starter) -> None:
    server = start(FATES + "    serve(Fate, workers=1, timeout=0.5)").all_ready(1)
    server.expect_error("silent for more than", "killed by SIGKILL")
    server.signal(signal.SIGSTOP, server.workers()[0])
    server.saw("silent for more than 0.5s, killing")
    assert server.ask(b"who?").isdigit()


def test_a_loop_that_sleeps_past_its_timeout_is_named_with_its_line(start: Starter) -> None:
    server = start("""
        def work(master):
            master.logger.info("worker=%d began", master.slot)
            if master.slot == 1:
                time.sleep(1000)  # line X
            master.wait(1000)

        Preforker(work, workers=2, timeout=0.5).run()
    """)
    server.expect_error("silent for more than", "killed by SIGKILL")
    source = (start.directory / "app0.py").read_text().splitlines()
    at = next(n for n, line in enumerate(source, 1) if "line X" in line)
    server.saw(rf"ERROR +worker=1 .*silent for more than 0.5s at .*app0.py:{at} in work, killing")
    server.saw("worker=1 began", times=2)
    assert server.count("worker=2 .*forked") == 1


def test_an_idle_worker_is_not_killed(start: Starter) -> None:
    server = start("""
        class Late(Echo):
            def handle(self):
                self.server.master.wait(3)
                super().handle()

        serve(Late, workers=2, timeout=1)
    """).ready()
    assert server.ask(b"so late") == b"so late"
    assert server.count("forked") == 2


def test_nobody_is_killed_after_the_whole_server_was_suspended(start: Starter) -> None:
    server = start(FATES + "    serve(Fate, workers=3, timeout=1)").all_ready(3)
    before = server.workers()
    for pid in (server.pid, *before):
        server.signal(signal.SIGSTOP, pid)
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(2.2)  # here time itself is what is tested
    for pid in (server.pid, *before):
        server.signal(signal.SIGCONT, pid)
    server.expect_error("silent for more than 1s at", "killed by SIGKILL")
    assert server.ask(b"hang") == b""  # and silence counts again
    server.saw("reaped")
    assert server.count("killing") == 1
    assert len(set(before) & set(server.workers())) == 2


def test_nobody_is_killed_after_the_master_alone_was_suspended(start: Starter) -> None:
    server = start(FATES + "    serve(Fate, workers=3, timeout=0.5)").all_ready(3)
    before = server.workers()
    server.signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(1.1)
    server.signal(signal.SIGCONT)
    assert server.ask(b"who?").isdigit()
    assert server.workers() == before


def test_fifty_deaths_at_once_are_fifty_respawns_and_no_zombies(start: Starter) -> None:
    server = start("serve(Echo, workers=50)").all_ready(50)
    server.expect_error("SIGKILL")
    before = server.workers()
    for pid in before:
        server.signal(signal.SIGKILL, pid)
    server.saw("reaped", times=50)
    eventually(lambda: len(server.workers()) == 50)
    assert all(map(alive, server.workers())) and not set(before) & set(server.workers())


def test_a_death_between_accept_and_reply_hurts_no_other_client(start: Starter) -> None:
    server = start("""
        class Held(socketserver.BaseRequestHandler):
            def handle(self):
                data = self.request.recv(100)
                self.request.sendall(b"%d\\n" % os.getpid())
                self.request.recv(100)
                self.request.sendall(data)

        serve(Held, workers=6)
    """).all_ready(6)
    server.expect_error("SIGKILL")
    clients = [server.connect() for _ in range(6)]
    pids = []
    for client in clients:
        client.sendall(b"x")
        pids.append(int(client.recv(100)))
    assert len(set(pids)) == 6
    server.signal(signal.SIGKILL, pids[0])
    assert clients[0].recv(1) == b""
    for client in clients[1:]:
        client.sendall(b"go")
        assert read_all(client) == b"x"
    for client in clients:
        client.close()


# Boot


def test_a_server_whose_workers_cannot_boot_ends_with_one_traceback(start: Starter) -> None:
    server = start("""
        def broken(master):
            import no_such_module

        Preforker(lambda master: None, workers=3, after_fork=broken).run()
    """)
    server.expect_error("reaped before it was ready", "Traceback")
    assert server.wait() == 1
    server.saw(
        "BootError: no worker of the first generation could boot, giving up: "
        "ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert server.count("forked") == 3
    assert server.count("in broken") == 1
    assert server.count("with the same traceback") == 2


def test_a_worker_that_hangs_while_starting_is_killed_and_the_others_serve(start: Starter) -> None:
    server = start("""
        class Server(PreforkTCPServer):
            def after_fork(self, master):
                if master.slot == 1:
                    time.sleep(1000)

        serve(Echo, Server, workers=2, boot_timeout=1)
    """)
    server.expect_error("not ready for more than", "before it was ready: killed by SIGKILL")
    assert server.ask(b"meanwhile") == b"meanwhile"
    server.saw(r"worker=1 .*not ready for more than 1s at .*app0.py:\d+ in after_fork, killing")
    server.saw("worker=1 .*forked", times=2)


def test_a_function_that_returns_is_called_again_at_back_off_pace(start: Starter) -> None:
    server = start("Preforker(lambda master: None, workers=1).run()")
    server.saw("WARNING .*reaped: exit code 0, its function returned", times=3)
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(0.5)
    assert server.count("forked") == 3


def test_a_hook_that_fails_sometimes_does_not_end_a_server_that_once_ran(start: Starter) -> None:
    server = start("""
        def sometimes(master):
            number = 1
            while True:  # each has one of its own, however many write at a time
                try:
                    open(f"{__file__}.{number}", "x").close()
                    break
                except FileExistsError:
                    number += 1
            if 2 <= number <= 4:
                raise RuntimeError("not today")

        Preforker(lambda master: master.wait(60), workers=2, after_fork=sometimes).run()
    """)
    server.expect_error("reaped before it was ready: exit code 1", "Traceback")
    server.saw("not today")
    eventually(lambda: len(server.workers()) == 2)
    server.saw("forked", times=4)


@pytest.mark.parametrize("after_first", [0, 1])
def test_a_fork_that_fails_is_tried_again_while_the_others_serve(
    start: Starter, after_first: int
) -> None:
    server = start(f"""
        real, calls = os.fork, []

        def fork():
            calls.append(1)
            if {after_first} < len(calls) <= {after_first} + 2:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return real()

        os.fork = fork
        serve(Echo, workers=2)
    """)
    server.expect_error("cannot fork: Resource temporarily unavailable, trying again in")
    server.saw("cannot fork", times=1 + (1 - after_first))
    assert server.ask(b"hi") == b"hi"
    server.saw("forked", times=2)


def test_one_refused_fork_is_one_failure_however_many_are_missing(start: Starter) -> None:
    server = start("""
        real, calls = os.fork, []

        def fork():
            calls.append(1)
            if len(calls) == 1:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return real()

        os.fork = fork
        os.cpu_count = lambda: 8
        serve(Echo, workers=8)
    """).all_ready(8)
    server.expect_error("cannot fork")
    assert server.count("cannot fork") == 1


def test_a_server_that_cannot_fork_stops_promptly(start: Starter) -> None:
    server = start("""
        def fork():
            raise BlockingIOError(11, "Resource temporarily unavailable")

        os.fork = fork
        serve(Echo, workers=2)
    """)
    server.expect_error("cannot fork")
    server.saw("cannot fork")
    assert server.quit() == 0


# Whose child it is


def test_children_that_are_no_workers_change_nothing(start: Starter) -> None:
    server = start("""
        class Server(PreforkTCPServer):
            def ready(self, addresses):
                for status in (0, 1, 3, 4, 255):
                    if not os.fork():
                        os._exit(status)
                if not os.fork():
                    os.kill(os.getpid(), signal.SIGSEGV)

        serve(Echo, Server, workers=2)
    """).ready()
    # Zombies: who forked them may want to reap them.
    eventually(lambda: sum(not alive(pid) for pid in children(server.pid)) == 6)
    server.signal(signal.SIGTTIN)
    server.saw("worker=3 .*forked")
    assert server.ask() == b"hello"
    assert server.count("reaped") == 0


def test_a_fork_of_a_hook_does_not_make_the_master_spin(start: Starter) -> None:
    server = start("""
        class Server(PreforkTCPServer):
            def ready(self, addresses):
                if not os.fork():  # it holds all that the master had open
                    print("a stranger stays", flush=True)
                    time.sleep(3)
                    os._exit(0)

        serve(Echo, Server, workers=1)
    """)
    server.expect_error("SIGKILL")
    server.saw("a stranger stays")
    victim = next(pid for pid in server.workers() if "worker" in title(pid))
    server.signal(signal.SIGKILL, victim)
    server.saw("forked", times=2)
    before = _cpu(server.pid)
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(1)
    assert _cpu(server.pid) - before < 10  # ticks of 10 ms


def test_a_worker_that_the_program_reaps_itself_is_replaced_all_the_same(start: Starter) -> None:
    server = start("""
        signal.signal(signal.SIGCHLD, lambda *_: os.waitpid(-1, 0))
        serve(Echo, workers=2)
    """).all_ready(2)
    server.expect_error("exit status unknown")
    server.signal(signal.SIGKILL, server.workers()[0])
    server.saw("worker=1 .*reaped: exit status unknown, reaped by somebody else")
    server.saw("worker=1 .*forked", times=2)
    assert server.ask() == b"hello"


def test_as_process_1_it_reaps_strangers_and_serves(tmp_path: Path) -> None:
    program = """
import os, socketserver
from prefork_server import PreforkTCPServer

class Orphaning(socketserver.BaseRequestHandler):
    def handle(self):
        # A grandchild whose parent goes at once becomes a child of process 1.
        if not (child := os.fork()):
            if not os.fork():
                os._exit(3)
            os._exit(0)
        os.waitpid(child, 0)
        self.request.sendall(b"%d" % os.getppid())

with PreforkTCPServer(("127.0.0.1", 0), Orphaning, workers=2) as server:
    server.serve_forever()
"""
    script = tmp_path / "app.py"
    script.write_text(program)
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, str(script)]
    if subprocess.call(["unshare", "--pid", "--fork", "true"], stderr=subprocess.DEVNULL):
        pytest.skip("needs the right to make a pid namespace")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        lines = iter(process.stderr.readline, "")
        ready = next(line for line in lines if "ready, listening on" in line)
        host, _, port = ready.split()[-1].rpartition(":")
        for _ in range(5):
            with socket.create_connection((host, int(port)), 10) as client:
                assert read_all(client) == b"1"
        master = children(process.pid)[0]
        eventually(lambda: len(children(master)) == 2 and all(map(alive, children(master))))
        os.kill(master, signal.SIGQUIT)
        assert process.wait(10) == 0


# What surrounds it


def test_inherited_masks_and_dispositions_are_put_right(tmp_path: Path, start: Starter) -> None:
    script = tmp_path / "launch.py"
    script.write_text(
        "import os, signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGQUIT])\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )
    (tmp_path / "inner.py").write_text(PRELUDE + "serve(Echo, workers=2)\n")
    server = start.script(script, str(tmp_path / "inner.py")).ready()
    server.expect_error("exit code 3", "SIGKILL")
    server.signal(signal.SIGKILL, server.workers()[0])
    server.saw("killed by SIGKILL")  # and not: status unknown
    assert server.quit() == 0


def test_a_worker_blocks_the_signals_that_the_program_blocked_and_no_others(
    start: Starter,
) -> None:
    server = start("""
        def work(master):
            master.logger.info("blocked: %s", signal.pthread_sigmask(signal.SIG_BLOCK, []))
            master.wait(60)

        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGQUIT])
        Preforker(work, workers=1).run()
    """)
    server.saw(r"blocked: \{<Signals.SIGALRM: 14>\}")


def test_handlers_that_the_program_had_are_given_back(start: Starter) -> None:
    server = start("""
        import pathlib
        mine = lambda *_: None
        signal.signal(signal.SIGTERM, mine)
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
        before = pathlib.Path("/proc/self/cmdline").read_bytes()
        serve(Echo, workers=1)
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGWINCH}
        assert signal.set_wakeup_fd(-1) == -1
        assert pathlib.Path("/proc/self/cmdline").read_bytes() == before
        print("all as before", flush=True)
    """).ready()
    assert server.quit() == 0
    server.saw("all as before")


def test_threads_of_the_program_are_named_before_the_fork(start: Starter) -> None:
    server = start("""
        threading.Thread(target=time.sleep, args=(1000,), name="metrics", daemon=True).start()
        serve(Echo, workers=2)
    """).all_ready(2)
    server.saw(r"WARNING .*forking while other threads run \(metrics\): a lock")
    assert server.count("other threads") == 1


def test_two_workers_draw_different_random_numbers(start: Starter) -> None:
    server = start("""
        import random, secrets, uuid

        def work(master):
            master.logger.info("drew %s %s %s", random.random(), secrets.token_hex(8), uuid.uuid4())
            master.wait(60)

        random.random()
        Preforker(work, workers=3).run()
    """)
    lines = [match[1].split() for match in server.saw("drew (.*)", times=3)]
    for column in zip(*lines, strict=True):
        assert len(set(column)) == 3


def test_what_is_buffered_before_the_fork_is_written_once(start: Starter) -> None:
    server = start("""
        import io
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=False)
        sys.stdout.write("written before the fork\\n")
        Preforker(lambda master: master.wait(60), workers=4).run()
    """).all_ready(4)
    server.quit()
    assert server.count("written before the fork") == 1


def test_hooks_run_where_they_should_and_their_errors_change_nothing(start: Starter) -> None:
    server = start("""
        class Server(PreforkTCPServer):
            def before_fork(self):
                print("before_fork in", os.getpid(), flush=True)
                raise RuntimeError("before_fork broke")
            def after_fork(self, master):
                print("after_fork in", os.getpid(), "of", master.slot, flush=True)
            def ready(self, addresses):
                print("ready at", addresses, flush=True)
                raise RuntimeError("ready broke")
            def after_worker_exit(self, death):
                print("after_worker_exit", death.slot, death, death.status, flush=True)
                raise RuntimeError("after_worker_exit broke")

        serve(Echo, Server, workers=1)
    """).ready()
    server.expect_error("failed$", "Traceback", "exit code 3")
    assert server.ask() == b"hello"
    worker = server.workers()[0]
    server.signal(signal.SIGTERM, worker)
    server.expect_error("SIGTERM")
    server.saw(f"before_fork in {server.pid}", times=2)
    server.saw(f"after_fork in {worker} of 1")
    server.saw(r"ready at \['127.0.0.1:\d+'\]")
    server.saw("after_worker_exit 1 killed by SIGTERM -15")
    for name in ("before_fork", "ready", "after_worker_exit"):
        server.saw(f"ERROR .*{name} failed")
    assert server.ask() == b"hello"


@pytest.mark.parametrize("end", ["sys.exit(3)", "raise KeyboardInterrupt", "os.fork()"])
def test_a_hook_cannot_end_the_master_nor_make_a_second_one(start: Starter, end: str) -> None:
    server = start(f"""
        class Server(PreforkTCPServer):
            def after_worker_exit(self, death):
                {end}

        serve(Echo, Server, workers=1)
    """).ready()
    server.expect_error("SIGKILL", "failed$", "Traceback")
    server.signal(signal.SIGKILL, server.workers()[0])
    server.saw("forked", times=2)
    assert server.ask() == b"hello"
    eventually(lambda: [title(pid)[:18] for pid in server.workers()] == ["Server worker 1 id"])
    assert server.quit() == 0


@pytest.mark.parametrize(
    ("spoil", "signum"),
    [
        ("os.truncate(board, 0)", 0),
        ("master.heartbeat.board.set(0, ROTATION, 2**63 - 1)", signal.SIGUSR1),
        (
            "board = master.heartbeat.board; board.set(0, GENERATION, -5)"
            "; board.set(0, WANTED, 2**60)",
            signal.SIGHUP,
        ),
        ("master.heartbeat.board.set(1, DEADLINE, -1)", 0),
        ("[master.heartbeat.board.set_notice(n, told) for n in range(21)]; os._exit(0)", 0),
        (
            "board = master.heartbeat.board; [board.set(row, word, value) for row in (0, 1, 2)"
            " for word in range(24) for value in (-2**63, 2**63 - 1) if word != ASKS_STOP]"
            "; os._exit(0)",
            signal.SIGHUP,
        ),
        (
            "rope = master.heartbeat._shared.bell.rope; os.set_blocking(rope, True)\n"
            "                    while True: os.write(rope, bytes(4096))",
            signal.SIGUSR1,
        ),
        ("fill(relay); os._exit(0)", 0),
        ("undo_in_another_process(master, bell, relay)", 0),
        ("undo_in_another_process(master, bell, relay)", signal.SIGHUP),
    ],
)
def test_what_a_worker_writes_where_it_should_not_does_not_end_the_master(
    start: Starter, spoil: str, signum: int
) -> None:
    server = start(f"""
        from contextlib import suppress
        from prefork_server.scoreboard import (
            ASKS_STOP, DEADLINE, GENERATION, NAME, ROTATION, WANTED)

        told = rb'{{"listeners": [["\\ud800", 1], ["a", 1' + b"0" * 400 + b']], '
        told += rb'"counters": {{"\\ud800": 1}}, "ago": -1' + b"0" * 400 + b"}}"

        def fill(fd):
            os.set_blocking(fd, False)
            with suppress(BlockingIOError):
                while True:
                    os.write(fd, bytes(4096))

        def undo_in_another_process(master, *pipes):
            "Whatever the master sets on a descriptor, have it block again, and keep it full."
            begun, begin = os.pipe()
            if os.fork():
                os.read(begun, 1)
                os._exit(0)
            end = time.monotonic() + 1
            while time.monotonic() < end:
                for pipe in pipes:
                    fill(pipe)
                for fd in os.listdir("/proc/self/fd"):
                    with suppress(OSError):
                        os.set_blocking(int(fd), True)
                os.write(begin, b"!")
                for word in set(range(1, 24)) - {{ASKS_STOP}}:
                    master.heartbeat.board.words[master.heartbeat.board.at(1, word)] = 1
            os._exit(0)

        def work(master):
            bell, relay = master.heartbeat._shared.bell.rope, master.accept_loop.acceptor.relay._end
            fds = [f"/proc/self/fd/{{fd}}" for fd in os.listdir("/proc/self/fd")]
            [board] = [fd for fd in fds if NAME in os.path.realpath(fd)] or ["none"]
            if master.slot == 1 and not os.path.exists("done"):
                open("done", "w").close()
                try:
                    {spoil}
                finally:
                    print("spoilt")
            for connection, _ in master.connections():
                with connection:
                    connection.sendall(connection.recv(9))

        Preforker(work, listen="127.0.0.1:0", workers=2, graceful_timeout=1).run()
    """).ready()
    server.expect_error("worker=", "Traceback")
    if not re.search("_exit|while|undo", spoil):
        server.saw("spoilt")
    if signum:
        server.signal(signum)
    served = 0
    while served < 4:  # a sibling that was told to go may take a client with it
        with suppress(ConnectionError):
            served += server.ask() == b"hello"
    server.signal(signal.SIGQUIT)
    assert server.wait() == 0


def test_a_worker_cannot_have_the_master_wait_in_a_write_to_a_pipe(start: Starter) -> None:
    server = start("""
        from contextlib import suppress

        def work(master):
            for connection, _ in master.connections():
                connection.recv(9)
                for fd in os.listdir("/proc/self/fd"):
                    with suppress(OSError):
                        os.set_blocking(int(fd), True)
                connection.sendall(b"undone")
                connection.close()

        Preforker(work, listen="127.0.0.1:0", workers=1, status="unix:status").run()
    """).ready()
    assert server.ask() == b"undone"
    ends = [end for end in pipes_of(server.pid) if end.flags & os.O_ACCMODE == os.O_WRONLY]
    waits = [end.fd for end in ends if not end.flags & os.O_NONBLOCK]
    # Nothing is ever written to the pipe of the test, nor to that which ends with the master.
    assert len(ends) >= 6 and len(set(waits) - {1, 2}) == 2, ends


def test_what_workers_leave_behind_in_memory_has_a_bound(start: Starter) -> None:
    server = start("""
        from contextlib import suppress

        def work(master):
            for connection, _ in master.connections():
                connection.recv(9)
                size = os.fstat(master.report).st_size
                for grow in (
                    lambda: os.ftruncate(master.report, size + 1),
                    lambda: os.pwrite(master.report, b"x", size),
                    lambda: os.posix_fallocate(master.report, 1 << 33, 1),
                ):
                    with suppress(OSError):
                        grow()
                grown = os.fstat(master.report).st_size - size
                connection.sendall(b"%d bytes, %d more" % (size, grown))
                connection.close()

        Preforker(work, listen="127.0.0.1:0", workers=1).run()
    """).all_ready(1)
    assert server.ask() == b"%d bytes, 0 more" % (16 << 20)


def test_a_log_handler_that_fails_does_not_end_the_server(start: Starter) -> None:
    server = start("""
        import logging

        class Broken(logging.Handler):
            def handle(self, record):
                print(record.getMessage(), flush=True)
                raise RuntimeError("the log is broken")

        logging.getLogger("prefork_server").addHandler(Broken())
        logging.getLogger("prefork_server").setLevel("INFO")
        serve(Echo, workers=1)
    """).ready()
    server.saw("the log handler failed for ready")
    assert server.ask() == b"hello"
    assert server.quit() == 0


def test_a_program_that_configured_logging_sees_its_own_format_and_the_extra_fields(
    start: Starter,
) -> None:
    server = start("""
        import logging
        logging.basicConfig(level="INFO", format="%(event)s|%(worker)s|%(pid)s|%(message)s")
        serve(Echo, workers=1)
    """)
    server.saw(r"^forked\|1\|\d+\|worker=1 pid=\d+ forked$")
    server.saw(rf"^ready\|None\|{server.pid}\|master pid=\d+ ready, listening on")


def test_a_worker_out_of_descriptors_slows_down_and_recovers(start: Starter) -> None:
    server = start("serve(Echo, workers=1)").all_ready(1)
    worker = server.workers()[0]
    assert server.ask() == b"hello"
    eventually(lambda: title(worker).endswith("idle 1"))
    soft, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    used = open_files(worker)
    lowest_free = next(n for n in range(soft) if n not in used)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (lowest_free, hard))
    with server.connect() as client:
        server.saw("WARNING accept: Too many open files, trying again in 0.1s")
        before = _cpu(worker)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(0.6)
        assert _cpu(worker) - before < 6  # ticks of 10 ms
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (soft, hard))
        client.sendall(b"hi")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"hi"
    assert server.count("Too many open files") == 1


def test_the_siblings_take_what_a_worker_without_descriptors_cannot(start: Starter) -> None:
    server = start("serve(Echo, workers=2)").all_ready(2)
    starved = server.workers()[0]
    used = open_files(starved)
    lowest_free = next(n for n in range(1000) if n not in used)
    hard = resource.prlimit(starved, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(starved, resource.RLIMIT_NOFILE, (lowest_free, hard))
    for _ in range(20):
        assert server.ask() == b"hello"


def _cpu(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_later_worker_inherits_no_more_than_an_earlier_one(start: Starter) -> None:
    server = start("serve(Echo, workers=6)").all_ready(6)
    eventually(lambda: len({tuple(_descriptors(pid)) for pid in server.workers()}) == 1)
    kinds = _descriptors(server.workers()[-1])
    assert kinds.count("socket") == 1  # the listener
    assert kinds.count("anon_inode:[eventpoll]") == 1  # its own
    assert "anon_inode:[pidfd]" not in kinds  # its siblings
    # Its own bell (2), the relay (2), the master's rope, life, the test's pipe, the two streams.
    assert kinds.count("pipe") == 9


def _descriptors(pid: int) -> list[str]:
    directory = Path(f"/proc/{pid}/fd")
    links = [os.readlink(link) for link in directory.iterdir()]
    return sorted(link.partition(":[")[0] if link[0] != "a" else link for link in links)


def test_a_worker_that_hangs_in_its_last_flush_does_not_outlive_its_master(start: Starter) -> None:
    server = start("""
        class Stuck:
            def flush(self):  # as below a lock that is never released: no handler runs
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGALRM})
                os.write(2, b"stuck in the flush\\n")
                time.sleep(1000)

        def work(master):
            sys.stdout = Stuck()

        Preforker(work, workers=1, graceful_timeout=0.5).run()
    """)
    server.saw("stuck in the flush")
    server.signal(signal.SIGKILL)
    server.wait()
    assert not server.anyone_left()


OUT_OF_MEMORY = """
    import resource

    class Server({server_class}):
        def after_fork(self, master):
            with open("/proc/self/statm") as statm:
                now = int(statm.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + (256 << 20), resource.RLIM_INFINITY))
"""


def test_a_handler_that_finds_no_memory_is_500_and_its_worker_is_replaced(start: Starter) -> None:
    server = start(
        "    from prefork_server.http import HTTPRequestHandler, PreforkHTTPServer\n"
        + OUT_OF_MEMORY.format(server_class="PreforkHTTPServer")
        + """
    class Take(HTTPRequestHandler):
        def do_GET(self):
            if self.path == "/much":
                bytearray(1 << 30)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

    serve(Take, Server, workers=1)
    """
    ).ready()
    server.expect_error("handler failed", "^Traceback")
    answer = server.ask(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"\r\nConnection: close\r\n" in answer
    server.saw("worker=1 .* ran out of memory, replaced, retiring")
    server.saw("worker=2 .*forked")
    assert server.ask(b"GET / HTTP/1.0\r\n\r\n").endswith(b"ok")


@pytest.mark.parametrize("mixin", ["", "socketserver.ThreadingMixIn, "])
def test_without_http_it_costs_its_connection_and_its_worker_is_replaced(
    start: Starter, mixin: str
) -> None:
    server = start(
        OUT_OF_MEMORY.format(server_class=f"PreforkMixIn, {mixin}socketserver.TCPServer")
        + """
        settings = Settings(workers=1)

    class Take(socketserver.BaseRequestHandler):
        def handle(self):
            if self.request.recv(10) == b"much":
                bytearray(1 << 30)
            self.request.sendall(b"ok")

    Server(("127.0.0.1", 0), Take).serve_forever()
    """
    ).ready()
    server.expect_error("handler failed", "^Traceback")
    assert server.ask(b"much") == b""
    server.saw("worker=1 .* ran out of memory, replaced, retiring")
    assert server.ask(b"some") == b"ok"


def test_an_application_that_finds_no_memory_is_500_and_its_worker_is_replaced(
    start: Starter,
) -> None:
    server = start(
        "    from prefork_server.http import PreforkWSGIServer\n"
        + OUT_OF_MEMORY.format(server_class="PreforkWSGIServer")
        + """
    def application(environ, start_response):
        bytearray(1 << 30)

    serve(application, Server, workers=1)
    """
    ).ready()
    server.expect_error("the application failed", "^Traceback")
    assert server.ask(b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 500 ")
    server.saw("worker=1 .* ran out of memory, replaced, retiring")


def test_a_worker_that_was_killed_for_its_memory_is_told_with_what_it_held(start: Starter) -> None:
    server = start("""
        class Hold(socketserver.BaseRequestHandler):
            def handle(self):
                held = os.urandom(64 << 20)
                self.request.sendall(b"%d" % os.getpid())
                self.request.recv(1)

        serve(Hold, workers=1)
    """).ready()
    server.expect_error("SIGKILL")
    with server.connect() as client:
        os.kill(int(client.recv(100)), signal.SIGKILL)  # as the kernel would
        line = server.saw("perhaps out of memory; age=.*held=")[0].string
    assert 64 <= int(line.rpartition("held=")[2].removesuffix("MiB")) < 200


def test_no_directory_for_temporary_files_and_none_to_write_to_is_nobodys_loss(
    start: Starter, tmp_path: Path
) -> None:
    script = tmp_path / "app.py"
    script.write_text(PRELUDE + textwrap.dedent(FATES) + "\nserve(Fate, workers=2, timeout=1)\n")
    env = {**unmeasured(), "TMPDIR": "/nonexistent"}
    server = Server(script, cwd=Path("/proc"), env=env)  # where root cannot write either
    start.servers.append(server)
    server.expect_error("silent for more than 1s", "reaped: killed by SIGKILL")
    assert server.ready().ask(b"who?").isdigit()
    assert server.ask(b"hang") == b""
    server.saw("silent for more than 1s at .*app.py:.* in handle")
    server.signal(signal.SIGHUP)
    server.saw("generation 2 serves")
    assert server.quit() == 0


@pytest.mark.soak
@pytest.mark.parametrize("settings", ["workers=4", "workers=2, max_workers=6"])
def test_kills_under_load_cost_no_more_requests_than_kills(start: Starter, settings: str) -> None:
    seconds = soak(1, 10)
    server = start(f"{ANSWER}\n    serve(Answer, {settings})", env=unmeasured()).all_ready(2)
    wanted = 4 if settings == "workers=4" else 2
    server.saw("forked", times=wanted)
    server.expect_error("killed by SIGKILL")
    server.ask(b"warm")
    before = len(open_files(server.pid)), resident(server.pid)
    kills = 0
    with Hammer(server.address, clients=8) as hammer:
        end = time.monotonic() + seconds
        pause = select.poll()  # of nothing: the time itself is what is tested
        while time.monotonic() < end:
            pause.poll(100)
            if workers := server.workers():
                with suppress(ProcessLookupError):
                    os.kill(random.choice(workers), signal.SIGKILL)
                    kills += 1
        hammer.ended("served", hammer.counts["served"] + 100)
    print(kills, "kills", hammer.counts)
    assert kills >= 3
    assert hammer.counts["lost"] + hammer.counts["refused"] <= kills, hammer.counts
    eventually(lambda: len(server.workers()) == wanted, 3 * PATIENCE)
    eventually(lambda: len(children(server.pid)) == wanted)  # no zombie stays
    eventually(lambda: len(open_files(server.pid)) == before[0])
    assert resident(server.pid) - before[1] <= 1 << 20
    assert server.quit() == 0


ANSWER = """
    class Answer(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(self.request.recv(100))
"""


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
