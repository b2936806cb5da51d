"""The command: ``prefork-server VERB``. Nobody imports it but ``__main__``.

Errors are one line, and exit codes say whose fault it was: 0 stopped, or done, as asked, 1 a
crash, or not done, 2 misuse, 3 could not boot, 4 already running.
"""

import os
import sys
from collections.abc import Sequence

from ..errors import BindError, BootError, ConfigError, PreforkError
from ..forks import null
from ..logfiles import fill_standard_descriptors
from ..output import unhindered
from ..text import one_record, printable
from .options import PROG, Options, parse
from .target import LoadError

__all__ = ["main"]

_CODES = {ConfigError: 2, BindError: 3, BootError: 3, LoadError: 3}
_RUNNING = 4


def main(words: Sequence[str] | None = None) -> int:
    """Do what the words say; the exit code. What is wrong with them exits with 2."""
    options = parse(sys.argv[1:] if words is None else words)
    if options.verb != "run":  # whoever has closed them wants to hear nothing
        fill_standard_descriptors()
        sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    try:
        return _do(options)
    except PreforkError as error:
        # Of a boot that failed in the foreground the log has the traceback already.
        told = isinstance(error, BootError) and not options.values.get("daemon")
        report = "" if told else getattr(error, "report", "")
        with unhindered():  # what this command started must end, whoever reads of it
            # Each line is indented: a worker's report may be another user's.
            sys.stderr.write(f"{one_record(chr(10) + report)[1:]}\n" if report else "")
            sys.stderr.write(f"{PROG}: {printable(str(error))}\n")
        return exit_code(error)
    except BrokenPipeError:  # whoever read what we say has heard enough
        if options.verb == "run":
            raise  # the program's own
        os.dup2(null(), 1)  # else the last flush would fail, too
        return 1
    except KeyboardInterrupt:
        if options.verb == "run":
            raise  # the program's own
        # Before the server heard signals itself, or told twice; of the others it ends the wait.
        return 0 if options.verb in ("serve", "status") else 1


def exit_code(error: PreforkError) -> int:
    # What a daemon could not do comes as text.
    if isinstance(error, BootError) and str(error).startswith("already running: "):
        return _RUNNING
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), 1)


def _do(options: Options) -> int:
    if options.verb == "serve":
        from .serve import serve

        serve(options)
        return 0
    if options.verb == "run":
        from .program import run

        run(options)
        return 0
    if options.verb in ("status", "stacks"):
        from .look import look

        return look(options)
    from .control import control

    return control(options)
