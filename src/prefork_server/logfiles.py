"""The log: it is not silent, and it is the program's own where the program has one."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

LOGGER = "prefork_server"
_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s"


def logger_named(logger: logging.Logger | None) -> logging.Logger:
    return logger or logging.getLogger(LOGGER)


@contextmanager
def speaking(logger: logging.Logger) -> Iterator[None]:
    """Have the log go somewhere: to stderr, if nobody has configured logging.

    A server that is silent when it kills is of no use. A program that has a handler,
    here or at a parent, sees no change; and when the server is over nothing remains.
    """
    if logger.hasHandlers():
        yield
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT, "%H:%M:%S"))
    level = logger.level
    if level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
