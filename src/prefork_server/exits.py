"""Exit functions of a fork that ends by ``os._exit``: atexit, multiprocessing, weakref, logging.

Such a process runs none by itself, since those of its parent are registered in it, too. Here those
are run that were registered in the process itself, since its fork, in the order of a normal end.
Threads that the program has started are not waited for.
"""

import atexit
import logging
import os
import sys
import threading
import weakref
from typing import Any, Final, NoReturn

from .output import flush_streams

_REGISTERED: Final = "_registered_with_atexit"  # by ``weakref.finalize``, once in a process

_begun_by = 0  # the process that has called ``begin``
_status = 0


def begin() -> None:
    """Right after a fork: from here on what is registered is this process's own."""
    global _begun_by
    _begun_by = os.getpid()
    finalizers: Any = weakref.finalize
    for each in list(finalizers._registry):
        each.atexit = False
    setattr(finalizers, _REGISTERED, False)
    if processes := sys.modules.get("multiprocessing.process"):
        processes._children.clear()  # they are the parent's, which waits for them
    if handlers := sys.modules.get("logging.handlers"):
        for reference in logging._handlerList.copy():  # type: ignore[attr-defined]
            handler = reference()
            if isinstance(handler, handlers.BufferingHandler):
                handler.buffer.clear()  # the parent writes these records
    # The functions are called in the reverse order, so when it is the turn of this one, those of
    # the parent are left. (To remove those would finalize what they alone keep alive.)
    atexit.register(_be_last)


def end(status: int) -> NoReturn:
    """Run the exit functions, if ``begin`` was called in this process, and leave. They may hang:
    the caller has to limit the time."""
    global _status
    _status = status
    try:
        if _begun_by == os.getpid():
            for call in reversed(getattr(threading, "_threading_atexits", ())):
                _run(call)  # of concurrent.futures: ends its threads and processes
            atexit._run_exitfuncs()
    finally:
        flush_streams()
        os._exit(status)


def _be_last() -> None:
    if _begun_by != os.getpid():
        return  # a fork of the program's
    try:
        if multiprocessing := sys.modules.get("multiprocessing.util"):
            _run(multiprocessing._exit_function)  # its modules may be older than the fork
        _run(logging.shutdown)
        flush_streams()
    finally:
        os._exit(_status)


def _run(call: Any) -> None:
    try:
        call()
    except BaseException:  # code of the program: as the interpreter does it, tell and go on
        sys.excepthook(*sys.exc_info())
