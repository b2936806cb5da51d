"""Ten years in ten seconds: histories full of disasters, with every step of them checked.

The pool and its scoreboard are the real ones. The clock, the master, the workers
and their fates are simulated, so that time can jump to where something happens.
What is promised always is asserted after every step, what is promised in the end
is asserted when the disasters cease.
"""

import itertools
import random
from dataclasses import dataclass

from prefork_server.pool import Plan, Pool, WorkerHandle
from prefork_server.scoreboard import (
    ASKS_STOP,
    DEADLINE,
    DRAIN,
    LEAVING,
    NEVER,
    READY,
    REQUESTS,
    RETIRE,
    SECOND,
    WISH,
    Scoreboard,
    in_ns,
)
from prefork_server.settings import Settings

LIMIT = 5  # workers
YEAR = 365 * 24 * 3600
HISTORIES, EVENTS = 100, 60
GRACE_NS = SECOND // 10
LONGEST_REST = 36  # seconds: 30, and a fifth


@dataclass(eq=False)
class Life:
    """The process of one worker: what it did, and what will become of it."""

    handle: WorkerHandle
    slot: int
    ready_ns: int
    heard_ns: int  # its last sign of life, or its fork
    allowed_ns: int  # how long it may be silent from there
    finishing_ns: int  # how long it takes to go
    blocks_term: bool
    fate: str = "serves"
    hung: bool = False
    quiet_until_ns: int = 0  # it announced that it would not be heard before
    gone_ns: int = NEVER
    status: int = 0
    suspected_ns: int = NEVER
    told_ns: int = NEVER
    ended_ns: int = NEVER

    def ends(self, at_ns: int, status: int) -> None:
        if at_ns < self.gone_ns:
            self.gone_ns, self.status = at_ns, status

    def sleeps(self, duration_ns: int) -> None:
        """Time passes, and it notices nothing of it."""
        self.heard_ns += duration_ns
        self.ready_ns += duration_ns
        self.quiet_until_ns += duration_ns
        if self.gone_ns < NEVER:
            self.gone_ns += duration_ns


class World:
    """One machine, with a server that is started again whenever it has stopped.

    Whatever can happen is a method that takes a number, by which it chooses whom it
    happens to, or how badly.
    """

    def __init__(self, settings: Settings, cpus: int, seed: int) -> None:
        self.settings = settings
        self.cpus = cpus
        self.chance = random.Random(seed)
        self.pids = itertools.count(4000)
        self.patience_ns = NEVER if settings.timeout is None else in_ns(settings.timeout)
        self.pause_ns = in_ns(min(1.0, (settings.timeout or 3.0) / 3))
        self.tick_ns = min(SECOND, in_ns(settings.timeout or 1.0) // 2)
        self.now_ns = self.born_ns = 1000 * SECOND
        self.starts = 0
        self.fates: list[str] = []
        self.no_forks_before_ns = 0
        self.start()

    def start(self) -> None:
        self.starts += 1
        self.board = Scoreboard(2 * LIMIT)
        self.pool = Pool(self.settings, self.board, self.cpus, self.chance.random)
        self.lives: dict[int, Life] = {}
        self.tried: set[int] = set()  # the slots of the first generation, until one is ready
        self.was_ready = False
        self.awake_since_ns = self.now_ns
        self.stopped_ns = NEVER
        self.look()

    # Time

    def goes_on(self, seconds: float) -> None:
        """From one moment at which something happens to the next."""
        end_ns = self.now_ns + in_ns(seconds)
        while self.now_ns < end_ns:
            self.now_ns = min(end_ns, self.alarm_ns, self.next_turn_ns())
            self.live()
            self.look()

    def next_turn_ns(self) -> int:
        turns = [
            turn_ns
            for life in self.lives.values()
            for turn_ns in (life.ready_ns, life.quiet_until_ns, life.gone_ns)
            if turn_ns > self.now_ns
        ]
        return min(turns, default=NEVER)

    def seconds(self, at_least: float, at_most: float) -> int:
        return in_ns(self.chance.uniform(at_least, at_most))

    # The workers

    def live(self) -> None:
        for life in self.lives.values():
            now_ns = min(self.now_ns, life.gone_ns)
            if life.hung or now_ns < life.ready_ns:
                continue
            if not self.is_ready(life):
                self.beat(life, life.ready_ns)
                self.board.set(life.slot, READY, life.ready_ns)
                self.was_ready = True
                if life.fate == "returns":
                    life.ends(life.ready_ns, 0)
                if life.fate == "leaves" or self.board.get(life.slot, LEAVING):
                    self.leave(life, life.ready_ns)
            if life.heard_ns < life.quiet_until_ns <= now_ns:
                self.beat(life, life.quiet_until_ns)
            beats = (now_ns - life.heard_ns) // self.pause_ns
            if beats > 0 and now_ns > life.quiet_until_ns:
                self.beat(life, life.heard_ns + beats * self.pause_ns)

    def is_ready(self, life: Life) -> bool:
        return self.board.get(life.slot, READY) != 0

    def beat(self, life: Life, at_ns: int) -> None:
        life.heard_ns, life.allowed_ns = at_ns, self.patience_ns
        life.suspected_ns = NEVER
        self.board.set(life.slot, DEADLINE, at_ns + self.patience_ns)

    def leave(self, life: Life, now_ns: int) -> None:
        """It hears QUIT, or it does not want to go on."""
        if not life.hung:
            self.board.set(life.slot, LEAVING, 1)
            if self.is_ready(life):
                life.ends(max(now_ns, life.quiet_until_ns) + life.finishing_ns, 0)

    # The master

    def look(self) -> None:
        """One turn of Master._supervise."""
        for life in [life for life in self.lives.values() if life.gone_ns <= self.now_ns]:
            self.pool.died(life.handle, life.status, "", self.now_ns)
            del self.lives[life.handle.pid]
        if self.pool.first_generation_failed():
            assert not self.was_ready
            return self.start()
        if self.pool.stop_asked():
            self.stop(hurry=False)
        todo = self.plan() if self.lives or not self.pool.stopping else None
        if todo is None:
            return self.start()
        self.check_plan(todo)
        self.carry_out(todo)
        self.check_state()
        self.set_alarm()
        return None

    def plan(self, later_ns: int = 0) -> Plan:
        return self.pool.plan(self.now_ns + later_ns, self.awake_since_ns)

    def carry_out(self, todo: Plan) -> None:
        for worker in todo.suspect:
            self.pool.suspected(worker, self.now_ns)
            self.lives[worker.pid].suspected_ns = self.now_ns
        for worker in todo.kill:
            self.pool.killed(worker)
            self.lives[worker.pid].ends(self.now_ns + self.seconds(0, 0.01), -9)
        for worker in todo.end:
            self.pool.told_to_end(worker, self.now_ns)
            life = self.lives[worker.pid]
            life.ended_ns = self.now_ns
            if not life.blocks_term:
                life.ends(self.now_ns + self.seconds(0, 0.01), -15)
        for worker in todo.retire:
            self.pool.told_to_retire(worker, self.now_ns)
            self.lives[worker.pid].told_ns = self.now_ns
            self.leave(self.lives[worker.pid], self.now_ns)
        for slot in todo.fork:
            self.fork(slot)

    def fork(self, slot: int) -> None:
        allowed_ns = in_ns(self.settings.boot_timeout)
        self.board.clear(slot, self.now_ns + allowed_ns)
        if self.now_ns < self.no_forks_before_ns:
            assert 0.8 <= self.pool.fork_failed(self.now_ns) <= LONGEST_REST
            return
        if not self.was_ready:
            assert slot not in self.tried, "the first generation gets one try each"
        fate = self.fates.pop() if self.fates else "serves"
        life = Life(
            handle=self.pool.forked(slot, next(self.pids), self.now_ns),
            slot=slot,
            ready_ns=self.now_ns + self.seconds(*((1, 3) if fate == "is slow" else (0.02, 0.5))),
            heard_ns=self.now_ns,
            allowed_ns=allowed_ns,
            finishing_ns=self.seconds(0, self.chance.choice([0.1, 2, 60])),
            blocks_term=self.chance.random() < 0.1,
            fate=fate,
            hung=fate == "hangs",
        )
        if fate == "dies":
            life.ends(self.now_ns + self.seconds(0.001, 0.02), 1)
        self.lives[life.handle.pid] = life

    def stop(self, hurry: bool) -> None:
        self.pool.stop(hurry)
        self.stopped_ns = min(self.stopped_ns, self.now_ns)

    def set_alarm(self) -> None:
        """When the master looks again, if nobody rings before. It may be late."""
        rest = self.plan()
        assert is_empty(rest), f"carried out, and yet to do: {rest}"
        assert rest.wake_ns > self.now_ns, "the master would spin"
        quiet_ns = min(rest.wake_ns - self.now_ns, YEAR * SECOND)
        for later_ns in (quiet_ns - 1, self.chance.randrange(quiet_ns)):
            missed = self.plan(later_ns)
            assert is_empty(missed), f"the master would sleep through {missed}"
        # Who beats will have put its deadline off by then, again and again. To
        # follow each beat would take as long as ten years do.
        beating = [
            life
            for life in self.lives.values()
            if self.is_ready(life) and not life.hung and life.quiet_until_ns <= self.now_ns
        ]
        deadlines = [self.board.get(life.slot, DEADLINE) for life in beating]
        for life in beating:
            self.board.set(life.slot, DEADLINE, NEVER)
        late_ns = self.chance.choice([0, 0, self.chance.randrange(self.tick_ns)])
        self.alarm_ns = self.plan().wake_ns + late_ns
        for life, deadline in zip(beating, deadlines, strict=True):
            self.board.set(life.slot, DEADLINE, deadline)

    # What is promised always

    def check_plan(self, todo: Plan) -> None:
        before = repr(self.pool), bytes(self.board.words)
        assert self.plan() == todo, "the same question, another answer"
        assert (repr(self.pool), bytes(self.board.words)) == before, "planning changed something"
        assert not (todo.fork and self.pool.stopping)
        occupied = {life.slot for life in self.lives.values()}
        assert len(set(todo.fork) - occupied) == len(todo.fork), "two workers in one slot"
        assert all(1 <= slot <= self.board.capacity for slot in todo.fork)
        for worker in todo.kill:
            self.check_kill(self.lives[worker.pid])

    def check_kill(self, life: Life) -> None:
        if self.patience_ended(life, late_ns=0):
            return
        assert self.now_ns >= life.heard_ns + life.allowed_ns, "killed while it did as it should"
        assert self.now_ns >= life.suspected_ns + GRACE_NS, "killed without a question"
        assert self.now_ns >= self.awake_since_ns + min(life.allowed_ns, self.patience_ns) or (
            self.awake_since_ns <= life.handle.forked_ns
        ), "killed for a silence nobody could hear"

    def patience_ended(self, life: Life, late_ns: int) -> bool:
        graceful_ns = in_ns(self.settings.graceful_timeout)
        patience_ns = min(life.told_ns + graceful_ns, life.ended_ns + SECOND)
        return patience_ns + late_ns <= self.now_ns

    def check_state(self) -> None:
        now_ns, stopping = self.now_ns, self.pool.stopping
        alive = [life for life in self.lives.values() if not life.handle.killed]
        serving = [life for life in alive if not life.handle.retiring]
        assert len(serving) <= self.pool.wanted, "more than were ever wanted"
        young = [
            life
            for life in serving
            if not self.is_ready(life) and now_ns - life.handle.forked_ns < SECOND
        ]
        assert len(young) <= max(1, self.cpus), "too many boot at once"
        for life in alive:
            last_ns = max(
                self.board.get(life.slot, DEADLINE), self.awake_since_ns + life.allowed_ns
            )
            assert now_ns < last_ns + GRACE_NS + 2 * self.tick_ns, "it hangs and hangs"
            assert not self.patience_ended(life, self.tick_ns), "it was told to go and stays"
            if life.told_ns < NEVER:
                assert self.board.get(life.slot, WISH) == (DRAIN if stopping else RETIRE)
        over_ns = max(self.stopped_ns + in_ns(self.settings.graceful_timeout), self.awake_since_ns)
        assert now_ns <= over_ns + 2 * SECOND, "the stop has no end"

    # What is promised in the end

    def comes_to_rest(self, _: int = 0) -> None:
        """The disasters cease: before long there are as many as are wanted, all of them ready."""
        self.fates.clear()
        self.no_forks_before_ns = self.now_ns
        times = self.settings
        self.goes_on(
            2 * (times.boot_timeout + (times.timeout or 0) + times.graceful_timeout)
            + 3 * LONGEST_REST
            + 10 * LIMIT
            + 100  # announced silence
        )
        assert is_empty(self.plan())
        assert len(self.lives) == self.pool.wanted
        assert all(map(self.is_ready, self.lives.values()))
        assert not any(life.handle.retiring for life in self.lives.values())

    def ends(self, signal: str) -> None:
        starts = self.starts
        self.happens(signal)
        self.goes_on(self.settings.graceful_timeout + 2)
        assert self.starts > starts, "somebody is left"

    # What can happen

    def happens(self, event: str, number: int = 0) -> None:
        getattr(self, event)(number)

    def somebody(self, number: int) -> Life | None:
        alive = [life for life in self.lives.values() if life.gone_ns > self.now_ns]
        return alive[number % len(alive)] if alive else None

    def nothing(self, _: int) -> None:
        pass

    def serves(self, number: int) -> None:
        life = self.somebody(number)
        if life and self.is_ready(life) and not life.hung:
            self.board.set(life.slot, REQUESTS, self.board.get(life.slot, REQUESTS) + 1)

    def crashes(self, number: int) -> None:
        if life := self.somebody(number):
            life.ends(self.now_ns, (1, 0, -11, -9)[number % 4])

    def hangs(self, number: int) -> None:
        if life := self.somebody(number):
            life.hung = True

    def recovers(self, number: int) -> None:
        if life := self.somebody(number):
            life.hung = False
            if self.board.get(life.slot, WISH):
                self.leave(life, self.now_ns)

    def announces(self, number: int) -> None:
        """It will not be heard for a while, and says so."""
        life = self.somebody(number)
        if life and self.is_ready(life) and not life.hung:
            self.beat(life, self.now_ns)
            life.allowed_ns = in_ns(1 + number)
            life.quiet_until_ns = self.now_ns + self.seconds(0, 0.9 * (1 + number))
            self.board.set(life.slot, DEADLINE, self.now_ns + life.allowed_ns)

    def leaves(self, number: int) -> None:
        if life := self.somebody(number):
            self.leave(life, self.now_ns)

    def asks_for_a_stop(self, number: int) -> None:
        if life := self.somebody(number):
            self.board.set(life.slot, ASKS_STOP, 1)

    def next_ones_fail(self, number: int) -> None:
        fate = ("dies", "hangs", "is slow", "returns", "leaves")[number % 5]
        self.fates = [fate] * (1 + number % 16)

    def forks_fail(self, number: int) -> None:
        self.no_forks_before_ns = self.now_ns + in_ns(number)

    def machine_sleeps(self, number: int) -> None:
        """All of it, or the process group was suspended. Silence announced before it
        is not remembered after it: a worker gets the usual patience then."""
        duration_ns = in_ns(2 + number**2)
        self.now_ns += duration_ns
        for life in self.lives.values():
            life.sleeps(duration_ns)
            if self.is_ready(life):
                life.quiet_until_ns = min(life.quiet_until_ns, self.now_ns)
                life.allowed_ns = min(life.allowed_ns, in_ns(self.settings.timeout or 1.0))
        self.master_wakes()

    def master_sleeps(self, number: int) -> None:
        """Alone; its workers go on."""
        self.now_ns += in_ns(2 + number**2)
        self.live()
        self.master_wakes()

    def master_wakes(self) -> None:
        self.awake_since_ns = self.now_ns
        self.look()

    def ttin(self, _: int) -> None:
        if not self.pool.stopping:
            self.pool.wanted = min(LIMIT, self.pool.wanted + 1)

    def ttou(self, _: int) -> None:
        self.pool.wanted = max(0, self.pool.wanted - 1)

    def winch(self, _: int) -> None:
        self.pool.wanted = 0

    def quit(self, _: int) -> None:
        self.stop(hurry=False)

    def term(self, _: int) -> None:
        self.stop(hurry=True)
