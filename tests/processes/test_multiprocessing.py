"""multiprocessing in workers, where the launcher has used it before the fork."""

import os

import pytest

from tests.conftest import Starter, open_files

pytestmark = pytest.mark.executed  # forkserver and spawn load the program once more

ASKS = """
    import multiprocessing

    METHOD = multiprocessing.get_context({method!r})

    def use():
        with METHOD.Pool(1) as pool:
            answer = pool.apply(os.getppid)
        process = METHOD.Process(target=sys.exit, args=(7,))
        process.start()
        process.join()
        return answer, process.exitcode

    class Uses(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(repr(use()).encode())

    if __name__ == "__main__":
        print("launcher", *use(), os.getpid())
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
def test_workers_start_processes_by_it_though_the_launcher_has(start: Starter, method: str) -> None:
    server = start(ASKS.format(method=method) + "        serve(Uses, workers=2)\n").ready()
    (launcher,) = server.saw(r"launcher (\d+) 7")
    answers = {server.ask() for _ in range(8)}
    for answer in answers:
        parent, code = answer.decode().strip("()").split(", ")
        assert code == "7"
        assert parent != launcher[1]
    assert server.quit() == 0


def test_a_worker_holds_nothing_of_the_launchers_forkserver(start: Starter) -> None:
    server = start(
        ASKS.format(method="forkserver")
        + """
        import multiprocessing.forkserver

        class Pid(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.sendall(b"%d" % os.getpid())

        alive = multiprocessing.forkserver._forkserver._forkserver_alive_fd
        print("alive", os.readlink(f"/proc/self/fd/{alive}"))
        serve(Pid, workers=1)
"""
    ).ready()
    (alive,) = server.saw(r"alive (pipe:\S+)")

    def holds(pid: int) -> bool:
        return alive[1] in {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in open_files(pid)}

    assert holds(server.pid)
    assert not holds(int(server.ask()))
    assert server.quit() == 0
