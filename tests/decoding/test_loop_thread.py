"""The decode loop on its own thread. Events, never sleeps, decide what happens when."""

from __future__ import annotations

import threading

import pytest

from server.decoding.loop import DecodeLoop, LoopClosed
from server.decoding.sequence import Outcome
from tests.decoding.desk import Job, make_job
from tests.decoding.fake_runner import END, PAD, START, FakeRunner, copying_rule
from tests.decoding.works import LONG_S, watched


def started_loop(runner: FakeRunner) -> DecodeLoop:
    loop = DecodeLoop(runner, start_id=START, eos_id=END, pad_id=PAD, max_queue=1000)
    loop.start()
    return loop


def submit_one_by_one(loop: DecodeLoop, jobs: list[Job]) -> None:
    for job in jobs:
        loop.submit([job.sequence])


def test_wakes_for_work_from_several_threads_and_finishes_all() -> None:
    loop = started_loop(FakeRunner(copying_rule()))
    jobs = [make_job([5 + number % 4] * (number % 7), beam_size=1 + number % 3) for number in range(60)]
    submitters = [
        threading.Thread(target=submit_one_by_one, args=(loop, part)) for part in (jobs[:20], jobs[20:40], jobs[40:])
    ]
    for submitter in submitters:
        submitter.start()
    for submitter in submitters:
        submitter.join()
    assert loop.close(timeout_s=LONG_S)
    assert [job.tokens for job in jobs] == [job.sequence.source[:-1] for job in jobs]
    assert (loop.active_sequences, loop.queue_depth) == (0, 0)


def test_sleeps_and_wakes_again() -> None:
    loop = started_loop(FakeRunner(copying_rule()))
    for _ in range(3):
        job = make_job([5])
        ended = watched(job)
        loop.submit([job.sequence])
        assert ended.wait(LONG_S)
    assert loop.close(timeout_s=LONG_S)


def test_cancel_from_another_thread() -> None:
    runner = FakeRunner(copying_rule())
    job = make_job([5] * 50, max_output_tokens=64)
    runner.before_step = job.sequence.cancel
    loop = started_loop(runner)
    loop.submit([job.sequence])
    assert loop.close(timeout_s=LONG_S)
    assert job.outcome is Outcome.CANCELLED


def test_close_gives_up_what_a_stuck_device_never_answers() -> None:
    runner = FakeRunner(copying_rule(), max_rows=1)
    stuck, let_go = threading.Event(), threading.Event()

    def hang() -> None:
        stuck.set()
        assert let_go.wait(LONG_S)

    runner.before_step = hang
    loop = started_loop(runner)
    jobs = [make_job([5]), make_job([6])]
    ended = watched(jobs[1])
    loop.submit([job.sequence for job in jobs])
    assert stuck.wait(LONG_S)
    closed: list[bool] = []
    closer = threading.Thread(target=lambda: closed.append(loop.close(timeout_s=0.0)))
    closer.start()
    assert ended.wait(LONG_S)
    let_go.set()
    closer.join(LONG_S)
    assert closed == [False]
    assert [job.outcome for job in jobs] == [Outcome.CANCELLED] * 2
    assert jobs[0].streamed == [], "nothing after the end"
    with pytest.raises(LoopClosed):
        loop.submit([make_job([5]).sequence])


def test_close_of_an_idle_loop_ends_its_thread() -> None:
    before = set(threading.enumerate())
    loop = started_loop(FakeRunner(copying_rule()))
    (thread,) = set(threading.enumerate()) - before
    assert loop.close(timeout_s=0.0)
    assert loop.close(timeout_s=0.0), "closing again does nothing"
    assert not thread.is_alive()
