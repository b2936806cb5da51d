"""A target that is written in a wrong way is told with what is probably meant."""

import sys
from pathlib import Path

import pytest

from prefork_server.cli.program import _found
from prefork_server.cli.target import LoadError, Target


def test_a_file_without_a_thing_is_told_with_the_things_it_has(tmp_path: Path) -> None:
    file = tmp_path / "shop.py"
    file.write_text("from os import path\nTAX = 19\nclass Till: pass\ndef sell(): pass\n")
    with pytest.raises(LoadError, match=r"did you mean .*shop\.py:Till or .*shop\.py:sell\?$"):
        Target.parse(str(file)).load()


def test_a_dot_in_the_place_of_the_colon_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dotted_target.py").write_text("def till(environ, start_response): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LoadError, match=r"did you mean dotted_target:till\?"):
        Target.parse("dotted_target.till").load()
    with pytest.raises(LoadError) as caught:
        Target.parse("dotted_target.tall").load()
    assert "did you mean" not in str(caught.value)


def test_a_target_in_the_place_of_a_program_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(tmp_path)
    Path("shop.py").touch()
    for word, hinted in (("shop.py:Till", True), ("other.py:Till", False)):
        with pytest.raises(SystemExit):
            _found([word])
        said = capsys.readouterr().err
        assert (f"did you mean prefork-server serve {word}?" in said) is hinted
