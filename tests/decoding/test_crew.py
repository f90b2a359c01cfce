"""How many workers a load is worth, and whether one of them is alone."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.decoding.crew import ROWS_WORTH_A_WORKER, Crew, share

repeatable = settings(derandomize=True, deadline=None, max_examples=500)


WORTH = ROWS_WORTH_A_WORKER


def shares(*used_rows: int, waiting: int, max_rows: int = 2 * WORTH) -> list[int]:
    """The share of each worker."""
    return [
        share(worker, used_rows=used_rows, waiting_rows=waiting, max_rows=max_rows) for worker in range(len(used_rows))
    ]


@pytest.mark.parametrize(
    ("used", "waiting", "wanted"),
    [
        ((0, 0, 0), 0, [0, 0, 0]),
        ((0, 0, 0), 1, [1, 0, 0]),
        ((0, 0, 0), WORTH, [WORTH, 0, 0]),
        ((0, 0, 0), WORTH + 2, [WORTH // 2 + 1, WORTH // 2 + 1, 0]),
        ((WORTH - 1, 0, 0), 3, [WORTH // 2 + 1, WORTH // 2 + 1, 0]),  # what runs counts like what waits
        ((0, 0, 0), 2 * WORTH, [WORTH, WORTH, 0]),
        ((0, 0, 0), 3 * WORTH - 3, [WORTH - 1, WORTH - 1, WORTH - 1]),
        ((0, 0, 0), 3000, [1000, 1000, 1000]),
        ((0, 0, 0), 3001, [1001, 1001, 1001]),
        ((2 * WORTH, 2 * WORTH, 2 * WORTH), 3000, [1000 + 2 * WORTH] * 3),
        ((0, 7, 0), 5, [12, 0, 0]),  # the second finishes what it has, and takes nothing
        ((2 * WORTH,), 5, [2 * WORTH + 5]),
    ],
)
def test_a_further_worker_is_called_only_where_its_rows_are_worth_it(
    used: tuple[int, ...], waiting: int, wanted: list[int]
) -> None:
    assert shares(*used, waiting=waiting) == wanted


@pytest.mark.parametrize(
    ("max_rows", "waiting", "wanted"),
    [
        (1, 1, [1, 0, 0]),
        (1, 2, [1, 1, 0]),
        (1, 3, [1, 1, 1]),
        (4, 4, [4, 0, 0]),
        (4, 5, [3, 3, 0]),
        (4, 100, [34, 34, 34]),
        (WORTH - 1, WORTH, [WORTH // 2, WORTH // 2, 0]),
        (WORTH + 1, WORTH + 2, [WORTH // 2 + 1, WORTH // 2 + 1, 0]),
    ],
)
def test_a_worker_is_full_with_fewer_rows_where_it_has_fewer(max_rows: int, waiting: int, wanted: list[int]) -> None:
    assert shares(0, 0, 0, waiting=waiting, max_rows=max_rows) == wanted


@st.composite
def loads(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Used rows of each worker, waiting rows, most rows of one worker."""
    max_rows = draw(st.sampled_from([1, 2, 3, WORTH - 1, WORTH, WORTH + 1, 2 * WORTH, 512]))
    used = draw(st.lists(st.integers(0, max_rows), min_size=1, max_size=9))
    return used, draw(st.integers(0, 40) | st.integers(0, 5000)), max_rows


@repeatable
@given(loads())
def test_shares_are_even_cover_the_need_and_call_nobody_too_early(load: tuple[list[int], int, int]) -> None:
    used, waiting, max_rows = load
    got, rows, worth = shares(*used, waiting=waiting, max_rows=max_rows), sum(used) + waiting, min(WORTH, max_rows)
    called = [rows_of_one for rows_of_one in got if rows_of_one]
    assert got == [*called, *[0] * (len(used) - len(called))], "those called are the first"
    assert len(set(called)) <= 1
    assert rows <= sum(got) < rows + max(1, len(called)), "rounded up, and no more"
    assert not called or (len(called) - 1) * worth < rows
    assert len(called) == len(used) or len(called) * worth >= rows, "as many are called as the rows are worth"


@repeatable
@given(loads())
def test_whoever_waits_has_a_worker_that_is_to_take_it(load: tuple[list[int], int, int]) -> None:
    used, waiting, max_rows = load
    got = shares(*used, waiting=waiting, max_rows=max_rows)
    taking = [rows < min(wanted, max_rows) for rows, wanted in zip(used, got, strict=True)]
    assert any(taking) or not waiting or set(used) == {max_rows}


def test_at_most_one_at_work_is_alone() -> None:
    crew = Crew()
    seen = [crew.alone]
    for change in (crew.begin, crew.begin, crew.begin, crew.end, crew.end, crew.end):
        change()
        seen.append(crew.alone)
    assert seen == [True, True, False, False, False, True, True]


def test_workers_are_counted_from_any_thread() -> None:
    crew, workers = Crew(), 8
    at_work, counted = threading.Barrier(workers + 1), threading.Barrier(workers + 1)

    def work() -> None:
        for _ in range(200):
            crew.begin()
            crew.end()
        crew.begin()
        at_work.wait(60.0)
        counted.wait(60.0)
        crew.end()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    at_work.wait(60.0)
    seen = [crew.alone]
    counted.wait(60.0)
    for thread in threads:
        thread.join()
    # All have ended, and none of them twice.
    for _ in range(2):
        crew.begin()
        seen.append(crew.alone)
    assert seen == [False, True, False]
