"""The files in examples/deploy do what the page on operations says of them."""

import re
import shlex
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from prefork_server import Settings
from prefork_server.cli.options import parse
from prefork_server.http import HTTPRequestHandler
from tests.conftest import ROOT

DEPLOY = ROOT / "examples" / "deploy"
if not DEPLOY.exists() or not (ROOT / "docs").exists():
    pytest.skip("an installed package has no docs", allow_module_level=True)
FILES = sorted(path.name for path in DEPLOY.iterdir())
PAGE = (ROOT / "docs" / "operations.md").read_text()


@pytest.mark.parametrize("name", FILES)
def test_the_page_shows_each_file_as_it_is(name: str) -> None:
    assert f"({'../examples/deploy/' + name})" in PAGE
    assert re.search(rf"^```\w+\n{re.escape((DEPLOY / name).read_text())}```$", PAGE, re.MULTILINE)


def unit(name: str) -> ConfigParser:
    found = ConfigParser(interpolation=None)
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read(DEPLOY / name)
    return found


def words_of(command: str, program: str) -> list[str]:
    """The arguments of the command, without its program, which is ours."""
    first, *words = shlex.split(command)
    assert first.rpartition("/")[2] == program
    return words


def test_the_units_are_such_to_systemd(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd-analyze")
    for name in ("prefork-echo.service", "prefork-echo.socket"):
        text = (DEPLOY / name).read_text()
        (tmp_path / name).write_text(text.replace("/srv/echo/venv/bin/prefork-server", "/bin/true"))
    said = subprocess.run(  # noqa: PLW1510 - looked at below
        ["systemd-analyze", "verify", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
    )
    assert (said.returncode, str(tmp_path) in said.stderr) == (0, False), said.stderr


def test_the_times_of_the_unit_leave_room_for_those_of_the_server() -> None:
    service = unit("prefork-echo.service")["Service"]
    options = parse(words_of(service["ExecStart"], "prefork-server"), {})
    settings = options.settings()
    assert options.values["bind"] is None and settings.term == "graceful"
    assert int(service["TimeoutStopSec"]) > settings.graceful_timeout
    assert int(service["TimeoutStartSec"]) > settings.boot_timeout


def test_the_times_of_the_proxies_fit_those_of_the_server() -> None:
    said = (DEPLOY / "nginx.conf").read_text()
    times = {name: int(n) for name, n in re.findall(r"(\w+_timeout) (\d+)s;", said)}
    assert times["keepalive_timeout"] < HTTPRequestHandler.keep_alive_timeout
    assert times["proxy_read_timeout"] > (Settings().timeout or 0)
    assert "client_max_body_size 1g;" in said and HTTPRequestHandler.limits.body == 1 << 30
    said = (DEPLOY / "haproxy.cfg").read_text()
    times = {name: int(n) for name, n in re.findall(r"timeout (\w+) (\d+)s", said)}
    assert times["client"] == Settings().client_timeout
    assert times["server"] > (Settings().timeout or 0)
    command = re.findall(r"^# prefork-server (.*)$", said, re.MULTILINE)[0]
    options = parse(shlex.split(command), {})
    assert options.values["proxy_protocol_from"] == ["127.0.0.1"]
    assert f"server one {options.values['bind'][0]} send-proxy-v2" in said
