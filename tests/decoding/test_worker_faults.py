"""Workers that fail, are stuck, drain or end, on their threads."""

from __future__ import annotations

import threading

import pytest

from server.decoding.loop import LoopClosed
from server.decoding.sequence import Outcome, Result
from tests.decoding.desk import make_job
from tests.decoding.fake_runner import FakeRunner, copying_rule
from tests.decoding.works import LONG_S, Gate, one_row_each, open_works


def test_a_worker_whose_step_fails_loses_only_what_it_had(caplog: pytest.LogCaptureFixture) -> None:
    runners = [FakeRunner(copying_rule(), max_rows=1), FakeRunner(copying_rule(), max_rows=1, failing_steps={2})]
    with open_works(*runners) as works:
        others = works.put_to_work(0, make_job([5] * 5))
        lost = works.put_to_work(1, make_job([6] * 5))
        waiting = [make_job([7]), make_job([8, 9])]
        works.submit(*waiting)
        works.gates[1].open()
        works.wait_for(lost, *waiting)
        works.gates[0].open()
        works.wait_for(others)
    assert lost.result == Result(Outcome.FAILED)
    assert lost.streamed == [6]
    assert [job.tokens for job in (others, *waiting)] == [(5,) * 5, (7,), (8, 9)]
    assert caplog.text.count("a decoding round failed") == 1
    assert works.observer.active[-1] == works.observer.depths[-1] == 0


def test_a_worker_whose_encoder_fails_loses_only_whom_it_took() -> None:
    runners = [FakeRunner(copying_rule(), max_rows=1), FakeRunner(copying_rule(), max_rows=1, failing_encodes={1})]
    with open_works(*runners) as works:
        others = works.put_to_work(0, make_job([5]))
        lost, waiting = make_job([6]), make_job([7])
        works.submit(lost, waiting)
        works.gates[1].open()
        works.wait_for(lost, waiting)
        assert not others.results
        works.gates[0].open()
        works.wait_for(others)
    assert [job.outcome.name for job in (others, lost, waiting)] == ["FINISHED", "FAILED", "FINISHED"]


def test_a_loop_has_failed_while_one_worker_at_work_keeps_failing() -> None:
    runners = [FakeRunner(copying_rule(), max_rows=1), FakeRunner(copying_rule(), max_rows=1, failing_steps={1, 2, 3})]
    with open_works(*runners) as works:
        works.put_to_work(0, make_job([5] * 12))
        jobs = [make_job([6]) for _ in range(4)]
        works.submit(*jobs)
        works.gates[1].wait()
        states = []
        for _ in range(4):
            works.gates[0].next_step()  # what another worker brings about changes nothing
            states.append(works.loop.failed)
            works.gates[1].next_step()
        assert states == [False, False, False, True]
        assert not works.loop.failed, "a step of it has succeeded"
        works.gates[1].open()
        works.wait_for(*jobs)
    assert [job.outcome.name for job in jobs] == ["FAILED", "FAILED", "FAILED", "FINISHED"]


@pytest.mark.parametrize("stuck", [0, 1])
def test_a_stuck_worker_stops_neither_the_other_nor_the_end(stuck: int) -> None:
    runners = one_row_each()
    with open_works(*runners) as works:
        jobs = [works.put_to_work(worker, make_job([5 + worker])) for worker in range(2)]
        more = [make_job([6] * length) for length in range(5)]
        works.submit(*more)
        works.gates[1 - stuck].open()
        works.wait_for(jobs[1 - stuck], *more)
        closed: list[bool] = []
        closer = threading.Thread(target=lambda: closed.append(works.loop.close(timeout_s=0.0)))
        closer.start()
        works.wait_for(jobs[stuck])
        works.threads[1 - stuck].join(LONG_S)
        assert [thread.is_alive() for thread in works.threads] == [stuck == 0, stuck == 1]
        works.gates[stuck].open()
        closer.join(LONG_S)
        assert closed == [False]
    assert jobs[stuck].result == Result(Outcome.CANCELLED)
    assert jobs[stuck].streamed == [], "nothing after the end"
    assert [job.tokens for job in (jobs[1 - stuck], *more)] == [(6 - stuck,), *((6,) * length for length in range(5))]
    assert (works.loop.active_sequences, works.loop.queue_depth) == (0, 0)
    with pytest.raises(LoopClosed):
        works.submit(make_job([5]))


def test_draining_finishes_what_all_workers_have_and_what_waits() -> None:
    with open_works(*one_row_each()) as works:
        jobs = [works.put_to_work(worker, make_job([5] * 3)) for worker in range(2)]
        jobs += [make_job([6]) for _ in range(3)]
        works.submit(*jobs[2:])
        works.loop.drain()
        with pytest.raises(LoopClosed):
            works.submit(make_job([7]))
        closed: list[bool] = []
        closer = threading.Thread(target=lambda: closed.append(works.loop.close(timeout_s=1e6)), daemon=True)
        closer.start()
        works.open_gates()
        works.wait_for(*jobs)
        closer.join(LONG_S)
        assert closed == [True], "it is told of the last end, whichever worker brings it"
    assert [job.tokens for job in jobs] == [(5,) * 3] * 2 + [(6,)] * 3


def test_the_end_of_idle_workers_is_the_end_of_their_threads() -> None:
    with open_works(*one_row_each(3)) as works:
        assert len(works.threads) == 3
        assert works.loop.close(timeout_s=0.0)
        assert not any(thread.is_alive() for thread in works.threads)


@pytest.mark.parametrize("stuck", [0, 1])
def test_the_last_sign_of_life_is_that_of_the_worker_that_is_stuck(stuck: int) -> None:
    with open_works(*one_row_each()) as works:
        other, clock, loop = 1 - stuck, works.clock, works.loop
        started_at = clock.now
        works.put_to_work(0, make_job([5] * 9))
        clock.now += 1.0
        works.put_to_work(1, make_job([5] * 9))
        stuck_at = started_at + stuck
        clock.now += 50.0
        works.gates[other].next_step()
        assert loop.last_round_at == stuck_at, "its own submission, although the other one turns"
        works.submit(make_job([6]))
        assert loop.last_round_at == stuck_at, "new work does not hide it"
        works.gates[other].open()
        works.crew.wait_until_one_rests()
        assert loop.last_round_at == stuck_at
        clock.now += 1.0
        works.gates[stuck].next_step()
        assert loop.last_round_at == clock.now, "it turns again, and the other one has nothing to do"
        works.gates[stuck].open()
        works.crew.wait_until_one_rests()
        clock.now += 1000.0
        assert loop.last_round_at == clock.now, "idle is alive"
        works.gates = [Gate(), Gate()]
        works.runners[0].before_step = works.gates[0]
        works.put_to_work(0, make_job([7]))
        assert loop.last_round_at == clock.now, "who was idle for long is not late at once"


@pytest.mark.parametrize("stuck", [0, 1])
def test_whichever_worker_turns_sees_who_has_given_up_waiting(stuck: int) -> None:
    with open_works(*one_row_each()) as works:
        jobs = [works.put_to_work(worker, make_job([5] * 9)) for worker in range(2)]
        cancelled, late, patient = (
            make_job([6]),
            make_job([7], deadline=works.clock.now + 1.0),
            make_job([8], deadline=works.clock.now + 100.0),
        )
        works.submit(cancelled, late)
        works.submit(patient)
        cancelled.sequence.cancel()
        works.clock.now += 2.0
        works.gates[1 - stuck].next_step()
        assert (cancelled.outcome, late.outcome) == (Outcome.CANCELLED, Outcome.DEADLINE_EXCEEDED)
        assert not patient.results
        assert works.observer.stages == ["queued", "queued"]
        assert works.observer.depths[-1] == works.loop.queue_depth == 1
        # And whoever is decoded by the one that turns, while the other is stuck.
        jobs[1 - stuck].sequence.cancel()
        works.gates[1 - stuck].next_step()
        assert jobs[1 - stuck].outcome is Outcome.CANCELLED
        assert works.loop.queue_depth == 0, "its row is the next one's at once"
        works.open_gates()
        works.wait_for(*jobs, patient)
    assert (jobs[stuck].tokens, patient.tokens) == ((5,) * 9, (8,))


def test_gauges_come_back_to_nothing() -> None:
    with open_works(*one_row_each()) as works:
        jobs = [works.put_to_work(worker, make_job([5] * 3)) for worker in range(2)]
        jobs.append(make_job([6]))
        works.submit(jobs[-1])
        assert (works.loop.active_sequences, works.loop.queue_depth) == (2, 1)
        assert (works.observer.active[-1], works.observer.depths[-1]) == (2, 1)
        works.gates[1].open()
        works.crew.wait_until_one_rests()
        assert (works.observer.active[-1], works.observer.depths[-1]) == (1, 0)
        works.gates[0].open()
        works.crew.wait_until_one_rests()
        assert (works.loop.active_sequences, works.loop.queue_depth) == (0, 0)
        assert works.observer.active[-1] == 0
        works.wait_for(*jobs)
    assert len(works.observer.waits) == len(works.observer.first) == 3
