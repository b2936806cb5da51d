"""A factory that is given without ``()`` is told as one, and not served as something else."""

from typing import Any

import pytest

from prefork_server.cli.options import Misuse
from prefork_server.cli.target import Thing


def create_app(config: Any = None) -> Any:
    pass


def make_app(config: str = "production", debug: bool = False) -> Any:
    pass


def application(environ: Any, start_response: Any) -> Any:
    pass


def work(master: Any, *more: Any) -> None:
    pass


@pytest.mark.parametrize("factory", [create_app, make_app])
def test_a_factory_is_not_taken_for_a_work_function_or_an_application(factory: Any) -> None:
    with pytest.raises(Misuse, match=r"--as, or write shop:factory\(\) if it is a factory$"):
        Thing(factory, "shop:factory").recognise(None)


def test_what_is_said_by_as_is_believed() -> None:
    assert Thing(create_app, "shop:work").recognise("work") == "work"


def test_what_needs_its_arguments_is_what_takes_them() -> None:
    assert Thing(application, "shop:app").recognise(None) == "wsgi"
    with pytest.raises(Misuse, match=r"a work function or a WSGI application: say which by --as$"):
        Thing(work, "shop:work").recognise(None)
