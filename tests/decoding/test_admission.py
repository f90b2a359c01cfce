from __future__ import annotations

import pytest

from server.decoding.admission import ThroughputEstimate
from server.decoding.loop import DeadlineUnmeetable, QueueFull
from server.decoding.sequence import Outcome
from tests.decoding.desk import Desk, make_job
from tests.decoding.fake_runner import FakeRunner, copying_rule


def test_an_estimate_is_honest_about_what_it_does_not_know() -> None:
    estimate = ThroughputEstimate(max_rows=4)
    assert estimate.seconds_until_free(-1) == 0.0
    assert estimate.seconds_until_free(1) is None
    estimate.round_ended(freed_rows=3, seconds=1.0)
    assert estimate.seconds_until_free(1) is None, "not all rows were used yet"
    estimate.round_ended(freed_rows=1, seconds=1.0)
    assert estimate.seconds_until_free(8) == pytest.approx(4.0, rel=0.02)


def test_an_estimate_follows_recent_rounds() -> None:
    estimate = ThroughputEstimate(max_rows=1)
    for seconds in (1.0, 0.1):
        for _ in range(1000):
            estimate.round_ended(freed_rows=1, seconds=seconds)
    assert estimate.seconds_until_free(10) == pytest.approx(1.0, rel=0.01)


def busy_desk() -> Desk:
    """One row, free every 2 s, and three sequences in the queue behind the one that runs."""
    desk = Desk(FakeRunner(copying_rule(), max_rows=1), max_queue=4)
    desk.runner.before_step = lambda: setattr(desk.clock, "now", desk.clock.now + 1.0)
    for _ in range(5):
        desk.submit(make_job([5]))
        desk.turn_until_idle()
    desk.submit(*(make_job([5]) for _ in range(4)))
    desk.turn()
    assert desk.loop.queue_depth == 3
    return desk


def test_a_deadline_that_cannot_be_met_is_refused() -> None:
    desk = busy_desk()
    with pytest.raises(DeadlineUnmeetable) as refusal:
        desk.submit(make_job([5], deadline=desk.clock.now + 3.0))
    assert refusal.value.retry_after_s == pytest.approx(1.4, rel=0.2), "it would be the second"
    assert desk.loop.queue_depth == 3


def test_a_deadline_that_can_be_met_is_accepted() -> None:
    desk = busy_desk()
    job = make_job([5], deadline=desk.clock.now + 20.0)
    desk.submit(job)
    desk.turn_until_idle()
    assert job.outcome is Outcome.FINISHED


def test_a_short_deadline_is_accepted_while_rows_are_free() -> None:
    desk = busy_desk()
    desk.turn_until_idle()
    desk.submit(make_job([5], deadline=desk.clock.now + 0.1))
    assert desk.loop.queue_depth == 1


def test_a_deadline_is_accepted_while_nothing_is_known() -> None:
    desk = Desk(FakeRunner(copying_rule(), max_rows=1))
    desk.submit(*(make_job([5]) for _ in range(50)), make_job([5], deadline=desk.clock.now + 0.001))
    assert desk.loop.queue_depth == 51


def test_a_deadline_that_is_over_ends_in_the_next_round() -> None:
    desk = busy_desk()
    job = make_job([5], deadline=desk.clock.now)
    desk.submit(job)
    desk.turn()
    assert job.outcome is Outcome.DEADLINE_EXCEEDED


def test_a_full_queue_says_when_there_will_be_room() -> None:
    desk = busy_desk()
    with pytest.raises(QueueFull) as refusal:
        desk.submit(make_job([5]), make_job([5]))
    assert refusal.value.retry_after_s == pytest.approx(2.0, rel=0.2)


def test_a_deadline_counts_the_turns_before_it_not_all_that_wait() -> None:
    """Parties take turns: a single text behind a thousand of another call is second, and so it is not refused."""
    desk = Desk(FakeRunner(copying_rule(), max_rows=1), max_queue=2000)
    desk.runner.before_step = lambda: setattr(desk.clock, "now", desk.clock.now + 1.0)
    for _ in range(5):
        desk.submit(make_job([5]))
        desk.turn_until_idle()
    desk.submit(*(make_job([5]) for _ in range(1000)))
    desk.turn()
    single = make_job([5], deadline=desk.clock.now + 10.0)
    desk.submit(single)
    desk.turn(10)
    assert single.outcome is Outcome.FINISHED
    with pytest.raises(DeadlineUnmeetable):
        desk.submit(*(make_job([5], deadline=desk.clock.now + 100.0) for _ in range(50)))
