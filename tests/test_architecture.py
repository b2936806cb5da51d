"""The layers hold: who imports whom, and who may call what."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import prefork_server

PACKAGE = Path(prefork_server.__file__).parent
MODULES = {path.stem: ast.parse(path.read_text()) for path in PACKAGE.glob("*.py")}
HTTP = {
    f"http.{path.stem}": ast.parse(path.read_text()) for path in (PACKAGE / "http").glob("*.py")
}
AIO = {f"aio.{path.stem}": ast.parse(path.read_text()) for path in (PACKAGE / "aio").glob("*.py")}
EVERYTHING = MODULES | HTTP | AIO

GROUND = {"errors", "scoreboard", "signals", "forks"}
EDGES = {"listeners", "acceptor", "connection", "vigil", "reports", "titles", "logfiles"}
ROLES = {"job", "pool", "handle", "worker", "master", "remote", "journal"}
MAY_IMPORT = {
    "errors": set(),
    "scoreboard": set(),
    "signals": set(),
    "forks": set(),
    "settings": {"errors"},
    "vigil": set(),
    "connection": {"vigil"},
    "reports": set(),
    "titles": set(),
    "logfiles": {"errors", "forks", "settings"},
    "pidfile": {"errors", "forks", "settings"},
    "daemon": {"errors", "forks", "logfiles", "signals"},
    "listeners": {"errors"},
    "peers": {"errors"},
    "acceptor": {"connection", "vigil", "scoreboard"},
    "pool": {"scoreboard", "settings"},
    "job": {"listeners", "settings", "pool", "handle"},  # the last two for their types alone
    "remote": {"job", "signals", "handle"},
    "journal": {"pool"},
    "handle": GROUND | EDGES | {"settings", "job"},
    "worker": GROUND | EDGES | {"settings", "job", "handle"},
    "master": GROUND | EDGES | {"settings"} | ROLES - {"master"},
    "elsewhere": set(),
    "reception": GROUND | EDGES | {"settings", "handle", "tls"},
    "inline": GROUND | EDGES | {"settings", "job", "handle", "remote", "journal"},
    "launch": GROUND | EDGES | ROLES | {"settings", "pidfile", "daemon", "inline"},
    "preforker": set(MODULES) - {"servers", "__init__"},
    "tls": {"vigil"},
    "mixin": set(MODULES) - {"preforker", "servers", "__init__"},
    "servers": set(MODULES) - {"preforker", "__init__"},
    "testing": {"forks", "listeners", "logfiles", "preforker", "mixin", "aio"},
    "__init__": set(MODULES) - {"testing"} | {"aio"},  # when it is asked for
}

# What speaks HTTP stands on the core, which does not know it. A bare name is a module of its own.
HTTP_MAY_IMPORT: dict[str, set[str]] = {
    "http.grammar": set(),
    "http.chunks": {"grammar"},
    "http.wire": {"grammar", "chunks"},
    "http.heads": {"wire"},
    "http.stream": {"connection", "vigil", "wire"},
    "http.reply": {"connection", "vigil"},
    "http.handler": {"vigil", "wire", "heads", "stream", "reply"},
    "http.visit": {"acceptor", "connection", "handle", "scoreboard", "wire", "stream", "handler"},
    "http.server": {"connection", "handle", "servers", "handler", "visit"},
    "http.__init__": {"handler", "server", "wire"},
}

# What runs a loop stands on the core, too. Two of its modules have namesakes there.
AIO_MAY_IMPORT: dict[str, set[str]] = {
    "aio.loops": {"errors"},
    "aio.handle": {"connection", "handle"},
    "aio.life": {"handle", "job", "listeners", "reports", "signals", "loops"},
    "aio.turns": {"acceptor", "scoreboard", "settings"},
    "aio.doors": {"acceptor", "handle", "scoreboard", "life", "turns"},
    "aio.server": ROLES
    | {"errors", "settings", "listeners", "logfiles", "launch", "preforker"}
    | {"life", "loops", "turns", "doors"},
    "aio.__init__": {"handle", "server"},
}

# Which modules may make processes, signal them, wait for them, or leave without goodbye.
MAY_CALL = {
    "os.fork": {"forks"},
    "fork": {"master", "daemon"},
    "os.kill": {"master", "testing"},
    "os.killpg": set(),
    "signal.pidfd_send_signal": {"master", "testing"},
    "os.waitpid": {"master", "daemon"},
    "os._exit": {"master", "handle", "worker", "daemon", "aio.life", "aio.doors"},
    "sys.exit": set(),
    "time.time": {"http.handler"},  # for Date; durations are monotonic
    "datetime.now": set(),
    "time.sleep": {"listeners", "pidfile"},  # before anything is forked
    "os.system": set(),
    "tempfile.mktemp": set(),
    "pickle.loads": set(),
    "marshal.loads": set(),
    "os.umask": set(),  # it is the whole process's
    "threading.Thread": {"testing"},
    "signal.signal": {"signals", "handle", "worker", "aio.life"},
}

# Wide excepts stand around user code, and each says so.
WIDE = {
    "journal": {"say", "run_hook"},
    "worker": {"_live"},
    "mixin": {"_prefork_work", "_prefork_contain", "_prefork_report"},
    "elsewhere": {"_begin_counted"},
    "listeners": {"listen"},
    "pidfile": {"_locked"},
    "daemon": {"_be_daemon"},
    "launch": {"_last_words"},
    "testing": {"_afterwards", "_log_noted", "_serve"},
    "http.handler": {"serve_request"},
    "http.visit": {"resume"},
    "aio.life": {"begin"},
    "aio.doors": {"_admit", "_visit"},
}


def _imports(tree: ast.Module) -> set[str]:
    ours = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
    return {n.module or name.name for n in ours for name in n.names}


def _imported(tree: ast.Module) -> set[str]:
    """The first part of each module that is imported, and the names that are taken from it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {name.name.partition(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def _calls(tree: ast.Module) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("module", MODULES)
def test_each_module_imports_only_what_lies_below_it(module: str) -> None:
    assert _imports(MODULES[module]) <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", HTTP)
def test_each_module_of_http_imports_only_what_lies_below_it(module: str) -> None:
    assert _imports(HTTP[module]) <= HTTP_MAY_IMPORT[module]


@pytest.mark.parametrize("module", AIO)
def test_each_module_of_aio_imports_only_what_lies_below_it(module: str) -> None:
    assert _imports(AIO[module]) <= AIO_MAY_IMPORT[module]


def test_the_core_does_not_know_http_and_no_loop() -> None:
    for module, tree in MODULES.items():
        ours = {part for name in _imports(tree) for part in name.split(".")}
        assert not (ours | _imported(tree)) & {"http", "asyncio", "prefork_server"}, module


def test_what_is_on_the_wire_is_read_without_a_system_and_a_clock() -> None:
    for module in ("http.grammar", "http.chunks", "http.wire"):
        assert not _imported(HTTP[module]) & {"os", "time", "socket", "select", "logging", "email"}


def test_the_pool_knows_no_system_and_no_clock() -> None:
    assert not _imported(MODULES["pool"]) & {"os", "time", "socket", "select", "threading"}
    assert _calls(MODULES["pool"]) & {"signal.signal", "signal.pthread_kill"} == set()


@pytest.mark.parametrize("call", MAY_CALL)
def test_only_named_modules_touch_processes(call: str) -> None:
    callers = {module for module, tree in EVERYTHING.items() if call in _calls(tree)}
    assert callers == MAY_CALL[call]


def test_nothing_goes_through_a_shell() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert "shell=True" not in path.read_text(), path


def test_wide_excepts_stand_around_user_code_alone() -> None:
    wide: dict[str, set[str]] = {}
    for module, tree in EVERYTHING.items():
        functions = ast.FunctionDef | ast.AsyncFunctionDef
        for function in (n for n in ast.walk(tree) if isinstance(n, functions)):
            for handler in (n for n in ast.walk(function) if isinstance(n, ast.ExceptHandler)):
                caught = re.findall(r"\w+", ast.unparse(handler.type)) if handler.type else ["all"]
                if {"Exception", "BaseException", "all"} & set(caught):
                    wide.setdefault(module, set()).add(function.name)
    assert wide == WIDE


def test_nothing_is_checked_by_assert_since_it_can_be_switched_off() -> None:
    for module, tree in EVERYTHING.items():
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.Assert)], module


def test_the_core_is_small_enough_to_read() -> None:
    core = (path for path in PACKAGE.glob("*.py") if path.stem != "testing")
    lines = {path.stem: path.read_text().count("\n") for path in core}
    assert sum(lines.values()) <= 5700, lines
    assert max(lines.values()) <= 400, lines


def test_each_module_of_http_and_aio_is_short_enough_to_read() -> None:
    for path in PACKAGE.glob("*/*.py"):
        assert path.read_text().count("\n") <= 400, path


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); {statement}"
    command = [sys.executable, "-S", "-c", code + "; print(*sys.modules)"]  # without .pth files
    return set(subprocess.check_output(command, text=True).split())


def test_the_import_loads_nothing_and_a_name_nothing_heavy() -> None:
    assert not {"socket", "logging", "typing"} & _loaded_by("import prefork_server")
    heavy = {"asyncio", "ssl", "http", "email", "ctypes", "multiprocessing", "subprocess"}
    assert not heavy & _loaded_by("from prefork_server import *")


def test_the_public_names_are_where_the_top_level_says() -> None:
    named = [*prefork_server.__all__, *prefork_server._AIO]
    assert sorted(prefork_server._HOME_OF) == sorted(named)
    assert set(named) <= set(dir(prefork_server))
    with pytest.raises(AttributeError, match="has no attribute 'PreforkFTPServer'"):
        prefork_server.PreforkFTPServer  # noqa: B018


def test_every_public_name_has_a_docstring() -> None:
    for name in prefork_server._HOME_OF:
        thing = getattr(prefork_server, name)
        assert thing.__doc__, name
        if isinstance(thing, type):
            public = [m for n, m in vars(thing).items() if callable(m) and not n.startswith("_")]
            overridden = {n for base in thing.__mro__[1:] for n in vars(base)}
            for method in public:
                assert method.__doc__ or method.__name__ in overridden, f"{name}.{method.__name__}"
