"""Rounds of several steps: they last while every row just goes on, and no longer."""

from __future__ import annotations

import pytest

from server.decoding.loop import DecodeLoop
from server.decoding.sequence import Outcome, Result
from server.decoding.worker import Worker
from tests.decoding.desk import FakeClock, Job, make_job
from tests.decoding.fake_runner import FakeRunner, copying_rule, random_rule
from tests.decoding.works import make_loop

MOST_STEPS = 6


def make_worker(*sources: int, clock: FakeClock | None = None) -> tuple[DecodeLoop, Worker, FakeRunner, list[Job]]:
    """A worker that copies sources of these lengths, and the jobs, submitted."""
    runner = FakeRunner(copying_rule())
    loop = make_loop(runner, clock=clock or FakeClock())
    jobs = [make_job([5] * length, deadline=200.0) for length in sources]
    loop.submit([job.sequence for job in jobs])
    return loop, loop._shared.workers[0], runner, jobs


def test_steps_follow_each_other_up_to_the_most() -> None:
    loop, worker, runner, jobs = make_worker(9, 9)
    worker.run_round(most_steps=MOST_STEPS)
    assert runner.calls.stepped_rows == [2] * MOST_STEPS
    assert [job.streamed for job in jobs] == [[5] * MOST_STEPS] * 2, "each token is handed over as it is chosen"
    worker.run_round()
    assert runner.calls.stepped_rows == [2] * (MOST_STEPS + 1)
    worker.run_round(most_steps=MOST_STEPS)
    assert [job.tokens for job in jobs] == [(5,) * 9] * 2
    assert loop.active_sequences == 0


def test_the_others_go_on_in_the_same_round_where_a_sequence_ends() -> None:
    loop, worker, runner, jobs = make_worker(2, 9)
    told_after: list[list[int]] = []
    tell = jobs[0].sequence.on_finished

    def on_finished(result: Result) -> None:
        told_after.append(runner.calls.stepped_rows.copy())
        tell(result)

    jobs[0].sequence.on_finished = on_finished
    worker.run_round(most_steps=MOST_STEPS)
    assert told_after == [[2] * 3], "at once, not at the end of the round"
    assert jobs[0].tokens == (5, 5)
    assert runner.calls.stepped_rows == [2] * 3 + [1] * 3
    assert loop.active_sequences == 1


def test_a_round_ends_with_its_last_sequence() -> None:
    _, worker, runner, jobs = make_worker(2, 3)
    worker.run_round(most_steps=MOST_STEPS)
    assert runner.calls.stepped_rows == [2] * 3 + [1]
    assert all(job.results for job in jobs)


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.DEADLINE_EXCEEDED])
def test_a_round_ends_where_a_sequence_is_to_be_given_up(outcome: Outcome) -> None:
    clock = FakeClock()
    _, worker, runner, jobs = make_worker(9, 9, clock=clock)

    def on_step() -> None:
        if len(runner.calls.stepped_rows) == 2:
            if outcome is Outcome.CANCELLED:
                jobs[0].sequence.cancel()
            else:
                clock.now = 300.0

    runner.before_step = on_step
    worker.run_round(most_steps=MOST_STEPS)
    steps = len(runner.calls.stepped_rows)
    assert steps in (2, 3), "the step under way, and no further one"
    worker.run_round(most_steps=MOST_STEPS)
    assert jobs[0].outcome is outcome


def test_a_round_ends_where_somebody_waits() -> None:
    loop, worker, runner, _ = make_worker(9)
    newcomer = make_job([5] * 9)

    def on_step() -> None:
        if len(runner.calls.stepped_rows) == 2:
            runner.before_step = lambda: None
            loop.submit([newcomer.sequence])

    runner.before_step = on_step
    worker.run_round(most_steps=MOST_STEPS)
    steps = len(runner.calls.stepped_rows)
    assert steps in (2, 3), "the step under way, and no further one"
    worker.run_round()
    assert runner.calls.stepped_rows[steps:] == [2]


def test_hypotheses_that_change_rows_are_placed_anew() -> None:
    runner = FakeRunner(random_rule(3))
    loop = make_loop(runner)
    job = make_job([5] * 4, beam_size=3)
    loop.submit([job.sequence])
    for _ in range(40):
        loop._shared.workers[0].run_round(most_steps=16)
    alone = make_job([5] * 4, beam_size=3)
    runner = FakeRunner(random_rule(3))
    loop = make_loop(runner)
    loop.submit([alone.sequence])
    while not alone.results:
        loop.run_round()
    assert job.result == alone.result
