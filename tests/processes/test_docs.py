"""The programs and test files in docs/ run, and the page on signals is right."""

import os
import re
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, ROOT, Starter, alive, children, eventually, unmeasured
from tests.unit.test_docs import beginning, blocks, page

# Programs


def run(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run it to its end, which may be no later than its descendants'."""
    reader, writer = os.pipe()
    try:
        with subprocess.Popen(
            command,
            cwd=directory,
            env={**unmeasured(), "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(directory)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=[writer],
            start_new_session=True,
        ) as program:
            os.close(writer)
            try:
                said, _ = program.communicate(timeout=2 * PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(program.pid, signal.SIGKILL)
                raise
        assert select.select([reader], [], [], 5)[0], f"somebody is left of it\n{said}"
        return subprocess.CompletedProcess(command, program.returncode, said)
    finally:
        os.close(reader)


def test_there_are_programs_and_test_files() -> None:
    assert len(beginning("# a whole program")) >= 5
    assert len(beginning("# a whole test file")) >= 3


# Form


@pytest.mark.parametrize(("name", "text"), beginning("# a whole program"))
def test_a_whole_program_prints_what_follows_it(name: str, text: str, tmp_path: Path) -> None:
    after = page(name).partition(text)[2]
    promised = re.match(r"```\n\n```text\n(.*?)^```$", after, re.DOTALL | re.MULTILINE)
    assert promised, f"{name}: what does this print?\n{text}"
    (tmp_path / "program.py").write_text(text)
    ended = run([sys.executable, "-W", "error", "program.py"], tmp_path)
    assert (ended.returncode, ended.stdout) == (0, promised[1])


def test_each_whole_test_file_passes(tmp_path: Path) -> None:
    files = [each.values for each in beginning("# a whole test file")]
    for number, (_, text) in enumerate(files):
        (tmp_path / f"test_yours_{number}.py").write_text(text)
    command = [sys.executable, "-W", "error", "-m", "pytest", "-rp", "-p", "no:cacheprovider"]
    ended = run([*command, "-W", "error"], tmp_path)
    assert ended.returncode == 0, ended.stdout
    passed = set(re.findall(r"^PASSED test_yours_(\d+)\.py", ended.stdout, re.MULTILINE))
    assert len(passed) == len(files) > 0, ended.stdout


def test_coverage_across_forks_is_measured_as_the_page_says(tmp_path: Path) -> None:
    test = blocks("testing.md", "python")[0]
    (tmp_path / "test_yours.py").write_text(test)
    toml = blocks("testing.md", "toml")[0].replace("[run]", "[tool.coverage.run]")
    (tmp_path / "pyproject.toml").write_text(toml)
    commands = re.findall(r"^    (coverage .*)$", page("testing.md"), re.MULTILINE)
    assert [c.split()[1] for c in commands] == ["run", "combine", "report"]
    for command in commands:
        ended = run([sys.executable, "-m", *command.split()], tmp_path)
        assert ended.returncode == 0, ended.stdout
    # The handler's lines are run in workers only.
    assert re.search(r"^test_yours\.py +\d+ +0 +100%", ended.stdout, re.MULTILINE), ended.stdout


# What the page on signals says, where no other test shows it


def test_what_ctrl_backslash_sends_to_all_is_a_graceful_stop(start: Starter) -> None:
    server = start("""
    class Slow(socketserver.StreamRequestHandler):
        def handle(self):
            print("in the handler")
            self.wfile.write(self.rfile.readline())
    serve(Slow, workers=2)
    print("returned")
    """).all_ready(2)
    clients = [server.connect() for _ in range(6)]
    server.saw("in the handler", times=2)  # and four wait in the queue
    os.killpg(server.pid, signal.SIGQUIT)
    # Or 3: a worker may leave before the master has heard it, and be replaced.
    server.saw("SIGQUIT: stopping [23] workers gracefully")
    for client in clients:
        with client:
            client.sendall(b"hello\n")
            assert client.recv(100) == b"hello\n"
    server.saw("returned")
    assert server.wait() == 0


def test_ttin_is_heard_by_a_daemon_and_hup_reloads_it(start: Starter, tmp_path: Path) -> None:
    launcher = start.script(ROOT / "examples" / "daemon.py")
    pid = int(launcher.saw(r"started, pid (\d+)")[0][1])
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTTIN)
        eventually(lambda: len([p for p in children(pid) if alive(p)]) == 3)  # TTIN was heard
        signal.pidfd_send_signal(pidfd, signal.SIGHUP)
        log = tmp_path / "ticker.log"
        eventually(lambda: "generation 2 serves" in log.read_text())
        signal.pidfd_send_signal(pidfd, signal.SIGQUIT)
        assert select.select([pidfd], [], [], PATIENCE)[0]
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
    said = log.read_text()
    assert "SIGHUP: reloading 3 workers, generation 2" in said and "reaped: killed" not in said
