"""argparse, with one line for an error and files of options that may have comments."""

import argparse
import difflib
import shlex
from collections.abc import Sequence
from typing import Any, NoReturn

from ..text import printable


class Parser(argparse.ArgumentParser):
    """One line for an error, with the nearest name; files of options with comments."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            fromfile_prefix_chars="@",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        try:
            return shlex.split(arg_line.removeprefix("\ufeff"), comments=True)
        except ValueError as error:
            self.error(f"in a file of options: {error}: {arg_line}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)}\n")  # a word may be no text

    def words(self) -> list[str]:
        return [word for action in self._actions for word in action.option_strings]

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        option = next((word for word in unknown if word.startswith("-")), unknown[0])
        name = option.partition("=")[0]
        nearest = difflib.get_close_matches(name, self.words(), n=1)
        hint = f": did you mean {nearest[0]}?" if nearest else f"; {self.prog} --help has all"
        kind = "option" if option.startswith("-") else "place for"
        self.error(f"there is no {kind} {name}{hint}")
