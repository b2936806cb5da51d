"""An upgrade to a program that takes only a part of what its predecessor hands over."""

import os
import re
import socket
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Starter, children, eventually, open_files
from tests.processes.test_upgrade import stopped, upgraded

pytestmark = pytest.mark.executed

TELL = """
    class Tell(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"%d" % os.getppid())
"""


def held(pid: int) -> Counter[str]:
    """What the descriptors of a process are, without the numbers of inodes."""
    links = (os.readlink(f"/proc/{pid}/fd/{fd}") for fd in open_files(pid))
    return Counter(re.sub(r"\[\d+\]", "", link) for link in links)


NOT_TAKEN = f"""{TELL}
    import pathlib

    if os.fork() == 0:  # another process of the program, from its first moment
        held = [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{{fd}}")]
        print("fork", *(os.readlink(f"/proc/self/fd/{{fd}}").split(":")[0] for fd in held))
        os._exit(0)
    os.wait()
    addresses, more = ["127.0.0.1:0", "unix:kept"], {{}}
    if pathlib.Path("version").read_text() == "1":
        addresses += ["127.0.0.1:0", "unix:given_up"]
        more = dict(status="unix:status", pid_path="pid")
    serve(Tell, address=addresses, workers=1, **more)
"""


def test_what_is_not_taken_over_is_open_in_no_fork_and_refuses_clients_at_once(
    start: Starter, tmp_path: Path
) -> None:
    (tmp_path / "version").write_text("1")
    server = start(NOT_TAKEN)
    given_up = server.saw(r"listening on \S+, unix:kept, 127.0.0.1:(\d+), unix:given_up")[0]
    (tmp_path / "version").write_text("2")
    successor = upgraded(server, server.pid)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(given_up[1])), PATIENCE)
    paths = [tmp_path / name for name in ("given_up", "status", "pid", "pid.lock")]
    eventually(lambda: not any(path.exists() for path in paths))
    plain = start(NOT_TAKEN.replace("unix:kept", "unix:plain")).ready()
    (after,), (at_once,) = children(successor), plain.workers()
    assert held(after) == held(at_once)
    eventually(lambda: held(successor) == held(plain.pid))
    _, second, third = [m[1] for m in server.saw("^fork (.*)", 2) + plain.saw("^fork (.*)")]
    assert second == third
    stopped(server, successor)
