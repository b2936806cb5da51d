"""Preforked servers whose workers run an event loop each, with many connections at once.

The master is the one of all doors: it binds, forks, watches and replaces. It never makes or
touches a loop; each worker makes its own, after the fork.
"""

from .handle import AsyncMasterHandle
from .server import PreforkAsyncioServer, run_asyncio

__all__ = ["AsyncMasterHandle", "PreforkAsyncioServer", "run_asyncio"]
