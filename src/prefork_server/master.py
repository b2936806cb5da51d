"""The master process: forks the workers, watches them, and hears the signals.

It accepts no connection, starts no thread, and runs no code of the user after the
first fork but hooks and logging handlers. What should be done is decided in
``pool``; here it is done.
"""

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from .acceptor import Relay
from .bulletin import Bulletin
from .errors import BootError
from .forks import drop, fork, keep_from_forks
from .handle import Shared
from .inheritance import inheritance
from .job import Job
from .journal import Journal
from .logfiles import flush_streams
from .pidfile import Claim
from .plan import Death, Plan, WorkerHandle
from .pool import Pool
from .reaper import Used, reaped
from .reasons import company, why_killed, why_retired
from .remote import Remote
from .reports import Reports
from .rotation import Rotation
from .scoreboard import FORKS, LEFT, SECOND, SERVING, SINCE, STATE, WANTED, Scoreboard, in_ns
from .settings import MAX_WORKERS
from .signals import WHERE, Inbox, all_blocked
from .systemd import Notifier
from .terminal import Terminal, is_ours
from .titles import Title
from .upgrade import Upgrade
from .worker import become_worker

HEARD = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTERM,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGWINCH,
)


class Master:
    """One run of a job: ``run`` returns when it was told to stop and every worker is gone."""

    def __init__(self, job: Job, remote: Remote, claim: Claim) -> None:
        self._job = job
        self._gently = job.settings.term == "graceful"
        self._remote = remote
        self._claim = claim
        self._pid = os.getpid()
        self._board = Scoreboard(2 * MAX_WORKERS)
        self._pool = Pool(job.settings, self._board, os.cpu_count() or 1, random.random)
        self._inbox = Inbox()
        self._relay = Relay()
        self._reports = Reports()
        self._title = Title(job.app_name)
        self._terminal = Terminal()
        self._on_main_thread = threading.current_thread() is threading.main_thread()
        # On another it is the program that is the service, and not we.
        self._notifier = Notifier(os.environ if self._on_main_thread else {})
        self._journal = Journal(job.logger, self._pid, self._notifier)
        self._say = self._journal.say
        self._bulletin = Bulletin(self._board, job.listeners)
        self._rotation = Rotation(self._board, self._journal)
        boot_ns = in_ns(job.settings.boot_timeout)
        self._upgrade = Upgrade(boot_ns, job.listeners, claim, self._journal, self._board)
        self._life, self._lifeline = os.pipe()
        keep_from_forks(self._lifeline)  # who had it would keep orphans from knowing
        self._pidfds: dict[int, int] = {}
        self._last_death: Death | None = None
        timeout_ns = in_ns(job.settings.timeout or 1.0)
        self._tick_ns = min(SECOND, timeout_ns // 2, self._notifier.period_ns)
        self._seen_ns = self._awake_since_ns = time.monotonic_ns()
        self._announced = self._warned = False

    def __repr__(self) -> str:
        workers = list(self._pool)
        busy = sum(1 for w in workers if self._board.get(w.slot, SINCE))
        retiring = sum(1 for w in workers if w.retiring)
        return (
            f"<Master pid={os.getpid()}: {len(workers)} workers, {busy} busy, "
            f"{retiring} retiring, generation {self._pool.generation}>"
        )

    def run(self) -> None:
        """Raises BootError if no worker of the first generation gets ready."""
        try:
            for listener in self._job.listeners:
                listener.serve()
            with self._remote.ringing(self._inbox.bell, self._board), self._inbox.hearing(HEARD):
                if self._on_main_thread:
                    self._title.show("master")
                try:
                    self._supervise()
                finally:
                    with all_blocked():  # a handler of the program's may have brought us here
                        self._leave_nobody()
                        self._claim.remove()  # while signals are still ours
        finally:
            self._release()

    def _supervise(self) -> None:
        while True:
            now_ns = self._now()
            self._reap(now_ns)
            self._rotation.look(self._pool)
            if self._upgrade.look(now_ns):
                self._pool.hand_over()
                self._board.set(0, STATE, LEFT)
            if self._is_done():
                return
            self._board.set(0, WANTED, self._pool.wanted)
            self._bulletin.tell(now_ns)
            self._notifier.pulse(now_ns, self._status)
            plan = self._pool.plan(now_ns, self._awake_since_ns)
            self._carry_out(plan, now_ns)
            for signum in self._inbox.wait(self._nap(plan)):
                self._obey(signum)

    def _status(self) -> str:
        busy = sum(1 for worker in self._pool if self._board.get(worker.slot, SINCE))
        return f"{busy}/{len(self._pool)} workers busy, generation {self._pool.generation}"

    def _now(self) -> int:
        """The time. Notices when we were asleep against our will, with the workers or without.

        What they should have said meanwhile we could not hear, and they perhaps not say.
        """
        now_ns = time.monotonic_ns()
        if now_ns - self._seen_ns > self._tick_ns * 5 // 4 + SECOND // 20:
            self._awake_since_ns = now_ns
            self._pool.overslept(now_ns - self._seen_ns)
        self._seen_ns = now_ns
        self._terminal.look(now_ns)
        return now_ns

    def _nap(self, plan: Plan) -> float:
        return max(0, min(plan.wake_ns - time.monotonic_ns(), self._tick_ns)) / SECOND

    # Reap

    def _reap(self, now_ns: int) -> None:
        for worker, status, used in self._dead():
            report = self._reports.take(worker.slot)
            again = self._tried_again(worker, now_ns)
            death = self._pool.died(worker, status, report, now_ns)
            if used:
                cpu, memory = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
                death = replace(death, cpu=cpu, memory=memory)
            self._bulletin.tell_death(death, now_ns)
            self._forget(worker)
            # It may have been woken for a connection that it did not live to take.
            self._relay.wake_one()
            self._journal.death(worker, death, again)
            self._last_death = death
            self._run_hook("after_worker_exit", death)

    def _tried_again(self, worker: WorkerHandle, now_ns: int) -> bool:
        """Whether it was another try of a reload that has failed: its failure is no news."""
        return self._pool.reload_failed and self._pool.serves_on(worker, now_ns) > 0

    def _forget(self, worker: WorkerHandle) -> None:
        pidfd = self._pidfds.pop(worker.pid, None)
        if pidfd is not None:
            # A fork of ours, a hook's for instance, may hold it too, and would keep it watched.
            self._inbox.unwatch(pidfd)
            os.close(pidfd)

    def _dead(self) -> Iterator[tuple[WorkerHandle, int | None, Used]]:
        """The workers that are gone, with their exit codes, and what they used; None: somebody
        else reaped it."""
        workers = {worker.pid: worker for worker in self._pool}
        for pid, status, used in reaped(workers, as_init=self._pid == 1 and self._on_main_thread):
            if worker := workers.pop(pid, None):
                yield worker, status, used
            elif status is not None:
                self._say(logging.DEBUG, "stranger", None, "reaped a stranger, pid=%d", pid)

    def _is_done(self) -> bool:
        """Whether nothing is left to do. Raises BootError if that is because nothing works."""
        if self._pool.first_generation_failed() and self._last_death:
            report = self._last_death.report
            last = report.rstrip().rpartition("\n")[2]  # of a traceback the error, of a stack ...
            cause = last if last and not last.startswith(" ") else self._last_death
            message = f"no worker of the first generation could boot, giving up: {cause}"
            raise BootError(message, report)
        if self._remote.stop_asked or self._pool.stop_asked():
            self._stop("shutdown() was called", hurry=False)
        if self._pool.stopping:
            if not len(self._pool):
                self._say(logging.INFO, "stopped", None, "stopped")
            return not len(self._pool)
        if self._pool.any_ready() and not self._announced:
            self._announce()
        return False

    def _announce(self) -> None:
        self._announced = True
        self._board.set(0, STATE, SERVING)  # first: who reads of it in the log may ask at once
        addresses = [listener.address for listener in self._job.listeners]
        self._journal.ready(addresses)
        if inheritance().is_successor():
            inheritance().be_ready()
            self._claim.write()
        self._run_hook("ready", addresses)
        self._remote.is_ready(addresses)

    # Carry out

    def _carry_out(self, plan: Plan, now_ns: int) -> None:
        if plan.reload:
            self._reload()
        for worker in plan.suspect:
            self._pool.suspected(worker, now_ns)
            self._reports.take(worker.slot)  # from an earlier suspicion it may have outlived
            self._signal(worker, WHERE)
        for worker in plan.kill:
            self._pool.killed(worker)
            worker.why = why_killed(self._pool, worker, now_ns)
            self._journal.kill(
                worker,
                worker.why,
                company(self._pool, worker, now_ns),
                self._reports.read(worker.slot),
                self._tried_again(worker, now_ns),
            )
            self._signal(worker, signal.SIGKILL)
        for worker in plan.end:
            self._pool.told_to_end(worker, now_ns)
            if self._gently:  # workers hear TERM as QUIT: this is not meant
                self._pool.killed(worker)
            self._signal(worker, signal.SIGKILL if self._gently else signal.SIGTERM)
        for worker in plan.retire:
            if not self._pool.stopping:
                worker.why = why_retired(self._pool, worker)
                self._say(logging.INFO, "retiring", worker, "%s, retiring", worker.why)
            self._pool.told_to_retire(worker, now_ns)
            # The scoreboard says what is wanted of it; this only wakes it up.
            self._signal(worker, signal.SIGQUIT)
        for slot in plan.fork:
            if not self._fork(slot):
                break
        if plan.serves:
            self._pool.settled()
            self._say(logging.INFO, "reloaded", None, "generation %d serves", self._pool.generation)

    def _reload(self) -> None:
        self._journal.run_hook("renew", self._job.renew)
        self._pool.reloaded()
        count, generation = sum(not w.retiring for w in self._pool), self._pool.generation
        message = "SIGHUP: reloading %d workers, generation %d"
        self._say(logging.INFO, "reloading", None, message, count, generation)

    def _signal(self, worker: WorkerHandle, signum: int) -> None:
        with suppress(ProcessLookupError):  # it died first: _reap will find it
            if worker.pid in self._pidfds:
                signal.pidfd_send_signal(self._pidfds[worker.pid], signum)
            else:
                os.kill(worker.pid, signum)

    def _fork(self, slot: int) -> bool:
        """Whether the system let us."""
        self._run_hook("before_fork")
        self._warned = self._warned or self._journal.warn_of_threads()
        flush_streams()  # what is in a buffer now would be written by every worker
        forked_ns = time.monotonic_ns()
        self._board.clear(slot, forked_ns + in_ns(self._job.settings.boot_timeout))
        # Until it has handlers of its own, a new worker would answer a signal by
        # ringing our bell, which it shares. So none may reach it yet. And it is known
        # before any handler of the program's can run here, and raise.
        with all_blocked() as mask:
            try:
                pid = fork()
            except OSError as error:
                refusal = error.strerror
            else:
                refusal = None
                if pid == 0:
                    self._become(slot, mask)
                worker = self._pool.forked(slot, pid, forked_ns)
                self._board.add(FORKS, 1)
        if refusal:
            delay = self._pool.fork_failed(forked_ns)
            message = "cannot fork: %s, trying again in %.1fs"
            self._say(logging.ERROR, "fork_failed", None, message, refusal, delay)
            return False
        with suppress(OSError):  # an old kernel, or no descriptors left: a tick finds out, too
            pidfd = os.pidfd_open(pid)
            self._pidfds[pid] = pidfd
            self._inbox.watch(pidfd)
        self._say(logging.INFO, "forked", worker, "forked")
        return True

    def _become(self, slot: int, mask: set[int]) -> None:
        """In the fork: let go of what is the master's, and never come back."""
        try:
            self._inbox.leave_to_master()
            for fd in self._pidfds.values():
                os.close(fd)
            shared = Shared(
                self._board,
                self._reports,
                self._relay,
                self._inbox.bell,
                self._title,
                self._life,
                self._pid,
                self._pool.generation,
            )
            become_worker(slot, self._job, shared, mask)
        finally:
            os._exit(1)

    # Obey

    def _obey(self, signum: int) -> None:
        pool = self._pool
        match signum:
            case signal.SIGTTIN if not pool.stopping:
                pool.wanted = min(MAX_WORKERS, pool.wanted + 1)
            case signal.SIGTTOU:
                pool.wanted = max(0, pool.wanted - 1)
            case signal.SIGWINCH if not is_ours():
                pool.wanted = 0
            case signal.SIGUSR1:
                self._rotation.begin()
                for worker in pool:
                    self._signal(worker, signal.SIGUSR1)
            case signal.SIGUSR2:
                self._upgrade.begin(time.monotonic_ns(), self._announced and not pool.stopping)
            case signal.SIGHUP if not self._terminal.was_closed(time.monotonic_ns()):
                pool.reload_asked = True
            case signal.SIGTERM if self._gently and not pool.stopping:
                self._stop("SIGTERM", hurry=False)
            case signal.SIGQUIT | signal.SIGHUP:
                self._stop(signal.Signals(signum).name, hurry=False)
            case signal.SIGTERM | signal.SIGINT:
                self._stop(signal.Signals(signum).name, hurry=True)

    def _stop(self, reason: str, hurry: bool) -> None:
        if not self._pool.stopping or (hurry and not self._pool.hurried):
            how = "now" if hurry else "gracefully"
            count = len(self._pool)
            self._say(
                logging.INFO, "stopping", None, "%s: stopping %d workers %s", reason, count, how
            )
        ajar = False
        self._upgrade.end(hurry)
        if not self._pool.stopping:
            # First the door, then the workers: who is inside is served, and who comes
            # later is refused. They hold the last descriptors, and close them when done.
            for listener in self._job.listeners:
                ajar = not listener.shut_the_door() or ajar
                listener.close()
        self._pool.stop(hurry, ajar)

    # The end

    def _leave_nobody(self) -> None:
        """After an error of our own: no worker may be left that nobody looks after."""
        for worker in self._pool:
            self._pool.killed(worker)
            self._signal(worker, signal.SIGKILL)
        while len(self._pool):
            for worker, status, _ in self._dead():
                self._pool.died(worker, status, "", time.monotonic_ns())
                self._forget(worker)
            self._inbox.wait(0.01)

    def _release(self) -> None:
        self._title.restore()
        self._upgrade.close()
        os.close(self._life)
        drop(self._lifeline)
        self._inbox.close()
        self._relay.close()
        self._reports.close()
        self._board.close()

    def _run_hook(self, name: str, *args: Any) -> None:
        self._journal.run_hook(name, getattr(self._job.hooks, name), *args)
