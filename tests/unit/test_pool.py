"""Every rule about the size and the health of the pool, without a single process.

The times of a story are seconds since its beginning. Workers that a pool is
made with were forked at 0, were ready at once and gave their sign of life then.
"""

import signal
from collections.abc import Callable, Iterable

import pytest

from prefork_server.plan import Death, Plan, WorkerHandle
from prefork_server.pool import Pool
from prefork_server.reasons import why_retired
from prefork_server.scoreboard import (
    ASKS_STOP,
    DEADLINE,
    DRAIN,
    DRAIN_ONCE,
    DUE,
    LEAVING,
    MEMORY,
    NEVER,
    READY,
    REQUESTS,
    RETIRE,
    SECOND,
    STAY,
    TOO_LARGE,
    WISH,
    WORN,
    Scoreboard,
)
from prefork_server.settings import Settings

BEGINNING = 1000 * SECOND  # a clock that shows 0 would mean "never" on the scoreboard
MOMENT = 1e-9  # the smallest step of the clock
SLOTS = 12
NOTHING: tuple[WorkerHandle, ...] = ()


def ns(seconds: float) -> int:
    return BEGINNING + round(seconds * SECOND)


def a_pool(
    workers: int = 2,
    running: Iterable[int] = (),
    *,
    cpus: int = 8,
    chance: float = 0.5,  # in the middle: delays are exact
    timeout: float | None = 30.0,
    boot_timeout: float = 60.0,
    graceful_timeout: float = 20.0,
) -> Pool:
    settings = Settings(
        workers=workers,
        timeout=timeout,
        boot_timeout=boot_timeout,
        graceful_timeout=graceful_timeout,
    )
    pool = Pool(settings, Scoreboard(SLOTS), cpus, lambda: chance)
    for slot in running:
        fork(pool, slot)
        boot(pool, slot)
    return pool


def fork(pool: Pool, slot: int, at: float = 0.0) -> WorkerHandle:
    """As the master does it."""
    pool.board.clear(slot, ns(at + pool.settings.boot_timeout))
    return pool.forked(slot, 4000 + slot, ns(at))


def boot(pool: Pool, slot: int, at: float = 0.0) -> None:
    """As the worker does it."""
    beat(pool, slot, at)
    pool.board.set(slot, READY, ns(at))


def beat(pool: Pool, slot: int, at: float) -> None:
    timeout = pool.settings.timeout
    pool.board.set(slot, DEADLINE, ns(at) + NEVER if timeout is None else ns(at + timeout))


def serve(pool: Pool, slot: int) -> None:
    pool.board.set(slot, REQUESTS, pool.board.get(slot, REQUESTS) + 1)


def leave(pool: Pool, slot: int) -> None:
    pool.board.set(slot, LEAVING, 1)


def plan(pool: Pool, at: float = 0.0, awake_since: float = 0.0) -> Plan:
    return pool.plan(ns(at), ns(awake_since))


def carry_out(pool: Pool, at: float = 0.0) -> Plan:
    """Plan, and have it done."""
    todo = plan(pool, at)
    if todo.reload:
        pool.reloaded()
    for worker in todo.suspect:
        pool.suspected(worker, ns(at))
    for worker in todo.kill:
        pool.killed(worker)
    for worker in todo.end:
        pool.told_to_end(worker, ns(at))
    for worker in todo.retire:
        pool.told_to_retire(worker, ns(at))
    for slot in todo.fork:
        fork(pool, slot, at)
    if todo.serves:
        pool.settled()
    return todo


def die(pool: Pool, slot: int, at: float = 0.0, status: int | None = 1) -> Death:
    return pool.died(worker_in(pool, slot), status, "", ns(at))


def false_start(pool: Pool, slot: int, at: float = 0.0) -> None:
    fork(pool, slot, at)
    die(pool, slot, at)


def worker_in(pool: Pool, slot: int) -> WorkerHandle:
    return next(worker for worker in pool if worker.slot == slot)


def slots(workers: Iterable[WorkerHandle]) -> list[int]:
    return [worker.slot for worker in workers]


def is_empty(todo: Plan) -> bool:
    done = todo.fork or todo.retire or todo.suspect or todo.end or todo.kill
    return not (done or todo.reload or todo.serves)


def rest_of(pool: Pool, slot: int, since: float) -> float:
    """Seconds until this slot, the only one missing, gets its next try."""
    todo = plan(pool, since)
    if todo.fork == (slot,):
        return 0.0
    assert is_empty(todo)
    return round((todo.wake_ns - ns(since)) / SECOND, 6)


# How many, and where


def test_missing_workers_are_forked_into_the_lowest_free_slots() -> None:
    pool = a_pool(workers=4, running=[2])
    assert plan(pool).fork == (1, 3, 4)


def test_a_pool_that_is_complete_needs_nothing() -> None:
    pool = a_pool(workers=3, running=[1, 2, 3])
    assert is_empty(plan(pool, at=1))


def test_a_pool_knows_its_workers() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    assert len(pool) == 2
    assert slots(pool) == [1, 2]
    assert str(worker_in(pool, 2)) == "worker=2 pid=4002"


def test_a_worker_that_died_is_replaced_in_its_slot() -> None:
    pool = a_pool(workers=3, running=[1, 2, 3])
    die(pool, 2, at=5)
    assert plan(pool, at=5).fork == (2,)


def test_at_most_as_many_boot_at_once_as_there_are_cpus() -> None:
    pool = a_pool(workers=5, cpus=2)
    assert carry_out(pool).fork == (1, 2)
    assert plan(pool, at=0.5).fork == ()
    boot(pool, 1, at=0.5)
    assert plan(pool, at=0.5).fork == (3,)


def test_one_that_has_been_booting_for_a_second_no_longer_counts() -> None:
    pool = a_pool(workers=5, cpus=2)
    carry_out(pool)
    assert plan(pool, at=1 - MOMENT).fork == ()
    assert plan(pool, at=1).fork == (3, 4)


def test_one_that_retires_while_it_boots_keeps_nobody_waiting() -> None:
    pool = a_pool(workers=1, cpus=1)
    carry_out(pool)
    pool.told_to_retire(worker_in(pool, 1), ns(0))
    assert plan(pool).fork == (2,)


def test_one_boots_even_where_the_number_of_cpus_is_unknown() -> None:
    pool = a_pool(workers=3, cpus=0)
    assert plan(pool).fork == (1,)


def test_surplus_goes_highest_number_first() -> None:
    pool = a_pool(workers=4, running=[3, 1, 4, 2])
    pool.wanted = 2
    todo = plan(pool, at=1)
    assert slots(todo.retire) == [3, 4]
    assert todo.fork == ()


def test_a_worker_is_told_to_retire_once() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    pool.wanted = 1
    assert slots(carry_out(pool, at=1).retire) == [2]
    assert is_empty(plan(pool, at=1))
    assert pool.board.get(2, WISH) == RETIRE
    assert pool.board.get(1, WISH) == STAY


def test_one_that_retires_keeps_its_slot_and_not_its_place() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    pool.told_to_retire(worker_in(pool, 1), ns(1))
    assert plan(pool, at=1).fork == (3,)


def test_ttou_down_to_nobody_and_ttin_back() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    pool.wanted = 0
    assert slots(carry_out(pool, at=1).retire) == [1, 2]
    die(pool, 1, at=2, status=0)
    die(pool, 2, at=2, status=0)
    assert is_empty(plan(pool, at=3))
    assert not pool.first_generation_failed()
    pool.wanted = 1
    assert plan(pool, at=4).fork == (1,)


def test_there_is_no_slot_beyond_the_last() -> None:
    pool = a_pool(workers=SLOTS + 5, cpus=99)
    assert plan(pool).fork == tuple(range(1, SLOTS + 1))


# Silence


def test_a_worker_past_its_deadline_is_first_asked_where_it_hangs_then_killed() -> None:
    pool = a_pool(workers=1, running=[1], timeout=5)
    assert is_empty(plan(pool, at=5 - MOMENT))
    todo = carry_out(pool, at=5)
    assert slots(todo.suspect) == [1] and todo.kill == NOTHING
    assert is_empty(plan(pool, at=5.1 - MOMENT))
    assert slots(plan(pool, at=5.1).kill) == [1]


def test_one_that_gives_a_sign_of_life_in_between_is_not_killed() -> None:
    pool = a_pool(workers=1, running=[1], timeout=5)
    carry_out(pool, at=5)
    beat(pool, 1, at=5.05)
    assert is_empty(plan(pool, at=5.1))
    assert is_empty(plan(pool, at=10.05 - MOMENT))


def test_a_new_silence_is_a_new_suspicion() -> None:
    pool = a_pool(workers=1, running=[1], timeout=5)
    carry_out(pool, at=5)
    beat(pool, 1, at=5.05)
    todo = carry_out(pool, at=10.05)
    assert slots(todo.suspect) == [1] and todo.kill == NOTHING
    assert is_empty(plan(pool, at=10.15 - MOMENT))
    assert slots(plan(pool, at=10.15).kill) == [1]


def test_a_sign_of_life_just_before_the_question_leaves_no_suspicion() -> None:
    pool = a_pool(workers=1, running=[1], timeout=5)
    todo = plan(pool, at=5)
    beat(pool, 1, at=5)
    pool.suspected(todo.suspect[0], ns(5))
    later = plan(pool, at=10)
    assert slots(later.suspect) == [1] and later.kill == NOTHING


def test_one_that_announced_a_long_silence_has_it() -> None:
    pool = a_pool(workers=1, running=[1], timeout=5)
    pool.board.set(1, DEADLINE, ns(600))
    assert is_empty(plan(pool, at=600 - MOMENT))
    assert slots(plan(pool, at=600).suspect) == [1]


def test_one_that_announced_a_short_silence_is_held_to_it() -> None:
    pool = a_pool(workers=1, running=[1], timeout=5)
    pool.board.set(1, DEADLINE, ns(1))
    assert slots(plan(pool, at=1).suspect) == [1]


def test_nobody_answers_for_a_silence_the_master_slept_through() -> None:
    pool = a_pool(workers=1, running=[1], timeout=5)
    assert is_empty(plan(pool, at=3600, awake_since=3600))


def test_silence_counts_again_from_the_awakening() -> None:
    pool = a_pool(workers=1, running=[1], timeout=5)
    assert is_empty(plan(pool, at=3605 - MOMENT, awake_since=3600))
    assert slots(plan(pool, at=3605, awake_since=3600).suspect) == [1]


def test_a_nap_shortens_no_deadline() -> None:
    pool = a_pool(workers=1, running=[1], timeout=5)
    pool.board.set(1, DEADLINE, ns(600))
    assert is_empty(plan(pool, at=600 - MOMENT, awake_since=100))
    assert slots(plan(pool, at=600, awake_since=100).suspect) == [1]


def test_one_that_was_asked_before_the_nap_is_not_killed_after_it() -> None:
    pool = a_pool(workers=1, running=[1], timeout=5)
    carry_out(pool, at=5)
    assert is_empty(plan(pool, at=3600, awake_since=3600))
    assert is_empty(plan(pool, at=3605 - MOMENT, awake_since=3600))


def test_a_nap_before_the_fork_excuses_nothing() -> None:
    pool = a_pool(workers=1, timeout=5, boot_timeout=2)
    fork(pool, 1, at=10)
    assert slots(plan(pool, at=12, awake_since=10).suspect) == [1]


def test_without_a_timeout_nobody_is_ever_silent() -> None:
    pool = a_pool(workers=1, running=[1], timeout=None)
    year = 366 * 24 * 3600
    assert is_empty(plan(pool, at=year, awake_since=year))
    assert plan(pool, at=year).wake_ns >= NEVER


def test_without_a_timeout_an_announced_silence_ends_and_a_nap_adds_a_second() -> None:
    pool = a_pool(workers=1, running=[1], timeout=None)
    pool.board.set(1, DEADLINE, ns(10))
    assert slots(plan(pool, at=10).suspect) == [1]
    assert is_empty(plan(pool, at=51 - MOMENT, awake_since=50))
    assert slots(plan(pool, at=51, awake_since=50).suspect) == [1]


def test_a_worker_that_does_not_get_ready_is_asked_and_killed() -> None:
    pool = a_pool(workers=1, timeout=5, boot_timeout=20)
    carry_out(pool)
    assert is_empty(plan(pool, at=20 - MOMENT))
    assert slots(carry_out(pool, at=20).suspect) == [1]
    assert slots(plan(pool, at=20.1).kill) == [1]


def test_one_that_boots_gets_the_time_to_boot_again_after_a_nap() -> None:
    pool = a_pool(workers=1, timeout=5, boot_timeout=20)
    carry_out(pool)
    assert is_empty(plan(pool, at=120 - MOMENT, awake_since=100))
    assert slots(plan(pool, at=120, awake_since=100).suspect) == [1]


def test_a_killed_worker_only_has_to_be_reaped() -> None:
    pool = a_pool(workers=1, running=[1], timeout=5)
    carry_out(pool, at=5)
    assert slots(carry_out(pool, at=5.1).kill) == [1]
    assert is_empty(plan(pool, at=60))
    die(pool, 1, at=60, status=-9)
    assert plan(pool, at=60).fork == (1,)


# False starts


def test_the_first_respawn_is_made_at_once() -> None:
    pool = a_pool(workers=2, running=[1])
    false_start(pool, 2)
    assert rest_of(pool, 2, since=0) == 0


def test_the_third_try_rests_a_second_and_then_half_as_long_again_each_time() -> None:
    pool = a_pool(workers=2, running=[1], timeout=None)
    false_start(pool, 2)
    rests = []
    for _ in range(10):
        false_start(pool, 2)
        rests.append(rest_of(pool, 2, since=0))
    assert rests[:4] == [1, 1.5, 2.25, 3.375]
    assert rests[8:] == [pytest.approx(1.5**8), 30]


def test_two_thousand_false_starts_rest_thirty_seconds() -> None:
    pool = a_pool(workers=2, running=[1], timeout=None)
    for _ in range(2000):
        false_start(pool, 2)
    assert rest_of(pool, 2, since=0) == 30


@pytest.mark.parametrize(("chance", "rest"), [(0.0, 0.8), (1.0, 1.2)])
def test_rests_differ_by_a_fifth_so_that_slots_do_not_march_in_step(
    chance: float, rest: float
) -> None:
    pool = a_pool(workers=2, running=[1], chance=chance)
    for _ in range(2):
        false_start(pool, 2)
    assert rest_of(pool, 2, since=0) == rest


def test_a_slot_that_has_rested_is_used_again() -> None:
    pool = a_pool(workers=2, running=[1])
    for _ in range(2):
        false_start(pool, 2)
    assert plan(pool, at=1 - MOMENT).fork == ()
    assert plan(pool, at=1).fork == (2,)


def test_a_rest_keeps_only_its_own_slot_waiting() -> None:
    pool = a_pool(workers=4, running=[1, 3])
    for _ in range(2):
        false_start(pool, 2)
    assert carry_out(pool).fork == (4,)
    assert plan(pool).fork == ()


def test_the_rest_of_a_slot_that_is_no_longer_wanted_keeps_nobody_waiting() -> None:
    pool = a_pool(workers=3, running=[1, 2])
    for _ in range(2):
        false_start(pool, 3)
    pool.wanted = 2
    serve(pool, 1)
    die(pool, 1)
    assert plan(pool).fork == (1,)


def test_a_worker_that_was_ready_for_less_than_a_second_and_served_nobody_started_falsely() -> None:
    pool = a_pool(workers=2, running=[1])
    for _ in range(2):
        fork(pool, 2)
        boot(pool, 2, at=10)
        die(pool, 2, at=11 - MOMENT)
    assert rest_of(pool, 2, since=11 - MOMENT) == 1


def test_a_worker_that_was_ready_for_a_second_was_of_use() -> None:
    pool = a_pool(workers=2, running=[1])
    for _ in range(5):
        fork(pool, 2)
        boot(pool, 2, at=10)
        die(pool, 2, at=11)
    assert rest_of(pool, 2, since=11) == 0


def test_a_client_cannot_slow_respawns_down() -> None:
    pool = a_pool(workers=2, running=[1])
    for _ in range(5):
        fork(pool, 2)
        boot(pool, 2)
        serve(pool, 2)
        die(pool, 2)
    assert rest_of(pool, 2, since=0) == 0


def test_serving_somebody_resets_the_back_off() -> None:
    pool = a_pool(workers=2, running=[1])
    for _ in range(5):
        false_start(pool, 2)
    fork(pool, 2, at=100)
    boot(pool, 2, at=100)
    serve(pool, 2)
    die(pool, 2, at=100)
    false_start(pool, 2, at=100)
    assert rest_of(pool, 2, since=100) == 0


def test_the_end_of_one_that_retires_says_nothing_about_the_slot() -> None:
    pool = a_pool(workers=2, running=[1])
    for _ in range(5):
        pool.told_to_retire(fork(pool, 2), ns(0))
        die(pool, 2)
    assert rest_of(pool, 2, since=0) == 0
    false_start(pool, 2)
    pool.told_to_retire(fork(pool, 2), ns(0))
    die(pool, 2)
    false_start(pool, 2)
    assert rest_of(pool, 2, since=0) == 1


# The first generation


def test_the_first_generation_gets_one_try_each() -> None:
    pool = a_pool(workers=2)
    carry_out(pool)
    die(pool, 1)
    assert is_empty(plan(pool, at=3))
    assert not pool.first_generation_failed()
    die(pool, 2)
    assert is_empty(plan(pool, at=3))
    assert pool.first_generation_failed()


def test_a_generation_that_boots_in_turns_fails_after_the_last() -> None:
    pool = a_pool(workers=3, cpus=1)
    for slot in (1, 2, 3):
        assert not pool.first_generation_failed()
        assert carry_out(pool).fork == (slot,)
        die(pool, slot)
    assert pool.first_generation_failed()


def test_a_generation_has_not_failed_before_its_first_fork() -> None:
    assert not a_pool(workers=1).first_generation_failed()


def test_as_soon_as_one_was_ready_the_others_get_another_try() -> None:
    pool = a_pool(workers=2)
    carry_out(pool)
    die(pool, 1)
    assert not pool.any_ready()
    boot(pool, 2, at=1)
    assert pool.any_ready()
    assert plan(pool, at=1).fork == (1,)


def test_a_generation_of_which_one_was_ready_has_not_failed() -> None:
    pool = a_pool(workers=2)
    carry_out(pool)
    boot(pool, 1)
    die(pool, 1)
    die(pool, 2)
    assert pool.any_ready()
    assert not pool.first_generation_failed()
    assert plan(pool).fork == (1, 2)


def test_a_generation_has_not_failed_while_one_of_it_still_boots() -> None:
    pool = a_pool(workers=3)
    carry_out(pool)
    die(pool, 1)
    die(pool, 2)
    pool.wanted = 2
    assert not pool.first_generation_failed()
    die(pool, 3)
    assert pool.first_generation_failed()


def test_a_first_generation_that_was_sent_away_has_not_failed() -> None:
    pool = a_pool(workers=1)
    carry_out(pool)
    pool.wanted = 0
    carry_out(pool)
    die(pool, 1)
    assert not pool.first_generation_failed()


# Leaving


def test_one_that_leaves_of_its_own_accord_is_replaced_before_it_is_gone() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    serve(pool, 1)
    leave(pool, 1)
    todo = carry_out(pool)
    assert slots(todo.retire) == [1]
    assert todo.fork == (3,)
    assert is_empty(plan(pool))


def test_one_that_leaves_after_a_second_is_replaced_before_it_is_gone() -> None:
    pool = a_pool(workers=1, running=[1])
    leave(pool, 1)
    assert is_empty(plan(pool, at=1 - MOMENT))
    todo = plan(pool, at=1)
    assert slots(todo.retire) == [1]
    assert todo.fork == (2,)


def test_one_that_leaves_before_it_did_anything_meets_the_back_off() -> None:
    pool = a_pool(workers=2, running=[1])
    for _ in range(2):
        fork(pool, 2)
        boot(pool, 2)
        leave(pool, 2)
        assert is_empty(plan(pool))
        die(pool, 2, status=0)
    assert rest_of(pool, 2, since=0) == 1


def test_one_that_leaves_while_it_boots_keeps_its_place() -> None:
    pool = a_pool(workers=1)
    carry_out(pool)
    leave(pool, 1)
    assert is_empty(plan(pool, at=50))


@pytest.mark.parametrize(("wanted", "most"), [(1, 33), (4, 36), (20, 100)])
@pytest.mark.parametrize("word", [LEAVING, DUE])
def test_workers_that_leave_and_never_go_are_replaced_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch, word: int, wanted: int, most: int
) -> None:
    monkeypatch.setattr("tests.unit.test_pool.SLOTS", 200)
    pool = a_pool(workers=wanted, running=range(1, wanted + 1), graceful_timeout=1e6)
    for second in range(2, 400):
        for worker in pool:
            boot(pool, worker.slot, second)
            serve(pool, worker.slot)
            pool.board.set(worker.slot, word, 1)
        carry_out(pool, at=second)
    spare = max(1, wanted // 10)
    assert most <= len(pool) <= most + spare


def test_at_that_bound_a_worker_that_dies_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.test_pool.SLOTS", 200)
    pool = a_pool(workers=1, running=[1], timeout=None, graceful_timeout=1e6)
    for slot in range(1, 33):
        serve(pool, slot)
        leave(pool, slot)
        carry_out(pool, at=slot * 2)
        boot(pool, slot + 1, at=slot * 2)
    serve(pool, 33)
    leave(pool, 33)
    assert is_empty(carry_out(pool, at=70))
    die(pool, 33, at=70, status=0)
    assert carry_out(pool, at=70).fork == (33,)
    boot(pool, 33, at=71)
    serve(pool, 33)
    leave(pool, 33)
    assert is_empty(carry_out(pool, at=72))
    die(pool, 3, at=72, status=0)  # one that was on its way out: there is room again
    todo = carry_out(pool, at=72)
    assert (todo.fork, slots(todo.retire)) == ((3,), [33])


def test_surplus_and_those_who_leave_go_together() -> None:
    pool = a_pool(workers=3, running=[1, 2, 3])
    leave(pool, 1)
    pool.wanted = 1
    assert sorted(slots(plan(pool, at=2).retire)) == [1, 3]


def test_one_that_retires_and_is_not_gone_in_time_is_killed() -> None:
    pool = a_pool(workers=1, running=[1], timeout=None, graceful_timeout=20)
    pool.told_to_retire(worker_in(pool, 1), ns(5))
    carry_out(pool, at=5)
    boot(pool, 2, at=5)
    assert is_empty(plan(pool, at=25 - MOMENT))
    assert slots(plan(pool, at=25).kill) == [1]


def test_one_that_retires_must_still_give_signs_of_life() -> None:
    pool = a_pool(workers=1, running=[1], timeout=5, graceful_timeout=20)
    pool.told_to_retire(worker_in(pool, 1), ns(0))
    assert slots(carry_out(pool, at=5).suspect) == [1]
    assert slots(plan(pool, at=5.1).kill) == [1]


# Stopping


def test_a_graceful_stop_wishes_everybody_to_drain_the_queue() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    pool.stop(hurry=False)
    todo = carry_out(pool, at=1)
    assert slots(todo.retire) == [1, 2]
    assert todo.end == NOTHING
    assert [pool.board.get(slot, WISH) for slot in (1, 2)] == [DRAIN, DRAIN]


def test_those_who_retired_before_the_stop_drain_the_queue_too() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    pool.wanted = 1
    carry_out(pool)
    pool.stop(hurry=False)
    assert pool.board.get(2, WISH) == DRAIN


def test_nobody_is_forked_while_stopping() -> None:
    pool = a_pool(workers=2, running=[1])
    pool.stop(hurry=False)
    assert plan(pool).fork == ()
    carry_out(pool)
    die(pool, 1)
    assert is_empty(plan(pool, at=60))
    assert not pool.first_generation_failed()


def test_past_the_graceful_timeout_the_rest_is_killed() -> None:
    pool = a_pool(workers=2, running=[1, 2], timeout=None, graceful_timeout=20)
    pool.stop(hurry=False)
    carry_out(pool, at=1)
    die(pool, 1, at=2, status=0)
    assert is_empty(plan(pool, at=21 - MOMENT))
    assert slots(plan(pool, at=21).kill) == [2]


def test_hurry_sends_term_once_and_kill_a_second_later() -> None:
    pool = a_pool(workers=1, running=[1], timeout=None)
    pool.stop(hurry=True)
    todo = carry_out(pool, at=1)
    assert slots(todo.end) == [1] and todo.retire == NOTHING
    assert is_empty(plan(pool, at=2 - MOMENT))
    assert slots(plan(pool, at=2).kill) == [1]


def test_who_is_faster_than_a_stop_now_was_expected_to_go() -> None:
    pool = a_pool(workers=1, running=[1])
    pool.stop(hurry=True)
    assert die(pool, 1, at=1, status=-15).expected


def test_a_second_stop_hurries_the_first() -> None:
    pool = a_pool(workers=1, running=[1], timeout=None, graceful_timeout=20)
    pool.stop(hurry=False)
    carry_out(pool)
    pool.stop(hurry=True)
    assert slots(carry_out(pool, at=5).end) == [1]
    assert slots(plan(pool, at=6).kill) == [1]


def test_a_second_stop_calms_nobody_down() -> None:
    pool = a_pool(workers=1, running=[1])
    pool.stop(hurry=True)
    pool.stop(hurry=False)
    assert pool.stopping and pool.hurried
    assert slots(plan(pool).end) == [1]


def test_hurry_puts_no_kill_off() -> None:
    pool = a_pool(workers=1, running=[1], timeout=None, graceful_timeout=20)
    pool.stop(hurry=False)
    carry_out(pool)
    pool.stop(hurry=True)
    carry_out(pool, at=19.5)
    assert slots(plan(pool, at=20).kill) == [1]


def test_hurry_excuses_no_silence() -> None:
    pool = a_pool(workers=1, running=[1], timeout=0.5)
    pool.stop(hurry=True)
    carry_out(pool)
    assert slots(carry_out(pool, at=0.5).suspect) == [1]
    assert slots(plan(pool, at=0.6).kill) == [1]


def test_a_killed_worker_is_not_hurried() -> None:
    pool = a_pool(workers=1, running=[1])
    pool.killed(worker_in(pool, 1))
    pool.stop(hurry=True)
    assert is_empty(plan(pool))


def test_a_worker_can_ask_for_the_stop_of_all() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    assert not pool.stop_asked()
    pool.board.set(2, ASKS_STOP, 1)
    assert pool.stop_asked()


def test_a_stop_is_not_forgotten_with_the_death_of_who_asked_for_it() -> None:
    pool = a_pool(workers=1, running=[1])
    pool.board.set(1, ASKS_STOP, 1)
    die(pool, 1)
    fork(pool, 1)
    assert pool.stop_asked()


# Forks that fail


def test_a_failed_fork_backs_off() -> None:
    pool = a_pool(workers=1)
    assert [pool.fork_failed(ns(at)) for at in (0, 1, 2.5)] == [1, 1.5, 2.25]


def test_after_a_failed_fork_nothing_is_forked_for_a_while() -> None:
    pool = a_pool(workers=2)
    pool.fork_failed(ns(0))
    assert is_empty(plan(pool, at=1 - MOMENT))
    assert plan(pool, at=1).fork == (1, 2)


def test_the_next_success_resets_the_back_off() -> None:
    pool = a_pool(workers=2)
    pool.fork_failed(ns(0))
    pool.fork_failed(ns(1))
    fork(pool, 1, at=3)
    assert pool.fork_failed(ns(3)) == 1


def test_a_complete_pool_does_not_wait_for_the_next_fork() -> None:
    pool = a_pool(workers=1, running=[1], timeout=None)
    pool.fork_failed(ns(0))
    assert plan(pool).wake_ns >= NEVER


# Deaths


def a_death(status: int | None, *, expected: bool = False, killed: bool = False) -> Death:
    return Death(1, 4001, status, 1.0, 0, booted=True, expected=expected, killed=killed)


@pytest.mark.parametrize(
    ("death", "cause"),
    [
        (a_death(3), "exit code 3"),
        (a_death(0), "exit code 0, its function returned"),
        (a_death(0, expected=True), "exit code 0"),
        (a_death(-signal.SIGSEGV), "killed by SIGSEGV"),
        (a_death(-signal.SIGTERM), "killed by SIGTERM"),
        (a_death(-signal.SIGKILL, killed=True), "killed by SIGKILL"),
        (a_death(-signal.SIGKILL), "killed by SIGKILL, not by us: perhaps out of memory"),
        (a_death(-99), "killed by signal 99"),
        (a_death(None), "exit status unknown, reaped by somebody else"),
    ],
)
def test_a_death_says_its_cause_in_words(death: Death, cause: str) -> None:
    assert str(death) == cause


def test_a_death_is_told_with_what_the_scoreboard_knew() -> None:
    pool = a_pool(workers=1, running=[1])
    serve(pool, 1)
    serve(pool, 1)
    pool.killed(worker_in(pool, 1))
    death = pool.died(worker_in(pool, 1), -9, "it hung", ns(2.5))
    assert death == Death(
        1, 4001, -9, 2.5, 2, booted=True, expected=False, killed=True, report="it hung"
    )
    assert len(pool) == 0


def test_a_row_that_was_scribbled_on_tells_of_no_less_than_no_requests() -> None:
    pool = a_pool(workers=1, running=[1])
    pool.board.set(1, REQUESTS, -7)
    assert die(pool, 1).requests == 0


def test_a_death_before_ready_is_told_as_such() -> None:
    pool = a_pool(workers=1)
    carry_out(pool)
    death = die(pool, 1)
    assert not death.booted and not death.expected and not death.killed


def test_the_end_of_one_that_was_told_to_go_is_expected_however_it_ends() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    pool.told_to_retire(worker_in(pool, 1), ns(0))
    pool.told_to_end(worker_in(pool, 2), ns(0))
    assert die(pool, 1, status=1).expected
    assert die(pool, 2, status=-signal.SIGTERM).expected


def test_the_end_of_one_that_left_is_expected_if_it_is_clean() -> None:
    pool = a_pool(workers=3, running=[1, 2, 3])
    leave(pool, 1)
    leave(pool, 2)
    assert die(pool, 1, status=0).expected
    assert not die(pool, 2, status=1).expected
    assert not die(pool, 3, status=0).expected


# Waking up


def silent_soon() -> Pool:
    return a_pool(workers=1, running=[1], timeout=5)


def asked_where_it_hangs() -> Pool:
    pool = a_pool(workers=1, running=[1], timeout=0.5)
    carry_out(pool, at=0.5)
    return pool


def retiring() -> Pool:
    pool = a_pool(workers=1, running=[1], graceful_timeout=5)
    pool.wanted = 0
    carry_out(pool)
    return pool


def retiring_and_asked_where_it_hangs() -> Pool:
    pool = a_pool(workers=1, running=[1], timeout=0.5, graceful_timeout=0.55)
    pool.wanted = 0
    carry_out(pool)
    carry_out(pool, at=0.5)
    return pool


def told_to_end() -> Pool:
    pool = a_pool(workers=1, running=[1])
    pool.stop(hurry=True)
    carry_out(pool)
    return pool


def booting() -> Pool:
    pool = a_pool(workers=2, cpus=1)
    carry_out(pool)
    return pool


def resting() -> Pool:
    pool = a_pool(workers=3, running=[1])
    for _ in range(2):
        false_start(pool, 3)
    for _ in range(3):
        false_start(pool, 2)
    return pool


def failing_to_fork() -> Pool:
    pool = a_pool(workers=1)
    pool.fork_failed(ns(0))
    return pool


def leaving_young() -> Pool:
    pool = a_pool(workers=1, running=[1])
    leave(pool, 1)
    return pool


@pytest.mark.parametrize(
    ("a_pool_that_is", "then"),
    [
        (silent_soon, 5),
        (asked_where_it_hangs, 0.6),
        (retiring, 5),
        (retiring_and_asked_where_it_hangs, 0.55),
        (told_to_end, 1),
        (booting, 1),
        (resting, 1),
        (failing_to_fork, 1),
        (leaving_young, 1),
    ],
)
def test_the_next_look_is_at_the_moment_at_which_there_is_something_to_do(
    a_pool_that_is: Callable[[], Pool], then: float
) -> None:
    pool = a_pool_that_is()
    todo = plan(pool, at=0.5)
    assert is_empty(todo)
    assert todo.wake_ns == ns(then)
    assert is_empty(plan(pool, at=then - MOMENT))
    assert not is_empty(plan(pool, at=then))


def test_the_next_look_after_a_nap_is_at_the_end_of_the_new_patience() -> None:
    pool = a_pool(workers=1, running=[1], timeout=5)
    assert plan(pool, at=100, awake_since=100).wake_ns == ns(105)


def test_the_question_where_it_hangs_is_followed_by_a_look_in_time_for_the_kill() -> None:
    pool = a_pool(workers=1, running=[1], timeout=5)
    assert carry_out(pool, at=5).wake_ns <= ns(5.1)


def test_the_master_does_not_spin_while_one_boots_that_will_leave() -> None:
    pool = a_pool(workers=1)
    carry_out(pool)
    leave(pool, 1)
    assert plan(pool, at=5).wake_ns > ns(5)


def test_with_nobody_there_and_nobody_wanted_there_is_no_next_look() -> None:
    pool = a_pool(workers=1)
    pool.wanted = 0
    assert plan(pool).wake_ns == NEVER


def test_planning_changes_nothing() -> None:
    pool = a_pool(workers=4, running=[1, 2, 3], timeout=5)
    leave(pool, 1)
    before = repr(pool), bytes(pool.board.words)
    assert plan(pool, at=5) == plan(pool, at=5)
    assert (repr(pool), bytes(pool.board.words)) == before


def test_time_that_the_machine_slept_is_not_taken_from_a_graceful_end() -> None:
    pool = a_pool(workers=1, running=[1], timeout=None, graceful_timeout=20)
    pool.stop(hurry=False)
    carry_out(pool, at=0)
    pool.overslept(100 * SECOND)
    assert plan(pool, at=119).kill == NOTHING
    assert len(plan(pool, at=120).kill) == 1


def test_a_door_that_stays_ajar_is_told_to_whoever_drains_the_queue() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    pool.stop(hurry=False, ajar=True)
    pool.stop(hurry=False)  # again: the door is what it was
    carry_out(pool)
    assert [pool.board.get(slot, WISH) for slot in (1, 2)] == [DRAIN_ONCE, DRAIN_ONCE]


# Due


def wear_out(pool: Pool, slot: int) -> None:
    pool.board.set(slot, DUE, WORN)


def reload(pool: Pool, at: float = 0.0) -> None:
    pool.reload_asked = True
    todo = carry_out(pool, at)
    assert todo == Plan(reload=True, wake_ns=ns(at))


def prove(pool: Pool, slot: int, at: float) -> None:
    """It is ready, and has served somebody."""
    boot(pool, slot, at)
    serve(pool, slot)


def retire_in(pool: Pool, slot: int, at: float) -> Plan:
    """It goes, as it was told to."""
    die(pool, slot, at, status=0)
    return carry_out(pool, at)


def test_one_that_is_due_goes_when_its_successor_is_ready_and_not_before() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    wear_out(pool, 1)
    todo = carry_out(pool, at=1)
    assert todo.fork == (3,) and todo.retire == NOTHING
    assert is_empty(plan(pool, at=1.5))
    boot(pool, 3, at=2)
    assert slots(carry_out(pool, at=2).retire) == [1]
    assert is_empty(plan(pool, at=2))
    assert is_empty(retire_in(pool, 1, at=2.1))


def test_only_a_tenth_more_than_are_wanted_are_there_for_those_who_are_due() -> None:
    for workers, more in [(1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (40, 4)]:
        pool = Pool(Settings(workers=workers), Scoreboard(100), 99, lambda: 0.5)
        for slot in range(1, workers + 1):
            fork(pool, slot)
            boot(pool, slot)
            wear_out(pool, slot)
        assert len(carry_out(pool, at=1).fork) == more
        assert is_empty(plan(pool, at=1))


def test_recycling_of_all_at_once_goes_on_in_steps_of_a_tenth() -> None:
    pool = Pool(Settings(workers=20), Scoreboard(100), 99, lambda: 0.5)
    for slot in range(1, 21):
        fork(pool, slot)
        boot(pool, slot)
        wear_out(pool, slot)
    at, steps = 1.0, 0
    while any(pool.is_due(worker) for worker in pool if not worker.retiring):
        steps += 1
        for worker in [worker for worker in pool if worker.retiring]:
            die(pool, worker.slot, at, status=0)
        carry_out(pool, at)
        assert len([w for w in pool if not w.retiring]) <= 22
        assert len(list(pool)) <= 22
        for worker in pool:
            if not pool.ready(worker):
                boot(pool, worker.slot, at)
        assert len(carry_out(pool, at).retire) <= 2
        at += 0.01
    assert steps == 10


def test_one_that_does_not_go_keeps_the_next_successor_waiting_for_a_second() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    wear_out(pool, 1)
    wear_out(pool, 2)
    carry_out(pool, at=1)
    boot(pool, 3, at=2)
    assert slots(carry_out(pool, at=2).retire) == [1]
    todo = plan(pool, at=3 - MOMENT)
    assert is_empty(todo) and todo.wake_ns == ns(3)
    assert plan(pool, at=3).fork == (4,)


def test_one_that_is_due_and_dies_is_replaced_and_no_successor_is_too_many() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    wear_out(pool, 1)
    carry_out(pool, at=1)
    boot(pool, 3, at=1)
    die(pool, 1, at=1)
    assert is_empty(plan(pool, at=1))


def test_the_end_of_one_that_was_due_is_planned() -> None:
    pool = a_pool(workers=1, running=[1])
    wear_out(pool, 1)
    carry_out(pool, at=0.1)
    boot(pool, 2, at=0.1)
    carry_out(pool, at=0.1)
    assert die(pool, 1, at=0.1, status=0).expected  # though it served nobody in its 0.1 s
    pool.wanted = 2
    assert plan(pool, at=0.1).fork == (1,)  # at once: its slot is none that fails


def test_one_that_is_due_says_why_it_goes() -> None:
    pool = a_pool(workers=4, running=[1, 2, 3, 4])
    wear_out(pool, 1)
    pool.board.set(1, REQUESTS, 1043)
    pool.board.set(2, DUE, TOO_LARGE)
    pool.board.set(2, MEMORY, 312 << 20)
    pool.board.set(3, DUE, -1)
    pool.board.set(3, REQUESTS, -1)
    said = [why_retired(pool, worker_in(pool, slot)) for slot in (1, 2, 3, 4)]
    assert said == [
        "served 1043 requests, replaced",
        "holds 312 MiB, replaced",
        "served 0 requests, replaced",
        "no longer wanted",
    ]
    reload(pool, at=1)
    assert why_retired(pool, worker_in(pool, 4)) == "replaced"


def test_a_reload_replaces_one_after_the_other_and_then_serves() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    reload(pool, at=1)
    assert carry_out(pool, at=1).fork == (3,)
    assert worker_in(pool, 3).generation == pool.generation == 2
    prove(pool, 3, at=2)
    assert slots(carry_out(pool, at=2).retire) == [1]
    todo = retire_in(pool, 1, at=2)
    assert todo.fork == (1,) and not todo.serves
    boot(pool, 1, at=2)
    todo = carry_out(pool, at=2)
    assert slots(todo.retire) == [2] and todo.serves
    assert is_empty(plan(pool, at=2)) and pool.generation == 2


def test_of_a_new_generation_there_is_one_more_until_it_was_of_use() -> None:
    pool = Pool(Settings(workers=40), Scoreboard(100), 99, lambda: 0.5)
    for slot in range(1, 41):
        fork(pool, slot)
        boot(pool, slot)
    reload(pool, at=1)
    assert carry_out(pool, at=1).fork == (41,)
    boot(pool, 41, at=2)
    todo = plan(pool, at=3 - MOMENT)  # it is ready, which is not enough
    assert is_empty(todo) and todo.wake_ns == ns(3)
    todo = carry_out(pool, at=3)
    assert slots(todo.retire) == [1] and todo.fork == (42, 43, 44)


def test_the_first_of_a_generation_that_cannot_boot_meets_the_back_off_and_replaces_nobody() -> (
    None
):
    pool = a_pool(workers=2, running=[1, 2])
    reload(pool, at=1)
    carry_out(pool, at=1)
    death = die(pool, 3, at=1)
    assert death.serves_on == 1 and death.generation == 2 and pool.reload_failed
    assert carry_out(pool, at=1).fork == (3,)
    death = die(pool, 3, at=1)
    assert rest_of(pool, 3, since=1) == 1
    assert not any(worker.retiring for worker in pool)


def test_one_that_hangs_at_its_boot_is_killed_and_replaces_nobody() -> None:
    pool = a_pool(workers=2, running=[1, 2], boot_timeout=5, timeout=None)
    reload(pool, at=1)
    carry_out(pool, at=1)
    carry_out(pool, at=6)
    todo = carry_out(pool, at=6.1)
    assert slots(todo.kill) == [3] and todo.retire == NOTHING
    assert die(pool, 3, at=6.1, status=-9).serves_on == 1


def test_one_that_dies_after_it_was_ready_has_failed_unless_it_served_somebody() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    reload(pool, at=1)
    carry_out(pool, at=1)
    boot(pool, 3, at=1)
    assert die(pool, 3, at=1.5).serves_on == 1
    carry_out(pool, at=1.5)
    prove(pool, 3, at=1.6)
    assert die(pool, 3, at=1.7).serves_on == 0
    todo = carry_out(pool, at=1.7)
    assert todo.fork == (3,) and todo.retire == NOTHING
    boot(pool, 3, at=1.8)  # now the generation has shown that it is of use
    assert slots(carry_out(pool, at=1.8).retire) == [1]


def test_an_old_one_that_dies_while_the_new_generation_fails_is_replaced() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    reload(pool, at=1)
    carry_out(pool, at=1)
    die(pool, 3, at=1)
    die(pool, 2, at=1)
    assert carry_out(pool, at=1).fork == (2, 3)
    assert [worker.generation for worker in pool] == [1, 2, 2]


def test_a_reload_that_is_asked_for_while_one_is_under_way_comes_after_it() -> None:
    pool = a_pool(workers=1, running=[1])
    reload(pool, at=1)
    carry_out(pool, at=1)
    pool.reload_asked = True
    assert is_empty(plan(pool, at=1))
    prove(pool, 2, at=2)
    todo = carry_out(pool, at=2)
    assert slots(todo.retire) == [1] and todo.serves and todo.wake_ns == ns(2)
    assert carry_out(pool, at=2).reload and pool.generation == 3


def test_a_reload_that_has_failed_gives_way_to_the_next_at_once() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    reload(pool, at=1)
    for _ in range(4):
        carry_out(pool, at=1)
        false_start_of_what_is_there(pool, at=1)
    assert rest_of(pool, 3, since=1) > 0
    reload(pool, at=1)
    assert carry_out(pool, at=1).fork == (3,)
    assert worker_in(pool, 3).generation == 3 and not pool.reload_failed


def false_start_of_what_is_there(pool: Pool, at: float) -> None:
    for worker in pool:
        if worker.generation == pool.generation:
            die(pool, worker.slot, at)


def test_while_a_failed_reload_tries_again_the_next_one_waits_for_what_comes_of_it() -> None:
    pool = a_pool(workers=1, running=[1])
    reload(pool, at=1)
    carry_out(pool, at=1)
    die(pool, 2, at=1)
    carry_out(pool, at=1)
    pool.reload_asked = True
    assert is_empty(plan(pool, at=1.5))
    die(pool, 2, at=1.5)
    assert plan(pool, at=1.5).reload


def test_a_reload_while_the_first_ones_boot_sends_those_away_first() -> None:
    pool = a_pool(workers=3, running=[1])
    carry_out(pool, at=0)
    reload(pool, at=0.1)
    assert carry_out(pool, at=0.1).fork == (4,)
    prove(pool, 4, at=0.2)
    assert slots(plan(pool, at=0.2).retire) == [2]  # which boots, and not 1, which serves


def test_a_reload_in_the_middle_of_recycling_keeps_no_more_than_the_old_ones() -> None:
    pool = Pool(Settings(workers=20), Scoreboard(100), 99, lambda: 0.5)
    for slot in range(1, 21):
        fork(pool, slot)
        boot(pool, slot)
    wear_out(pool, 1)
    wear_out(pool, 2)
    assert carry_out(pool, at=1).fork == (21, 22)
    reload(pool, at=1)
    assert slots(carry_out(pool, at=1).retire) == [21, 22]  # they boot, and are old already


def test_nobody_is_reloaded_while_stopping() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    reload(pool, at=1)
    carry_out(pool, at=1)
    pool.stop(hurry=False)
    pool.reload_asked = True
    todo = carry_out(pool, at=1)
    assert slots(todo.retire) == [3, 1, 2] and not (todo.serves or todo.reload)
    assert is_empty(plan(pool, at=1))


def test_fewer_are_wanted_in_the_middle_of_a_reload() -> None:
    pool = a_pool(workers=3, running=[1, 2, 3])
    reload(pool, at=1)
    carry_out(pool, at=1)
    pool.wanted = 2
    todo = carry_out(pool, at=1)
    assert slots(todo.retire) == [1] and todo.fork == ()
    pool.wanted = 0
    todo = carry_out(pool, at=1)
    assert slots(todo.retire) == [4, 2, 3] and todo.serves
    pool.wanted = 1
    assert carry_out(pool, at=1).fork == (5,)
    assert worker_in(pool, 5).generation == 2


def test_a_successor_that_still_boots_goes_before_one_that_serves() -> None:
    pool = Pool(Settings(workers=20), Scoreboard(100), 99, lambda: 0.5)
    for slot in range(1, 21):
        fork(pool, slot)
        boot(pool, slot)
        wear_out(pool, slot)
    carry_out(pool, at=1)
    boot(pool, 22, at=1)
    assert slots(carry_out(pool, at=1).retire) == [1]
    pool.wanted = 19  # of which a tenth is one
    assert slots(carry_out(pool, at=1).retire) == [2]
    pool.wanted = 0
    assert slots(plan(pool, at=1).retire)[:2] == [22, 21]


def test_a_reload_of_nobody_is_done_at_once() -> None:
    pool = a_pool(workers=2, running=[1, 2])
    pool.wanted = 0
    carry_out(pool, at=1)
    die(pool, 1, at=1, status=0)
    die(pool, 2, at=1, status=0)
    reload(pool, at=2)
    assert carry_out(pool, at=2).serves
    assert is_empty(plan(pool, at=2))


def test_a_reload_before_anybody_was_ready_changes_nothing_about_the_first_generation() -> None:
    pool = a_pool(workers=2)
    carry_out(pool)
    reload(pool, at=0.1)
    carry_out(pool, at=0.1)
    assert die(pool, 3, at=0.2).serves_on == 0
    die(pool, 1, at=0.2)
    assert not pool.first_generation_failed()
    die(pool, 2, at=0.2)
    assert pool.first_generation_failed()
