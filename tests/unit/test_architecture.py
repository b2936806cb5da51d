"""The layers hold: who imports whom, and who may call what."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import prefork_server

PACKAGE = Path(prefork_server.__file__).parent
MODULES = {path.stem: ast.parse(path.read_text()) for path in PACKAGE.glob("*.py")}
HTTP = {
    f"http.{path.stem}": ast.parse(path.read_text()) for path in (PACKAGE / "http").glob("*.py")
}
CLI = {f"cli.{path.stem}": ast.parse(path.read_text()) for path in (PACKAGE / "cli").glob("*.py")}
AIO = {f"aio.{path.stem}": ast.parse(path.read_text()) for path in (PACKAGE / "aio").glob("*.py")}
STATUS = {
    f"status.{path.stem}": ast.parse(path.read_text()) for path in (PACKAGE / "status").glob("*.py")
}
WORKER = {
    f"worker.{path.stem}": ast.parse(path.read_text()) for path in (PACKAGE / "worker").glob("*.py")
}
SOCKETS = {
    f"sockets.{path.stem}": ast.parse(path.read_text())
    for path in (PACKAGE / "sockets").glob("*.py")
}
EVERYTHING = MODULES | HTTP | CLI | AIO | STATUS | WORKER | SOCKETS

GROUND = {"errors", "calls", "scoreboard", "signals", "forks", "text"}
EDGES = {
    "listeners",
    "handshakes",
    "acceptor",
    "sockets.connection",
    "reaper",
    "reports",
    "terminal",
    "titles",
    "logfiles",
    "output",
    "systemd",
}
ROLES = {
    "job",
    "plan",
    "pool",
    "worker.heartbeat",
    "worker.process",
    "master",
    "remote",
    "journal",
    "reasons",
    "rotation",
    "upgrade",
    "bulletin",
    "pidfds",
}
MAY_IMPORT = {
    "errors": set(),
    "calls": {"errors"},
    "clock": set(),
    "text": set(),
    "exits": {"output"},
    "scoreboard": {"text"},
    "signals": {"forks"},
    "forks": set(),
    "output": {"forks", "signals"},
    "settings": {"errors"},
    "reports": {"scoreboard", "text"},
    "titles": {"text"},
    "terminal": {"scoreboard", "output", "signals", "text"},
    "reaper": set(),
    "counter": {"errors", "here", "scoreboard", "settings"},
    "bulletin": {"acceptor", "counter", "listeners", "plan", "reaper", "scoreboard", "text"},
    "stats": {"counter", "plan", "scoreboard", "text"},
    "plan": {"scoreboard"},
    "logfiles": {"errors", "forks", "output", "settings", "text", "trusted"},
    "pidfile": {"errors", "forks", "inheritance", "lockfile", "settings", "trusted"},
    "daemon": {"errors", "exits", "forks", "logfiles", "output", "signals", "text"},
    "origin": set(),
    "patches": set(),
    "inheritance": {"errors", "forks", "origin"},
    "paths": {"lockfile"},
    "listeners": {"errors", "forks", "inheritance", "paths", "sockets.connection", "text"},
    "trusted": set(),
    "lockfile": {"trusted"},
    "handshakes": set(),
    "peers": {"errors"},
    "imports": set(),
    "privileges": {"errors", "forks", "settings"},
    "acceptor": {"sockets.connection", "scoreboard", "signals"},
    "backoff": {"scoreboard"},
    "silence": {"scoreboard", "settings", "plan"},
    "sizing": {"scoreboard", "settings", "plan"},
    "roster": {"scoreboard", "settings", "plan"},
    "pool": {"scoreboard", "settings", "plan", "backoff", "roster", "silence", "sizing"},
    "pidfds": {"journal", "plan", "signals"},
    # The last two for their types alone.
    "job": {"calls", "listeners", "privileges", "settings", "plan", "worker.master_handle"},
    "here": {"worker.master_handle"},  # for its type alone
    "remote": {"here", "job", "signals", "scoreboard", "stats"},
    "systemd": {"errors", "scoreboard"},
    "journal": {"plan", "reaper", "reports", "systemd", "text"},
    "upgrade": GROUND | {"inheritance", "journal", "listeners", "origin", "pidfile"},
    "reasons": {"plan", "pool", "scoreboard"},
    "rotation": {"scoreboard", "logfiles", "plan", "privileges", "journal"},
    "master": GROUND | EDGES | {"settings", "inheritance", "pidfile"} | ROLES - {"master"},
    "elsewhere": set(),
    "lost": {"worker.master_handle", "scoreboard", "text"},  # the first for its type alone
    "reception": GROUND | EDGES | {"settings", "worker.accept_loop", "tls"},
    "inline": GROUND
    | EDGES
    | {"settings", "job", "here", "remote", "journal", "bulletin", "stats"}
    | set(WORKER),
    "launch": GROUND
    | EDGES
    | ROLES
    | {"settings", "pidfile", "privileges", "daemon", "inline", "inheritance", "status"}
    | {"imports", "worker.master_handle"},
    "preforker": set(MODULES | WORKER | SOCKETS) - {"servers", "__init__"},
    "tls": {"errors", "sockets.connection"},
    "credentials": {"errors", "settings", "text"},
    "proxy": {"sockets.connection"},
    "mixin": set(MODULES | WORKER | SOCKETS) - {"preforker", "servers", "__init__"},
    "servers": set(MODULES | WORKER | SOCKETS) - {"preforker", "__init__"},
    "testing": {"forks", "scoreboard", "listeners", "logfiles", "preforker", "mixin", "aio"},
    # See below: the houses for their types alone.
    "__init__": set(MODULES | WORKER | SOCKETS) - {"testing", "__main__"} | {"http", "aio"},
    "__main__": {"cli"},
}

# What runs after the fork, on the edges of the system, and no server.
WORKER_MAY_IMPORT: dict[str, set[str]] = {
    "worker.__init__": set(),
    "worker.heartbeat": GROUND | EDGES | {"job", "stats"},
    "worker.accept_loop": GROUND | EDGES | {"job", "heartbeat"},
    "worker.master_handle": {"sockets.connection", "stats", "accept_loop", "heartbeat"},
    "worker.threads": GROUND | EDGES | {"job", "patches", "settings", "accept_loop", "heartbeat"},
    "worker.process": GROUND
    | EDGES
    | {"exits", "job", "here", "accept_loop", "heartbeat", "master_handle", "threads"},
}

# What speaks HTTP stands on the core, which does not know it. A bare name is a module of its own.
HTTP_MAY_IMPORT: dict[str, set[str]] = {
    "http.grammar": set(),
    "http.memo": set(),
    "http.chunks": {"grammar"},
    "http.fields": {"grammar", "memo"},
    "http.wire": {"chunks", "fields", "grammar", "memo", "text"},
    "http.heads": {"memo", "wire"},
    "http.stream": {"sockets.connection", "wire"},
    "http.reply": {"sockets.connection", "wire"},
    "http.forwarded": {"peers", "grammar", "memo", "wire"},
    "http.asked": {"forwarded", "reception"},
    "http.access": {"logfiles", "output", "text", "wire"},
    "http.handler": {
        "connection",
        "access",
        "asked",
        "sockets.connection",
        "heads",
        "listeners",
        "logfiles",
        "reception",
        "reply",
        "stream",
        "text",
        "wire",
    },
    "http.connection": {"worker.accept_loop", "sockets.connection", "job", "proxy", "scoreboard"}
    | {"sockets.connection", "access", "stream", "wire"},
    "http.standard": {"connection", "handler"},
    "http.server": {"worker.accept_loop", "connection", "listeners", "proxy", "servers"}
    | {"forwarded", "standard"},
    "http.environ": {"grammar", "heads", "memo", "wire"},
    "http.wsgi": {
        "sockets.connection",
        "environ",
        "handler",
        "listeners",
        "logfiles",
        "reply",
        "text",
        "wire",
    },
    "http.application": {
        "calls",
        "errors",
        "listeners",
        "servers",
        "settings",
        "forwarded",
        "server",
        "wsgi",
    },
    "http.__init__": {"application", "handler", "server", "wire", "wsgi"},
}

# The command stands on all of it, and loads what speaks HTTP where that is served.
CLI_MAY_IMPORT: dict[str, set[str]] = {
    "cli.parser": {"text"},
    "cli.options": {"__version__", "errors", "settings", "parser"},
    "cli.selfserving": {"launch"},
    "cli.target": {"calls", "errors", "options", "selfserving"},
    "cli.answer": {"reports", "settings", "options", "target", "scoreboard", "text"},
    "cli.recipe": {
        *(
            "errors",
            "listeners",
            "mixin",
            "remote",
            "servers",
            "settings",
            "worker.threads",
            "http",
        ),
        *("aio", "aio.loops", "options", "target"),
    },
    "cli.serve": {
        *(
            "credentials",
            "tls",
            "imports",
            "privileges",
            "errors",
            "exits",
            "forks",
            "worker.master_handle",
            "inheritance",
            "job",
            "journal",
            "launch",
            "listeners",
            "logfiles",
            "origin",
            "output",
            "patches",
            "plan",
            "reports",
            "text",
            "aio.turns",
        ),
        *("remote", "settings", "signals", "systemd", "options", "recipe", "target", "answer"),
    },
    "cli.program": {"errors", "job", "listeners", "mixin", "remote", "settings", "options", "text"},
    "cli.holder": {"errors", "pidfds", "scoreboard", "stats", "options", "text", "lockfile"},
    "cli.control": {"errors", "pidfds", "scoreboard", "options", "holder", "text"},
    "cli.look": {
        *("listeners", "pidfds", "reports", "signals", "stats", "status.table", "text"),
        *("options", "holder"),
        "settings",
    },
    "cli.__init__": {
        "errors",
        "answer",
        "options",
        "target",
        "serve",
        "program",
        "control",
        "look",
        "forks",
        "logfiles",
        "output",
        "text",
    },
}

# What runs a loop stands on the core, too. Two of its modules have namesakes there.
AIO_MAY_IMPORT: dict[str, set[str]] = {
    "aio.loops": {"errors"},
    "aio.handle": {"sockets.connection", "here", "worker.master_handle"},
    "aio.life": {
        "handle",
        "worker.master_handle",
        "job",
        "listeners",
        "reports",
        "signals",
        "loops",
        "text",
    },
    "aio.turns": {"acceptor", "scoreboard", "settings"},
    "aio.doors": {"acceptor", "handle", "handshakes", "scoreboard", "life", "turns"}
    | {"worker.accept_loop", "worker.heartbeat"},
    "aio.server": ROLES
    | {
        "handle",
        "calls",
        "errors",
        "settings",
        "worker.threads",
        "listeners",
        "logfiles",
        "launch",
        "preforker",
        "stats",
    }
    | {"life", "loops", "turns", "doors", "tls"},
    "aio.__init__": {"handle", "server"},
}

# The status service stands on HTTP. What it says in words, the command says, too.
STATUS_MAY_IMPORT: dict[str, set[str]] = {
    "status.words": set(),
    "status.table": {"text", "words"},
    "status.page": {"plan", "stats", "words"},
    "status.server": {
        *("worker.master_handle", "inheritance", "listeners", "settings", "stats"),
        *("http.handler", "http.server", "http.wire", "page"),
    },
    "status.__init__": {"worker.master_handle", "job", "listeners", "settings", "server"},
}

# Which modules may make processes, signal them, wait for them, or leave without goodbye.
MAY_CALL = {
    "os.fork": {"forks"},
    "fork": {"master", "daemon", "upgrade", "cli.serve"},
    "os.execve": {"upgrade"},
    "os.kill": {"cli.serve", "pidfds", "signals", "testing", "upgrade"},
    "os.killpg": set(),
    "signal.pidfd_send_signal": {"pidfds", "testing"},
    "os.wait4": {"reaper"},
    "os.waitpid": {"daemon", "upgrade", "cli.serve"},
    "os._exit": {
        *("master", "journal", "exits", "daemon", "upgrade", "cli.serve"),
        *("aio.doors", "worker.heartbeat", "worker.threads"),
    },
    "sys.exit": set(),
    "time.time": {"http.handler", "http.access"},  # dates for people; durations are monotonic
    # Else it is the one of ``Clock``.
    "time.monotonic": {"cli.control", "cli.holder", "cli.look", "cli.serve"},
    "time.monotonic_ns": {"cli.holder"},
    "datetime.now": set(),
    "time.sleep": {"cli.serve", "listeners", "paths", "pidfile"},  # before anything is forked
    "os.system": set(),
    "tempfile.mktemp": set(),
    "pickle.loads": set(),
    "marshal.loads": set(),
    "os.umask": {"privileges"},  # it is the whole process's, and there a worker's
    "os.setresuid": {"privileges"},
    "threading.Thread": {"signals", "testing", "worker.threads"},
    "signal.signal": {"signals", "upgrade"},
}

# Wide excepts stand around user code, and each says so.
WIDE = {
    "journal": {"say", "run_hook"},
    "worker.process": {"become_worker", "_live", "_say_goodbye"},
    "exits": {"_run"},
    "worker.accept_loop": {"_serve", "_begin", "_resume"},
    "reception": {"_ask"},
    "mixin": {"_prefork_failed", "_prefork_report"},
    "worker.threads": {"_live"},
    "elsewhere": {"_begin_counted", "_finish_watched"},
    "listeners": {"listen"},
    "logfiles": {"emit", "_reopen_handler"},
    "output": {"_bottom"},
    "daemon": {"_be_daemon"},
    "launch": {"_last_words"},
    "testing": {"_afterwards", "_log_noted", "_serve"},
    "http.wsgi": {"dispatch"},
    "http.connection": {"enter", "resume"},
    "http.standard": {"handler_class"},
    "cli.target": {"_load"},
    "cli.recipe": {"make", "make_loop"},
    "cli.serve": {"_answer", "boot"},
    "cli.program": {"run"},
    "aio.life": {"begin", "_live", "_say_goodbye"},
    "aio.doors": {"_admit", "_visit"},
}


@cache
def _imports(tree: ast.Module) -> set[str]:
    """But for the clock, which knows of nothing."""
    ours = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
    return {n.module or name.name for n in ours for name in n.names} - {"clock"}


def _imported(tree: ast.Module) -> set[str]:
    """The first part of each module that is imported, and the names that are taken from it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {name.name.partition(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@cache
def _calls(tree: ast.Module) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("module", MODULES)
def test_each_module_imports_only_what_lies_below_it(module: str) -> None:
    assert _imports(MODULES[module]) <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", HTTP)
def test_each_module_of_http_imports_only_what_lies_below_it(module: str) -> None:
    assert _imports(HTTP[module]) <= HTTP_MAY_IMPORT[module]


@pytest.mark.parametrize("module", SOCKETS)
def test_each_module_of_sockets_imports_none_of_the_others(module: str) -> None:
    assert not _imports(SOCKETS[module])


@pytest.mark.parametrize("module", WORKER)
def test_each_module_of_the_worker_imports_only_what_lies_below_it(module: str) -> None:
    assert _imports(WORKER[module]) <= WORKER_MAY_IMPORT[module]


@pytest.mark.parametrize("module", CLI)
def test_each_module_of_the_command_imports_only_what_lies_below_it(module: str) -> None:
    assert _imports(CLI[module]) <= CLI_MAY_IMPORT[module]


@pytest.mark.parametrize("module", AIO)
def test_each_module_of_aio_imports_only_what_lies_below_it(module: str) -> None:
    assert _imports(AIO[module]) <= AIO_MAY_IMPORT[module]


@pytest.mark.parametrize("module", STATUS)
def test_each_module_of_the_status_imports_only_what_lies_below_it(module: str) -> None:
    assert _imports(STATUS[module]) <= STATUS_MAY_IMPORT[module]


def test_nobody_imports_the_command() -> None:
    assert [module for module in EVERYTHING if "cli" in _imports(EVERYTHING[module])] == [
        "__main__"
    ]


def test_the_core_does_not_know_http_and_no_loop() -> None:
    for module, tree in MODULES.items():
        ours = {part for name in _imports(tree) for part in name.split(".")}
        known = (ours | _imported(tree)) & {"http", "aio", "asyncio", "prefork_server"}
        houses = {"__init__": {"http", "aio"}, "testing": {"aio"}}  # for their types alone
        assert known <= houses.get(module, set()), module


def test_what_is_on_the_wire_is_read_without_a_system_and_a_clock() -> None:
    for module in ("http.grammar", "http.chunks", "http.fields", "http.wire"):
        assert not _imported(HTTP[module]) & {"os", "time", "socket", "select", "logging", "email"}


def test_the_pool_knows_no_system_and_no_clock() -> None:
    for module in ("plan", "pool", "backoff", "roster", "silence", "sizing"):
        assert not _imported(MODULES[module]) & {"os", "time", "socket", "select", "threading"}
    assert _calls(MODULES["plan"]) & {"signal.signal", "signal.pthread_kill"} == set()


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


def test_the_public_names_are_where_the_top_level_says() -> None:
    named = [*prefork_server.__all__, *prefork_server._HTTP, *prefork_server._AIO]
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
