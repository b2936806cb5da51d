"""The examples are run as a reader would run them, and the README shows them as they are."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from .conftest import Starter, alive, eventually, read_all, title

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def test_echo_answers_each_line(start: Starter) -> None:
    server = start.script(EXAMPLES / "echo.py", "127.0.0.1:0").all_ready(4)
    with server.connect() as client:
        for line in (b"one\n", b"two\n"):
            client.sendall(line)
            assert client.recv(100) == line


def test_ping_pong_is_a_bare_loop_with_code_after_it(start: Starter) -> None:
    server = start.script(EXAMPLES / "ping_pong.py", "0").ready()
    port = int(server.saw(r"ping 127.0.0.1:(\d+)")[0][1])
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(b"ping")
            assert re.fullmatch(rb"pong from worker [123]\n", read_all(client))
    assert server.quit() == 0
    assert server.count("leaves the loop") == 3


def test_hello_http_answers_from_several_processes(start: Starter) -> None:
    server = start.script(EXAMPLES / "hello_http.py", "0").all_ready(4)
    assert isinstance(server.address, tuple)
    url = "http://{}:{}/".format(*server.address)
    with urllib.request.urlopen(url, timeout=10) as reply:
        assert re.fullmatch(rb"Hello from process \d+\n", reply.read())


def test_compute_counts_primes_and_survives_nonsense(start: Starter) -> None:
    server = start.script(EXAMPLES / "compute.py", "127.0.0.1:0").ready()
    answer = server.ask(b"100\nnonsense\n-5\n")
    assert re.match(rb"25 .*\nsend a whole number .*\n0 ", answer)


def test_accept_loop_says_how_many_it_served(start: Starter) -> None:
    server = start.script(EXAMPLES / "accept_loop.py", "127.0.0.1:0").all_ready(4)
    for _ in range(7):
        assert server.ask(b"loud") == b"LOUD"
    assert server.quit() == 0
    assert sum(int(m[1]) for m in server.saw(r"served (\d+) connections", times=4)) == 7


def test_make_serve_runs_with_nothing_installed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"):
        bare |= {name: os.environ[name]} if name in os.environ else {}
    command = ["make", "serve", f"ADDRESS=127.0.0.1:{port}", f"PYTHON={sys.executable}"]
    with subprocess.Popen(
        command, cwd=ROOT, env=bare, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as make:
        assert make.stdout
        said = [make.stdout.readline() for _ in range(2)]
        assert f"nc 127.0.0.1 {port}" in said[0] and "Ctrl-C" in said[1]
        assert any("ready, listening" in line for line in iter(make.stdout.readline, ""))
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(b"hello\n")
            assert client.recv(100) == b"hello\n"
        masters = [pid for pid in _family(make.pid) if title(pid).endswith("master")]
        os.kill(masters[0], signal.SIGINT)
        make.stdout.read()
        assert make.wait(20) == 0
    eventually(lambda: not alive(masters[0]))


def _family(pid: int) -> list[int]:
    from .conftest import children

    return [pid, *(one for child in children(pid) for one in _family(child))]


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="an installed package has no README")
def test_the_readme_shows_the_examples_as_they_are() -> None:
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n# examples/(\w+\.py)\n(.*?)```", readme, re.DOTALL)
    assert "echo.py" in [name for name, _ in blocks]
    for name, block in blocks:
        assert block.strip() in (EXAMPLES / name).read_text(), name


def test_every_test_that_the_readme_names_is_there() -> None:
    for document in ("README.md", "tests/FAULTS.md", "ARCHITECTURE.md"):
        text = (ROOT / document).read_text()
        for module, test in re.findall(r"(test_\w+\.py)(?:#|::)(test_\w+)", text):
            assert f"def {test}(" in (ROOT / "tests" / module).read_text(), f"{document}: {test}"
