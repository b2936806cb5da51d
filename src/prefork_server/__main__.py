"""``python -m prefork_server VERB``."""

import os
import sys

# With -m Python puts the working directory first on sys.path. A master, which may be root, does
# not import from there: its workers do. A program under ``run`` has the path that Python gives it.
if not sys.flags.safe_path and sys.argv[1:2] != ["run"]:
    try:
        if sys.path[:1] == [os.getcwd()]:
            del sys.path[0]
    except OSError:
        pass  # which was removed

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
