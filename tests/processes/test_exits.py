"""The end of a worker: the hook ``before_exit``, and what was registered there with ``atexit``."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Starter, eventually, unmeasured

REGISTERED = """
    import atexit, concurrent.futures, logging, logging.handlers, multiprocessing, weakref

    def say(word):
        print(word, os.getpid())

    class Kept:
        pass

    kept = Kept()
    atexit.register(say, "atexit of the master")
    weakref.finalize(kept, say, "finalize of the master")
    records = logging.FileHandler("records")
    memory = logging.handlers.MemoryHandler(100, target=records)
    log = logging.getLogger("app")
    log.addHandler(memory)
    log.warning("by the master %d", os.getpid())
    context = multiprocessing.get_context("fork")
    child = context.Process(target=time.sleep, args=(1000,), daemon=True)
    child.start()

    def double(number):
        return 2 * number

    def after_fork(master):
        global mine
        atexit.register(say, "atexit")
        mine = Kept()
        weakref.finalize(mine, say, "finalize")
        log.warning("by a worker %d", os.getpid())
        daemon = context.Process(target=time.sleep, args=(1000,), daemon=True)
        daemon.start()
        print("a daemon", daemon.pid)
        if master.slot == 1:
            global pool
            pool = concurrent.futures.ProcessPoolExecutor(1, context)
            assert pool.submit(double, 21).result() == 42

    def before_exit(master):
        print("before_exit", os.getpid(), master.slot)
"""


@pytest.mark.executed
def test_what_a_worker_registered_is_run_at_its_end_and_nothing_of_the_master(
    start: Starter,
) -> None:
    server = start(
        REGISTERED
        + """
    def work(master):
        while master.wait(1):
            pass
        say("work is over")

    Preforker(work, workers=2, pid_path=None, after_fork=after_fork, before_exit=before_exit).run()
    assert child.is_alive()
    child.kill(), child.join()
    """,
        env=unmeasured(),
    ).ready()
    server.saw("a daemon", times=2)
    first = server.saw(r"worker=\d pid=(\d+) forked", times=2)
    server.signal(signal.SIGHUP)
    server.saw("reaped: exit code 0", times=2)
    for told in first:
        words = [line.split(f" {told[1]}")[0] for line in server.lines if line.count(told[1]) == 1]
        words = [word for word in words if word in ORDER]
        assert words == ORDER, server.log
    assert server.quit() == 0
    workers = server.count("forked$")
    for word in ORDER:
        assert server.count(rf"^{word} \d") == workers
    assert server.count("of the master") == 2  # at its own end
    assert server.count(f"of the master {server.pid}$") == 2
    records = (start.directory / "records").read_text().splitlines()
    assert len(records) == len(set(records)) == workers + 1
    assert f"by the master {server.pid}" in records


ORDER = ["work is over", "before_exit", "finalize", "atexit"]


@pytest.mark.executed
@pytest.mark.parametrize("ending", ["quit", "error", "exit"])
def test_it_is_run_however_the_work_ends(ending: str, start: Starter) -> None:
    """A function that returns, raises, or asks for its end."""
    endings = {"quit": "return", "error": 'raise ValueError("of the work")', "exit": "sys.exit(7)"}
    server = start(
        f"""
        import atexit

        def work(master):
            print("at work")
            sys.stdin.readline()
            {endings[ending]}

        def after_fork(master):
            atexit.register(print, "atexit", os.getpid())

        Preforker(work, pid_path=None, workers=1, after_fork=after_fork,
                  before_exit=lambda master: print("before_exit", os.getpid())).run()
        """,
    )
    server.expect_error("ValueError", "reaped", "Traceback")
    first = server.saw(r"pid=(\d+) forked")[0][1]
    server.saw(rf"before_exit {first}")
    server.saw(rf"atexit {first}")


@pytest.mark.parametrize("ending", ["return", "sys.exit(7)", 'raise ValueError("of the fork")'])
def test_the_hook_is_not_run_in_a_fork_of_the_work_function(ending: str, start: Starter) -> None:
    server = start(
        f"""
        def work(master):
            if os.fork() == 0:
                {ending}
                return
            os.wait()
            print("the fork is gone")
            while master.wait(1):
                pass

        Preforker(work, pid_path=None, workers=1,
                  before_exit=lambda master: print("before_exit", os.getpid())).run()
        """
    )
    server.expect_error("ValueError", "Traceback")
    worker = server.saw(r"pid=(\d+) forked")[0][1]
    server.saw("the fork is gone")
    assert server.quit() == 0
    assert server.count("before_exit") == server.count(f"^before_exit {worker}$") == 1


def test_a_worker_that_did_not_become_ready_runs_its_exit_functions_and_no_hook(
    start: Starter,
) -> None:
    """An error tracker that was started before the error is to send it."""
    server = start(
        """
        import atexit

        def after_fork(master):
            atexit.register(print, "sent")
            raise ValueError("of after_fork")

        Preforker(print, pid_path=None, workers=1, after_fork=after_fork,
                  before_exit=lambda master: print("before_exit")).run()
        """
    )
    server.expect_error("reaped before it was ready", "ValueError", "Traceback", "BootError")
    assert server.wait() == 1
    assert server.count("^sent$") == 1
    assert server.count("^before_exit$") == 0


@pytest.mark.parametrize(
    "what", ["before_exit=hang", "after_fork=lambda master: atexit.register(hang)"]
)
def test_what_hangs_at_the_end_has_graceful_timeout_and_not_timeout(
    what: str, start: Starter
) -> None:
    server = start(
        f"""
        import atexit

        def work(master):
            while master.wait(1):
                pass

        def hang(*_):
            print("hanging", os.getpid())
            time.sleep(1000)

        Preforker(work, pid_path=None, workers=1, {what}, timeout=0.2, graceful_timeout=1).run()
        """
    ).ready()
    server.expect_error("not gone 1s after it was told to, killing")
    server.signal(signal.SIGHUP)
    server.saw("hanging")
    # The master kills it, or the kernel a moment earlier.
    server.saw("worker=1 .* reaped: killed by SIG(KILL|ALRM)")
    assert "silent" not in server.log


def test_a_worker_that_goes_by_itself_and_hangs_at_its_end_is_ended(start: Starter) -> None:
    server = start(
        """
        def hang(master):
            print("hanging", os.getpid())
            time.sleep(1000)

        def work(master):
            if master.slot == 1 and master.generation == 1:
                return

            while master.wait(1):
                pass

        Preforker(work, pid_path=None, workers=2, before_exit=hang, timeout=0.2,
                  graceful_timeout=0.5).run()
        """
    )
    server.expect_error("killed by SIGALRM", "killing")
    server.saw("worker=1 .* reaped: killed by SIGALRM")
    assert "silent" not in server.log


@pytest.mark.parametrize(
    "raised", ['ValueError("of the hook")', "SystemExit(3)", "KeyboardInterrupt"]
)
def test_what_the_hook_raises_is_logged_and_changes_nothing(raised: str, start: Starter) -> None:
    server = start(
        f"""
        import atexit

        def before_exit(master):
            raise {raised}

        def work(master):
            atexit.register(print, "atexit")
            atexit.register(sys.exit, 5)
            while master.wait(1):
                pass

        Preforker(work, pid_path=None, workers=1, before_exit=before_exit).run()
        """
    ).ready()
    server.expect_error("before_exit failed", "Traceback")
    assert server.quit() == 0
    server.saw(r"worker=1 pid=\d+ before_exit failed")
    assert server.count("^atexit$") == 1
    assert server.count("reaped: exit code 0") == 1


SERVERS = {
    "a TCP server": ("PreforkTCPServer", "Echo", ""),
    "threads": ("PreforkTCPServer", "Echo", "threads=2, "),
    "an HTTP server": ("PreforkHTTPServer", "SimpleHTTPRequestHandler", ""),
    "datagrams": ("PreforkUDPServer", "socketserver.DatagramRequestHandler", ""),
    "asyncio": ("PreforkAsyncioServer", "visit", ""),
}


@pytest.mark.parametrize("kind", SERVERS)
def test_server_classes_have_the_hook(kind: str, start: Starter) -> None:
    base, handler, keywords = SERVERS[kind]
    server = start(
        f"""
        import atexit
        from http.server import SimpleHTTPRequestHandler
        from prefork_server import PreforkAsyncioServer, PreforkHTTPServer

        async def visit(reader, writer):
            writer.close()

        class Server({base}):
            def after_fork(self, master):
                atexit.register(print, "atexit")

            def before_exit(self, master):
                print("before_exit", master.slot, os.getpid())

        address = ("127.0.0.1", 0) if "{base}" != "PreforkAsyncioServer" else "127.0.0.1:0"
        Server(address, {handler}, {keywords}workers=2).serve_forever()
        """
    ).ready()
    server.saw("worker=2 .* forked")
    server.signal(signal.SIGHUP)
    server.saw("reaped: exit code 0", times=2)
    assert server.quit() == 0
    assert server.count(r"^before_exit [1-4] \d+$") == 4
    assert server.count("^atexit$") == 4


def test_an_asyncio_server_awaits_the_hook_before_it_closes_what_was_entered(
    start: Starter,
) -> None:
    server = start(
        """
        import asyncio
        from contextlib import asynccontextmanager
        from prefork_server import PreforkAsyncioServer

        @asynccontextmanager
        async def connected():
            yield
            print("closed")

        class Server(PreforkAsyncioServer):
            async def after_fork(self, master):
                await master.exit_stack.enter_async_context(connected())

            async def before_exit(self, master):
                await asyncio.sleep(0)
                print("before_exit")
                raise ValueError("of the hook")

        async def visit(reader, writer):
            writer.close()

        Server("127.0.0.1:0", visit, workers=1).serve_forever()
        """
    ).ready()
    server.expect_error("before_exit failed", "Traceback")
    assert server.quit() == 0
    printed = [line for line in server.lines if line in ("before_exit", "closed")]
    assert printed == ["before_exit", "closed"]


COMMAND = """
import atexit, multiprocessing, os, socketserver, sys, time
from prefork_server import PreforkTCPServer

os.write(1, b"imported by %d\\n" % os.getpid())
atexit.register(lambda: os.write(1, b"exit of %d\\n" % os.getpid()))
context = multiprocessing.get_context("fork")
manager = context.Manager()
shared = manager.list()
own = []

class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        while self.request.recv(100):
            pass
        shared.append(1)
        if not own:
            own.append(context.Pool(1))
        self.request.sendall(b"%d" % own[0].apply(sum, ([len(shared), 41],)))

class Server(PreforkTCPServer):
    def __init__(self, address):
        super().__init__(address, Handler)
    def before_exit(self, master):
        os.write(1, b"before_exit of %d\\n" % os.getpid())

def application(environ, start_response):
    start_response("200 OK", [])
    return []
"""


@pytest.mark.parametrize("thing", ["Server", "Handler"])
def test_under_the_command_a_manager_and_a_pool_end_with_each_process_that_imported_them(
    thing: str, start: Starter
) -> None:
    (start.directory / "app.py").write_text(COMMAND)
    words = f"serve app:{thing} --bind 127.0.0.1:0 --workers 2".split()
    server = start.script(Path("-m"), "prefork_server", *words, executed=True, env=unmeasured())
    server.ready().saw("imported by", times=3)
    looked = server.lines[0].split()[-1]
    assert server.count(f"^exit of {looked}$") == 1  # the process that has only looked
    assert server.ask() == b"42"
    server.signal(signal.SIGHUP)
    server.saw("reaped: exit code 0", times=2)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert not server.anyone_left()
    assert server.count("^exit of ") == server.count("^imported by ") == 5
    assert server.count("^before_exit of ") == (4 if thing == "Server" else 0)


def test_an_exit_function_that_hangs_where_the_target_is_only_looked_at_is_ended(
    start: Starter,
) -> None:
    (start.directory / "app.py").write_text(
        "import atexit, os, time\n"
        "os.write(1, b'imported\\n')\n"
        "atexit.register(time.sleep, 1000)\n"
        "def application(environ, start_response): pass\n"
    )
    words = ["serve", "app", "--check", "--graceful-timeout", "0.5"]
    server = start.script(Path("-m"), "prefork_server", *words, executed=True, env=unmeasured())
    assert server.wait() == 0
    assert "could be served" in server.lines[-1]
    eventually(lambda: not server.anyone_left(0))


def test_a_daemon_runs_what_was_registered_in_it(start: Starter) -> None:
    server = start(
        """
        import atexit

        def say(word):
            with open("said", "a") as file:
                file.write("%s %d\\n" % (word, os.getpid()))

        atexit.register(say, "the launcher")
        server = PreforkTCPServer(("127.0.0.1", 0), Echo, workers=1, log_path="log")
        server.ready = lambda addresses: atexit.register(say, "the daemon")
        Server = type("Server", (PreforkTCPServer,), {
            "ready": lambda self, addresses: atexit.register(say, "the daemon")})
        server.server_close()
        print("daemon", Server(("127.0.0.1", 0), Echo, workers=1, log_path="log").start())
        """,
        executed=True,
    )
    pid = int(server.saw(r"daemon (\d+)")[0][1])
    assert server.wait() == 0
    os.kill(pid, signal.SIGQUIT)
    assert not server.anyone_left()
    said: Any = (start.directory / "said").read_text().splitlines()
    assert said == [f"the launcher {server.pid}", f"the daemon {pid}"]
