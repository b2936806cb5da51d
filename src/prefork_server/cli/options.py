"""The options of the command, and what they mean: words in, values out.

Each setting has its option, made from its field and its paragraph in ``Settings``: a new
one appears here by itself. Nothing is opened, bound or imported.
"""

import argparse
import inspect
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any

from .. import __version__
from ..errors import ConfigError
from ..settings import MAX_WORKERS, Settings, settle
from .parser import Parser

PROG = "prefork-server"
DEFAULT_BIND = "127.0.0.1:8000"

# What people's fingers know from other servers.
_SHORT = {
    "workers": ("-w",),
    "timeout": ("-t",),
    "pid_path": ("-p", "--pid"),
    "app_name": ("-n", "--name"),
    "user": ("-u",),
    "group": ("-g",),
    "inline": ("-X",),
}
_GROUP_OF = {
    "how it is served": ("workers", "threads", "timeout", "inline"),
    "files": ("_path",),
}
_ASKED = {
    "reload": "replace all workers, and wait until the new ones serve alone",
    "upgrade": "start a new master on the same sockets, and wait until it has everything",
    "reopen": "open the logs anew, and wait until nobody writes to the old files",
    "scale": "have so many workers, and wait until they are ready",
    "status": "show who serves, and what each worker does",
    "stacks": "show where each worker is, in Python",
}
CONTROLS = ("stop", *_ASKED)
"""The verbs that speak to a server that runs: they take its pid file."""

_EPILOG = """\
A word @FILE stands for the options in that file, with spaces or lines between them, and # comments.
exit codes: 0 stopped as asked, 1 a crash, 2 misuse, 3 could not boot, 4 already running.
"""


class Misuse(ConfigError):
    """What was asked for cannot be: exit code 2, like any ConfigError."""


@dataclass(frozen=True)
class Options:
    """What the words say. ``settings`` has what was said, and the command's own defaults."""

    verb: str
    said: Mapping[str, Any]  # of the settings, and of nobody's defaults
    rest: Sequence[str]  # of ``run``: the program, and its arguments
    values: Mapping[str, Any]

    def settings(self, **defaults: Any) -> Settings:
        """TERM is graceful unless told otherwise: who runs containers and services sends it
        to mean that."""
        return settle(None, self.said, **{"term": "graceful", **defaults})


def shown(name: str) -> str:
    """The name in ``ps`` and of default files, made of a file's or a module's."""
    return name if name.isascii() and name.isprintable() else PROG


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the command, and those of its verbs."""
    parser = Parser(
        prog=PROG, description="Prefork servers: supervised workers that share sockets."
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, about: str, usage: str) -> Parser:
        made: Parser = verbs.add_parser(
            name, help=about, description=about[0].upper() + about[1:] + ".", usage=usage,
            epilog=_EPILOG,
        )  # fmt: skip
        return made

    serve = verb(
        "serve",
        "serve a handler or server class, a WSGI application, an asyncio callback, a work function",
        f"{PROG} serve [options] module:thing | module:factory() | path/to/file.py:thing",
    )
    run = verb(
        "run",
        "run a program that knows nothing of us; its serve_forever() preforks",
        f"{PROG} run [options] SCRIPT [ARGS] | -m MODULE [ARGS]",
    )
    stop = verb("stop", "stop the server of a pid file, and wait for it", f"{PROG} stop PIDFILE")
    _add_serve(serve)
    run.add_argument("-m", dest="module", metavar="MODULE", help="a module, as with python -m")
    for each in (serve, run):
        _add_settings(each)
    stop.add_argument(
        "--now", action="store_true", help="do not wait for those who are served (INT)"
    )
    made = {"serve": serve, "run": run, "stop": stop}
    for name, about in _ASKED.items():
        number = " N" if name == "scale" else ""
        where = "PIDFILE|ADDRESS" if name == "status" else "PIDFILE"
        made[name] = verb(name, about, f"{PROG} {name}{number} {where}")
    made["scale"].add_argument("number", metavar="N", type=_workers)
    made["status"].add_argument(
        "--watch", action="store_true", help="look again each second, until Ctrl-C"
    )
    for name in CONTROLS:
        made[name].add_argument("pid_file", metavar="PIDFILE")
        if name not in ("status", "stacks"):
            made[name].add_argument(
                "--within",
                metavar="SECONDS",
                type=_seconds,
                help="give up waiting after so many; never, if not said",
            )
    return parser, made


def _add_serve(parser: Parser) -> None:
    what = parser.add_argument_group("what is served")
    what.add_argument("target", metavar="TARGET", nargs="?", help=argparse.SUPPRESS)
    what.add_argument(
        "--as",
        dest="kind",
        choices=("handler", "server", "wsgi", "asyncio", "protocol", "work"),
        help="what the thing is, where looking at it does not tell",
    )
    what.add_argument(
        "--chdir", metavar="DIR", help="go there first; the current directory is on sys.path"
    )
    what.add_argument(
        "--preload",
        action="store_true",
        help="import once, in the master, and share the memory; else each worker imports",
    )
    what.add_argument(
        "--check",
        action="store_true",
        help="see whether all of this could be served, and serve nothing",
    )
    where = parser.add_argument_group("where")
    where.add_argument(
        "-b",
        "--bind",
        action="append",
        metavar="ADDRESS",
        help="host:port, [::1]:port, unix:/path, udp:host:port, or fd://3, a socket that we were "
        f"started with; may be said several times. Default: those that systemd hands over, or else "
        f"0.0.0.0:$PORT, or else {DEFAULT_BIND}",
    )
    how = parser.add_argument_group("how it is served")
    how.add_argument(
        "-D", "--daemon", action="store_true", help="leave the terminal when the server is ready"
    )
    loops = parser.add_argument_group("event loops")
    loops.add_argument(
        "--loop",
        choices=("auto", "asyncio", "uvloop"),
        help="whose event loop each worker runs. Default: auto, uvloop where it is installed",
    )
    loops.add_argument(
        "--worker-connections",
        metavar="NUMBER",
        type=_converter({int}),
        help="the most connections that a worker with a loop holds at once. Default: 1000",
    )
    http = parser.add_argument_group("HTTP and TLS")
    http.add_argument("--certfile", metavar="FILE", help="serve TLS with this certificate")
    http.add_argument("--keyfile", metavar="FILE", help="its key, if it is not in the same file")
    http.add_argument(
        "--access-log",
        action="store_const",
        const=True,
        help="one line for each request, in the log",
    )
    http.add_argument(
        "--forwarded-from",
        metavar="PEERS",
        type=_peers,
        help="who is believed when he says for whom he asks: addresses, networks or unix, with "
        "commas between them",
    )
    http.add_argument(
        "--proxy-protocol-from",
        metavar="PEERS",
        type=_peers,
        help="who begins with a PROXY header, and is believed",
    )


KEYWORDS = (
    "loop",
    "worker_connections",
    "certfile",
    "keyfile",
    "access_log",
    "forwarded_from",
    "proxy_protocol_from",
)
"""Options that are passed on to the server class, or are attributes of the handler class: of
whichever knows them."""


def _peers(text: str) -> list[str]:
    return [peer.strip() for peer in text.split(",") if peer.strip()]


def _add_settings(parser: Parser) -> None:
    meaning = _meanings()
    groups = {group.title: group for group in parser._action_groups}
    for field in fields(Settings):
        title = next(
            (t for t, ends in _GROUP_OF.items() if field.name.endswith(ends)), "more settings"
        )
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        _add_setting(group, field, meaning.get(field.name, ""))


def _add_setting(group: Any, field: "Field[Any]", meaning: str) -> None:
    names = [*_SHORT.get(field.name, ()), f"--{field.name.replace('_', '-')}"]
    options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
    default = {"term": "graceful"}.get(field.name, field.default)
    text = meaning.replace("%", "%%")
    kinds = _kinds(field.type)
    if kinds == {bool}:
        negatable = argparse.BooleanOptionalAction if field.default else "store_true"
        group.add_argument(*names, help=text, action=negatable, **options)
        return
    if default not in (None, ""):
        text += f" Default: {default:g}" if isinstance(default, float) else f" Default: {default}"
    if typing.get_origin(field.type) is typing.Literal:
        options["choices"] = typing.get_args(field.type)
    else:
        options["type"] = _converter(kinds)
        options["metavar"] = _metavar(field.name, kinds)
    group.add_argument(*names, help=text, **options)


def _kinds(annotation: Any) -> set[Any]:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return set(typing.get_args(annotation)) if union else {annotation}


def _metavar(name: str, kinds: set[Any]) -> str:
    if float in kinds:
        return "SECONDS"
    return "FILE" if name.endswith("_path") else "NUMBER" if kinds <= {int, type(None)} else "NAME"


def _converter(kinds: set[Any]) -> Any:
    """From a word to what the setting takes; its own rule is checked by ``Settings``."""

    def convert(text: str) -> object:
        if text.lower() == "none" and type(None) in kinds:
            return None
        for kind in (int, float):
            if kind in kinds:
                try:
                    return int(text, 0) if kind is int else float(text)
                except ValueError:
                    pass  # a name, where both may be
        if str in kinds:
            return text
        rule = "a whole number" if int in kinds else "a number of seconds"
        none = ", or none" if type(None) in kinds else ""
        raise argparse.ArgumentTypeError(f"it takes {rule}{none}, not {text!r}")

    return convert


def _seconds(text: str) -> float:
    value = float(_converter({float})(text))
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"it takes a number of seconds above 0, not {text!r}")
    return value


def _workers(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_WORKERS):
        raise argparse.ArgumentTypeError(
            f"it takes a whole number of workers, 0 to {MAX_WORKERS}, not {text!r}"
        )
    return int(text)


def _meanings() -> dict[str, str]:
    """The paragraphs of ``Settings``, by the names they stand under."""
    found = {}
    text = inspect.getdoc(Settings) or ""  # with -OO there is none
    for heads, body in re.findall(r"^(``.*``)\n((?: {4}.*\n)+)", text, re.MULTILINE):
        plain = " ".join(body.split()).replace("``None``", "none").replace("``", "")
        sentence = plain[0].upper() + plain[1:]
        found.update(dict.fromkeys(re.findall(r"``(\w+)``", heads), sentence))
    return found


def parse(words: Sequence[str], environ: Mapping[str, str] = os.environ) -> Options:
    """Exits with a sentence and code 2 for words that mean nothing."""
    parser, verbs = parsers()
    rest: Sequence[str] = ()
    if words and words[0][:1] not in ("-", "@") and (":" in words[0] or words[0].endswith(".py")):
        verb_of = "serve" if ":" in words[0] else "run"
        parser.error(f"a verb comes first: did you mean {PROG} {verb_of} {words[0]}?")
    if words[:1] == ["run"]:
        words, rest = _split(words, verbs["run"])
    try:
        spoken, unknown = parser.parse_known_args(words)
    except UnicodeDecodeError as error:
        parser.error(f"a file of options is no text: {error}")
    verb = verbs[spoken.verb]
    if unknown:
        verb.refuse(unknown)
    values = vars(spoken)
    if spoken.verb == "run":
        if not rest:
            verb.error("which program? A script, or -m MODULE")
    elif spoken.verb == "serve" and not spoken.target:
        verb.error("which target? module:thing, module:factory() or path/to/file.py:thing")
    names = [field.name for field in fields(Settings)]
    said = {name: values.pop(name) for name in names if name in values}
    if spoken.verb not in CONTROLS:
        try:
            said = {**_from(environ), **said}
        except Misuse as error:
            verb.error(str(error))
    port = environ.get("PORT")
    values["platform"] = [f"0.0.0.0:{port}"] if port else []
    return Options(spoken.verb, said, rest, values)


def _from(environ: Mapping[str, str]) -> dict[str, Any]:
    """What platforms say. The options win over it."""
    count = environ.get("WEB_CONCURRENCY", "").strip()
    if not count:
        return {}
    if not (count.isascii() and count.isdigit()):
        raise Misuse(f"WEB_CONCURRENCY must be a whole number, not {count!r}")
    return {"workers": int(count)}


def _split(words: Sequence[str], verb: Parser) -> tuple[list[str], list[str]]:
    """Options of ours, and from the first word that is none: the program, with its own."""
    flags = {w for a in verb._actions if a.nargs == 0 for w in a.option_strings}
    at = 1
    while at < len(words):
        word = words[at]
        if word == "-m":
            return list(words[:at]), list(words[at:])
        if word == "--":
            return list(words[:at]), list(words[at + 1 :])
        if word.startswith("@"):
            at += 1
        elif not word.startswith("-") or word == "-":
            return list(words[:at]), list(words[at:])
        else:
            inline = "=" in word or (word[1] != "-" and len(word) > 2)
            known = word in verb.words() and word not in flags
            at += 2 if known and not inline else 1
    return list(words), []
