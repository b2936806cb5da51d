"""What each import loads, in an interpreter of its own."""

import ast
import subprocess
import sys

import pytest

import prefork_server
from tests.unit.test_architecture import MODULES, PACKAGE, _imports


@pytest.mark.parametrize("house", ["http", "aio"])
def test_the_top_level_loads_a_house_only_for_who_asks_for_a_name_of_it(house: str) -> None:
    (types,) = (
        node
        for node in MODULES["__init__"].body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    everywhere, there = (
        [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == house]
        for tree in (MODULES["__init__"], types)
    )
    assert everywhere == there != []
    asked = "from prefork_server import {}; import prefork_server"
    names = getattr(prefork_server, f"_{house.upper()}")
    assert f"prefork_server.{house}" not in _loaded_by(asked.format("PreforkTCPServer, Preforker"))
    assert f"prefork_server.{house}" in _loaded_by(asked.format(", ".join(names)))


def test_the_core_loads_the_status_and_with_it_http_only_where_it_is_set() -> None:
    known = {m for m in MODULES if any(n.startswith("status") for n in _imports(MODULES[m]))}
    assert known == {"launch"}
    loaded = _loaded_by("import prefork_server.launch")
    assert not {"prefork_server.status", "prefork_server.stats", "http"} & loaded


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); {statement}"
    command = [sys.executable, "-S", "-c", code + "; print(*sys.modules)"]  # without .pth files
    return set(subprocess.check_output(command, text=True).split())


def test_the_import_loads_nothing_and_a_name_nothing_heavy() -> None:
    assert not {"socket", "logging", "typing"} & _loaded_by("import prefork_server")
    heavy = {"asyncio", "ssl", "http", "email", "ctypes", "multiprocessing", "subprocess"}
    assert not heavy & _loaded_by("from prefork_server import *")
