"""Which handler classes for http.server are served by HTTPRequestHandler, and which as they are."""

import functools
import http.server
import socketserver
from typing import Any, ClassVar

import pytest

from prefork_server.http import HTTPRequestHandler
from prefork_server.http.standard import handler_class


class Plain(http.server.BaseHTTPRequestHandler):
    """Says hello."""


class Own(HTTPRequestHandler):
    pass


@pytest.mark.parametrize("kind", [Plain, http.server.SimpleHTTPRequestHandler])
def test_our_handler_stands_between_a_plain_class_and_that_of_http_server(kind: Any) -> None:
    made = handler_class(kind)
    names = [base.__name__ for base in made.__mro__]
    assert made.__mro__[1] is kind
    assert names.index("HTTPRequestHandler") < names.index("BaseHTTPRequestHandler")
    for name in ("__name__", "__module__", "__doc__"):
        assert getattr(made, name) == getattr(kind, name)


@pytest.mark.parametrize("name", ["handle", "handle_one_request", "parse_request"])
def test_a_class_that_reads_its_requests_by_itself_stays_as_it_is(name: str) -> None:
    kind = type("Reads", (Plain,), {name: lambda self: None})
    assert handler_class(kind) is kind


def test_a_class_that_reads_without_a_buffer_stays_as_it_is() -> None:
    kind = type("Unbuffered", (Plain,), {"rbufsize": 0})
    assert handler_class(kind) is kind


@pytest.mark.parametrize("name", ["dispatch", "refuse", "answer_fault"])
def test_a_class_with_a_method_that_means_something_here_stays_as_it_is(name: str) -> None:
    kind = type("Routes", (Plain,), {name: lambda self, verb: None})
    assert handler_class(kind) is kind


def test_a_respond_of_its_own_is_no_reason() -> None:
    kind = type("Responds", (Plain,), {"respond": lambda self, text: None})
    assert issubclass(handler_class(kind), HTTPRequestHandler)


class Routed(http.server.BaseHTTPRequestHandler):
    def __init_subclass__(cls, *, path: str) -> None:
        pass


class Shop(Routed, path="/shop"):
    pass


class Named(http.server.BaseHTTPRequestHandler):
    names: ClassVar[set[str]] = set()

    def __init_subclass__(cls) -> None:
        if cls.__name__ in cls.names:
            raise ValueError(f"there is a {cls.__name__} already")
        cls.names.add(cls.__name__)


class Bank(Named):
    pass


@pytest.mark.parametrize("kind", [http.server.BaseHTTPRequestHandler, Shop, Bank])
def test_a_class_of_which_no_other_can_be_made_stays_as_it_is(kind: Any) -> None:
    assert handler_class(kind) is kind


@pytest.mark.parametrize("kind", [Own, socketserver.StreamRequestHandler, print, None])
def test_what_is_ours_or_no_class_for_http_server_stays_as_it_is(kind: Any) -> None:
    assert handler_class(kind) is kind
    assert handler_class(functools.partial(print, kind)).func is print


def test_the_arguments_of_a_partial_are_kept() -> None:
    made = handler_class(functools.partial(Plain, 1, directory="/srv"))
    assert issubclass(made.func, HTTPRequestHandler) and issubclass(made.func, Plain)
    assert (made.args, made.keywords) == ((1,), {"directory": "/srv"})
