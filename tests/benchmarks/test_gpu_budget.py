"""The command keeps its time by itself."""

from __future__ import annotations

import pytest

from benchmarks.gpu.budget import Budget
from benchmarks.gpu.stepping import MOST_STEPS, until


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_where_time_is_plenty_each_part_gets_what_it_wants(clock: Clock) -> None:
    budget = Budget(480.0, clock)
    assert budget.share(wanted=60.0, least=12.0, wanted_later=400.0) == 60.0
    clock.now += 80.0
    assert (budget.used, budget.left) == (80.0, 400.0)


def test_where_it_is_short_parts_get_shares_in_proportion(clock: Clock) -> None:
    budget = Budget(120.0, clock)
    assert budget.share(wanted=60.0, least=12.0, wanted_later=180.0) == pytest.approx(30.0)


def test_no_share_is_smaller_than_the_least_or_larger_than_what_is_left(clock: Clock) -> None:
    budget = Budget(60.0, clock)
    assert budget.share(wanted=15.0, least=12.0, wanted_later=600.0) == 12.0
    clock.now += 47.0
    assert budget.share(wanted=40.0, least=12.0, wanted_later=0.0) == 13.0
    clock.now += 2.0
    assert budget.share(wanted=40.0, least=12.0, wanted_later=0.0) is None
    clock.now += 1000.0
    assert budget.left == 0.0


def test_the_first_reason_why_a_part_was_left_out_stays(clock: Clock) -> None:
    budget = Budget(1.0, clock)
    budget.leave_out("steps", "the runner failed")
    budget.leave_out("steps", "no time was left")
    assert budget.left_out == {"steps": "the runner failed"}


def test_steps_are_timed_until_the_time_is_over_but_never_too_few_or_too_many(clock: Clock) -> None:
    enough = until(clock.now + 1.0, clock=clock)
    assert not enough(100)
    assert enough(MOST_STEPS)
    clock.now += 2.0
    assert enough(100)
    assert not enough(3)
