"""Several workers of one decode loop, turned by hand in any order."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.decoding.crew import ROWS_WORTH_A_WORKER
from server.decoding.loop import QueueFull
from server.decoding.observer import SilentObserver
from server.decoding.sequence import Outcome
from server.decoding.waiting import Order
from tests.decoding.desk import FakeClock, Job, make_job
from tests.decoding.fake_runner import FakeRunner, copying_rule, random_rule
from tests.decoding.works import LONG_S, check_ended_as_if_alone, job_kinds, make_loop, repeatable


@repeatable
@given(st.data())
def test_whichever_worker_turns_when_each_text_ends_as_if_alone(data: st.DataObject) -> None:
    rule = random_rule(data.draw(st.integers(0, 1000)), levels=2)
    max_rows = data.draw(st.sampled_from([4, 8]))
    runners = [FakeRunner(rule, max_rows=max_rows) for _ in range(data.draw(st.integers(2, 3)))]
    clock = FakeClock()
    loop = make_loop(*runners, order=data.draw(st.sampled_from(list(Order))), clock=clock, encode_tokens_per_round=32)
    workers = loop._shared.workers
    jobs: list[Job] = []
    for party in data.draw(st.lists(st.lists(job_kinds, max_size=6), min_size=1, max_size=6)):
        joining = [make_job(**kind) for kind in party]
        jobs += joining
        loop.submit([job.sequence for job in joining])
        for number in data.draw(st.sets(st.integers(0, 40), max_size=2)):
            for job in jobs[number : number + 1]:
                job.sequence.cancel()
        for number in data.draw(st.lists(st.integers(0, len(workers) - 1), max_size=12)):
            workers[number].run_round(most_steps=data.draw(st.sampled_from([1, 1, 2, 16])))
            clock.now += 1.0
    for _ in range(500):
        loop.run_round()
    assert (loop.queue_depth, loop.active_sequences) == (0, 0)
    check_ended_as_if_alone(rule, jobs, or_else=(Outcome.CANCELLED,))
    # All rows of all workers are free again: as many as there are join at once.
    loop.submit([make_job([5]).sequence for _ in range(max_rows * len(runners))])
    loop.run_round()
    assert (loop.queue_depth, loop.active_sequences) == (0, max_rows * len(runners))


def test_few_rows_stay_with_one_worker_and_many_are_spread_evenly() -> None:
    worth = ROWS_WORTH_A_WORKER
    max_rows = 2 * worth
    runners = [FakeRunner(copying_rule(), max_rows=max_rows) for _ in range(3)]
    loop = make_loop(*runners, encode_tokens_per_round=10_000)

    def rows_after(joining: int) -> list[int]:
        loop.submit([make_job([5] * 9).sequence for _ in range(joining)])
        loop.run_round()
        return [sum(runner.calls.stepped_rows[-1:]) for runner in runners]

    assert rows_after(worth) == [worth, 0, 0]
    assert rows_after(2 * worth) == [worth, worth, worth]
    assert rows_after(9) == [worth + 3, worth + 3, worth + 3]
    assert rows_after(10 * worth) == [max_rows, max_rows, max_rows]
    assert loop.queue_depth == 9 + 7 * worth


def test_a_beam_wider_than_a_share_still_runs() -> None:
    runners = [FakeRunner(copying_rule(), max_rows=4) for _ in range(2)]
    loop = make_loop(*runners)
    wide, narrow = make_job([5], beam_size=4), make_job([6])
    loop.submit([wide.sequence, narrow.sequence])  # a share is 3 rows
    loop.run_round()
    assert [runner.calls.encoded for runner in runners] == [[(1, 2)], [(1, 2)]]
    for _ in range(5):
        loop.run_round()
    assert (wide.tokens, narrow.tokens) == ((5,), (6,))


def test_a_beam_of_all_rows_is_served_between_workers_that_are_never_empty() -> None:
    runners = [FakeRunner(copying_rule(), max_rows=4) for _ in range(2)]
    loop = make_loop(*runners)
    others = [make_job([5] * (3 + number % 5)) for number in range(200)]
    wide = make_job([6], beam_size=4)
    loop.submit([job.sequence for job in others[:20]])
    loop.submit([wide.sequence])
    for job in others[20:]:
        loop.submit([job.sequence])
        loop.run_round()
    assert wide.tokens == (6,)


def test_two_workers_free_rows_twice_as_fast_as_one() -> None:
    """What a refused caller is told: each of two rows becomes free every 10 s."""
    clock = FakeClock()
    runners = [FakeRunner(copying_rule(), max_rows=1) for _ in range(2)]
    loop = make_loop(*runners, clock=clock, max_queue=20)
    for runner in runners:
        runner.before_step = lambda: setattr(clock, "now", clock.now + 1.0)
    loop.submit([make_job([5] * 9).sequence for _ in range(20)])
    for _ in range(81):
        loop.run_round()
    with pytest.raises(QueueFull) as refusal:
        loop.submit([make_job([5]).sequence for _ in range(24 - loop.queue_depth)])
    assert refusal.value.retry_after_s == pytest.approx(20.0, rel=0.2)


def test_nothing_is_known_before_as_many_rows_were_freed_as_all_workers_have() -> None:
    """One step takes 100 s; but that is guessed from one row, where there are two."""
    clock = FakeClock()
    runners = [FakeRunner(copying_rule(), max_rows=1) for _ in range(2)]
    loop = make_loop(*runners, clock=clock)
    runners[0].before_step = lambda: setattr(clock, "now", clock.now + 100.0)
    loop.submit([make_job([5]).sequence])
    for _ in range(2):
        loop.run_round()
    loop.submit([make_job([5]).sequence for _ in range(9)])
    loop.submit([make_job([5], deadline=clock.now + 1.0).sequence])
    assert loop.queue_depth == 10


def test_gauges_are_told_of_one_change_after_the_other() -> None:
    """Under the loop's lock: else a worker could tell an older figure after another one's newer figure, for good."""
    told: list[tuple[str, bool]] = []

    class Listener(SilentObserver):
        def queue_changed(self, depth: int) -> None:
            told.append(("queue", is_locked()))

        def active_changed(self, sequences: int) -> None:
            told.append(("active", is_locked()))

    def is_locked() -> bool:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(cannot_take, loop._shared.lock).result(LONG_S)

    def cannot_take(lock: threading.RLock) -> bool:
        taken = lock.acquire(blocking=False)
        if taken:
            lock.release()
        return not taken

    loop = make_loop(FakeRunner(copying_rule(), failing_steps={4}), observer=Listener())
    finished, failed = make_job([5]), make_job([6] * 9)
    loop.submit([finished.sequence, failed.sequence])
    for _ in range(5):
        loop.run_round()
    assert (finished.outcome, failed.outcome) == (Outcome.FINISHED, Outcome.FAILED)
    assert {locked for _, locked in told} == {True}, told


def test_a_schedule_that_fails_loses_nobody_who_has_just_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop(FakeRunner(copying_rule()))
    cancelled, waiting = make_job([5]), make_job([6])
    loop.submit([cancelled.sequence, waiting.sequence])
    cancelled.sequence.cancel()

    def fail(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("scripted")

    monkeypatch.setattr("server.decoding.scheduler.Scheduler.admit", fail)
    for _ in range(4):
        loop.run_round()
    assert len(cancelled.results) == len(waiting.results) == 1


def test_a_loop_that_serves_again_has_not_failed_although_a_worker_that_did_rests() -> None:
    runners = [FakeRunner(copying_rule(), max_rows=1), FakeRunner(copying_rule(), max_rows=1, failing_steps={1, 2, 3})]
    loop = make_loop(*runners)
    many = [make_job([5] * 9), *(make_job([6]) for _ in range(3))]
    loop.submit([job.sequence for job in many])
    for _ in range(10):
        loop.run_round()
    assert [job.outcome.name for job in many] == ["FINISHED", "FAILED", "FAILED", "FAILED"]
    for _ in range(20):  # few enough for the first worker
        few = make_job([7])
        loop.submit([few.sequence])
        for _ in range(2):
            loop.run_round()
        assert few.outcome is Outcome.FINISHED
    assert not loop.failed
