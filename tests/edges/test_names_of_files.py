"""Files in a sticky directory, and names that stdout cannot encode or that are no UTF-8."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefork_server.logfiles import open_appending
from prefork_server.trusted import opened
from tests.conftest import PATIENCE, ROOT, unmeasured


@pytest.fixture
def _protected_regular(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kernel with fs.protected_regular has it, for files of others in a sticky directory."""
    real = os.open

    def protected(path: Any, flags: int, mode: int = 0o777, **where: Any) -> int:
        if flags & os.O_CREAT and not flags & os.O_EXCL:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags, mode, **where)

    monkeypatch.setattr(os, "open", protected)


@pytest.mark.usefixtures("_protected_regular")
def test_a_log_of_the_workers_user_in_a_sticky_directory_is_opened_again(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    for text in (b"made\n", b"appended\n"):
        fd = open_appending(tmp_path / "log", "log_path", [65534])
        os.write(fd, text)
        os.close(fd)
        if os.geteuid() == 0:
            os.chown(tmp_path / "log", 65534, -1)
    assert (tmp_path / "log").read_bytes() == b"made\nappended\n"


@pytest.mark.usefixtures("_protected_regular")
def test_what_cannot_be_made_is_no_endless_try(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("dangling", "no/such/directory"):
        with pytest.raises(OSError):
            opened(str(tmp_path / name), os.O_WRONLY | os.O_CREAT)


@pytest.mark.parametrize(
    ("name", "encoding", "shown"),
    [
        (b"caf\xe9", "utf-8", b"caf\\udce9"),
        ("\u65e5".encode(), "latin-1", b"\\u65e5"),
        ("caf\xe9".encode(), "ascii", b"caf\\xe9"),
        ("caf\xe9".encode(), "utf-8", "caf\xe9".encode()),
    ],
)
def test_a_check_says_the_name_of_any_file(
    tmp_path: Path, name: bytes, encoding: str, shown: bytes
) -> None:
    file = tmp_path / os.fsdecode(name + b".py")
    file.write_text("def application(environ, start_response): ...\n")
    done = subprocess.run(
        [sys.executable, "-m", "prefork_server", "serve", "--check", file.name],
        cwd=tmp_path,
        check=False,
        env={
            **unmeasured(),
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONIOENCODING": encoding,
            "LC_ALL": "C.UTF-8",
        },
        capture_output=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(shown + b".py:application, ")
