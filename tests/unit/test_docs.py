"""The pages in docs/ say what the code does: tables, programs, links."""

import ast
import re
import shlex
from collections import Counter
from dataclasses import fields
from typing import Any

import pytest

from prefork_server import (
    HTTPRequestHandler,
    Preforker,
    PreforkMixIn,
    PreforkTCPServer,
    Settings,
)
from prefork_server.cli.options import CONTROLS, parse, parsers
from prefork_server.signals import HEARD
from tests.conftest import ROOT

DOCS = ROOT / "docs"
ROOMS = ["README.md", "SECURITY.md", "CONTRIBUTING.md"]
PAGES = sorted(path.name for path in DOCS.glob("*.md"))

if not PAGES:
    pytest.skip("an installed package has no docs", allow_module_level=True)


def page(name: str) -> str:
    return (DOCS / name).read_text()


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of the first table, without its head."""
    lines = text[text.index("\n|") + 1 :].splitlines()
    table = lines[: next((n for n, line in enumerate(lines) if line[:1] != "|"), len(lines))]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:]]


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page(name), re.DOTALL | re.MULTILINE)


ALL_PYTHON = [(name, n, text) for name in PAGES for n, text in enumerate(blocks(name, "python"))]


def beginning(mark: str) -> list[Any]:
    return [
        pytest.param(name, text, id=f"{name}-{n}")
        for name, n, text in ALL_PYTHON
        if text.startswith(mark + "\n")
    ]


# Tables


def test_the_settings_table_has_every_setting_with_its_default() -> None:
    table = {row[0].strip("`"): row[1].strip("`") for row in rows(page("settings.md"))}
    assert list(table) == [field.name for field in fields(Settings)]
    for field in fields(Settings):
        assert ast.literal_eval(table[field.name]) == field.default, field.name


def test_the_table_of_doors_has_the_defaults_of_each() -> None:
    text = page("settings.md").partition("## Defaults of each door")[2]
    said = {row[0].strip("`"): row[1:] for row in rows(text)}

    class Mixed(PreforkMixIn, _Bare):
        pass

    def work(master: object) -> None: ...

    with PreforkTCPServer(("127.0.0.1", 0), _Bare, bind_and_activate=False) as ours:  # type: ignore[arg-type]
        doors = [
            (Mixed("", None)._prefork_settled(), "Mixed"),  # type: ignore[arg-type]
            (ours._prefork_settled(), ours._prefork_launch().app_name),
            (Preforker(work).settings, Preforker(work)._launch.app_name),
        ]
    for column, (settings, name) in enumerate(doors):
        for field in fields(Settings):
            value = getattr(settings, field.name)
            cell = said.get(field.name, [""] * 3)[column]
            if field.name == "app_name":
                assert cell == ("`preforker`" if name == "preforker" else "the class's name")
            elif field.name == "pid_path" and value:
                assert cell.strip("`").replace("<app_name>", name) == value
            elif cell:
                assert ast.literal_eval(cell.split("`")[1]) == value, (field.name, column)
            else:
                assert value == field.default, (field.name, column)


class _Bare:
    """As much of a server class as the mix-in asks for before it serves."""

    socket_type = 1

    def __init__(self, *args: object) -> None: ...


def test_the_signals_table_has_all_that_the_master_hears() -> None:
    said = [row[0].strip("`") for row in rows(page("signals.md"))]
    assert sorted(said) == sorted(signum.name.removeprefix("SIG") for signum in HEARD)


def test_the_table_of_limits_has_every_limit_of_the_handler_with_its_default() -> None:
    text = page("http.md").partition("## Limits")[2]
    table = {row[0].strip("`"): ast.literal_eval(row[1].strip("`")) for row in rows(text)}
    numbers = {
        name: value
        for name, value in vars(HTTPRequestHandler).items()
        if type(value) in (int, float) and not name.startswith("_")
    }
    limits = {
        f"limits.{name}": value for name, value in HTTPRequestHandler.limits._asdict().items()
    }
    assert table == numbers | limits


def test_the_page_on_the_command_has_every_option() -> None:
    text = page("command.md")
    _, verbs = parsers()
    settings = {f"--{field.name.replace('_', '-')}" for field in fields(Settings)}
    said = {
        verb: set(re.findall(r"`(--?[\w-]+)`", section))
        for section in re.split(r"^## ", text, flags=re.MULTILINE)
        for verb in ("serve", "run", *CONTROLS, "Settings")
        if section.startswith(verb)
    }
    for verb in ("serve", "run", *CONTROLS):
        ours = set(verbs[verb].words()) - {"-h", "--help", "-m"}
        everywhere = said["Settings"] | settings if verb not in CONTROLS else set()
        assert ours - everywhere == said[verb] - everywhere - {"-m"}, verb
    assert said["Settings"] <= set(verbs["run"].words())
    codes = {row[0].strip("`") for row in rows(text)}
    assert codes == {str(code) for code in range(5)}


def test_the_commands_of_the_page_are_understood() -> None:
    commands = re.findall(r"^    prefork-server (.*)$", page("command.md"), re.MULTILINE)
    assert [parse(shlex.split(command), {}).verb for command in commands] == [
        *("serve", "serve", "serve", "serve", "serve", "run", "run", *CONTROLS)
    ]


# Programs


@pytest.mark.parametrize(("name", "n", "text"), ALL_PYTHON, ids=lambda v: str(v)[:20])
def test_every_block_compiles(name: str, n: int, text: str) -> None:
    compile(text, f"{name}, block {n}", "exec")


@pytest.mark.parametrize("heading", re.findall(r"^## (.*)$", page("migrating.md"), re.MULTILINE))
def test_a_section_on_migrating_is_short(heading: str) -> None:
    section = page("migrating.md").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    assert 5 <= len(section.strip().splitlines()) <= 20


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    text = re.sub(r"^```.*?^```$", "", page(name), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        there = (DOCS / path).resolve() if path else DOCS / name
        assert there.exists() and ROOT in there.parents, f"{name}: {target}"
        if anchor:
            assert anchor in _anchors(there.read_text()), f"{name}: {target}"


def _anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_each_claim_on_security_has_a_test_that_is_there() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    defined = dict(re.findall(r"^\[(\w+)\]: tests/(\S+)$", text, re.MULTILINE))
    used = re.findall(r"\[test\]\[(\w+)\]", text)
    assert sorted(used) == sorted(defined), "each is used once"
    for target in defined.values():
        module, _, test = target.partition("#")
        assert f"def {test}(" in (ROOT / "tests" / module).read_text(), target


def test_each_test_that_a_page_names_is_there_once() -> None:
    there = Counter(
        (path.name, test)
        for path in (ROOT / "tests").glob("*/test_*.py")
        for test in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)
    )
    for page in (*ROOT.glob("*.md"), *DOCS.glob("*.md"), ROOT / "tests/FAULTS.md"):
        for named in re.findall(r"(test_\w+\.py)(?:#|::)(test_\w+)", page.read_text()):
            assert there[named] == 1, f"{page.name}: {named}"
        for named in re.findall(r"tests/[\w/]+\.\w+", page.read_text()):
            assert (ROOT / named).exists(), f"{page.name}: {named}"


@pytest.mark.parametrize("name", [*PAGES, *ROOMS])
def test_lines_of_prose_are_at_most_120_long(name: str) -> None:
    for line in (ROOT / name if name in ROOMS else DOCS / name).read_text().splitlines():
        assert len(line) <= 120 or line.startswith(("|", "[", "    ")), line
