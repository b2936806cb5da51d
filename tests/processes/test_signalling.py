"""Root without capabilities: a master that may not signal its workers or change their user."""

import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.conftest import ROOT, Starter, alive, eventually, unmeasured

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to drop its capabilities")

APPLICATION = """
import os, time

def application(environ, start_response):
    if environ["PATH_INFO"] == "/hang":
        os.write(1, b"hanging in %d\\n" % os.getpid())
        with open(FIFO) as fifo:
            fifo.read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]
"""


def limited(open_path: Path, capabilities: str) -> list[str]:
    """The words of the command, as root with these capabilities; its workers are another user's."""
    (open_path / "fifo").unlink(missing_ok=True)
    os.mkfifo(open_path / "fifo", 0o644)
    os.chmod(open_path / "fifo", 0o644)
    fifo = f"FIFO = {str(open_path / 'fifo')!r}\n"
    (open_path / "app.py").write_text(fifo + APPLICATION)
    shutil.copytree(ROOT / "src" / "prefork_server", open_path / "prefork_server")
    code = (
        "import os, subprocess, sys\n"
        "os.execvp('setpriv', ['setpriv', '--bounding-set', sys.argv[1], '--inh-caps=-all', '--',"
        " sys.executable, *sys.argv[2:]])\n"
    )
    script = open_path / "limited.py"
    script.write_text(code)
    words = "-m prefork_server serve app --bind 127.0.0.1:0 --workers 2 --user nobody --timeout 1"
    return [str(script), capabilities, *words.split(), "--graceful-timeout", "2"]


def test_without_cap_kill_it_is_told_at_the_start_and_serves_on(
    start: Starter, open_path: Path
) -> None:
    script, *words = limited(open_path, "-all,+setuid,+setgid")
    server = start.script(
        Path(script), *words, executed=True, env=unmeasured(), cwd=open_path
    ).ready()
    server.expect_error("was not sent", "silent for more")
    (told,) = server.saw("WARNING .*the workers cannot be signalled")
    assert "CAP_KILL" in told.string
    server.signal(signal.SIGUSR1)
    server.saw(r"ERROR .*worker=\d pid=\d+ SIGUSR1 was not sent: .*CAP_KILL")
    server.signal(signal.SIGHUP)  # told to go by the scoreboard
    server.saw("generation 2 serves")
    server.saw("reaped: exit code 0", times=2)
    assert server.ask(b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 OK")
    # One that hangs is left to its handler, and goes when that has returned.
    with server.connect() as client:
        client.sendall(b"GET /hang HTTP/1.0\r\n\r\n")
        hanging = int(server.saw(r"hanging in (\d+)")[0][1])
        server.saw(rf"ERROR .*pid={hanging} SIGKILL was not sent: .*CAP_KILL")
        assert alive(hanging)
        assert server.ask(b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 OK")
        (open_path / "fifo").write_text("")
    server.saw(rf"pid={hanging} reaped")
    assert server.quit() == 0


def test_with_the_capability_nothing_is_said_of_it(start: Starter, open_path: Path) -> None:
    script, *words = limited(open_path, "-all,+setuid,+setgid,+kill")
    server = start.script(
        Path(script), *words, executed=True, env=unmeasured(), cwd=open_path
    ).ready()
    server.signal(signal.SIGHUP)
    server.saw("generation 2 serves")
    assert server.quit() == 0
    assert "signalled" not in server.log


@pytest.mark.parametrize(
    ("capabilities", "sentence"),
    [
        ("-all,+setuid,+kill", r"cannot become group \d+: .* lacks the capability CAP_SETGID$"),
        ("-all,+setgid,+kill", r"cannot become user \d+: .* lacks the capability CAP_SETUID$"),
    ],
)
@pytest.mark.parametrize("preload", [False, True])
def test_a_capability_that_is_missing_for_the_change_of_user_is_named(
    preload: bool, capabilities: str, sentence: str, start: Starter, open_path: Path
) -> None:
    script, *words = limited(open_path, capabilities)
    words += ["--preload"] * preload
    server = start.script(Path(script), *words, executed=True, env=unmeasured(), cwd=open_path)
    assert server.wait() == 3
    assert re.search(sentence, server.lines[-1]), server.log
    server.expect_error("before it was ready", "no worker of the first generation", "Traceback")


def test_a_target_that_is_not_loaded_in_time_is_ended_without_cap_kill(
    start: Starter, open_path: Path
) -> None:
    script, *words = limited(open_path, "-all,+setuid,+setgid")
    (open_path / "app.py").write_text(
        "import os, time\nos.write(1, b'importing in %d\\n' % os.getpid())\ntime.sleep(1000)\n"
    )
    words += ["--boot-timeout", "1"]
    server = start.script(Path(script), *words, executed=True, env=unmeasured(), cwd=open_path)
    assert server.wait() == 3
    assert "the target was not loaded after 1s (boot_timeout): " in server.lines[-1]
    child = int(server.saw(r"importing in (\d+)")[0][1])
    eventually(lambda: not alive(child))


def test_in_a_user_namespace_workers_of_another_user_end_with_their_master(
    start: Starter,
) -> None:
    """A rootless container: its root is no root of the machine, and the kernel compares users."""
    server = start(
        """
        import ctypes
        ready, unshared = os.pipe()
        mapped, written = os.pipe()
        master = os.getpid()
        if not os.fork():  # who is root of the machine
            os.read(ready, 1)
            for kind in ("uid_map", "gid_map"):
                with open(f"/proc/{master}/{kind}", "w") as map:
                    map.write("0 100000 65536")
            os.write(written, b"!")
            os._exit(0)
        server = PreforkTCPServer(
            ("127.0.0.1", 0), Echo, workers=2, user=65534, group=65534, status="127.0.0.1:0"
        )
        ctypes.CDLL(None).unshare(0x10000000)  # CLONE_NEWUSER
        os.write(unshared, b"!")
        os.read(mapped, 1)
        os.wait()
        os.setgroups([]), os.setgid(0), os.setuid(0)
        server.serve_forever()
        """
    ).ready()
    server.saw("worker=2 pid=.* forked")
    assert server.ask(b"hello") == b"hello"
    assert b"165534" in Path(f"/proc/{server.workers()[0]}/status").read_bytes()
    server.signal(signal.SIGKILL)
    server.wait()
    assert not server.anyone_left()
