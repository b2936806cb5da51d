"""How figures are printed: the machine they belong to, and columns."""

import os
import platform
from collections.abc import Sequence


def machine() -> str:
    """What one must know to compare figures with those of another day.

    The load average is that of the last minute: above 0.5 the machine is not ours alone.
    """
    return (
        f"{os.cpu_count()} CPUs, {platform.system()} {platform.release()} {platform.machine()}, "
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"load average {os.getloadavg()[0]:.1f}"
    )


def print_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """The first row is the header, the first column is text, the others are figures."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"\n{title}")
    for name, *cells in rows:
        figures = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print("  ".join((name.ljust(widths[0]), *figures)).rstrip())


def print_markdown(title: str, rows: Sequence[Sequence[str]]) -> None:
    """The same, to be pasted where Markdown is read."""
    print(f"\n{title}\n")
    header, *others = rows
    for row in (header, ["---", *["---:"] * (len(header) - 1)], *others):
        print(f"| {' | '.join(row)} |")
