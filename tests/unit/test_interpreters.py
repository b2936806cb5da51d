"""On which interpreters the package can be imported."""

import runpy
import sys
from types import SimpleNamespace

import pytest

import prefork_server


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "implementation",
            SimpleNamespace(**vars(sys.implementation) | {"name": "pypy"}),
            r"does not support PyPy, which has no gc\.freeze\(\)",
        ),
        ("platform", "darwin", "needs Linux"),
    ],
)
def test_where_it_cannot_work_the_import_says_so_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object, said: str
) -> None:
    monkeypatch.setattr(sys, name, value)
    with pytest.raises(ImportError, match=said) as raised:
        runpy.run_path(prefork_server.__file__)
    assert "\n" not in str(raised.value)
