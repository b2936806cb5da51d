"""Monkey patches of gevent and eventlet are seen by what they replace or remove."""

import select
import sys
import time
from socketserver import BaseRequestHandler
from types import ModuleType

import pytest

import prefork_server
from prefork_server import ConfigError, Preforker, PreforkTCPServer
from prefork_server.patches import patched


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name: str = getattr(request, "param", "gevent")
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return name


@pytest.mark.parametrize("library", ["gevent", "eventlet"], indirect=True)
def test_a_library_that_is_loaded_and_has_patched_nothing_is_no_hindrance(library: str) -> None:
    assert patched() == ""


@pytest.mark.parametrize("library", ["gevent", "eventlet"], indirect=True)
def test_a_function_of_the_library_is_named_with_the_cure(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(seconds: float) -> None: ...

    monkeypatch.setattr(time, "sleep", sleep)
    assert patched() == ""  # of a debugger, or a test
    sleep.__module__ = f"{library}.hub"
    assert f"{library} has patched time.sleep, " in patched()
    assert f"remove {library}'s monkey patch" in patched()


def test_a_function_that_was_removed_is_named(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(select, "epoll")
    assert "gevent has patched select.epoll, " in patched()
    monkeypatch.delitem(sys.modules, "gevent")
    assert patched() == ""


def test_no_server_is_made_and_no_name_is_loaded(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(select, "epoll")
    with pytest.raises(ConfigError, match="has patched"):
        PreforkTCPServer("127.0.0.1:1", BaseRequestHandler)  # nothing is bound
    with pytest.raises(ConfigError, match="has patched"):
        Preforker(print)
    monkeypatch.delitem(vars(prefork_server), "Stats", raising=False)
    with pytest.raises(ImportError, match="has patched"):
        prefork_server.Stats  # noqa: B018
