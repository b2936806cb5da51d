"""The log and what is printed by real servers: into files, in whole lines."""

import os
from pathlib import Path

import pytest

from tests.conftest import Starter


def test_in_a_container_all_may_go_to_dev_stdout(start: Starter) -> None:
    server = start("""
        def after_fork(master):
            print("a print of", master.slot)
        def work(master):
            while master.wait(60): pass
        paths = dict.fromkeys(("log_path", "stdout_path", "stderr_path"), "/dev/stdout")
        Preforker(work, workers=1, after_fork=after_fork, pid_path=None, **paths).run()
    """).ready()
    server.saw("a print of 1")
    assert server.quit() == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_line_is_written_in_one_piece(start: Starter, unbuffered: str) -> None:
    server = start(
        """
        import builtins
        from prefork_server.logfiles import redirected
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        def kind(): return sys.stdout.write_through, sys.stdout.line_buffering
        before = kind()
        with redirected(f"/dev/fd/{ours.fileno()}", None):
            builtins.print("in", "one", "piece")
        print("got", theirs.recv(100), before == kind())
        """,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    server.saw(r"got b'in one piece\\n' True")
    assert server.wait() == 0


def test_closed_standard_streams_in_the_foreground_get_no_socket(
    start: Starter, tmp_path: Path
) -> None:
    server = start("""
        os.close(0); os.close(1)
        with PreforkTCPServer(("127.0.0.1", 0), Echo, workers=1) as server:
            print("this goes to /dev/null, and not to the listener")
            server.serve_forever()
    """).ready()
    assert server.ask() == b"hello"
    assert os.readlink(f"/proc/{server.pid}/fd/1") == "/dev/null"
