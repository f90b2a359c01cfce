"""Who waits, and whose turn it is."""

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
from server.decoding.sequence import Sequence
from server.decoding.waiting import PATIENCE_S, Order, WaitingQueue, waiting_queue
from tests.decoding.desk import Desk, make_job
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
