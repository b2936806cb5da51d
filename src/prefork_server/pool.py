"""Which workers there are, and what should be done about them.

Nothing here forks, signals, waits or reads a clock: the master brings the time
in and carries the plan out. So every rule about the size and the health of the
pool can be tested without a single fork.

``plan`` only looks. What happened is told to the pool by the methods named for
it: ``forked``, ``told_to_retire``, ``suspected``, ``told_to_end``, ``killed``, ``died`` ...
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from .backoff import Backoff
from .plan import Death, Plan, WorkerHandle
from .roster import HEALTHY_NS, Roster
from .scoreboard import (
    DEADLINE,
    DRAIN,
    DRAIN_ONCE,
    DUE,
    FAILED,
    FLOOR,
    FORKS,
    GENERATION,
    GROWS,
    MOST,
    NEVER,
    READY,
    REQUESTS,
    RETIRE,
    SECOND,
    SERVED,
    SERVICES,
    STATE,
    STOPPING,
    WANTED,
    WISH,
    in_ns,
)
from .settings import MAX_WORKERS
from .silence import Silence, Verdict
from .sizing import Sizing

_HURRY_NS = SECOND  # from TERM to KILL, for a worker that blocks TERM
_PARTING_NS = SECOND  # after so long, one that was told to go holds no successor up
_FEW = 32  # workers that may always be on their way out while their successors serve


@dataclass
class Pool(Roster):
    """The workers of one master.

    ``wanted`` is how many there should be, from 0 to half the scoreboard's capacity. An
    adaptive pool decides that by itself, from the number on that signals move.
    ``chance`` returns a float between 0 and 1, as ``random.random`` does. ``service`` names
    one, in rows of its own, that a pool of one worker is for (or of none, if it is ""): that it
    cannot boot is not the end of the server.

    A worker of an older ``generation`` than the present one is *due*, and so is one that has
    said so on the scoreboard. It serves until a successor is ready, and for that there may be
    a few more than are wanted: a tenth of them, at least one. Of a new generation there is
    one more until one has been of use, so what cannot boot replaces nobody.
    """

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
    _slots: range = field(init=False)
    _backoff: Backoff = field(init=False)
    _silence: Silence = field(init=False)
    _sizing: Sizing = field(init=False)
    _was_ready: bool = False
    _stop_was_asked: bool = False

    def __post_init__(self) -> None:
        self.wanted = self.settings.workers
        self._slots = range(1, self.board.capacity + 1)
        if self.service is not None:
            self.wanted, self._was_ready = 1 if self.service else 0, True
            self._slots = range(self._slots.stop, self._slots.stop + SERVICES)
        self._backoff = Backoff(self.chance)
        self._silence = Silence(self.settings, self.board)
        self._sizing = Sizing(self.settings, self.board, self.wanted)

    # What there is

    def any_ready(self) -> bool:
        """Whether one is ready, or ever was."""
        return self._was_ready or any(map(self.ready, self._workers.values()))

    def any_of_use(self, now_ns: int) -> bool:
        """Whether one has served somebody, or been ready for a while."""
        return any(not self._false_start(w, now_ns) for w in self._workers.values())

    def first_generation_failed(self) -> bool:
        """Whether every worker of the first generation has died before any was ready."""
        failed = self._backoff.failed()
        return not self._workers and not self._was_ready and 0 < self.wanted <= failed

    def stop_asked(self) -> bool:
        """Whether a worker has asked for the whole server to be stopped."""
        return self._stop_was_asked or any(map(self._asks_stop, self._workers.values()))

    # What should be done

    def plan(self, now_ns: int, awake_since_ns: int) -> Plan:
        """Decide. ``awake_since_ns``: when the master last woke from a sleep it did not
        ask for (a suspended machine, SIGSTOP): silence counts only from there."""
        if self.reload_asked and self._may_reload():
            return Plan(reload=True, wake_ns=now_ns)
        alarms: list[int] = []
        wanted = self._right_size(now_ns, alarms)
        if wanted != self.wanted:
            return Plan(wanted=wanted, wake_ns=now_ns)
        judged: dict[Verdict, list[WorkerHandle]] = {"kill": [], "end": [], "suspect": [], "": []}
        for worker in self._workers.values():
            if not worker.killed:  # such a one only has to be reaped
                verdict, again_ns = self._silence.verdict(
                    worker, now_ns, awake_since_ns, self.hurried
                )
                judged[verdict].append(worker)
                alarms.append(again_ns)

        fork, retire, serves = self._succession(now_ns, alarms)
        return Plan(
            serves=serves,
            fork=fork,
            retire=() if self.hurried else retire,
            suspect=tuple(judged["suspect"]),
            end=tuple(judged["end"]),
            kill=tuple(judged["kill"]),
            wake_ns=now_ns if serves or retire else min(alarms, default=NEVER),
        )

    def _right_size(self, now_ns: int, alarms: list[int]) -> int:
        """How many there should be: in an adaptive pool it depends on how many are busy."""
        if self.stopping or not self.is_adaptive:
            return self.wanted
        staying = self._staying(now_ns)
        steady = not any(map(self.is_due, staying))
        return self._sizing.right_size(self.wanted, staying, steady, now_ns, alarms)

    def _succession(
        self, now_ns: int, alarms: list[int]
    ) -> tuple[tuple[int, ...], tuple[WorkerHandle, ...], bool]:
        """Who comes and who goes, and whether the present generation is then alone.

        Predecessors and successors are not paired, but counted. Of those who are due as many
        go as there are too many when the fresh who are ready are counted with them.
        """
        staying = self._staying(now_ns)
        there = set(staying)
        leaving = [w for w in self._serving() if w not in there]
        proven = self._is_proven(now_ns)
        # Whoever has been ready for so long was of use, which may change what is to be done.
        alarms += [
            self.board.get(worker.slot, READY) + HEALTHY_NS
            for worker in staying
            if self.ready(worker)
            and (self._leaves(worker) or not (proven or worker.generation < self.generation))
        ]
        due = [w for w in staying if self.is_due(w)]
        due.sort(key=lambda w: (self.ready(w), w.generation, w.slot))
        fresh = [w for w in staying if not self.is_due(w)]
        # Surplus: who is idle, and of those the highest number first.
        fresh.sort(key=lambda w: (not self.ready(w), self.board.is_idle(w.slot), w.slot))
        successors = sum(1 for w in fresh if self.ready(w)) if proven else 0
        room = self._room_to_part() - len(leaving)
        replaced = due[: max(0, min(room, successors + len(due) - self.wanted))]
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

    def _staying(self, now_ns: int) -> list[WorkerHandle]:
        """The workers that are not on their way out, or cannot be replaced yet."""
        staying, room = [], self._room_to_part()
        for worker in self._serving():
            if self._holds_place(worker, now_ns) or not room:
                staying.append(worker)
            else:
                room -= 1
        return staying

    def _room_to_part(self) -> int:
        """How many more may be on their way out while their successors are there already.

        A worker says on the scoreboard that it leaves or is worn out, for itself or for any
        other. Without a bound one that was taken over, and has stopped its siblings, would have
        the master fork thousands.
        """
        if self.wanted == 0:  # none has a successor
            return len(self._workers)
        parting = sum(worker.succeeded for worker in self._workers.values())
        return max(0, max(4 * self.wanted, _FEW) - parting)

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

    # What is wanted

    @property
    def is_adaptive(self) -> bool:
        return self.settings.max_workers is not None

    def shift(self, by: int) -> None:
        """So many more or fewer are to be there at least, and at once if it was at rest there."""
        if not self.stopping:
            self.wanted = self._sizing.shift(by, self.wanted)

    def to_nobody(self) -> None:
        """And none is wanted until ``shift`` says so."""
        self.shift(-self._sizing.floor)

    def resized(self, wanted: int, now_ns: int) -> None:
        self._sizing.resized(wanted - self.wanted, now_ns)
        self.wanted = wanted

    def publish(self) -> None:
        """Tell on the scoreboard how many are wanted; before it is looked at who is idle, since
        who becomes busy after that rings, if it may grow."""
        most = self.settings.max_workers or 0
        all_there = sum(map(self.ready, self._serving())) >= self.wanted > 0
        self.board.set(0, WANTED, self.wanted)
        self.board.set(0, FLOOR, self._sizing.floor)
        self.board.set(0, MOST, most or MAX_WORKERS)
        self.board.set(0, GROWS, all_there and self.wanted < most and not self.stopping)

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
        self.board.add(FORKS, int(not self.service))
        return worker

    def fork_failed(self, now_ns: int) -> float:
        """The system refused a fork. Return the seconds until the next try."""
        return self._backoff.fork_failed(now_ns)

    def told_to_retire(self, worker: WorkerHandle, now_ns: int) -> None:
        worker.retiring = True
        worker.succeeded = self.is_due(worker) or self._leaves(worker)
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
        self.board.set(worker.slot, WISH, self._farewell)  # should it live on, it goes by itself

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
        self.stopping, self.hurried = True, self.hurried or hurry
        self.wanted = 0
        for worker in self._workers.values():
            if worker.retiring:
                self.board.set(worker.slot, WISH, self._farewell)
            worker.retiring |= hurry  # a TERM to the whole group may reach it before ours

    def hand_over(self) -> None:
        """Wish for nobody, since a successor serves: who waits in the queue is its own."""
        self.stopping, self.wanted = True, 0
