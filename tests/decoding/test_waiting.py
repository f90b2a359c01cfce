"""Who waits, whose turn it is, and when newcomers join."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.decoding.loop import DecodeLoop
from server.decoding.scheduler import Scheduler
from server.decoding.sequence import Sequence
from server.decoding.waiting import PATIENCE_S, Order, WaitingQueue, waiting_queue
from tests.decoding.desk import Desk, Job, make_job
from tests.decoding.fake_runner import END, PAD, START, FakeRunner, copying_rule

NOW = 100.0
both_orders = pytest.mark.parametrize("order", list(Order))
repeatable = settings(derandomize=True, deadline=None, max_examples=200)


def make_party(*lengths: int, at: float = NOW, **options: Any) -> list[Sequence]:
    """Sequences of one call, by the lengths of their sources."""
    party = [make_job([5] * (length - 1), **options).sequence for length in lengths]
    for sequence in party:
        sequence.submitted_at = at
    return party


def desk_that_keeps(order: Order, *, max_rows: int) -> Desk:
    desk = Desk(FakeRunner(copying_rule(), max_rows=max_rows))
    desk.loop = DecodeLoop(
        desk.runner, start_id=START, eos_id=END, pad_id=PAD, max_queue=1000, order=order, clock=desk.clock
    )
    return desk


def pop_all(queue: WaitingQueue, *, now: float = NOW) -> list[Sequence]:
    return [queue.pop(now) for _ in range(len(queue))]


def test_a_single_text_behind_a_thousand_of_another_call_is_second() -> None:
    queue = waiting_queue(Order.FAIR)
    thousand, single = make_party(*[9] * 1000), make_party(9)
    queue.add(thousand)
    queue.add(single)
    assert [queue.pop(NOW) for _ in range(3)] == [thousand[0], *single, thousand[1]]


def test_a_single_text_that_comes_amid_a_thousand_is_next_but_one() -> None:
    queue = waiting_queue(Order.FAIR)
    thousand, single = make_party(*[9] * 1000), make_party(9)
    queue.add(thousand)
    for _ in range(500):
        queue.pop(NOW)
    queue.add(single)
    assert [queue.pop(NOW) for _ in range(2)] == [thousand[500], *single]


def test_parties_take_turns_and_keep_their_own_order() -> None:
    queue = waiting_queue(Order.FAIR)
    one, two, three = make_party(1, 9, 2), make_party(5), make_party(7, 3)
    for party in (one, two, three):
        queue.add(party)
    assert pop_all(queue) == [one[0], two[0], three[0], one[1], three[1], one[2]]


def test_who_leaves_costs_nobody_else_a_turn() -> None:
    queue = waiting_queue(Order.FAIR)
    one, two, three = make_party(9, 9, 9), make_party(9), make_party(9, 9)
    for party in (one, two, three):
        queue.add(party)
    queue.remove({one[0], *two}.__contains__)
    assert pop_all(queue) == [one[1], three[0], one[2], three[1]]


def test_longest_first_of_all_parties_and_of_equals_who_came_first() -> None:
    queue = waiting_queue(Order.LONGEST_FIRST)
    one, two = make_party(3, 9, 3), make_party(9, 20, 3)
    queue.add(one)
    queue.add(two)
    assert pop_all(queue) == [two[1], one[1], two[0], one[0], one[2], two[2]]


def test_after_its_patience_whoever_is_oldest_comes_before_longer_ones() -> None:
    queue = waiting_queue(Order.LONGEST_FIRST)
    old, later = make_party(2, 3), make_party(30, 40, at=NOW + 1.0)
    queue.add(old)
    queue.add(later)
    just_before = NOW + PATIENCE_S - 1e-6
    assert queue.first(just_before) is later[1]
    assert [queue.pop(NOW + PATIENCE_S) for _ in range(4)] == [old[0], old[1], later[1], later[0]]


def test_a_short_text_is_not_passed_by_for_ever() -> None:
    """Two longer ones come for each that is taken."""
    queue = waiting_queue(Order.LONGEST_FIRST)
    short = make_party(1)
    queue.add(short)
    now = NOW
    while now < NOW + 2 * PATIENCE_S:
        queue.add(make_party(30, 30, at=now))
        if queue.pop(now) is short[0]:
            break
        now += 1.0
    assert now == NOW + PATIENCE_S


@both_orders
def test_an_empty_party_changes_nothing(order: Order) -> None:
    queue = waiting_queue(order)
    queue.add([])
    assert (len(queue), queue.rows, list(queue)) == (0, 0, [])
    party = make_party(4, 5)
    queue.add(party)
    queue.add([])
    assert sorted(map(id, pop_all(queue))) == sorted(map(id, party))


@both_orders
def test_an_emptied_queue_is_as_good_as_new(order: Order) -> None:
    queue = waiting_queue(order)
    for _ in range(3):
        queue.add(make_party(9, 2, 5, beam_size=4))
        queue.pop(NOW)
        queue.remove(lambda _: True)
        assert (len(queue), queue.rows, list(queue)) == (0, 0, [])
    party = make_party(7)
    queue.add(party)
    assert queue.first(NOW) is party[0]


@dataclass
class NaiveQueue:
    """What the queue promises, in the fewest words."""

    order: Order
    parties: list[list[Sequence]] = field(default_factory=list)  # whose turn comes first; longest-first: all in one

    def add(self, party: Items[Sequence]) -> None:
        if self.order is Order.LONGEST_FIRST:
            self.parties = [[*itertools.chain.from_iterable(self.parties), *party]]
        else:
            self.parties.append(list(party))

    def pop(self, now: float) -> Sequence:
        party = self.parties.pop(0)
        first = party[0]
        if self.order is Order.LONGEST_FIRST and now - first.submitted_at < PATIENCE_S:
            first = max(party, key=lambda sequence: len(sequence.source))  # the first of equals
        party.remove(first)
        self.parties.append(party)
        self._forget_empty()
        return first

    def remove(self, leaving: set[Sequence]) -> None:
        self.parties = [[sequence for sequence in party if sequence not in leaving] for party in self.parties]
        self._forget_empty()

    def _forget_empty(self) -> None:
        self.parties = [party for party in self.parties if party]

    def __iter__(self) -> itertools.chain[Sequence]:
        return itertools.chain.from_iterable(self.parties)


@both_orders
@repeatable
@given(st.data())
def test_nobody_is_lost_doubled_or_out_of_turn_whatever_happens(order: Order, data: st.DataObject) -> None:
    queue, naive, now = waiting_queue(order), NaiveQueue(order), NOW
    added, gone = 0, 0
    for what in data.draw(
        st.lists(st.sampled_from(["add", "add", "pop", "pop", "pop", "remove", "time"]), max_size=40)
    ):
        waiting = list(naive)
        if what == "add":
            party = [
                *itertools.chain.from_iterable(
                    make_party(length, at=now, beam_size=beam_size)
                    for length, beam_size in data.draw(
                        st.lists(st.tuples(st.integers(1, 6), st.sampled_from([1, 1, 2, 5])), max_size=5)
                    )
                )
            ]
            queue.add(party)
            if party:
                naive.add(party)
            added += len(party)
        elif what == "pop" and waiting:
            first = queue.first(now)
            assert queue.pop(now) is first
            assert first is naive.pop(now)
            gone += 1
        elif what == "remove":
            places = data.draw(st.sets(st.integers(0, 40), max_size=8))
            leaving = {sequence for place, sequence in enumerate(waiting) if place in places}
            queue.remove(leaving.__contains__)
            naive.remove(leaving)
            gone += len(leaving)
        elif what == "time":
            now += data.draw(st.sampled_from([0.5, 4.0, PATIENCE_S]))
        here = list(queue)
        assert len(here) == len(set(here)) == len(queue) == added - gone
        assert set(here) == set(naive)
        assert queue.rows == sum(sequence.options.beam_size for sequence in here)
    assert pop_all(queue, now=now) == [naive.pop(now) for _ in range(added - gone)]
    assert queue.rows == len(queue) == 0


@both_orders
def test_who_has_left_is_not_kept_in_memory_although_the_queue_never_empties(order: Order) -> None:
    queue = waiting_queue(order)
    now, alive = NOW, weakref.WeakSet[Sequence]()
    for _ in range(500):
        # All wait for longer than the patience, a long one among them.
        for length in (3, 3, 40):
            party = make_party(length, at=now)
            alive.update(party)
            queue.add(party)
        del party
        while len(queue) > 9:
            queue.pop(now)
        now += PATIENCE_S
    gc.collect()
    assert len(alive) < 100


@both_orders
def test_a_loop_admits_in_the_order_it_was_told(order: Order) -> None:
    desk = desk_that_keeps(order, max_rows=1)
    ended: list[int] = []
    parties = [[make_job([5] * length) for length in lengths] for lengths in ((2, 6, 4), (3, 8))]
    for job in itertools.chain.from_iterable(parties):
        length = len(job.sequence.source) - 1
        job.sequence.on_finished = lambda _, length=length: ended.append(length)  # type: ignore[misc]
    for party in parties:
        desk.submit(*party)
    desk.turn_until_idle()
    assert ended == ([2, 3, 6, 8, 4] if order is Order.FAIR else [8, 6, 4, 3, 2])


# When newcomers join: while more wait than fit, an eighth of the rows becomes free first.

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
