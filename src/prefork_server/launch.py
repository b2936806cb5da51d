"""Run a job: in the foreground, as a daemon, or inline. What all front rooms do alike."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

from .daemon import daemonize
from .errors import ConfigError
from .handle import MasterHandle
from .inline import run_inline
from .job import Hooks, Job, nothing
from .journal import Journal
from .listeners import Listener
from .logfiles import fill_standard_descriptors, outlives_the_terminal, redirected, speaking
from .master import Master
from .pidfile import claimed
from .remote import Remote
from .settings import Settings, file_name, settle


@dataclass(frozen=True)
class Launch:
    """``listening`` is entered when all else is right: it binds what is not bound yet."""

    settings: Settings
    app_name: str
    logger: logging.Logger
    remote: Remote
    work: Callable[[MasterHandle], object]
    hooks: Hooks
    listening: Callable[[], AbstractContextManager[Sequence[Listener]]]
    daemon: bool = False
    renew: Callable[[], object] = nothing

    def run(self) -> None:
        """Returns when everybody is gone."""
        settings = self.settings
        on_main_thread = threading.current_thread() is threading.main_thread()
        pid_path = settings.pid_path if on_main_thread and not settings.inline else None
        fill_standard_descriptors()
        with (
            self.remote.running(),
            redirected(settings.stdout_path, settings.stderr_path),
            speaking(self.logger, settings.log_path),
            self._last_words(),
            claimed(pid_path) as unclaim,
            self.listening() as listeners,
        ):
            job = Job(
                settings, self.app_name, self.logger, self.work, listeners, self.hooks, self.renew
            )
            if settings.inline:
                run_inline(job, self.remote)
            else:
                Master(job, self.remote).run(unclaim)

    @contextmanager
    def _last_words(self) -> Iterator[None]:
        """Before it is ready the launcher hears why a daemon dies; after that only the log can."""
        try:
            yield
        except BaseException:
            if self.daemon and self.remote.wait_ready(0):
                journal = Journal(self.logger, os.getpid())
                journal.say(logging.ERROR, "died", None, "died", exc_info=True)
            raise

    def start(self) -> int:
        """The same in a daemon; returns its pid when its first worker is ready."""
        if self.settings.inline:
            raise ConfigError("inline=True is for the foreground, and start() makes a daemon")
        if threading.current_thread() is not threading.main_thread():
            raise ConfigError("start() is for the main thread: its fork has no other")
        defaults = {"stdout_path": os.devnull, "stderr_path": os.devnull}
        paths = {1: self.settings.stdout_path, 2: self.settings.stderr_path}
        kept = [fd for fd, path in paths.items() if path not in (None, os.devnull)]
        if not outlives_the_terminal(self.logger, kept):
            defaults["log_path"] = file_name(self.app_name, ".log")
        launch = replace(self, settings=settle(self.settings, {}, **defaults), daemon=True)

        def serve(ready: Callable[..., None]) -> None:
            self.remote.when_ready = lambda addresses: ready(*addresses)
            launch.run()

        fill_standard_descriptors()
        Journal(self.logger, os.getpid()).warn_of_threads()
        pid, addresses = daemonize(serve)
        self.remote.handed_over(addresses)
        return pid
