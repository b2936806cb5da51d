"""Forks that a program makes itself, in a handler or a hook: signals there do what they did."""

import signal

import pytest

from tests.conftest import Starter

ASKING = """
    import faulthandler, multiprocessing, warnings

    SIGNALS = [s for s in signal.valid_signals() if s not in (signal.SIGKILL, signal.SIGSTOP)]

    def caught(name="SigCgt"):  # 32 and 33 are the C library's, for threads
        with open("/proc/self/status") as status:
            mask = next(line for line in status if line.startswith(name)).split()[1]
        return [n + 1 for n in range(64) if int(mask, 16) >> n & 1 and n + 1 not in (32, 33)]

    def state():
        wakeup = signal.set_wakeup_fd(-1)
        if wakeup >= 0:
            signal.set_wakeup_fd(wakeup)
        python = [str(signal.getsignal(s)) for s in SIGNALS]
        return [caught(), caught("SigIgn"), python, wakeup, faulthandler.is_enabled()]

    warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads

    def in_fork():
        reader, writer = os.pipe()
        if not (pid := os.fork()):
            os.write(writer, repr(state()).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(writer)
        with open(reader) as answer:
            return answer.read()
"""


@pytest.mark.executed
@pytest.mark.parametrize("faults", [False, True])
@pytest.mark.parametrize("term", ["now", "graceful"])
@pytest.mark.parametrize("where", ["after_fork", "handler", "thread", "before_fork", "asyncio"])
def test_in_a_fork_each_signal_has_the_disposition_of_before(
    where: str, term: str, faults: bool, start: Starter
) -> None:
    server = start(
        ASKING
        + f"""
    def mine(*_):
        pass

    if {faults}:
        faulthandler.enable()
    signal.signal(signal.SIGTERM, mine)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    before = repr(state())

    def compare():
        now = in_fork()
        print("same" if now == before else f"before {{before}} now {{now}}")

    class Asker(Echo):
        def handle(self):
            if "{where}" in ("handler", "thread"):
                compare()

    class Server(PreforkTCPServer):
        def before_fork(self):
            if "{where}" == "before_fork":
                compare()
        def after_fork(self, master):
            if "{where}" == "after_fork":
                compare()

    settings = Settings(workers=1, term="{term}", threads=2 if "{where}" == "thread" else 1)
    if "{where}" == "asyncio":
        import asyncio
        from prefork_server import PreforkAsyncioServer
        async def visit(reader, writer):
            compare()
            writer.close()
        settings = Settings(workers=1, term="{term}")
        PreforkAsyncioServer("127.0.0.1:0", visit, settings=settings).serve_forever()
    else:
        Server(("127.0.0.1", 0), Asker, settings=settings).serve_forever()
    """
    ).ready()
    server.ask()
    (told,) = server.saw("^(same|before .*)$")
    assert told[1] == "same", told[1]
    assert server.quit() == 0


def test_what_a_worker_has_set_itself_stays_set_in_its_forks(start: Starter) -> None:
    server = start(
        ASKING
        + """
    def own(*_):
        pass

    class Asker(Echo):
        def handle(self):
            self.request.sendall(str(f"{own}" in in_fork()).encode())

    class Server(PreforkTCPServer):
        def after_fork(self, master):
            signal.signal(signal.SIGUSR2, own)

    Server(("127.0.0.1", 0), Asker).serve_forever()
    """
    ).ready()
    assert server.ask() == b"True"


@pytest.mark.parametrize("term", ["now", "graceful"])
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1"])
def test_a_signal_ends_a_process_that_a_handler_has_started(
    how: str, term: str, start: Starter
) -> None:
    server = start(
        f"""
        import multiprocessing

        def wait(ready):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.write(ready, b"!")
            time.sleep(1000)

        class Starter(Echo):
            def handle(self):
                reader, ready = os.pipe()
                child = multiprocessing.get_context("fork").Process(target=wait, args=(ready,))
                child.start()
                os.read(reader, 1)
                os.kill(child.pid, signal.{how})
                child.join()
                self.request.sendall(b"%d" % child.exitcode)

        serve(Starter, settings=Settings(term="{term}", timeout=None))
        """
    ).ready()
    assert int(server.ask()) == -getattr(signal, how)
