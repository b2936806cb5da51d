"""Text that was not written here, made safe for a log, a terminal and a page.

A client, a peer name, a path, the text of an exception and a report of a worker may hold line
breaks, escape sequences, control characters and marks that turn the direction of writing. All
that is logged or shown goes through ``printable``, and what has several lines through
``one_record``.
"""

import os
import re
from typing import TextIO

_INDENT = "  "
_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LIBRARY = os.path.dirname(os.__file__) + os.sep
_INSTALLED = ("site-packages", "dist-packages")  # below the library, and not of it
_plain = re.compile(r"[ !#-\[\]-~]*+").fullmatch


def printable(text: str, keep: str = "") -> str:
    """``text`` with an escape (``\\n``, ``\\x1b``, ``\\u2028``) for each character that is not
    ``str.isprintable()``, except those in ``keep``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def one_record(text: str) -> str:
    """The text of one record of a log. Each line but the first is indented, so that no text can
    forge a line that begins as a record does."""
    if text.isprintable():
        return text
    first, *rest = printable(text, "\n").rstrip().split("\n")
    if not all(line.startswith(_INDENT) for line in rest if line):
        rest = [f"{_INDENT}{line}" for line in rest]
    return "\n".join((first, *rest))


def both_ends(text: str, longest: int) -> str:
    """The text, or the two ends of one with more than ``longest`` characters: a traceback says
    most at its end, and a stack at its beginning."""
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]}\n[...]\n{text[-(longest // 2) :]}"


def encodable(text: str, stream: TextIO) -> str:
    """The text with escapes for what the stream's encoding does not have."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def escape(text: str, limit: int = 8192) -> str:
    """For a field between double quotes: printable ASCII alone, with the quote and the backslash
    escaped, at most ``limit`` characters."""
    if len(text) <= limit and _plain(text):
        return text
    pieces = []
    for character in text[:limit]:
        piece = character
        if character in '"\\':
            piece = "\\" + character
        elif not " " <= character <= "~":
            piece = f"\\x{ord(character):02x}"
        limit -= len(piece)
        if limit < 0:
            break  # half an escape could swallow the closing quote
        pieces.append(piece)
    return "".join(pieces)


def users_part(error: BaseException) -> BaseException:
    """The same exception, whose traceback begins with the first frame that is neither ours nor
    the standard library's. If there is none, it has all frames."""
    rest = error.__traceback__
    while rest and _is_between(rest.tb_frame.f_code.co_filename):
        rest = rest.tb_next
    if rest:
        error.__traceback__ = rest
    return error


def _is_between(file: str) -> bool:
    """Whether the code of this file calls user code, which did not call it."""
    if file.startswith(_LIBRARY):
        return file.startswith(_OURS) or not any(each in file for each in _INSTALLED)
    return file.startswith((_OURS, "<frozen ", "uvloop/"))
