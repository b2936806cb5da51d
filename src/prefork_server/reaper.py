"""Which of the children of this process are gone, and how they ended."""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress


def reaped(pids: Collection[int], as_init: bool) -> Iterator[tuple[int, int | None]]:
    """Those of ``pids`` that are gone, with their exit codes; None: somebody else reaped it.

    ``as_init``: every orphan of the container becomes a child of process 1, and is told of
    as well. Elsewhere nobody's child is touched but ours.
    """
    if as_init:
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                yield found[0], os.waitstatus_to_exitcode(found[1])
    for pid in list(pids):
        try:
            gone, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            yield pid, None
        else:
            if gone:
                yield pid, os.waitstatus_to_exitcode(status)
