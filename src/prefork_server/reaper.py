"""Which of the children of this process are gone, how they ended, and what they had used."""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from resource import struct_rusage

Used: TypeAlias = "struct_rusage | None"


def reaped(pids: Collection[int], as_init: bool) -> Iterator[tuple[int, int | None, Used]]:
    """Those of ``pids`` that are gone, with their exit codes, and what they had used; None:
    somebody else reaped it.

    ``as_init``: every orphan of the container becomes a child of process 1, and is told of
    as well. Elsewhere nobody's child is touched but ours.
    """
    if as_init:
        with suppress(ChildProcessError):
            while (found := os.wait4(-1, os.WNOHANG))[0]:
                yield found[0], os.waitstatus_to_exitcode(found[1]), found[2]
    for pid in list(pids):
        try:
            gone, status, used = os.wait4(pid, os.WNOHANG)
        except ChildProcessError:
            yield pid, None, None
        else:
            if gone:
                yield pid, os.waitstatus_to_exitcode(status), used
