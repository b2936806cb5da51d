"""Preforker: run any work function in supervised worker processes."""

import logging
from collections.abc import Callable, Sequence
from typing import Unpack

from .job import Hooks, Job, nothing
from .listeners import AddressLike, Listener, listen, parse_all
from .logfiles import logger_named, speaking
from .master import Master
from .pool import Death
from .remote import Remote
from .settings import Settings, SettingsKeywords, settle
from .worker import MasterHandle


class Preforker:
    """Keep ``workers`` processes running ``work(master)``, and replace those that end.

    What stands before it runs once, in the master; the beginning of ``work`` runs
    once in each worker. It must ask ``master.wants_me_alive()``, or call
    ``master.wait()``, at least once every ``timeout`` seconds (5 by default), or be
    killed and replaced. When that is False the code after its loop runs, and the
    worker ends; on TERM and INT nothing more of it runs.

    ``listen`` is an address or a list of them (``"127.0.0.1:9000"``, ``"[::1]:0"``,
    ``"unix:/run/x.sock"``), bound by ``run()`` before the first fork, for
    ``master.connections()``. The hooks are described in ``Hooks``, the other
    keywords in ``Settings``. Raises ConfigError.
    """

    def __init__(
        self,
        work: Callable[[MasterHandle], object],
        *,
        listen: AddressLike | list[AddressLike] | None = None,
        logger: logging.Logger | None = None,
        settings: Settings | None = None,
        before_fork: Callable[[], object] = nothing,
        after_fork: Callable[[MasterHandle], object] = nothing,
        ready: Callable[[Sequence[str]], object] = nothing,
        after_worker_exit: Callable[[Death], object] = nothing,
        **keywords: Unpack[SettingsKeywords],
    ) -> None:
        self.settings = settle(settings, keywords, timeout=5.0)
        self._addresses = () if listen is None else parse_all(listen)
        self._work = work
        self._logger = logger_named(logger)
        self._hooks = Hooks(before_fork, after_fork, ready, after_worker_exit)
        self._remote = Remote()

    def run(self) -> None:
        """Serve, in the foreground, until a signal or ``shutdown()`` ends it.

        Returns when every worker is gone. Raises BindError if an address cannot be
        listened on, BootError if no worker of the first generation gets ready. Off
        the main thread it hears no signals.
        """
        listeners: list[Listener] = []
        with self._remote.running(), speaking(self._logger):
            try:
                for address in self._addresses:
                    listeners.append(listen(address))  # noqa: PERF401 - those before are closed
                job = Job(
                    settings=self.settings,
                    app_name=self.settings.app_name or "preforker",
                    logger=self._logger,
                    work=self._work,
                    listeners=listeners,
                    hooks=self._hooks,
                )
                Master(job, self._remote).run()
            finally:
                for listener in listeners:
                    listener.close()

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait, in another thread than ``run()``, until the first worker is ready.

        False if the time (seconds) is over, or the server ended, before.
        """
        return self._remote.wait_ready(timeout)

    def shutdown(self) -> None:
        """Stop gracefully, from any thread; returns when ``run()`` is about to.

        In a worker it asks the master to stop everything, and returns at once.
        """
        self._remote.shut_down()
