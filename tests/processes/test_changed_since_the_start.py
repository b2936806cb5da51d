"""An upgrade, and a reload, after what the server was started with has changed."""

import os
import shutil
import signal
import ssl
import sys
from pathlib import Path

import pytest

from tests.certificates import make_certificate
from tests.conftest import Server, Starter, read_all, unmeasured
from tests.processes.test_upgrade import stopped, upgraded

pytestmark = pytest.mark.executed
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

TELL = """
    class Tell(socketserver.StreamRequestHandler):
        def handle(self):
            environ = sorted(name for name in os.environ if name.startswith("KEPT_"))
            self.wfile.write(f"{os.getppid()} {environ} {os.getcwd()}".encode())
"""
# As libraries for the title of a process do, which have moved the variables elsewhere before.
OVERWRITE = """
    import ctypes
    with open("/proc/self/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    begin, end = int(fields[47]), int(fields[48])  # env_start, env_end
    title = {title!r} * (end - begin)
    kept = dict(os.environb)
    ctypes.memmove(begin, title[: end - begin], end - begin)
    os.environb.update(kept)
"""


@pytest.mark.parametrize("title", [b"\0", b"shop: a=b ", b"web"])
def test_the_environment_of_the_start_is_kept_when_its_memory_is_overwritten(
    start: Starter, title: bytes
) -> None:
    overwrite = OVERWRITE.format(title=title)
    server = start(f"""{overwrite}{TELL}
    os.environ["KEPT_LATER"] = "by the program"
    serve(Tell, workers=1)
    """, env={**unmeasured(), "KEPT_A": "1", "KEPT_B": ""}).ready()  # fmt: skip
    before = server.ask(b"").decode().split(None, 1)
    assert before[1].startswith("['KEPT_A', 'KEPT_B', 'KEPT_LATER'] ")
    successor = upgraded(server, server.pid)
    assert server.ask(b"").decode().split(None, 1) == [str(successor), before[1]]
    stopped(server, successor)


@as_root
def test_a_program_that_has_become_another_user_is_upgraded_or_says_what_that_user_may_not(
    start: Starter, open_path: Path
) -> None:
    start.directory = open_path
    server = start(f"""{TELL}
    server = PreforkTCPServer("127.0.0.1:0", Tell, workers=1)
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    print("may execute", os.access(sys.executable, os.X_OK))
    server.serve_forever()
    """, env={**unmeasured(), "KEPT_A": "1"}).ready()  # fmt: skip
    if server.saw("^may execute (.*)")[0][1] == "True":
        successor = upgraded(server, server.pid)
        assert server.ask(b"").startswith(b"%d ['KEPT_A'] " % successor)
        stopped(server, successor)
    else:
        server.expect_error("upgrade failed")
        server.signal(signal.SIGUSR2)
        server.saw(f"exit code 127: cannot execute {sys.executable}: Permission denied")
        assert server.ask(b"").startswith(b"%d ['KEPT_A'] " % server.pid)


GONE = {
    "directory": r"cannot enter the directory \S+/release, where this program was started: "
    "No such file or directory",
    "interpreter": r"cannot execute \S+/bin/python: No such file or directory",
}


@pytest.mark.parametrize("what", GONE)
def test_an_upgrade_says_which_step_has_failed_and_the_old_master_serves_on(
    start: Starter, tmp_path: Path, what: str
) -> None:
    release = tmp_path / "release"
    (release / "bin").mkdir(parents=True)
    (release / "bin" / "python").symlink_to(sys.executable)
    server = start(f"""{TELL}
    if len(sys.argv) == 1:
        os.execv("{release}/bin/python", ["{release}/bin/python", __file__, "started"])
    os.environ["KEPT_A"] = "1"
    serve(Tell, workers=1)
    """, cwd=release, env=unmeasured()).ready()  # fmt: skip
    if what == "directory":
        release.rename(tmp_path / "removed")
    else:
        shutil.rmtree(release / "bin")
    server.expect_error("upgrade failed")
    server.signal(signal.SIGUSR2)
    server.saw(f"ended before it was ready: exit code 127: {GONE[what]}$")
    server.signal(signal.SIGHUP)
    server.saw("generation 2 serves")
    assert server.ask(b"").startswith(b"%d ['KEPT_A'] " % server.pid)


RELEASE = """
import socketserver, sys
from prefork_server import PreforkTCPServer

class Tell(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(f"{version} {sys.executable} {sys.argv[1:]}".encode())

PreforkTCPServer("127.0.0.1:0", Tell, workers=1).serve_forever()
"""
WAYS = {
    "a #! line": ("#!{bin}/python", "{current}/bin/app"),
    "a #! line with an argument, and a relative path": ("#!{bin}/python -B", "bin/app"),
    "a shell": ("#!/bin/sh\n'''exec' {bin}/python \"$0\" \"$@\"\n'''", "{current}/bin/app"),
    "an interpreter with a relative path": ("", "bin/python bin/app"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_release_that_has_an_interpreter_of_its_own_is_upgraded_to_the_next_with_it(
    start: Starter, tmp_path: Path, way: str
) -> None:
    line, words = WAYS[way]
    for version in (1, 2):
        directory = tmp_path / f"r{version}" / "bin"
        directory.mkdir(parents=True)
        (directory / "python").symlink_to(os.path.realpath(sys.executable))
        text = f"{line.format(bin=directory)}\nversion = {version}{RELEASE}"
        (directory / "app").write_text(text)
        (directory / "app").chmod(0o755)
    current = tmp_path / "current"
    current.symlink_to("r1")
    command = [*words.format(current=current).split(), "a b"]
    environ = {**unmeasured(), "PWD": str(current)}
    server = start(f"os.execv({command[0]!r}, {command!r})", cwd=current, env=environ).ready()
    assert server.ask(b"").decode() == f"1 {tmp_path}/r1/bin/python ['a b']"
    moved(current, "r2")
    successor = upgraded(server, server.pid)
    version, interpreter, *_ = server.ask(b"").decode().split()
    assert version == "2"
    assert os.path.realpath(os.path.dirname(interpreter)) == f"{tmp_path}/r2/bin"
    stopped(server, successor)


def moved(link: Path, target: str) -> None:
    """Have the link lead there, in one step."""
    next_one = link.with_name("next")
    next_one.symlink_to(target)
    next_one.rename(link)


COMMAND = """
    from prefork_server.cli import main
    sys.exit(main(["serve", "-w", "1", "-b", "127.0.0.1:0", *sys.argv[1:]]))
"""
APPLICATION = """
import os
def application(environ, start_response):
    start_response("200 OK", [])
    return [f"release {version}, in one with {os.listdir()}".encode()]
"""
PLACES = {
    "--chdir with a name": (["--chdir", "{current}", "served"], "/"),
    "--chdir with a relative name": (["--chdir", "current/../current", "served"], "{above}"),
    "the directory of the start": (["served:application"], "{current}"),
    "a file there": (["served.py:application"], "{current}"),
    "certificates there": (["served", "--certfile", "server.pem"], "{current}"),
}


@pytest.mark.parametrize("how", ["a reload", "a death"])
@pytest.mark.parametrize("place", PLACES)
def test_a_worker_that_is_replaced_goes_where_the_name_of_its_directory_leads_by_then(
    start: Starter, tmp_path: Path, place: str, how: str
) -> None:
    words, cwd = PLACES[place]
    current = tmp_path / "current"
    contexts = []
    for version in (1, 2):
        directory = tmp_path / f"r{version}"
        directory.mkdir()
        (directory / "served.py").write_text(f"version = {version}{APPLICATION}")
        (directory / f"only{version}").touch()
        contexts.append(make_certificate(directory))
    current.symlink_to("r1")
    where = cwd.format(current=current, above=tmp_path)
    server = start(
        COMMAND,
        *(word.format(current=current) for word in words),
        cwd=Path(where),
        env={**unmeasured(), "PWD": where},
    ).ready()
    over_tls = "certificates" in place
    answer = told(server, contexts[0] if over_tls else None)
    assert b"release 1, " in answer and b"only1" in answer
    moved(current, "r2")
    if how == "a reload":
        server.signal(signal.SIGHUP)
        server.saw("reaped")  # until then the old worker may be the one that accepts
    else:
        server.expect_error("reaped")
        server.signal(signal.SIGKILL, server.workers()[0])
        server.saw("forked", 2)
    renewed = over_tls and how == "a reload"
    answer = told(server, contexts[renewed] if over_tls else None)
    assert b"release 2, " in answer and b"only2" in answer


def told(server: Server, context: ssl.SSLContext | None) -> bytes:
    client = server.connect()
    if context:
        client = context.wrap_socket(client, server_hostname="localhost")
    with client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return read_all(client)


def test_a_worker_whose_directory_is_gone_serves_what_lies_elsewhere(
    start: Starter, tmp_path: Path
) -> None:
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    for each in (place, elsewhere):
        each.mkdir()
    (elsewhere / "served.py").write_text(
        f"version = 1{APPLICATION}".replace("{os.listdir()}", "no directory")
    )
    server = start(COMMAND, f"{elsewhere}/served.py", cwd=place, env=unmeasured()).ready()
    place.rmdir()
    server.signal(signal.SIGHUP)
    server.saw("generation 2 serves")
    assert told(server, None).endswith(b"release 1, in one with no directory")
