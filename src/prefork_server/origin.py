"""The command, the environment and the directory that this process was started with.

They are copied when the package is imported. Later the program may have changed them, or the
right to look at them: a process title is written over the environment in memory, another user
may not read it. A name is kept as it was given: a link on the way may lead elsewhere by the time
it is used again.
"""

import os
import sys

VARIABLE = "PREFORK_SERVER_UPGRADE"  # by which a predecessor says what it hands over
_LINE = 256  # bytes of a ``#!`` line that the kernel reads


def directory() -> str:
    """The working directory, by the name in PWD where that leads there. Raises OSError."""
    here, named = os.getcwd(), os.environ.get("PWD", "")
    try:
        return named if named[:1] == "/" and os.path.samefile(here, named) else here
    except OSError:
        return here


def _environment() -> dict[str, str]:
    """The variables of the start, without what the program has added or removed since.

    Where the kernel's view of them was written over, or cannot be read, they are those of now.
    """
    try:
        with open("/proc/self/environ", "rb") as file:
            items = file.read().split(b"\0")[:-1]
    except OSError:
        items = []
    if not items or any(item.find(b"=") < 1 for item in items):
        return dict(os.environ)
    pairs = (item.partition(b"=") for item in items)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def _command() -> tuple[str, list[str]]:
    """The file to execute for the same program anew, and its arguments.

    That is the script, where its ``#!`` line has chosen this interpreter: by then it may choose
    another one. Else it is the interpreter, by a relative path if it was started so.
    """
    words = list(sys.orig_argv)
    for count in (1, 2):  # the kernel puts the interpreter, and one argument, before the script
        if _is_made_by_script(words, count):
            return words[count], words[count:]
    program = sys.executable
    try:
        if os.sep in words[0] and os.path.samefile(words[0], program):
            program = words[0]
    except (OSError, IndexError):
        pass  # it is not what was executed, but only called so
    return program, words


def _is_made_by_script(words: list[str], count: int) -> bool:
    """Whether the first ``count`` words come from the ``#!`` line of the file after them, or, by
    ``exec`` in a line below it, from a shell script that is a Python program, too."""
    script = words[count] if len(words) > count else ""
    # Not what the words name otherwise: for ``-m app`` a file "app" or "-m" in the directory may
    # be another user's, and an argument of the script may be a script, too.
    if script[:1] in ("", "-") or sys.argv[:1] != [script]:
        return False
    if not os.path.isfile(script) or not os.access(script, os.X_OK):
        return False
    try:
        with open(script, "rb") as file:
            line = file.readline(_LINE)
    except OSError:
        return False
    made = [os.fsdecode(word) for word in line[2:].strip().split(None, 1)]
    shell = bool(made) and made[0].endswith("sh")
    return line[:2] == b"#!" and (shell or made == words[:count])


COMMAND = _command()
ENVIRONMENT = _environment()
try:
    DIRECTORY = directory()
except OSError:
    DIRECTORY = ""  # it was removed already
