"""When newcomers join: while more wait than fit, an eighth of the rows becomes free first."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.decoding.scheduler import Scheduler
from server.decoding.waiting import Order, waiting_queue
from tests.decoding.desk import Desk, Job, make_job
from tests.decoding.fake_runner import END, START, FakeRunner, copying_rule
from tests.decoding.test_waiting import NOW, both_orders, desk_that_keeps, make_party, repeatable

MAX_ROWS = 32
EIGHTH = 4


def scheduler_with(*, running: int, waiting: int, max_rows: int = MAX_ROWS) -> Scheduler:
    queue = waiting_queue(Order.FAIR)
    queue.add(make_party(*[2] * waiting))
    scheduler = Scheduler(queue, max_rows=max_rows, encode_tokens_per_round=1000, start_id=START, end_id=END)
    scheduler.begin(make_party(*[2] * running))
    return scheduler


@repeatable
@given(st.sampled_from([1, 4, 7, 8, 15, 16, 32, 64]), st.data())
def test_newcomers_join_unless_a_few_rows_more_would_take_more_of_them(max_rows: int, data: st.DataObject) -> None:
    running = data.draw(st.integers(0, max_rows))
    waiting = data.draw(st.integers(0, 2 * max_rows))
    scheduler = scheduler_with(running=running, waiting=waiting, max_rows=max_rows)
    free = max_rows - running
    held_back = running > 0 and waiting > free and free < max_rows // 8
    assert len(scheduler.admit(NOW, share=1000)) == (0 if held_back else min(waiting, free))


@pytest.mark.parametrize(
    ("running", "waiting", "joining"),
    [
        (MAX_ROWS - EIGHTH + 1, EIGHTH, 0),
        (MAX_ROWS - EIGHTH + 1, EIGHTH - 1, EIGHTH - 1),  # all that waits fits
        (MAX_ROWS - EIGHTH, 100, EIGHTH),
        (MAX_ROWS - 1, 1, 1),
        (MAX_ROWS - 1, 2, 0),
        (0, 100, MAX_ROWS),  # nothing runs
        (1, 100, MAX_ROWS - 1),
    ],
)
def test_an_eighth_of_the_rows_is_worth_waiting_for(running: int, waiting: int, joining: int) -> None:
    assert len(scheduler_with(running=running, waiting=waiting).admit(NOW, share=1000)) == joining


def test_a_share_bounds_what_joins_and_is_passed_only_by_the_last_beam() -> None:
    scheduler = scheduler_with(running=8, waiting=100)
    assert len(scheduler.admit(NOW, share=8)) == 0
    assert len(scheduler.admit(NOW, share=11)) == 3
    queue = waiting_queue(Order.FAIR)
    queue.add(make_party(2, 2, 2, beam_size=5))
    beams = Scheduler(queue, max_rows=MAX_ROWS, encode_tokens_per_round=1000, start_id=START, end_id=END)
    assert len(beams.admit(NOW, share=6)) == 2
    assert queue.rows == 5


def test_newcomers_held_back_come_together_as_soon_as_an_eighth_is_free() -> None:
    desk = Desk(FakeRunner(copying_rule(), max_rows=MAX_ROWS), encode_tokens_per_round=1000)
    # One row becomes free in each of the rounds 2, 3, 4 and so on.
    first = [make_job([5] * (1 + number), max_output_tokens=40) for number in range(MAX_ROWS)]
    later, last = [make_job([6] * 40, max_output_tokens=60) for _ in range(2 * EIGHTH)], make_job([7])
    desk.submit(*first)
    desk.submit(*later)
    depths = []
    for _ in range(10):
        desk.turn()
        depths.append(desk.loop.queue_depth)
    assert depths == [8, 8, 8, 8, 8, 4, 4, 4, 4, 0]
    assert [batch for batch, _ in desk.runner.calls.encoded[-2:]] == [EIGHTH, EIGHTH]
    desk.submit(last)
    desk.turn()
    assert desk.loop.queue_depth == 0, "one row is free, and that is enough for one"
    desk.turn_until_idle()
    assert all(job.tokens == job.sequence.source[:-1] for job in [*first, *later, last])


def test_nobody_is_held_back_while_nothing_runs() -> None:
    desk = Desk(FakeRunner(copying_rule(), max_rows=8))
    desk.submit(*(make_job([5], beam_size=8) for _ in range(3)))
    desk.turn_until_idle()
    assert desk.runner.calls.stepped_rows == [1, 8, 8] * 3


@both_orders
def test_a_beam_of_all_rows_gets_its_turn_while_others_keep_coming(order: Order) -> None:
    desk = desk_that_keeps(order, max_rows=16)
    others: list[Job] = []

    def come(count: int) -> None:
        others.extend(make_job([6] * 8) for _ in range(count))
        desk.submit(*others[-count:])

    come(20)
    wide = make_job([5], beam_size=16)
    desk.submit(wide)
    for _ in range(80):
        come(2)
        desk.turn(seconds=0.5)
    assert wide.tokens == (5,)
    desk.turn_until_idle()
    assert all(len(job.results) == 1 for job in others)


@settings(repeatable, max_examples=60)
@given(st.data())
def test_everybody_is_served_in_time_although_rows_are_held_back(data: st.DataObject) -> None:
    max_rows = data.draw(st.sampled_from([8, 16, 32]))
    desk = desk_that_keeps(data.draw(st.sampled_from(list(Order))), max_rows=max_rows)
    kind = st.tuples(st.integers(0, 11), st.sampled_from([1, 1, 1, 2, 8]))
    jobs: list[Job] = []
    for party in data.draw(st.lists(st.lists(kind, min_size=1, max_size=20), min_size=1, max_size=6)):
        jobs.extend(make_job([5] * length, beam_size=beam_size) for length, beam_size in party)
        desk.submit(*jobs[-len(party) :])
        desk.turn(data.draw(st.integers(0, 5)))
    # Were nobody admitted for 12 rounds, nobody would run any more, and the first would be admitted.
    desk.turn(13 * len(jobs))
    assert all(len(job.results) == 1 for job in jobs)
