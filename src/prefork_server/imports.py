"""The modules that a server may need after its first fork, loaded before it.

Later they may not be there, or be others: the package was replaced on disk, its files are not
readable for the workers' user, or that user may write to a directory of ``sys.path``. The
standard library imports some of its modules inside functions, when an error is shown for instance;
these are in the list, too. What a front room needs besides is loaded by that front room.
"""

import sys
from contextlib import suppress
from importlib import import_module
from typing import Final

_PACKAGE: Final = __package__
_ALWAYS: Final = (
    f"{_PACKAGE}.stats",
    *("ctypes", "traceback", "linecache", "tokenize", "ast", "unicodedata"),
    "resource",  # by os.wait4(), in C
    *("encodings.idna", "encodings.latin_1", "encodings.utf_16", "encodings.utf_32"),
    *("_colorize", "_suggestions"),  # of CPython 3.13
)
_WITH: Final = {  # where the first is loaded
    f"{_PACKAGE}.peers": f"{_PACKAGE}.proxy",
    "asyncio": "concurrent.futures.thread",  # asyncio.to_thread()
    "email.message": "email.generator",  # str(self.headers)
}
_tried: set[str] = set()


def load() -> None:
    """Load what this server may need. A second call costs nothing."""
    names = [*_ALWAYS, *(needed for module, needed in _WITH.items() if module in sys.modules)]
    if sys.warnoptions or sys.flags.dev_mode:
        names.append("tracemalloc")  # a ResourceWarning is shown
    for name in names:
        if name in _tried:
            continue  # what is missing would be looked for again
        _tried.add(name)
        with suppress(ImportError):  # another version of Python, or one built without it
            import_module(name)
