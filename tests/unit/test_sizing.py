"""How many workers an adaptive pool is to have, without a single process.

The times of a story are seconds since its beginning.
"""

import pytest

from prefork_server.plan import Plan
from prefork_server.pool import Pool
from prefork_server.scoreboard import DUE, SECOND, WORN, Scoreboard
from prefork_server.settings import Settings
from prefork_server.sizing import Sizing
from tests.unit.test_pool import a_pool, boot, carry_out, fork, is_empty, ns, plan, slots


class Story:
    """A rule, and what it says as time goes by: ``busy`` of the workers are."""

    def __init__(self, workers: int = 2, max_workers: int = 100, **spare: int) -> None:
        settings = Settings(workers=workers, max_workers=max_workers, **spare)
        self.sizing = Sizing(settings, Scoreboard(1), workers)
        self.size = workers

    def at(self, seconds: float, busy: int, steady: bool = True) -> int:
        """The size from now on."""
        now_ns = ns(seconds)
        wanted = self.sizing.decide(self.size, self.size - busy, steady, now_ns, [])
        if wanted != self.size:
            self.sizing.resized(wanted - self.size, now_ns)
        self.size = wanted
        return wanted

    def every_second(self, first: int, last: int, busy: int) -> list[int]:
        return [self.at(second, busy) for second in range(first, last + 1)]


def test_one_that_is_idle_is_enough() -> None:
    assert Story(workers=2).at(0, busy=1) == 2


def test_that_nobody_is_idle_is_a_reason_to_grow_at_once_each_time_by_twice_as_many() -> None:
    story = Story(workers=2)
    assert [story.at(0.01 * n, busy) for n, busy in enumerate([2, 3, 5, 9])] == [3, 5, 9, 17]


def test_below_min_spare_it_grows_once_a_second_by_1_2_4_and_32_at_most() -> None:
    story = Story(workers=5, max_workers=2000, min_spare_workers=1000, max_spare_workers=1001)
    sizes = story.every_second(0, 7, busy=1)
    assert [after - before for before, after in zip([5, *sizes], sizes, strict=False)] == [
        1, 2, 4, 8, 16, 32, 32, 32,
    ]  # fmt: skip
    assert story.at(7.9, busy=1) == story.size == sizes[-1]


def test_growth_after_a_pause_begins_with_one_again() -> None:
    story = Story(workers=2, max_spare_workers=50)
    story.at(0, busy=2)
    story.at(0.1, busy=3)
    assert story.size == 5
    assert story.at(3, busy=5) == 6


def test_it_never_grows_above_max_workers() -> None:
    story = Story(workers=2, max_workers=4)
    assert story.every_second(0, 5, busy=50) == [3, 4, 4, 4, 4, 4]


def test_it_shrinks_by_one_a_second_down_to_its_floor() -> None:
    story = Story(workers=2, max_workers=20)
    for n, busy in enumerate([2, 3, 5]):
        story.at(0.01 * n, busy)
    assert story.size == 9
    assert story.every_second(1, 10, busy=0) == [9, 8, 7, 6, 5, 4, 3, 2, 2, 2]


def test_as_many_as_may_be_idle_stay() -> None:
    story = Story(workers=2, max_workers=20, max_spare_workers=4)
    for n, busy in enumerate([2, 3, 5]):
        story.at(0.01 * n, busy)
    assert story.every_second(2, 9, busy=3)[-1] == 7


def test_a_shrink_that_had_to_be_undone_soon_makes_the_next_one_wait_for_twice_as_long() -> None:
    story = Story(workers=2, max_workers=3)
    story.at(0, busy=2)
    waits = []
    now = 0.0
    for _ in range(8):
        begun = now
        while story.at(now, busy=0) == 3:
            now += 0.5
        waits.append(now - begun)
        now += 1
        assert story.at(now, busy=2) == 3
    assert waits == [1, 2, 4, 8, 16, 32, 32, 32]


def test_a_regret_is_forgotten_after_ten_times_its_wait() -> None:
    story = Story(workers=2, max_workers=4)
    story.at(0, busy=2)
    story.at(1, busy=0)
    assert story.at(2, busy=2) == 3  # regretted: it waits for 2 s now
    assert story.at(3, busy=0) == 3
    assert story.at(4, busy=0) == 2
    assert story.at(30, busy=2) == 3  # 20 s later that is forgotten, and this is none
    assert story.at(31, busy=0) == 2


def test_nobody_is_sent_away_while_they_are_replaced() -> None:
    story = Story(workers=2, max_workers=9)
    story.at(0, busy=2)
    assert story.at(5, busy=0, steady=False) == 3
    assert story.at(5, busy=0) == 2


# The floor


def test_signals_move_the_floor_and_a_pool_at_rest_goes_with_it() -> None:
    sizing = Sizing(Settings(workers=2, max_workers=4), Scoreboard(1), 2)
    assert sizing.shift(+1, 2) == 3
    assert sizing.shift(-1, 3) == 2
    assert sizing.shift(-1, 4) == 4, "one that has grown shrinks by its own rule"
    assert sizing.floor == 1
    assert sizing.shift(+9, 4) == 4
    assert sizing.floor == 4


def test_with_a_floor_of_0_nobody_is_wanted_whatever_the_load() -> None:
    story = Story(workers=1, max_workers=9)
    story.at(0, busy=1)
    story.size = story.sizing.shift(-1, story.size)
    assert story.every_second(1, 3, busy=2) == [0, 0, 0]
    story.size = story.sizing.shift(+1, story.size)
    assert story.size == 1


def test_without_max_workers_signals_alone_decide() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    assert is_empty(plan(pool, at=5))  # the idle bytes, which nobody writes then, mean nothing
    pool.shift(+1)
    assert plan(pool).fork == (3,)


# In the pool


def an_adaptive_pool(workers: int, max_workers: int, cpus: int = 8, **spare: int) -> Pool:
    settings = Settings(workers=workers, max_workers=max_workers, **spare)
    pool = Pool(settings, Scoreboard(12), cpus, lambda: 0.5)
    for slot in range(1, workers + 1):
        fork(pool, slot)
        begin(pool, slot, 0)
    return pool


def begin(pool: Pool, slot: int, at: float) -> None:
    boot(pool, slot, at)
    pool.board.set_idle(slot, True)


def take(pool: Pool, *slots: int) -> None:
    for slot in slots:
        pool.board.set_idle(slot, False)


def grow(pool: Pool, at: float) -> Plan:
    """As the master does it: the size first, and then what follows from it."""
    todo = carry_out(pool, at)
    if todo.wanted is not None:
        pool.resized(todo.wanted, ns(at))
        todo = carry_out(pool, at)
    return todo


def test_the_pool_plans_a_size_first_and_then_what_follows_from_it() -> None:
    pool = an_adaptive_pool(2, 6)
    take(pool, 1, 2)
    assert plan(pool, at=2) == Plan(wanted=3, wake_ns=ns(2))
    assert grow(pool, at=2).fork == (3,)
    assert is_empty(plan(pool, at=2)), "one that starts counts as idle"


def test_one_that_takes_far_longer_to_start_than_the_others_did_is_not_counted_on() -> None:
    pool = an_adaptive_pool(2, 6)
    take(pool, 1, 2)
    assert grow(pool, at=2).fork == (3,)
    todo = plan(pool, at=2)
    assert is_empty(todo)
    assert todo.wake_ns == ns(3)  # the others were ready at once
    assert plan(pool, at=3).wanted == 5


def test_while_nobody_has_booted_no_boot_takes_long() -> None:
    pool = Pool(Settings(workers=2, max_workers=6), Scoreboard(12), 8, lambda: 0.5)
    carry_out(pool)
    assert is_empty(plan(pool, at=40))


def test_of_those_who_are_idle_the_one_with_the_highest_number_goes() -> None:
    pool = an_adaptive_pool(2, 6)
    take(pool, 1, 2)
    grow(pool, at=2)
    begin(pool, 3, 2.1)
    take(pool, 3)
    grow(pool, at=2.2)
    for slot in (4, 5):
        begin(pool, slot, 2.3)
    assert len(pool) == 5
    take(pool, 5)
    for slot in (1, 2, 3):
        pool.board.set_idle(slot, True)
    assert slots(grow(pool, at=4).retire) == [4]  # and not the fifth, who is busy


def test_those_who_were_told_to_go_are_not_counted() -> None:
    pool = an_adaptive_pool(3, 3)
    pool.shift(-1)
    assert slots(grow(pool, at=1).retire) == [3]
    take(pool, 1, 2)
    assert grow(pool, at=1.5).fork == (4,)


def test_who_rings_is_heard_only_where_that_would_be_of_use() -> None:
    pool = an_adaptive_pool(2, 3)
    grows = 11

    def published() -> bool:
        pool.publish()
        return pool.board.get(0, grows) != 0

    assert published()
    take(pool, 1, 2)
    grow(pool, at=2)
    assert not published(), "somebody starts"
    begin(pool, 3, 2.1)
    assert not published(), "there are as many as there may be"


def test_a_recycled_worker_is_replaced_and_the_size_stays() -> None:
    pool = an_adaptive_pool(2, 6)
    pool.board.set(1, DUE, WORN)
    assert grow(pool, at=5).fork == (3,)
    begin(pool, 3, 5.1)
    assert slots(grow(pool, at=7).retire) == [1]
    assert pool.wanted == 2


@pytest.mark.parametrize("busy", [0, 1, 2, 3])
def test_what_a_stopping_pool_wants_is_nobody(busy: int) -> None:
    pool = an_adaptive_pool(3, 6)
    take(pool, *range(1, busy + 1))
    pool.stop(hurry=False)
    assert plan(pool, at=SECOND).wanted is None
    pool.shift(+1)
    assert pool.wanted == 0
