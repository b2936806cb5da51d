"""The monotonic clock, out of reach of a test that freezes the time.

A deadline that never comes would keep a server from its stop. What freezes the time replaces the
functions of ``time``, and attributes of modules that are these: so they are kept in a class.
"""

import time
from collections.abc import Callable
from typing import ClassVar


class Clock:
    monotonic: ClassVar[Callable[[], float]] = time.monotonic
    monotonic_ns: ClassVar[Callable[[], int]] = time.monotonic_ns
