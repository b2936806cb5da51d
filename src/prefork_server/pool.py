"""Which workers there are, and what should be done about them.

Nothing here forks, signals, waits or reads a clock: the master brings the time
in and carries the plan out. So every rule about the size and the health of the
pool can be tested without a single fork.

``plan`` only looks. What happened is told to the pool by the methods named for
it: ``forked``, ``told_to_retire``, ``suspected``, ``told_to_end``, ``killed``, ``died`` ...
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from .backoff import Backoff
from .plan import Death, Plan, WorkerHandle
from .scoreboard import (
    ASKS_STOP,
    DEADLINE,
    DRAIN,
    DRAIN_ONCE,
    DUE,
    FAILED,
    GENERATION,
    LEAVING,
    NEVER,
    READY,
    REQUESTS,
    RETIRE,
    SECOND,
    SERVED,
    SERVICES,
    STATE,
    STOPPING,
    WISH,
    Scoreboard,
    in_ns,
)
from .settings import Settings

_HEALTHY_NS = SECOND  # a life shorter than this, in which nothing was served, is a false start
_GRACE_NS = SECOND // 10  # from asking a silent worker where it hangs to killing it
_HURRY_NS = SECOND  # from TERM to KILL, for a worker that blocks TERM
_PARTING_NS = SECOND  # after so long, one that was told to go holds no successor up


@dataclass
class Pool:
    """The workers of one master.

    ``wanted`` is how many there should be, from 0 to half the scoreboard's capacity.
    ``chance`` returns a float between 0 and 1, as ``random.random`` does. ``service`` names
    one, in rows of its own, that a pool of one worker is for (or of none, if it is ""): that it
    cannot boot is not the end of the server.

    A worker of an older ``generation`` than the present one is *due*, and so is one that has
    said so on the scoreboard. It serves until a successor is ready, and for that there may be
    a few more than are wanted: a tenth of them, at least one. Of a new generation there is
    one more until one has been of use, so what cannot boot replaces nobody.
    """

    settings: Settings
    board: Scoreboard
    cpus: int
    chance: Callable[[], float]
    service: str | None = None
    wanted: int = field(init=False)
    stopping: bool = False
    hurried: bool = False
    generation: int = 1  # of whoever is forked from now on
    reload_asked: bool = False
    reload_failed: bool = False  # the first of this generation came to nothing
    _reloading: bool = False
    _proven: bool = True  # one of this generation was of use
    _farewell: int = RETIRE  # what a worker that is told to go is to do
    _workers: dict[int, WorkerHandle] = field(default_factory=dict)  # by pid
    _slots: range = field(init=False)
    _backoff: Backoff = field(init=False)
    _was_ready: bool = False
    _stop_was_asked: bool = False

    def __post_init__(self) -> None:
        self.wanted = self.settings.workers
        self._slots = range(1, self.board.capacity + 1)
        if self.service is not None:
            self.wanted, self._was_ready = 1 if self.service else 0, True
            self._slots = range(self._slots.stop, self._slots.stop + SERVICES)
        self._backoff = Backoff(self.chance)

    # What there is

    def __iter__(self) -> Iterator[WorkerHandle]:
        return iter(list(self._workers.values()))

    def __len__(self) -> int:
        return len(self._workers)

    def ready(self, worker: WorkerHandle) -> bool:
        return self.board.get(worker.slot, READY) != 0

    def any_ready(self) -> bool:
        """Whether one is ready, or ever was."""
        return self._was_ready or any(map(self.ready, self._workers.values()))

    def first_generation_failed(self) -> bool:
        """Whether every worker of the first generation has died before any was ready."""
        failed = self._backoff.failed()
        return not self._workers and not self._was_ready and 0 < self.wanted <= failed

    def stop_asked(self) -> bool:
        """Whether a worker has asked for the whole server to be stopped."""
        return self._stop_was_asked or any(map(self._asks_stop, self._workers.values()))

    def _asks_stop(self, worker: WorkerHandle) -> bool:
        return self.board.get(worker.slot, ASKS_STOP) != 0

    # What should be done

    def plan(self, now_ns: int, awake_since_ns: int) -> Plan:
        """Decide. ``awake_since_ns``: when the master last woke from a sleep it did not
        ask for (a suspended machine, SIGSTOP): silence counts only from there."""
        if self.reload_asked and self._may_reload():
            return Plan(reload=True, wake_ns=now_ns)
        suspect, end, kill, alarms = [], [], [], []
        for worker in self._workers.values():
            if worker.killed:
                continue  # it only has to be reaped
            deadline = self.board.get(worker.slot, DEADLINE)
            silent_ns = self._silent_ns(worker, deadline, awake_since_ns)
            if worker.kill_ns <= now_ns:
                kill.append(worker)
            elif self.hurried and not worker.ending:
                end.append(worker)
            elif silent_ns > now_ns:
                alarms.append(min(silent_ns, worker.kill_ns))
            elif worker.suspected_for != deadline:
                suspect.append(worker)
                alarms.append(min(now_ns + _GRACE_NS, worker.kill_ns))
            elif worker.suspected_ns + _GRACE_NS <= now_ns:
                kill.append(worker)
            else:
                alarms.append(min(worker.suspected_ns + _GRACE_NS, worker.kill_ns))

        fork, retire, serves = self._succession(now_ns, alarms)
        return Plan(
            serves=serves,
            fork=fork,
            retire=() if self.hurried else retire,
            suspect=tuple(suspect),
            end=tuple(end),
            kill=tuple(kill),
            wake_ns=now_ns if serves else min(alarms, default=NEVER),
        )

    def _succession(
        self, now_ns: int, alarms: list[int]
    ) -> tuple[tuple[int, ...], tuple[WorkerHandle, ...], bool]:
        """Who comes and who goes, and whether the present generation is then alone.

        Predecessors and successors are not paired, but counted. Of those who are due as many
        go as there are too many when the fresh who are ready are counted with them.
        """
        serving = [w for w in self._workers.values() if not w.retiring]
        staying = [w for w in serving if self._holds_place(w, now_ns)]
        leaving = [w for w in serving if not self._holds_place(w, now_ns)]
        proven = self._is_proven(now_ns)
        # Whoever has been ready for so long was of use, which may change what is to be done.
        alarms += [
            self.board.get(worker.slot, READY) + _HEALTHY_NS
            for worker in staying
            if self.ready(worker)
            and (self._leaves(worker) or not (proven or worker.generation < self.generation))
        ]
        due = [w for w in staying if self.is_due(w)]
        due.sort(key=lambda w: (self.ready(w), w.generation, w.slot))
        fresh = [w for w in staying if not self.is_due(w)]
        fresh.sort(key=lambda w: (not self.ready(w), w.slot))  # surplus: highest number first
        successors = sum(1 for w in fresh if self.ready(w)) if proven else 0
        replaced = due[: max(0, successors + len(due) - self.wanted)]
        most = self.wanted + (self._spare() if proven else 1)
        left = due[len(replaced) :]
        # Beyond what is wanted, or than there is room for beside those who are due.
        surplus = fresh[min(self.wanted, most - len(left)) :]
        serves = self._reloading and not self.stopping and (proven or not self.wanted)
        serves = serves and not any(w.generation < self.generation for w in left)

        missing = self.wanted - len(staying)
        if left:  # successors: but those who were just told to go take up room, too
            parting = [
                w.told_ns + _PARTING_NS
                for w in self._workers.values()
                if w.retiring and w.told_ns + _PARTING_NS > now_ns
            ]
            alarms += parting
            room = most - len(staying) - len(parting)
            missing = max(missing, min(self.wanted - len(fresh), room))
        fork = self._to_fork(now_ns, missing, staying, alarms)
        return fork, tuple(surplus + replaced + leaving), serves

    def _spare(self) -> int:
        """How many more than are wanted there may be because some are due."""
        return max(1, self.wanted // 10)

    def is_due(self, worker: WorkerHandle) -> bool:
        """Whether it is to be replaced, when a successor is ready."""
        return worker.generation < self.generation or self.board.get(worker.slot, DUE) != 0

    def _is_proven(self, now_ns: int) -> bool:
        """Whether one of the present generation has been of use: to be ready is not enough."""
        return self._proven or any(
            w.generation == self.generation and not self._false_start(w, now_ns)
            for w in self._workers.values()
        )

    def _may_reload(self) -> bool:
        """One reload at a time; one that failed is given up between two of its tries."""
        trying = any(w.generation == self.generation for w in self._workers.values())
        given_up = self.reload_failed and not trying
        return not self.stopping and (not self._reloading or given_up)

    def _silent_ns(self, worker: WorkerHandle, deadline: int, awake_since_ns: int) -> int:
        """When the silence of this worker becomes a fault."""
        if deadline >= NEVER or awake_since_ns <= worker.forked_ns:
            return deadline
        settings = self.settings
        allowed = settings.timeout if self.ready(worker) else settings.boot_timeout
        return max(deadline, awake_since_ns + in_ns(allowed or 1.0))

    def _holds_place(self, worker: WorkerHandle, now_ns: int) -> bool:
        """Whether this worker counts as one of those that are wanted.

        One that leaves of its own accord is replaced before it is gone, unless it has
        done nothing yet: a work function that leaves at once must meet the back-off.
        """
        return not self._leaves(worker) or self._false_start(worker, now_ns)

    def _leaves(self, worker: WorkerHandle) -> bool:
        return self.board.get(worker.slot, LEAVING) != 0

    def _false_start(self, worker: WorkerHandle, now_ns: int) -> bool:
        """Whether a life that ended now would have been too short to be any use.

        One that served somebody never is: clients must not be able to slow respawns down.
        """
        ready_ns = self.board.get(worker.slot, READY)
        served = self.board.get(worker.slot, REQUESTS)
        return not ready_ns or (not served and now_ns - ready_ns < _HEALTHY_NS)

    def _to_fork(
        self, now_ns: int, missing: int, staying: list[WorkerHandle], alarms: list[int]
    ) -> tuple[int, ...]:
        if missing <= 0:
            return ()
        if self._backoff.fork_again_ns > now_ns:
            alarms.append(self._backoff.fork_again_ns)
            return ()
        # Many processes that import at once only slow each other down. One that has
        # been at it for a second may hang, and must not keep the others waiting.
        booting = [w for w in staying if not self.ready(w) and now_ns - w.forked_ns < SECOND]
        alarms += [worker.forked_ns + SECOND for worker in booting]
        room = max(1, self.cpus) - len(booting)
        occupied = {worker.slot for worker in self._workers.values()}
        free = (n for n in self._slots if n not in occupied)
        places = list(islice(free, missing))
        resting = {n: self._rest_until_ns(n) for n in places if self._rest_until_ns(n) > now_ns}
        alarms += resting.values()
        return tuple(n for n in places if n not in resting)[: max(0, room)]

    def _rest_until_ns(self, number: int) -> int:
        """Until when a free slot is left alone, since what was in it failed.

        Until somebody has been ready nobody gets a second try: the first generation
        either boots or ends the server.
        """
        if self._backoff.has_failed(number) and not self.any_ready():
            return NEVER
        return self._backoff.rest_until_ns(number)

    def serves_on(self, worker: WorkerHandle, now_ns: int) -> int:
        """The generation that goes on if this worker, as the first of a new one, comes to
        nothing; 0 if it is no such worker."""
        if worker.generation != self.generation or self._is_proven(now_ns):
            return 0
        older = [w for w in self._workers.values() if w.generation < self.generation]
        return max((w.generation for w in older if self.ready(w) and not w.retiring), default=0)

    # What happened

    def reloaded(self) -> None:
        """A new generation begins: whoever is there is due."""
        self.generation += 1
        self.board.set(0, GENERATION, self.generation)
        self._reloading = True
        self._proven = self.reload_asked = self.reload_failed = False
        if self.any_ready():
            self._backoff.forget()

    def follow(self, generation: int) -> None:
        """A new generation begins elsewhere: who is here is due, and proves nothing."""
        self.generation = generation
        self._backoff.forget()

    def settled(self) -> None:
        """The new generation serves, and of the old one everybody was told to go."""
        self._reloading, self._proven, self.reload_failed = False, True, False
        self.board.set(0, SERVED, self.generation)

    def forked(self, slot: int, pid: int, now_ns: int) -> WorkerHandle:
        self._backoff.fork_succeeded()
        worker = WorkerHandle(slot, pid, now_ns, self.generation, self.service or "")
        self._workers[pid] = worker
        self.board.occupy(slot, pid, now_ns, self.generation)
        return worker

    def fork_failed(self, now_ns: int) -> float:
        """The system refused a fork. Return the seconds until the next try."""
        return self._backoff.fork_failed(now_ns)

    def told_to_retire(self, worker: WorkerHandle, now_ns: int) -> None:
        worker.retiring = True
        worker.told_ns = now_ns
        worker.kill_ns = now_ns + in_ns(self.settings.graceful_timeout)
        self.board.set(worker.slot, WISH, self._farewell)

    def suspected(self, worker: WorkerHandle, now_ns: int) -> None:
        deadline = self.board.get(worker.slot, DEADLINE)
        if deadline <= now_ns:  # or it has said something just before we asked
            worker.suspected_ns, worker.suspected_for = now_ns, deadline

    def overslept(self, slept_ns: int) -> None:
        """The master was asleep, and so perhaps was everybody: give them that time again."""
        for worker in self._workers.values():
            if worker.kill_ns < NEVER:
                worker.kill_ns += slept_ns

    def told_to_end(self, worker: WorkerHandle, now_ns: int) -> None:
        worker.retiring = worker.ending = True
        worker.kill_ns = min(worker.kill_ns, now_ns + _HURRY_NS)

    def killed(self, worker: WorkerHandle) -> None:
        worker.killed = True

    def died(self, worker: WorkerHandle, status: int | None, report: str, now_ns: int) -> Death:
        board = self.board
        serves_on = self.serves_on(worker, now_ns)
        self._proven = self._is_proven(now_ns)
        del self._workers[worker.pid]
        board.vacate(worker.slot, now_ns)
        booted = self.ready(worker)
        self._was_ready = self._was_ready or booted
        self._stop_was_asked = self._stop_was_asked or self._asks_stop(worker)
        if worker.retiring:
            pass  # a planned end says nothing about the health of the slot
        elif self._false_start(worker, now_ns):
            self._backoff.false_start(worker.slot, now_ns)
            if worker.generation == self.generation and not self._proven:
                self.reload_failed = True
                board.set(0, FAILED, self.generation)
        else:
            self._backoff.was_of_use(worker.slot)
        return Death(
            slot=worker.slot,
            pid=worker.pid,
            status=status,
            age=(now_ns - worker.forked_ns) / SECOND,
            requests=max(0, board.get(worker.slot, REQUESTS)),
            booted=booted,
            expected=worker.retiring or (status == 0 and self._leaves(worker)),
            killed=worker.killed,
            report=report,
            generation=worker.generation,
            serves_on=0 if worker.retiring else serves_on,
            why=worker.why,
        )

    def stop(self, hurry: bool, ajar: bool = False) -> None:
        """Wish for nobody: gracefully, or at once. A second call can only hurry the first.

        ``ajar``: the door could not be shut, so the queue may fill while it is drained.
        """
        if not self.stopping:
            self._farewell = DRAIN_ONCE if ajar else DRAIN
            self.board.set(0, STATE, STOPPING)
        self.stopping = True
        self.hurried = self.hurried or hurry
        self.wanted = 0
        for worker in self._workers.values():
            if worker.retiring:
                self.board.set(worker.slot, WISH, self._farewell)

    def hand_over(self) -> None:
        """Wish for nobody, since a successor serves: who waits in the queue is its own."""
        self.stopping, self.wanted = True, 0
