"""Preforker: run any work function in supervised worker processes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Unpack

from .calls import check_call
from .errors import ConfigError
from .imports import load
from .job import Hooks, nothing
from .launch import Launch
from .listeners import Addresses, Listener, check_status_address, listen, parse_all
from .logfiles import logger_named
from .plan import Death
from .remote import Remote
from .settings import Settings, SettingsKeywords, file_name, settle
from .worker.master_handle import MasterHandle
from .worker.threads import WORKS, check_threads

if TYPE_CHECKING:
    from .stats import Stats


class Preforker:
    """Keep ``workers`` processes running ``work(master)``, and replace those that end.

    What stands before it runs once, in the master; the beginning of ``work`` runs
    once in each worker. It must ask ``master.wants_me_alive()``, or call
    ``master.wait()``, at least once every ``timeout`` seconds (5 by default), or be
    killed and replaced. When that is False the code after its loop runs, and the
    worker ends; on TERM and INT nothing more of it runs.

    ``listen`` is an address or a list of them (``"127.0.0.1:9000"``, ``"[::1]:0"``,
    ``"unix:/run/x.sock"``), bound by ``run()`` before the first fork, for
    ``master.connections()``. ``"[::]:9000"`` takes IPv4 clients, too, unless an IPv4
    address of that port is in the list. ``pid_path`` is ``./preforker.pid`` unless it, or
    ``app_name``, says otherwise. The hooks are described in ``Hooks``, the other
    keywords in ``Settings``. Raises ConfigError.
    """

    def __init__(
        self,
        work: Callable[[MasterHandle], object],
        *,
        listen: Addresses | None = None,
        logger: logging.Logger | None = None,
        settings: Settings | None = None,
        before_fork: Callable[[], object] = nothing,
        after_fork: Callable[[MasterHandle], object] = nothing,
        ready: Callable[[Sequence[str]], object] = nothing,
        after_worker_exit: Callable[[Death], object] = nothing,
        before_exit: Callable[[MasterHandle], object] = nothing,
        **keywords: Unpack[SettingsKeywords],
    ) -> None:
        check_call("work", work, "master", "a coroutine function is for run_asyncio()")
        settled = settle(settings, keywords, timeout=5.0)
        check_threads(WORKS, settled)
        load()  # now: the program may change its root directory before it serves
        if logger is not None and settled.log_path is not None:
            raise ConfigError("log_path is the file of our own logger: give it, or logger")
        name = settled.app_name or "preforker"
        self.settings: Settings = settle(settled, {}, pid_path=file_name(name, ".pid"))
        self._addresses = () if listen is None else parse_all(listen)
        check_status_address(settled.status, self._addresses)
        self._remote = Remote()
        self._launch = Launch(
            settings=self.settings,
            app_name=name,
            logger=logger_named(logger),
            remote=self._remote,
            work=work,
            hooks=Hooks(before_fork, after_fork, ready, after_worker_exit, before_exit),
            listening=self._listening,
        )

    def run(self) -> None:
        """Serve, in the foreground, until a signal or ``shutdown()`` ends it.

        Returns when every worker is gone. Raises ConfigError for a path that cannot be
        written, BindError if an address cannot be listened on, BootError if another
        process has the pid file, or no worker of the first generation gets ready. Off
        the main thread it hears no signals, and has no pid file.
        """
        self._launch.run()

    def start(self) -> int:
        """Serve as a daemon; return its pid when its first worker is ready.

        What it prints goes to ``/dev/null``, and its log to ``./<app_name>.log``, unless
        the settings, or the logging of the program, say otherwise. It never comes back
        here: it ends when it has served. Raises BootError, which says why, if it ends
        before it is ready. To be called in the main thread.
        """
        return self._launch.start()

    @contextmanager
    def _listening(self) -> Iterator[Sequence[Listener]]:
        listeners: list[Listener] = []
        try:
            for address in self._addresses:
                listeners.append(listen(address))  # noqa: PERF401 - those before are closed
            yield listeners
        finally:
            for listener in listeners:
                listener.close()

    @property
    def logger(self) -> logging.Logger:
        """Where it logs."""
        return self._launch.logger

    @property
    def addresses(self) -> Sequence[str]:
        """Where it listens, once it is ready: ``127.0.0.1:9000``, ``unix:/path``."""
        return self._remote.addresses

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait, in another thread than ``run()``, until the first worker is ready.

        False if the time (seconds) is over, or the server ended, before.
        """
        return self._remote.wait_ready(timeout)

    def stats(self) -> "Stats":
        """What the workers are doing, from any thread, or in a worker; after the end what they
        had done. RuntimeError before the start."""
        return self._remote.stats()

    def shutdown(self) -> None:
        """Stop gracefully, from any thread; returns when ``run()`` is about to.

        In a worker it asks the master to stop everything, and returns at once.
        """
        self._remote.shut_down()
