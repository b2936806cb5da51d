"""The words of the command, and what they mean: no process, no socket that listens."""

import asyncio
import http.server
import inspect
import os
import socketserver
import sys
import textwrap
import typing
import wsgiref.simple_server
import xmlrpc.server
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import prefork_server
from prefork_server import (
    ConfigError,
    PreforkAsyncioServer,
    PreforkMixIn,
    PreforkTCPServer,
    Settings,
)
from prefork_server.cli.options import Misuse, Options, parse, parsers
from prefork_server.cli.recipe import Recipe, recipe
from prefork_server.cli.serve import binds
from prefork_server.cli.target import LoadError, Target, Thing, users_traceback
from prefork_server.errors import BindError, BootError


def serve(*words: str, **environ: str) -> Options:
    return parse(["serve", "app:thing", *words], environ)


def refusal(capsys: pytest.CaptureFixture[str], *words: str, **environ: str) -> str:
    with pytest.raises(SystemExit) as left:
        parse(words, environ)
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


# Options


@pytest.mark.parametrize("field", fields(Settings), ids=lambda field: field.name)
def test_each_setting_has_an_option_with_its_meaning(field: Any) -> None:
    option = f"--{field.name.replace('_', '-')}"
    for verb in ("serve", "run"):
        _, verbs = parsers()
        action = next(a for a in verbs[verb]._actions if option in a.option_strings)
        assert action.dest == field.name
        assert action.help and len(action.help) > 20
    kinds = typing.get_args(field.type) or (field.type,)
    if bool in kinds:
        word, value = None, True
    elif str in kinds:
        word = value = "unix:x"  # a name, a path, and an address
    elif int in kinds:
        word, value = "3", 3
    elif float in kinds:
        word, value = "1.5", 1.5
    else:
        word = value = kinds[0]
    options = serve(option, word) if word else serve(option)
    assert options.said == {field.name: value}
    if field.name.endswith("_spare_workers"):
        options = serve(option, word, "--max-workers", "20")
    elif field.name == "max_workers":
        options = serve(option, word, "--workers", "2")
    assert getattr(options.settings(), field.name) == value


def test_what_is_not_said_has_the_default_of_the_command() -> None:
    assert serve().settings() == Settings(term="graceful")
    assert serve("--term", "now").settings() == Settings()
    assert serve("-w", "3").settings(workers=8, timeout=9).workers == 3
    assert serve().settings(workers=8).workers == 8


def test_none_is_a_value_where_the_setting_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve("-t", "none", "--client-timeout", "None").said == {
        "timeout": None,
        "client_timeout": None,
    }
    assert "it takes a number of seconds, not 'none'" in refusal(
        capsys, "serve", "a:b", "--graceful-timeout", "none"
    )


def test_short_options_are_those_of_other_servers() -> None:
    options = serve(
        *("-w", "2", "-t", "9", "-p", "x.pid", "-n", "shop", "-D", "-X"),
        *("-b", ":1", "--bind", "unix:/x"),
    )
    assert options.said == {
        "workers": 2,
        "timeout": 9.0,
        "pid_path": "x.pid",
        "app_name": "shop",
        "inline": True,
    }
    assert options.values["daemon"] is True
    assert options.values["bind"] == [":1", "unix:/x"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["serve", "a:b", "--wrkers", "4"], "there is no option --wrkers: did you mean --workers?"),
        (["serve", "--wrkers=4"], "there is no option --wrkers: did you mean --workers?"),
        (["serve", "a:b", "--work=4"], "there is no option --work: did you mean --workers?"),
        (["serve", "a:b", "--xyzzy"], "there is no option --xyzzy; prefork-server serve --help"),
        (["run", "--tmeout=4", "x.py"], "there is no option --tmeout: did you mean --timeout?"),
        (["serve", "a:b", "c:d"], "there is no place for c:d"),
        (["serve"], "which target?"),
        (["run"], "which program?"),
        (["run", "-w", "2"], "which program?"),
        (["serv", "a:b"], "invalid choice: 'serv'"),
        (["shop.py"], "did you mean prefork-server run shop.py"),
        (["shop.web:app", "-w", "2"], "did you mean prefork-server serve shop.web:app"),
        ([], "VERB"),
        (["serve", "a:b", "-w", "two"], "it takes a whole number, not 'two'"),
        (["serve", "a:b", "-t", "5s"], "it takes a number of seconds, or none, not '5s'"),
        (["serve", "a:b", "--term", "later"], "invalid choice: 'later'"),
        (["serve", "a:b", "--as", "asgi"], "invalid choice: 'asgi'"),
        (["serve", "a:b", "@/nowhere/x"], "No such file or directory"),
        (["stop"], "PIDFILE"),
        (["stop", "x", "--within", "0"], "it takes a number of seconds above 0, not '0'"),
    ],
)
def test_words_that_mean_nothing_are_one_line_with_the_nearest(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert sentence in refusal(capsys, *words)


def test_peers_are_a_list() -> None:
    options = serve("--forwarded-from", "10.0.0.0/8, unix", "--access-log")
    assert options.values["forwarded_from"] == ["10.0.0.0/8", "unix"]
    assert options.values["access_log"] is True
    assert serve().values["access_log"] is None


def test_a_file_of_options_has_words_lines_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "options"
    file.write_text("""
        # how we serve
        -w 3 --timeout=7   # seconds
        --bind 'unix:/run/with space'
        --app-name "shop"
    """)
    options = serve(f"@{file}", "-w", "4")
    assert options.said == {"workers": 4, "timeout": 7.0, "app_name": "shop"}
    assert options.values["bind"] == ["unix:/run/with space"]


def test_a_file_of_options_that_is_no_such_thing_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for text, sentence in (
        (b"--bind 'unix:/x\n", "No closing quotation"),
        (b"--workrs 3", "did you mean --workers?"),
    ):
        (tmp_path / "options").write_bytes(text)
        assert sentence in refusal(capsys, "serve", "a:b", f"@{tmp_path}/options")
    (tmp_path / "options").write_bytes(b"\xff\xfe-\0w\0")
    said = refusal(capsys, "serve", "a:b", f"@{tmp_path}/options")
    # From Python 3.12 on such bytes are those of a file's name.
    assert "a file of options is no text" in said or "no place for \\udcff\\udcfe-" in said
    assert "Is a directory" in refusal(capsys, "serve", "a:b", f"@{tmp_path}")
    assert "No such file" in refusal(capsys, "serve", "a:b", f"@{tmp_path}/nowhere")


def test_what_other_editors_put_at_the_ends_of_a_file_means_nothing(tmp_path: Path) -> None:
    (tmp_path / "options").write_bytes(b"\xef\xbb\xbf-w 3\r\n--timeout 7\r\n")
    (tmp_path / "empty").touch()
    assert serve(f"@{tmp_path}/options", f"@{tmp_path}/empty").said == {
        "workers": 3,
        "timeout": 7.0,
    }
    (tmp_path / "it.py").write_bytes(b"\xef\xbb\xbfapp = 1\r\n")
    assert Target.parse(f"{tmp_path}/it.py").load().value == 1


def test_the_environment_says_what_the_options_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    options = serve(PORT="5000", WEB_CONCURRENCY="3")
    assert options.values["platform"] == ["0.0.0.0:5000"] and options.values["bind"] is None
    assert options.said == {"workers": 3}
    options = serve("-b", "127.0.0.1:1", "-w", "2", PORT="5000", WEB_CONCURRENCY="3")
    assert options.values["bind"] == ["127.0.0.1:1"]
    assert options.said == {"workers": 2}
    assert serve(PORT="", WEB_CONCURRENCY=" ").values["platform"] == []
    assert parse(["run", "x.py"], {"WEB_CONCURRENCY": "3"}).said == {"workers": 3}
    said = refusal(capsys, "serve", "a:b", WEB_CONCURRENCY="many")
    assert "WEB_CONCURRENCY must be a whole number, not 'many'" in said


@pytest.mark.parametrize(
    ("words", "said", "rest"),
    [
        (["x.py", "-w", "3"], {}, ["x.py", "-w", "3"]),
        (["-w", "2", "x.py", "--help"], {"workers": 2}, ["x.py", "--help"]),
        (["-w2", "--timeout=9", "x.py"], {"workers": 2, "timeout": 9.0}, ["x.py"]),
        (["-X", "x.py", "y"], {"inline": True}, ["x.py", "y"]),
        (["-m", "http.server", "-b", "::"], {}, ["-m", "http.server", "-b", "::"]),
        (["-t", "none", "-m", "x", "@y"], {"timeout": None}, ["-m", "x", "@y"]),
        (["-w", "2", "--", "-x.py", "--"], {"workers": 2}, ["-x.py", "--"]),
    ],
)
def test_what_follows_the_program_is_the_programs(
    words: list[str], said: dict[str, Any], rest: list[str]
) -> None:
    options = parse(["run", *words], {})
    assert (options.said, options.rest) == (said, rest)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(["--version"], {})
    assert left.value.code == 0
    assert capsys.readouterr().out == f"prefork-server {prefork_server.__version__}\n"


@pytest.mark.parametrize("verb", ["serve", "run", "stop"])
def test_help_is_whole(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit) as left:
        parse([verb, "--help"], {})
    assert left.value.code == 0
    _, verbs = parsers()
    said = capsys.readouterr().out
    assert all(word in said for word in verbs[verb].words())
    assert "exit codes: 0 stopped as asked" in said


# Addresses


def test_addresses_are_of_streams_or_of_datagrams() -> None:
    found = binds(["127.0.0.1:80", "[::1]:80", "unix:/run/x", "unix:@x"])
    assert [str(bind.address) for bind in found] == [
        *("127.0.0.1:80", "[::1]:80", "unix:/run/x", "unix:@x")
    ]
    assert [bind.udp for bind in binds(["udp:127.0.0.1:53", "udp:[::1]:53"])] == [True, True]
    with pytest.raises(Misuse, match="all addresses are udp:, or none is"):
        binds(["udp:127.0.0.1:53", "127.0.0.1:80"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("80", "write host:port"),
        ("localhost:http", "write host:port"),
        ("::1:80", "goes in brackets"),
        ("localhost:70000", "0 to 65535, not 70000"),
        ("udp:53", "write host:port"),
        ("fd://x", "is fd://3 or above, not fd://x"),
        ("fd://1", "is fd://3 or above, not fd://1"),
        ("fd://99999", "Bad file descriptor: was it passed on?"),
    ],
)
def test_a_malformed_address_is_one_clear_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        binds([text])


def test_the_same_address_twice_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="twice"):
        binds(["127.0.0.1:80", "127.0.0.1:80"])


# Targets


@pytest.mark.parametrize(
    ("text", "module", "thing", "called", "is_file", "app_name"),
    [
        ("shop.web:app", "shop.web", "app", False, False, "shop.web"),
        ("shop:make()", "shop", "make", True, False, "shop"),
        ("shop:Web.App", "shop", "Web.App", False, False, "shop"),
        ("shop", "shop", "", False, False, "shop"),
        ("sub/echo.py:Echo", "sub/echo.py", "Echo", False, True, "echo"),
        ("./echo.py", "./echo.py", "", False, True, "echo"),
        ("größe:app", "größe", "app", False, False, "prefork-server"),
    ],
)
def test_a_target_is_a_module_or_a_file_and_a_thing_in_it(
    text: str, module: str, thing: str, called: bool, is_file: bool, app_name: str
) -> None:
    target = Target.parse(text)
    assert target == Target(module, thing, called, is_file)
    assert str(target) == text
    assert target.app_name == app_name


@pytest.mark.parametrize(
    "text", ["", ":app", "a b:c", "a:b c", "a:()", "a:b(1)", "a..b:c", "a:b:c", "-x", "a-b:c"]
)
def test_what_is_no_target_is_one_clear_sentence(text: str) -> None:
    with pytest.raises(Misuse, match="a target is module:thing"):
        Target.parse(text)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a module of that text, which can be imported until the test ends."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def write(text: str) -> str:
        name = f"target{len(list(tmp_path.iterdir()))}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        return name

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_file_may_be_called_as_a_module_that_is_there(
    module: Callable[[str], str], tmp_path: Path
) -> None:
    (tmp_path / "socketserver.py").write_text("app = 4")
    assert Target.parse(f"{tmp_path}/socketserver.py").load().value == 4
    assert sys.modules["socketserver"] is socketserver


def test_without_a_name_it_is_application_or_app(module: Callable[[str], str]) -> None:
    name = module("application = 1\napp = 2")
    assert Target.parse(name).load() == Thing(1, f"{name}:application")
    name = module("app = 2")
    assert Target.parse(name).load() == Thing(2, f"{name}:app")
    name = module("ap = 2")
    with pytest.raises(LoadError, match="has neither application nor app"):
        Target.parse(name).load()


def test_a_file_is_loaded_as_a_program_of_its_directory_would_be(
    module: Callable[[str], str], tmp_path: Path
) -> None:
    other = module("value = 3")
    name = module(f"""
        import dataclasses, pickle, {other}
        @dataclasses.dataclass
        class Value:
            value: int
        def make():
            return pickle.loads(pickle.dumps(Value({other}.value)))
    """)
    sys.path.remove(str(tmp_path))
    thing = Target.parse(f"{tmp_path}/{name}.py:make()").load()
    assert thing.value.value == 3


LOST = {
    "import nowhere_at_all": "ModuleNotFoundError: No module named 'nowhere_at_all'",
    "raise ValueError('of mine')": "ValueError: of mine",
    "def broken(:": "SyntaxError: invalid syntax",
    "import sys; sys.exit('bye')": "SystemExit: bye",
    "raise BaseException('odd')": "BaseException: odd",
}


@pytest.mark.parametrize("text", LOST)
def test_a_module_that_cannot_be_imported_is_told_with_the_users_frames_alone(
    module: Callable[[str], str], text: str, tmp_path: Path
) -> None:
    name = module(text)
    for target in (f"{name}:app", f"{tmp_path}/{name}.py:app"):
        with pytest.raises(LoadError) as error:
            Target.parse(target).load()
        assert str(error.value) == f"cannot load {target}: {LOST[text]}"
        report = error.value.report
        assert report.endswith(LOST[text])
        assert f'File "{tmp_path}/{name}.py", line 1' in report
        assert report.count("Traceback") <= 1  # of a syntax error there are no frames
        assert "importlib" not in report
        assert "prefork_server" not in report.replace(str(tmp_path), "")


def test_a_module_that_is_not_there_is_told_with_where_it_was_looked_for() -> None:
    with pytest.raises(LoadError) as error:
        Target.parse("nowhere_at_all:app").load()
    assert str(error.value).endswith(
        f"No module named 'nowhere_at_all' (looked in {os.getcwd()} and on sys.path)"
    )
    assert error.value.report == "ModuleNotFoundError: No module named 'nowhere_at_all'"
    with pytest.raises(LoadError, match="No such file or directory"):
        Target.parse("./nowhere.py:app").load()


def test_a_thing_that_is_not_there_is_told_with_the_nearest(module: Callable[[str], str]) -> None:
    name = module("class Web:\n    application = 1")
    with pytest.raises(LoadError, match="there is no Wep: did you mean Web"):
        Target.parse(f"{name}:Wep").load()
    with pytest.raises(LoadError, match="there is no aplication: did you mean application"):
        Target.parse(f"{name}:Web.aplication").load()


def test_the_causes_of_an_error_are_told_without_our_frames(module: Callable[[str], str]) -> None:
    name = module("""
        def make():
            try:
                {}["x"]
            except KeyError as error:
                raise ValueError("no x") from error
    """)
    with pytest.raises(LoadError) as error:
        Target.parse(f"{name}:make()").load()
    report = error.value.report
    assert report.index("KeyError: 'x'") < report.index("direct cause") < report.index("no x")
    assert "cli" not in report
    assert error.value.__cause__
    assert users_traceback(error.value.__cause__) == report


def test_the_errors_of_a_group_are_told_without_our_frames(module: Callable[[str], str]) -> None:
    name = module("""
        from prefork_server import Settings
        def make():
            try:
                Settings(workers=0)
            except ValueError as error:
                raise ExceptionGroup("several", [error])
    """)
    with pytest.raises(LoadError) as error:
        Target.parse(f"{name}:make()").load()
    report = error.value.report
    assert report.count("ConfigError: workers must be") == 2  # as a part, and as the context
    assert report.count(f"{name}.py") == 3
    assert "settings.py" not in report


# What it is


class AsgiObject:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class WsgiObject:
    def __call__(self, environ: Any, start_response: Any) -> Any: ...


class WsgiClass:
    def __init__(self, environ: Any, start_response: Any) -> None: ...


class OneArgument:
    def __init__(self, path: Any) -> None: ...


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...
async def connected(reader: Any, writer: Any) -> None: ...
async def coroutine(master: Any) -> None: ...
def application(environ: Any, start_response: Any, exc_info: Any = None) -> Any: ...
def work(master: Any) -> None: ...
def anything(*args: Any) -> Any: ...
def either(a: Any, b: Any = None) -> Any: ...
def nothing() -> Any: ...
def three(a: Any, b: Any, c: Any) -> Any: ...


class HTTP(http.server.BaseHTTPRequestHandler): ...


class Datagrams(socketserver.DatagramRequestHandler): ...


class Plain(socketserver.BaseRequestHandler): ...


class Streams(socketserver.StreamRequestHandler): ...


class Ours(PreforkTCPServer):
    settings = Settings(workers=3, pid_path=Path("x.pid"))

    def __init__(self, address: Any) -> None:
        super().__init__(address, Plain)


class Theirs(socketserver.ThreadingTCPServer):
    handler_class = Plain


class Bare(socketserver.BaseServer): ...


def made(value: Any, said: str | None = None, udp: bool = False, **keywords: Any) -> Recipe:
    return recipe(Thing(value, "app:thing"), said, udp, keywords)


@pytest.mark.parametrize(
    ("value", "udp", "words"),
    [
        (HTTP, False, "app:thing, a request handler class, by PreforkHTTPServer"),
        (Plain, False, "app:thing, a request handler class, by PreforkTCPServer"),
        (Streams, False, "app:thing, a request handler class, by PreforkTCPServer"),
        (Plain, True, "app:thing, a request handler class, by PreforkUDPServer"),
        (Datagrams, False, "app:thing, a request handler class, by PreforkUDPServer"),
        (Datagrams, True, "app:thing, a request handler class, by PreforkUDPServer"),
        (Ours, False, "app:thing, a server class"),
        (Theirs, False, "app:thing, a server class"),
        (work, False, "app:thing, a work function"),
    ],
)
def test_what_a_thing_is_says_which_server_serves_it(value: Any, udp: bool, words: str) -> None:
    found = made(value, udp=udp)
    assert str(found) == words
    assert found.datagram == ("UDP" in words)


def test_a_foreign_server_class_gets_the_mix_in_in_front() -> None:
    found = made(Theirs)
    assert found.server
    assert found.server.__mro__[1] is PreforkMixIn
    assert (found.server.__name__, found.handler) == ("Theirs", Plain)
    assert made(xmlrpc.server.SimpleXMLRPCServer).handler is None  # an address is enough
    with pytest.raises(Misuse, match="made of an address and a handler class, and names none"):
        made(http.server.HTTPServer)
    with pytest.raises(Misuse, match=r"is no subclass of socketserver\.TCPServer or UDPServer"):
        made(Bare)


def test_a_server_class_of_ours_may_say_its_settings_and_take_an_address() -> None:
    found = made(Ours)
    assert found.handler is None
    assert found.said == {"workers": 3, "pid_path": "x.pid"}
    assert made(Plain).said == {}


@pytest.mark.parametrize("value", [application, WsgiObject(), WsgiClass, WsgiObject().__call__])
def test_two_arguments_are_a_wsgi_application(value: Any) -> None:
    assert Thing(value, "x").recognise(None) == "wsgi"
    assert Thing(wsgiref.simple_server.demo_app, "x").recognise(None) == "wsgi"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (asgi, "is an ASGI application .* an ASGI server's own Server"),
        (AsgiObject(), "is an ASGI application .* work function"),
        (coroutine, r"is a coroutine function: .* takes \(reader, writer\), .* run_asyncio\(\)"),
        (anything, r"app:thing\(\*args: Any\).* may be a work function or a WSGI application"),
        (either, "say which by --as"),
        (nothing, r"nothing that can be served.*; if it is a factory, write app:thing\(\)"),
        (three, "nothing that can be served"),
        (OneArgument, "nothing that can be served"),
        (None, "is of type NoneType, and cannot be served"),
        ({}, "is of type dict, and cannot be served"),
        (socketserver.BaseServer(("", 0), Plain), "give its class, or `prefork-server run`"),
        (inspect, "is of type module, and cannot be served"),
    ],
)
def test_what_cannot_be_served_is_told_with_what_would(value: Any, sentence: str) -> None:
    with pytest.raises(Misuse, match=sentence):
        made(value)


class Talks:
    async def __call__(self, reader: Any, writer: Any, greeting: str = "") -> None: ...


class Loops(PreforkAsyncioServer):
    settings = Settings(workers=3)

    def __init__(self, addresses: Any, **keywords: Any) -> None:
        super().__init__(addresses, connected, **keywords)


class Stream(asyncio.Protocol): ...


class Packets(asyncio.DatagramProtocol): ...


@pytest.mark.parametrize(
    ("value", "udp", "words"),
    [
        (connected, False, "an asyncio callback, by PreforkAsyncioServer, in loops of asyncio"),
        (Talks(), False, "an asyncio callback, by PreforkAsyncioServer, in loops of asyncio"),
        (Stream, False, "an asyncio protocol, by PreforkAsyncioServer, in loops of asyncio"),
        (Packets, True, "an asyncio protocol, by PreforkAsyncioServer, in loops of asyncio"),
        (Loops, False, "a server class"),
    ],
)
def test_what_is_for_a_loop_is_known_by_its_looks(value: Any, udp: bool, words: str) -> None:
    found = made(value, udp=udp, loop="asyncio", worker_connections=10)
    assert str(found) == f"app:thing, {words}"
    assert found.datagram == udp
    assert found.loops
    found.try_out()  # which binds nothing
    found.check(Settings())
    for wrong, why in (
        ({"threads": 2}, "coroutines share"),
        ({"client_timeout": 1}, "handlers that"),
    ):
        with pytest.raises(ConfigError, match=why):
            found.check(Settings(**wrong))


def test_threads_are_for_what_we_call() -> None:
    many = Settings(threads=2)
    for value in (Plain, HTTP, Datagrams, application, Ours):
        made(value).check(many)
    with pytest.raises(ConfigError, match="Theirs has a process_request"):
        made(Theirs).check(many)
    with pytest.raises(ConfigError, match="a work function does by itself"):
        made(work).check(many)


def test_a_thing_may_be_said_to_be_something() -> None:
    assert made(either, "asyncio").kind == "asyncio"
    assert made(either, "work").kind == "work"
    assert Thing(either, "x").recognise("wsgi") == "wsgi"
    with pytest.raises(Misuse, match=r"no subclass of socketserver.BaseServer: --as server"):
        made(Plain, "server")
    with pytest.raises(Misuse, match=r"no subclass of socketserver.BaseRequestHandler"):
        made(work, "handler")


def test_streams_are_not_served_from_datagrams() -> None:
    for value in (Streams, HTTP, Theirs, work):
        with pytest.raises(Misuse, match="wants streams, and an address is for udp:"):
            made(value, udp=True)


def test_an_option_for_http_is_refused_where_nobody_knows_it() -> None:
    with pytest.raises(Misuse, match="--access-log is nothing for a work function"):
        made(work, access_log="-")
    with pytest.raises(Misuse, match="--access-log is nothing for PreforkHTTPServer"):
        made(HTTP, access_log=True)
    with pytest.raises(Misuse, match="--access-log is nothing for Ours, which takes no access_log"):
        made(Ours, access_log="-")

    class Asking(HTTP):
        access_log = False

    handler = made(Asking, access_log=True).handler
    assert (handler.access_log, handler.__name__, Asking.access_log) == (True, "Asking", False)
    assert issubclass(handler, Asking)

    class Logging(PreforkTCPServer):
        def __init__(self, address: Any, access_log: str) -> None:
            super().__init__(address, Plain)

    assert made(Logging, access_log="-").keywords == {"access_log": "-"}


# Exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (Misuse("x"), 2),
        (BindError("x", OSError(1, "no")), 3),
        (BootError("no worker of the first generation could boot"), 3),
        (LoadError("x"), 3),
        (BootError("already running: pid 4 holds x"), 4),
    ],
)
def test_each_error_has_its_exit_code(error: Any, code: int) -> None:
    from prefork_server.cli import exit_code

    assert exit_code(error) == code
