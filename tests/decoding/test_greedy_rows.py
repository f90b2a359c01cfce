"""Greedy rows that are stepped together, and runners that go on by themselves: each output as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.decoding import greedy_rows
from server.decoding.sequence import Outcome, Result
from server.decoding.worker import Worker
from tests.decoding import oracle
from tests.decoding.desk import FakeClock, Job, make_job
from tests.decoding.fake_runner import FakeRunner, copying_rule, random_rule
from tests.decoding.works import make_loop, repeatable

QUICK_S, SLOW_S = 0.0001, 0.5


def silent_job(source: list[int], **options: Any) -> Job:
    """A job whose tokens nobody listens to."""
    job = make_job(source, **options)
    job.sequence.on_tokens = None
    return job


def open_worker(runner: FakeRunner, *, step_s: float) -> tuple[Any, Worker, FakeClock]:
    """A loop, its worker, and a clock that each step takes ``step_s`` of."""
    clock = FakeClock()

    def before_step() -> None:
        clock.now += step_s

    runner.before_step = before_step
    loop = make_loop(runner, clock=clock)
    return loop, loop._shared.workers[0], clock


kinds: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "source": st.lists(st.integers(4, 11), max_size=9),
        "max_output_tokens": st.integers(3, 14),
        "min_output_tokens": st.sampled_from([0, 0, 0, 2]),
        "forced_tokens": st.sampled_from([(), (), (), (7,), (5, 9)]),
        "forced_end": st.sampled_from([False, False, True]),
        "return_scores": st.sampled_from([False, False, False, False, True]),
        "beam_size": st.sampled_from([1, 1, 1, 1, 1, 1, 1, 3]),
    }
)


@pytest.mark.parametrize("longest_log", [3, 256])
@pytest.mark.parametrize("step_s", [QUICK_S, SLOW_S])
@repeatable
@given(st.integers(0, 1000), st.data())
def test_every_output_is_what_it_would_be_alone(
    step_s: float, longest_log: int, seed: int, data: st.DataObject
) -> None:
    rule = random_rule(seed)
    runner = FakeRunner(rule, max_rows=data.draw(st.sampled_from([3, 8])))
    loop, worker, _ = open_worker(runner, step_s=step_s)
    jobs: list[Job] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greedy_rows, "_LONGEST_LOG", longest_log)
        for party in data.draw(st.lists(st.lists(st.tuples(kinds, st.booleans()), max_size=6), max_size=5)):
            made = [make_job(**options) if listened_to else silent_job(**options) for options, listened_to in party]
            loop.submit([job.sequence for job in made])
            jobs += made
            for _ in range(data.draw(st.integers(0, 4))):
                worker.run_round(most_steps=data.draw(st.sampled_from([1, 2, 16])))
            for job in jobs:
                if data.draw(st.integers(0, 9)) == 0:
                    job.sequence.cancel()
        while worker.has_work:
            worker.run_round(most_steps=16)
    for job in jobs:
        if job.outcome is Outcome.FINISHED:
            wanted = oracle.search(rule, tuple(job.sequence.source), job.sequence.options)
            assert [each.tokens for each in job.result.hypotheses] == [each.tokens for each in wanted[:1]]
            assert job.result.hypotheses[0].finish_reason is wanted[0].finish_reason
            greedy_and_heard = job.sequence.options.beam_size == 1 and job.sequence.on_tokens is not None
            assert job.streamed == (list(wanted[0].tokens) if greedy_and_heard else [])
        else:
            assert job.result == Result(Outcome.CANCELLED)
            assert job.sequence.cancelled


def test_a_quick_runner_goes_on_by_itself_until_somebody_may_end() -> None:
    runner = FakeRunner(copying_rule())
    loop, worker, _ = open_worker(runner, step_s=QUICK_S)
    jobs = [silent_job([5] * length) for length in (4, 9)]
    loop.submit([job.sequence for job in jobs])
    worker.run_round(most_steps=16)
    assert runner.calls.greedy_steps == [1, 4, 5], "one to see how long it takes, then until the end token of each"
    assert runner.calls.stepped_rows == [2] * 5 + [1] * 5
    assert [job.tokens for job in jobs] == [(5,) * 4, (5,) * 9]


def test_it_goes_on_no_further_than_an_output_may_get() -> None:
    runner = FakeRunner(copying_rule())
    loop, worker, _ = open_worker(runner, step_s=QUICK_S)
    jobs = [silent_job([5] * 11, max_output_tokens=most) for most in (3, 6)]
    loop.submit([job.sequence for job in jobs])
    worker.run_round(most_steps=16)
    assert runner.calls.greedy_steps == [1, 2, 3]
    assert [job.tokens for job in jobs] == [(5,) * 3, (5,) * 6]


def test_a_slow_runner_is_looked_after_at_every_step() -> None:
    runner = FakeRunner(copying_rule())
    loop, worker, _ = open_worker(runner, step_s=SLOW_S)
    job = silent_job([5] * 4)
    loop.submit([job.sequence])
    worker.run_round(most_steps=16)
    assert runner.calls.greedy_steps == [1] * 5
    assert job.tokens == (5,) * 4


def test_whoever_listens_hears_every_token_at_once() -> None:
    runner = FakeRunner(copying_rule())
    loop, worker, _ = open_worker(runner, step_s=QUICK_S)
    jobs = [make_job([5] * 4), silent_job([6] * 9)]
    loop.submit([job.sequence for job in jobs])
    for step in range(1, 5):
        worker.run_round()
        assert jobs[0].streamed == [5] * step
    worker.run_round(most_steps=16)
    assert runner.calls.greedy_steps == [1, 1, 1, 1, 1, 5], "and once it has ended, nobody does"
    assert jobs[1].tokens == (6,) * 9


def test_who_comes_waits_for_few_steps_only() -> None:
    runner = FakeRunner(copying_rule())
    loop, worker, _ = open_worker(runner, step_s=0.0008)
    tick, newcomer = runner.before_step, silent_job([6])

    def before_step() -> None:
        tick()
        if len(runner.calls.stepped_rows) == 3:
            loop.submit([newcomer.sequence])

    runner.before_step = before_step
    loop.submit([silent_job([5] * 11).sequence])
    worker.run_round(most_steps=16)
    assert runner.calls.greedy_steps == [1, 2, 2], "as many steps as fit into 2 ms"
    assert runner.calls.stepped_rows == [1] * 5
    worker.run_round(most_steps=2)
    assert newcomer.tokens == (6,)


def test_more_rows_than_before_are_taken_to_need_more_time() -> None:
    runner = FakeRunner(copying_rule())
    loop, worker, _ = open_worker(runner, step_s=0.00048)
    for texts, first in ((1, 1), (1, 4), (3, 1), (3, 4), (1, 4)):
        calls = len(runner.calls.greedy_steps)
        loop.submit([silent_job([5] * 11).sequence for _ in range(texts)])
        while worker.has_work:
            worker.run_round(most_steps=16)
        assert runner.calls.greedy_steps[calls] == first, "as many as fit into 2 ms, as far as is known"
