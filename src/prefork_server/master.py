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
from collections.abc import Iterator, Sequence
from typing import Any

from .bulletin import Bulletin
from .clock import Clock
from .errors import BootError
from .forks import drop, fork, keep_from_forks
from .inheritance import inheritance
from .job import Job
from .journal import Journal
from .listeners import Listener
from .output import flush_streams
from .pidfds import Pidfds
from .pidfile import Claim
from .plan import Death, Plan, WorkerHandle
from .pool import Pool
from .reaper import Used, reaped
from .reasons import company, why_given_up, why_killed, why_retired
from .remote import Remote
from .reports import Reports
from .rotation import Rotation
from .scoreboard import IN_HAND, LEFT, SECOND, SERVING, SINCE, STATE, Scoreboard, in_ns
from .settings import MAX_WORKERS
from .signals import HEARD, WHERE, Inbox, Relay, all_blocked
from .systemd import Notifier
from .terminal import Prints, Terminal, is_ours
from .titles import Title
from .upgrade import Upgrade
from .worker.heartbeat import Shared
from .worker.process import become_worker


class Master:
    """One run of a job: ``run`` returns when it was told to stop and every worker is gone."""

    def __init__(self, job: Job, remote: Remote, claim: Claim) -> None:
        self._job = job
        self._gently = job.settings.term == "graceful"
        self._remote = remote
        self._claim = claim
        self._pid = os.getpid()
        self._board = Scoreboard(2 * MAX_WORKERS)
        self._service_job = job.of_service()
        self._pool, self._service = (
            Pool(each.settings, self._board, os.cpu_count() or 1, random.random, service)
            for each, service in ((job, None), (self._service_job, job.service.name))
        )
        self._pools = (self._service, self._pool)  # in the order in which they are forked
        listeners = [*job.listeners, *job.service.listeners]
        self._inbox = Inbox()
        self._relay = Relay()
        self._reports = Reports()
        self._title = Title(job.app_name)
        self._terminal = Terminal()
        drops = job.identity is not None and job.identity.drops
        self._prints = Prints(self._inbox) if drops else None
        self._on_main_thread = threading.current_thread() is threading.main_thread()
        # On another it is the program that is the service, and not we.
        self._notifier = Notifier(
            os.environ if self._on_main_thread else {}, inheritance().is_awaited
        )
        self._journal = Journal(job.logger, self._pid, self._notifier)
        self._say = self._journal.say
        self._bulletin = Bulletin(self._board, job.listeners)
        self._rotation = Rotation(self._board, self._journal, job.identity)
        boot_ns, half_ns = in_ns(job.settings.boot_timeout), in_ns(job.settings.timeout or 1.0) // 2
        self._upgrade = Upgrade(boot_ns, listeners, claim, self._journal, self._board, self._inbox)
        self._life, self._lifeline = os.pipe()
        keep_from_forks(self._lifeline)  # who had it would keep orphans from knowing
        self._pidfds = Pidfds(self._inbox, self._journal)
        self._last_death: Death | None = None
        self._tick_ns = min(SECOND, half_ns, self._notifier.period_ns)
        self._seen_ns = self._awake_since_ns = Clock.monotonic_ns()
        self._announced = self._warned = False

    def __repr__(self) -> str:
        workers = list(self._pool)
        retiring = sum(1 for w in workers if w.retiring)
        return (
            f"<Master pid={os.getpid()}: {len(workers)} workers, {self._busy()} busy, "
            f"{retiring} retiring, generation {self._pool.generation}>"
        )

    def run(self) -> None:
        """Raises BootError if no worker of the first generation gets ready."""
        try:
            for listener in (*self._job.listeners, *self._job.service.listeners):
                listener.serve()
            with self._remote.ringing(self._inbox.bell, self._board), self._inbox.hearing(HEARD):
                inheritance().hears()  # before any worker of ours can have a client to lose
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
            self._rotation.look(self._everybody())
            if self._prints:
                self._prints.pass_on()
            if self._upgrade.look(now_ns, self._serves()):
                for pool in self._pools:
                    pool.hand_over()
                self._board.set(0, STATE, LEFT)
            if self._is_done():
                return
            self._pool.publish()
            self._bulletin.tell(now_ns)
            self._notifier.pulse(now_ns, self._status)
            plans = [(pool, pool.plan(now_ns, self._awake_since_ns)) for pool in self._pools]
            for pool, plan in plans:
                self._carry_out(pool, plan, now_ns)
            for signum in self._inbox.wait(self._nap(min(plan.wake_ns for _, plan in plans))):
                self._obey(signum)

    def _serves(self) -> bool:
        return self._announced and not self._pool.stopping

    def _everybody(self) -> list[WorkerHandle]:
        return [worker for pool in self._pools for worker in pool]

    def _busy(self) -> int:
        board = self._board
        return sum(any(board.get(each.slot, w) for w in (SINCE, IN_HAND)) for each in self._pool)

    def _status(self) -> str:
        return f"{self._busy()}/{len(self._pool)} workers busy, generation {self._pool.generation}"

    def _now(self) -> int:
        """The time. Notices when we were asleep against our will, with the workers or without.

        What they should have said meanwhile we could not hear, and they perhaps not say.
        """
        now_ns = Clock.monotonic_ns()
        if now_ns - self._seen_ns > self._tick_ns * 5 // 4 + SECOND // 20:
            self._awake_since_ns = now_ns
            for pool in self._pools:
                pool.overslept(now_ns - self._seen_ns)
        self._seen_ns = now_ns
        self._terminal.look(now_ns)
        return now_ns

    def _nap(self, wake_ns: int) -> float:
        wake_ns = min(wake_ns, self._upgrade.wake_ns)
        return max(0, min(wake_ns - Clock.monotonic_ns(), self._tick_ns)) / SECOND

    # Reap

    def _reap(self, now_ns: int) -> None:
        for worker, status, used in self._dead():
            report = self._reports.take(worker.slot)
            again = self._tried_again(worker, now_ns)
            death = self._pool_of(worker).died(worker, status, report, now_ns)
            self._pidfds.let_go(worker)
            self._journal.death(worker, death, used, again)
            if not worker.service:
                # It may have been woken for a connection that it did not live to take.
                self._relay.wake_one()
                self._last_death = death = self._bulletin.tell_death(death, used, now_ns)
                self._run_hook("after_worker_exit", death)

    def _pool_of(self, worker: WorkerHandle) -> Pool:
        return self._service if worker.service else self._pool

    def _tried_again(self, worker: WorkerHandle, now_ns: int) -> bool:
        """Whether it was another try of a reload that has failed: its failure is no news."""
        pool = self._pool_of(worker)
        return pool.reload_failed and pool.serves_on(worker, now_ns) > 0

    def _dead(self) -> Iterator[tuple[WorkerHandle, int | None, Used]]:
        """The workers that are gone, as ``reaped`` has it."""
        workers = {worker.pid: worker for worker in self._everybody()}
        for pid, status, used in reaped(workers, as_init=self._pid == 1 and self._on_main_thread):
            if worker := workers.pop(pid, None):
                yield worker, status, used
            elif status is not None:
                self._say(logging.DEBUG, "stranger", None, "reaped a stranger, pid=%d", pid)

    def _is_done(self) -> bool:
        """Whether nothing is left to do. Raises BootError if that is because nothing works."""
        if self._pool.first_generation_failed() and self._last_death:
            raise BootError(why_given_up(self._last_death), self._last_death.report)
        if self._remote.stop_asked or self._pool.stop_asked():
            self._stop("shutdown() was called", hurry=False)
        if self._pool.stopping:
            if not len(self._pool):
                self._end_service()
            over = not self._everybody() and not self._upgrade.is_waited_for
            if over:
                self._say(logging.INFO, "stopped", None, "stopped")
            return over
        if self._pool.any_ready() and not self._announced:
            self._announce()
        # To be ready is not enough: the old master would leave for workers that crash at once.
        if inheritance().is_awaited() and self._pool.any_of_use(self._seen_ns):
            inheritance().be_ready()
            self._notifier.hear("ready", self._pid)
            self._journal.run_hook("pid_path", self._claim.renew)
        return False

    def _announce(self) -> None:
        self._announced = True
        self._board.set(0, STATE, SERVING)  # first: who reads of it in the log may ask at once
        addresses = [listener.address for listener in self._job.listeners]
        beside = [each.address for each in self._job.service.listeners]
        how = f", {self._job.service.name} on {', '.join(beside)}" if beside else ""
        self._journal.ready(addresses, how)
        for worker in filter(self._pool.ready, self._pool):
            self._pidfds.check(worker)
            break
        self._run_hook("ready", addresses)
        self._remote.is_ready(addresses)

    # Carry out

    def _carry_out(self, pool: Pool, plan: Plan, now_ns: int) -> None:
        if plan.reload:
            self._reload()
        if plan.wanted is not None:
            pool.resized(plan.wanted, now_ns)
        for worker in plan.suspect:
            pool.suspected(worker, now_ns)
            self._reports.take(worker.slot)  # from an earlier suspicion it may have outlived
            self._pidfds.signal(worker, WHERE)
        for worker in plan.kill:
            pool.killed(worker)
            worker.why = why_killed(pool, worker, now_ns)
            self._journal.kill(
                worker,
                worker.why,
                company(pool, worker, now_ns),
                self._reports.read(worker.slot),
                self._tried_again(worker, now_ns),
            )
            self._pidfds.signal(worker, signal.SIGKILL)
        for worker in plan.end:
            pool.told_to_end(worker, now_ns)
            if self._gently:  # workers hear TERM as QUIT: this is not meant
                pool.killed(worker)
            self._pidfds.signal(worker, signal.SIGKILL if self._gently else signal.SIGTERM)
        for worker in plan.retire:
            self._retire(pool, worker, now_ns)
        for slot in plan.fork:
            if not self._fork(pool, slot):
                break
        if plan.serves:
            pool.settled()
            self._say(logging.INFO, "reloaded", None, "generation %d serves", pool.generation)

    def _retire(self, pool: Pool, worker: WorkerHandle, now_ns: int) -> None:
        worker.why = worker.why if pool.stopping else why_retired(pool, worker)
        pool.told_to_retire(worker, now_ns)
        self._pidfds.signal(worker, signal.SIGQUIT)  # the scoreboard says what; it wakes up
        if not pool.stopping:  # who reads of it in the log finds it so
            self._say(logging.INFO, "retiring", worker, "%s, retiring", worker.why)

    def _reload(self) -> None:
        self._journal.run_hook("renew", self._job.renew)
        self._pool.reloaded()
        self._service.follow(self._pool.generation)
        count, generation = sum(not w.retiring for w in self._pool), self._pool.generation
        message = "SIGHUP: reloading %d workers, generation %d"
        self._say(logging.INFO, "reloading", None, message, count, generation)

    def _fork(self, pool: Pool, slot: int) -> bool:
        """Whether the system let us."""
        self._run_hook("before_fork")
        self._warned = self._warned or self._journal.warn_of_threads()
        flush_streams()  # what is in a buffer now would be written by every worker
        forked_ns = Clock.monotonic_ns()
        self._board.clear(slot, forked_ns + in_ns(pool.settings.boot_timeout))
        # Until it has handlers of its own, a new worker would answer a signal by
        # ringing our bell, which it shares. So none may reach it yet. And it is known
        # before any handler of the program's can run here, and raise.
        with all_blocked() as mask:
            try:
                self._reports.make_room(slot)
                pid = fork()
            except OSError as error:
                refusal = error.strerror
            else:
                refusal = None
                if pid == 0:
                    self._become(pool, slot, mask)
                worker = pool.forked(slot, pid, forked_ns)
        if refusal:
            delay = pool.fork_failed(forked_ns)
            message = "cannot fork: %s, trying again in %.1fs"
            self._say(logging.ERROR, "fork_failed", None, message, refusal, delay)
            return False
        self._pidfds.take(worker)
        self._say(logging.INFO, "forked", worker, "forked")
        return True

    def _become(self, pool: Pool, slot: int, mask: set[int]) -> None:
        """In the fork: let go of what is the master's, and never come back."""
        try:
            job, relay, others = self._job, self._relay, self._job.service.listeners
            self._relay.leave_to_master()
            if pool is self._service:  # no connection to the workers' listeners is for it
                self._relay.close()
                job, relay, others = self._service_job, Relay(), self._job.listeners
            for listener in others:
                listener.socket.close()
            self._inbox.leave_to_master()
            self._pidfds.leave_to_master()
            shared = Shared(
                self._board,
                self._reports,
                relay,
                self._inbox.bell,
                self._title,
                self._life,
                self._pid,
                pool.generation,
                self._prints,
            )
            become_worker(slot, job, shared, mask)
        finally:
            os._exit(1)

    # Obey

    def _obey(self, signum: int) -> None:
        pool = self._pool
        match signum:
            case signal.SIGTTIN:
                pool.shift(+1)
            case signal.SIGTTOU:
                pool.shift(-1)
            case signal.SIGWINCH if not is_ours():
                pool.to_nobody()
            case signal.SIGUSR1:
                self._rotation.begin()
                for worker in self._everybody():
                    self._pidfds.signal(worker, signal.SIGUSR1)
            case signal.SIGUSR2:
                self._upgrade.ask(self._serves(), pool.stopping)
            case signal.SIGHUP if not self._terminal.was_closed(Clock.monotonic_ns()):
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
        inheritance().fail("it was told to stop")  # if it is one's own by now, nobody hears it
        self._upgrade.end(Clock.monotonic_ns(), hurry)
        self._shut(self._job.listeners, self._pool, hurry)
        if hurry:  # a TERM to the whole group reaches the service, too
            self._end_service()

    def _end_service(self) -> None:
        """In a graceful stop last, so that it can tell of the others until they are gone."""
        self._shut(self._job.service.listeners, self._service, self._pool.hurried)

    def _shut(self, listeners: Sequence[Listener], pool: Pool, hurry: bool) -> None:
        ajar = False
        if not pool.stopping:
            # First the door, then the workers: who is inside is served, and who comes
            # later is refused. They hold the last descriptors, and close them when done.
            for listener in listeners:
                ajar = not listener.shut_the_door() or ajar
                listener.close()
        pool.stop(hurry, ajar)

    # The end

    def _leave_nobody(self) -> None:
        """After an error of our own: no worker may be left that nobody looks after."""
        for worker in self._everybody():
            worker.killed = True
            self._pidfds.signal(worker, signal.SIGKILL)
        while self._everybody():
            for worker, status, _ in self._dead():
                self._pool_of(worker).died(worker, status, "", Clock.monotonic_ns())
                self._pidfds.let_go(worker)
            self._inbox.wait(0.01)

    def _release(self) -> None:
        self._title.restore()
        if self._prints:
            self._prints.close()
        os.close(self._life)
        drop(self._lifeline)
        for each in (self._upgrade, self._inbox, self._relay, self._reports, self._board):
            each.close()

    def _run_hook(self, name: str, *args: Any) -> None:
        self._journal.run_hook(name, getattr(self._job.hooks, name), *args)
