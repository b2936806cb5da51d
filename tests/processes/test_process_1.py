"""The verbs of the command, for a server that is process 1 of its pid namespace: a container."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, Starter, children, eventually, unmeasured

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a pid namespace")

VERBS: list[list[str]] = [
    ["status", "x.pid"],
    ["stacks", "x.pid"],
    ["scale", "3", "x.pid"],
    ["reload", "--within", "20", "x.pid"],
    ["reopen", "--within", "20", "x.pid"],
    ["stop", "--within", "20", "x.pid"],
]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_every_verb_works_for_a_server_that_is_process_1(verb: list[str], start: Starter) -> None:
    (start.directory / "app.py").write_text("def application(environ, start_response): pass\n")
    script = start.directory / "container.py"
    words = ["serve", "app", "--bind", "127.0.0.1:0", "--workers", "2", "--pid-path", "x.pid"]
    namespace = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable]
    command = [*namespace, "-m", "prefork_server", *words]
    script.write_text(f"import os\nos.execvp('unshare', {command})\n")
    server = start.script(script, executed=True, env=unmeasured()).ready()
    server.saw("worker=2 .* forked")
    (master,) = children(server.pid)
    inside = ["nsenter", f"--target={master}", "--pid", "--mount", f"--wd={start.directory}"]
    said = subprocess.run(
        [*inside, sys.executable, "-m", "prefork_server", *verb],
        capture_output=True,
        text=True,
        check=False,
        env={**unmeasured(), "PYTHONPATH": str(ROOT / "src")},
    )
    if verb[0] == "stop":  # with process 1 the kernel ends all that is in the namespace
        assert server.wait() == 0
    else:
        assert said.returncode == 0, said.stderr
        os.kill(master, 3)
        eventually(lambda: server.process.poll() is not None)
    assert not said.stderr
