"""Several workers of one decode loop on their threads, where gates decide what happens."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading

import pytest

from server.decoding.loop import LoopClosed
from server.decoding.sequence import Outcome, Result
from server.decoding.waiting import Order
from tests.decoding.desk import Job, make_job
from tests.decoding.fake_runner import FakeRunner, copying_rule, random_rule
from tests.decoding.works import (
    LONG_S,
    WatchedCrew,
    check_ended_as_if_alone,
    make_loop,
    meet_before_the_first_step,
    mixed_jobs,
    one_row_each,
    open_works,
    run_threads,
    watched,
)


@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize("workers", [2, 3])
def test_many_texts_from_several_threads_end_once_and_as_if_alone(workers: int, order: Order) -> None:
    rule = random_rule(11)
    runners = [FakeRunner(rule, max_rows=4) for _ in range(workers)]
    # Nobody takes a step before all have something to step: they are at work at once.
    all_at_work = threading.Barrier(workers)
    for runner in runners:
        meet_before_the_first_step(runner, all_at_work)
    loop = make_loop(*runners, order=order)
    loop.start()
    jobs = mixed_jobs(120)

    def submit(part: list[Job]) -> None:
        for first, second in itertools.pairwise([*range(0, len(part), 3), len(part)]):
            loop.submit([job.sequence for job in part[first:second]])

    run_threads(*(functools.partial(submit, jobs[start::3]) for start in range(3)))
    assert loop.close(timeout_s=LONG_S)
    check_ended_as_if_alone(rule, jobs)
    assert all(runner.calls.stepped_rows for runner in runners)
    assert (loop.active_sequences, loop.queue_depth, loop.failed) == (0, 0, False)


@pytest.mark.parametrize("workers", [2, 3])
def test_amid_failures_and_cancellations_each_text_still_ends_once(workers: int) -> None:
    rule = random_rule(12)
    failing_steps = ({5, 20}, {1, 2, 9}, set(range(3, 60, 7)))
    runners = [FakeRunner(rule, max_rows=4, failing_steps=steps) for steps in failing_steps[:workers]]
    loop = make_loop(*runners)
    loop.start()
    jobs = mixed_jobs(120)
    submitted = threading.Semaphore(0)

    def submit() -> None:
        for job in jobs:
            loop.submit([job.sequence])
            submitted.release()

    def cancel() -> None:
        for job in jobs[:-20]:
            assert submitted.acquire(timeout=LONG_S)
            if job.sequence.options.beam_size == 2:
                job.sequence.cancel()

    run_threads(submit, cancel)
    assert loop.close(timeout_s=LONG_S)
    check_ended_as_if_alone(rule, jobs, or_else=(Outcome.CANCELLED, Outcome.FAILED))
    assert not any(job.outcome is Outcome.CANCELLED for job in jobs if not job.sequence.cancelled)
    assert (loop.active_sequences, loop.queue_depth) == (0, 0)


def test_a_close_amid_submissions_ends_all_that_was_accepted_and_nothing_else() -> None:
    runners = [FakeRunner(random_rule(13), max_rows=4) for _ in range(2)]
    loop = make_loop(*runners)
    jobs, accepted, under_way = mixed_jobs(300), [False] * 300, threading.Semaphore(0)

    def submit(numbers: range) -> None:
        for number in numbers:
            with contextlib.suppress(LoopClosed):
                loop.submit([jobs[number].sequence])
                accepted[number] = True
            under_way.release()

    def close() -> None:
        for _ in range(40):
            assert under_way.acquire(timeout=LONG_S)
        loop.close(timeout_s=0.0)

    loop.start()
    run_threads(lambda: submit(range(0, 300, 2)), lambda: submit(range(1, 300, 2)), close)
    assert [len(job.results) for job in jobs] == [int(was) for was in accepted]
    assert {job.outcome for job in jobs if job.results} <= {Outcome.FINISHED, Outcome.CANCELLED}
    assert (loop.active_sequences, loop.queue_depth) == (0, 0)


def test_callbacks_of_several_workers_may_submit_the_next_text() -> None:
    loop = make_loop(*(FakeRunner(copying_rule(), max_rows=2) for _ in range(3)))
    chains = [[make_job([4 + number % 8] * (number % 4)) for number in range(25)] for _ in range(8)]
    ended = [watched(chain[-1]) for chain in chains]
    for job, following in itertools.chain.from_iterable(map(itertools.pairwise, chains)):

        def go_on(result: Result, job: Job = job, following: Job = following) -> None:
            job.results.append(result)
            loop.submit([following.sequence])

        job.sequence.on_finished = go_on
    loop.start()
    for chain in chains:
        loop.submit([chain[0].sequence])
    assert all(end.wait(LONG_S) for end in ended)
    assert loop.close(timeout_s=LONG_S)
    assert all(job.tokens == job.sequence.source[:-1] for chain in chains for job in chain)


def test_a_worker_with_nobody_beside_it_is_told_that_it_is_alone() -> None:
    with open_works(*one_row_each(3)) as works:
        job = works.put_to_work(0, make_job([5, 6]))
        works.open_gates()
        works.wait_for(job)
    assert works.runners[0].calls.stepped_alone == [True] * 3
    assert not any(runner.calls.encoded or runner.calls.stepped_rows for runner in works.runners[1:])


def test_two_busy_workers_are_not_alone_until_one_of_them_rests() -> None:
    with open_works(*one_row_each()) as works:
        first, second = (runner.calls for runner in works.runners)
        works.put_to_work(0, make_job([5] * 9))
        works.put_to_work(1, make_job([6, 7]))
        works.gates[0].next_step()
        works.gates[1].next_step()
        assert first.stepped_alone == [True, False]
        assert second.stepped_alone == [False, False]
        works.gates[1].open()
        works.crew.wait_until_one_rests()
        works.gates[0].next_step()
        works.gates[0].next_step()
        assert first.stepped_alone == [True, False, True, True]
        # The second one again: it does not know from before that it was not alone.
        works.gates[0].open()
        works.crew.wait_until_one_rests()
        works.submit(make_job([8]))
        works.crew.wait_until_one_rests()
    assert first.stepped_alone[4:] == [True] * 8


def test_two_loops_of_one_crew_see_each_other() -> None:
    crew = WatchedCrew()
    with open_works(*one_row_each(1), crew=crew) as one, open_works(*one_row_each(1), crew=crew) as two:
        one.put_to_work(0, make_job([5] * 9))
        two.put_to_work(0, make_job([6]))
        one.gates[0].next_step()
        assert one.runners[0].calls.stepped_alone == [True, False]
        assert two.runners[0].calls.stepped_alone == [False]
        two.gates[0].open()
        crew.wait_until_one_rests()
        one.gates[0].next_step()
        assert one.runners[0].calls.stepped_alone == [True, False, True]


def test_two_loops_without_a_common_crew_do_not() -> None:
    with open_works(*one_row_each(1)) as one, open_works(*one_row_each(1)) as two:
        for works in (one, two):
            works.put_to_work(0, make_job([5]))
            works.gates[0].next_step()
            assert works.runners[0].calls.stepped_alone == [True, True]
