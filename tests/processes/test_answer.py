"""What the master takes, as root, from the process that has imported the target."""

import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, ROOT, unmeasured

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


# From outside, as root


ANSWERS = {
    "nothing, by SIGRTMIN+6": "os.kill(os.getpid(), 40)",
    "nothing, and exit code 0": "os._exit(0)",
    "text that is deep": "answer(b'[' * 1000000)",
    "an answer for a file of root's": "answer(json.dumps(dict(words='x', kind='handler', "
    "datagram=False, alpn=[], loops=False, settings=dict(stderr_path='VICTIM'))).encode())",
    "an answer after its end": "late(json.dumps(dict(words='x', kind='handler', datagram=False, "
    "alpn=[], loops=False, settings=dict(log_path='VICTIM'))).encode())",
    "another exit code": "answer(json.dumps(dict(error='already running: 1')).encode())",
    "a setting of the class": """
import socketserver
from prefork_server import PreforkTCPServer, Settings
class app(PreforkTCPServer):
    settings = Settings(log_path="VICTIM")
    handler_class = socketserver.BaseRequestHandler
""",
}


CHILD = """
import json, os, time
def paper():
    for fd in os.listdir("/proc/thread-self/fd"):
        try:
            if os.fstat(int(fd)).st_size == 1 << 22:
                return int(fd)
        except OSError:
            pass
def answer(raw):
    os.pwrite(paper(), raw, 0)
    os._exit(0)
def late(raw):
    parent = os.getpid()
    if os.fork() == 0:
        while os.getppid() == parent:
            time.sleep(0.001)
        answer(raw)
    os._exit(0)
"""


@as_root
@pytest.mark.parametrize("name", ANSWERS)
def test_a_hostile_target_costs_an_error_line_and_no_file_of_root(
    open_path: Path, name: str
) -> None:
    victim = open_path / "victim"
    victim.write_text("a secret")
    victim.chmod(0o600)
    target = open_path / "target.py"
    target.write_text(CHILD + ANSWERS[name].replace("VICTIM", str(victim)))
    ended = subprocess.run(  # noqa: PLW1510
        [sys.executable, "-m", "prefork_server", "serve", "target.py:app", "-u", "nobody"],
        cwd=open_path,
        env={**unmeasured(), "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode in (2, 3), ended.stderr
    assert re.fullmatch(r"prefork-server: [ -~]*\n", ended.stderr), ended.stderr
    assert victim.read_text() == "a secret"
    assert victim.stat().st_uid == 0 != pwd.getpwnam("nobody").pw_uid
