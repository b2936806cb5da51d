"""Run a job: in the foreground, as a daemon, or inline. What all front rooms do alike."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

from .daemon import daemonize, go_on
from .errors import BindError, ConfigError, refusals_told
from .forks import shared_with_forks
from .imports import load
from .inheritance import inheritance
from .inline import run_inline
from .job import NO_SERVICE, Hooks, Job, Service, nothing
from .journal import Journal
from .listeners import Listener
from .logfiles import (
    fill_standard_descriptors,
    give_away,
    guarded,
    outlives_the_terminal,
    redirected,
    speaking,
)
from .master import Master
from .output import unhindered
from .pidfile import Claim, claimed
from .privileges import Identity, identity_of
from .remote import Remote
from .settings import Settings, file_name, settle
from .signals import end_within
from .worker.master_handle import MasterHandle


def no_service() -> AbstractContextManager[Service]:
    return nullcontext(NO_SERVICE)


def _owners(identity: Identity | None) -> tuple[int, ...]:
    """Users, besides root and this process's, that a file of the log may belong to."""
    return () if identity is None or identity.uid is None else (identity.uid,)


@dataclass(frozen=True)
class Launch:
    """``listening`` and ``service`` are entered when all else is right: they bind what is not
    bound yet. Inline there is no service."""

    settings: Settings
    app_name: str
    logger: logging.Logger
    remote: Remote
    work: Callable[[MasterHandle], object]
    hooks: Hooks
    listening: Callable[[], AbstractContextManager[Sequence[Listener]]]
    service: Callable[[], AbstractContextManager[Service]] = no_service
    daemon: bool = False
    renew: Callable[[], object] = nothing

    def run(self) -> None:
        """Returns when everybody is gone."""
        settings = self.settings
        on_main_thread = threading.current_thread() is threading.main_thread()
        pid_path = settings.pid_path if on_main_thread and not settings.inline else None
        identity = identity_of(settings)
        owners = _owners(identity)
        fill_standard_descriptors()
        with (
            self.remote.running(),
            self._refusals_told(),
            unhindered(),
            redirected(settings.stdout_path, settings.stderr_path, owners),
            speaking(self.logger, settings.log_path, owners),
            self._last_words(),
            guarded(owners),
            claimed(pid_path) as claim,
            self.listening() as listeners,
            (no_service if settings.inline else self._beside)() as service,
        ):
            if identity:
                self._hand_over(identity, [*listeners, *service.listeners])
            job = Job(
                settings=settings,
                app_name=self.app_name,
                logger=self.logger,
                work=self.work,
                listeners=listeners,
                hooks=self.hooks,
                identity=identity,
                service=service,
                renew=lambda: self._renew(claim, [*listeners, *service.listeners], identity),
            )
            load()
            if settings.inline:
                run_inline(job, self.remote)
            else:
                with shared_with_forks(settings.gc_freeze and on_main_thread):
                    Master(job, self.remote, claim).run()

    @contextmanager
    def _refusals_told(self) -> Iterator[None]:
        """Until it is ready. What fails after that has its traceback, and so has what fails
        inline, where the program's own code may have raised it."""
        try:
            yield
        except OSError:
            if self.settings.inline or self.remote.wait_ready(0):
                raise
            with refusals_told():
                raise

    def _beside(self) -> AbstractContextManager[Service]:
        if self.settings.status is None:
            return self.service()
        from .status import listening

        return listening(self.settings, self.app_name)

    def _renew(
        self, claim: Claim, listeners: Sequence[Listener], identity: Identity | None
    ) -> None:
        """Before a new generation: what one may have lost, or would rather read anew."""
        try:
            for listener in listeners:
                self._renew_path(listener, identity)
            self.renew()
        finally:
            claim.renew()

    def _renew_path(self, listener: Listener, identity: Identity | None) -> None:
        journal = Journal(self.logger, os.getpid())
        try:
            if listener.renew():
                if identity:
                    listener.give_to(identity.uid, identity.gid)
                message = "the path of %s was removed, and is there again"
                journal.say(logging.WARNING, "bound_again", None, message, listener.address)
        except BindError as error:
            message = "the path was removed, and nobody finds us there: %s"
            journal.say(logging.ERROR, "path_lost", None, message, error)

    def _hand_over(self, identity: Identity, listeners: Sequence[Listener]) -> None:
        """Give the workers what they may have to open again, and their clients the way in."""
        for listener in listeners:
            listener.give_to(identity.uid, identity.gid)
        settings = self.settings
        for name in ("log_path", "stdout_path", "stderr_path"):
            path = getattr(settings, name)
            if path is not None:
                give_away(path, name, identity.own, _owners(identity))
        if identity.umask is not None and not identity.umask & 0o002:
            journal = Journal(self.logger, os.getpid())
            message = "umask %#o lets everybody write to what the workers make"
            journal.say(logging.WARNING, "umask", None, message, identity.umask)

    @contextmanager
    def _last_words(self) -> Iterator[None]:
        """Before it is ready the launcher hears why a daemon dies, or the predecessor; after
        that only the log can."""
        try:
            yield
        except BaseException as error:
            successor = inheritance().is_successor()
            inheritance().fail(f"{type(error).__name__}: {error}")
            if self.daemon and (successor or self.remote.wait_ready(0)):
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
            try:
                launch.run()
            finally:
                end_within(self.settings.graceful_timeout)  # exit functions of the program follow

        fill_standard_descriptors()
        Journal(self.logger, os.getpid()).warn_of_threads()
        if inheritance().is_successor():
            go_on(serve)
        with refusals_told():
            pid, addresses = daemonize(serve)
        self.remote.handed_over(addresses)
        return pid
