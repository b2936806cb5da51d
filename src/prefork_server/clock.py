"""The monotonic clock, out of reach of a test that freezes the time.

A deadline that never comes would keep a server from its stop. What freezes the time replaces the
functions of ``time``, and attributes of modules that are these: so they are kept in a class.
"""

import time


class Clock:
    monotonic = time.monotonic
    monotonic_ns = time.monotonic_ns
