"""The answer of the process that has imported the target, and what the master takes of it.

That process, and all that its import has started, may be the workers' user's, and the master root.
So the answer is a JSON text in a memory of fixed size, each part of which is checked; text is
cleaned, and where the master drops privileges no setting is taken that names a path, an identity or
an address. Nothing here reads a clock, forks or opens a file.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..scoreboard import sealed_memory
from ..settings import Settings
from ..text import both_ends, printable
from .options import Misuse
from .target import KINDS, LoadError

_SIZE: Final = 1 << 22  # bytes, of which the memory holds those that are written
_LINE: Final = 1000  # characters of a message
_REPORT: Final = 8192  # characters; it and the message fit into a pipe, so neither is dropped
_MOST: Final = 1 << 63
_PROTOCOLS: Final = ("http/1.1",)
_PACKAGE = __package__.partition(".")[0]
OURS: Final = tuple(f"{_PACKAGE}.{name}" for name in ("http", "aio", "tls", "peers", "credentials"))
MODULES: Final = (*OURS, "asyncio", "http.server", "ssl", "uvloop")
"""Modules of which the master loads those that the target has loaded: its workers need them, and
may not be able to read them, or find others by then."""

_HARMLESS: Final = frozenset(
    {
        *("workers", "max_workers", "min_spare_workers", "max_spare_workers", "threads"),
        *("timeout", "boot_timeout", "graceful_timeout", "client_timeout"),
        *("max_requests", "max_worker_memory", "gc_freeze"),
    }
)
"""The settings that a target of the workers' user may name: numbers, which have bounds."""

Told = dict[str, Any]


def new_paper() -> int:
    """A memory for the answer, of a fixed size."""
    return sealed_memory("prefork-target", _SIZE)


def write(fd: int, told: Mapping[str, Any]) -> None:
    text = json.dumps(told, ensure_ascii=False)
    os.pwrite(fd, text.encode("utf-8", "backslashreplace"), 0)  # JSON escapes a surrogate alike


def read(fd: int, ending: str) -> Told:
    """What the target is. ``ending`` says how the process that wrote it has ended.

    Raises Misuse and LoadError: those that it tells of, and LoadError for what is no answer.
    """
    raw = os.pread(fd, _SIZE, 0).rstrip(b"\0")
    if not raw:
        raise LoadError(f"the process that was to load the target ended: {ending}")
    try:
        told = json.loads(raw.decode("utf-8"))
        misuse, failure = (_text(told.get(name)) for name in ("misuse", "error"))
        report = both_ends(_text(told.get("report")) or "", _REPORT)
        if misuse is None and failure is None:
            return _checked(told)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        text = "the process that was to load the target has left no answer that can be read"
        raise LoadError(f"{text} ({type(error).__name__}), and ended: {ending}") from None
    if misuse is not None:
        raise Misuse(_one_line(misuse))
    raise LoadError(_one_line(failure or ""), report)


def taken(told: Told, settings: Settings, said: Iterable[str], trusted: bool) -> dict[str, Any]:
    """The settings that the master takes from the class: not those ``said`` by the options, which
    are in ``settings``. Raises Misuse for one that it must not take from a target that is not
    trusted."""
    named = {name: value for name, value in told["settings"].items() if name not in said}
    if trusted:
        return named
    refused = {
        name: value
        for name, value in named.items()
        if name not in _HARMLESS and value != getattr(settings, name, None)
    }
    if refused:
        what = ", ".join(f"{name}={value!r}" for name, value in refused.items())
        options = ", ".join(f"--{name.replace('_', '-')}" for name in refused)
        raise Misuse(
            _one_line(
                f"the target's class names {what}: with --user or --group the master takes only "
                f"numbers from a target, no path, identity or address: use {options} instead"
            )
        )
    return {name: value for name, value in named.items() if name in _HARMLESS}


def _one_line(text: str) -> str:
    """A message: on one line, and cut."""
    text = printable(text)
    return text if len(text) <= _LINE else f"{text[:_LINE]} ..."


def _text(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError
    return value


def _checked(told: Told) -> Told:
    """The same with nothing else in it, and each value of its type. Raises TypeError, ValueError
    and KeyError."""
    words, kind, alpn, settings = told["words"], told["kind"], told["alpn"], told["settings"]
    if kind not in KINDS or not isinstance(words, str) or not isinstance(settings, dict):
        raise ValueError
    if any(type(told[name]) is not bool for name in ("datagram", "loops")):
        raise TypeError
    if alpn not in ((None,) if kind in ("server", "work") else ([], [*_PROTOCOLS])):
        raise ValueError
    if not all(_is_plain(value) for value in settings.values()):
        raise TypeError
    return {
        "words": _one_line(words),
        "kind": kind,
        "datagram": told["datagram"],
        "loops": told["loops"],
        "alpn": alpn,
        "settings": settings,
        "modules": [name for name in MODULES if name in told.get("modules", ())],
    }


def _is_plain(value: object) -> bool:
    if type(value) is int:
        return -_MOST <= value < _MOST
    return value is None or type(value) in (bool, float, str)


def loaded() -> list[str]:
    """Of ``MODULES``, in the process that has loaded the target."""
    return [name for name in MODULES if name in sys.modules]
