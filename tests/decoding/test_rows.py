from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from server.decoding.rows import NEW, assign_rows

repeatable = settings(derandomize=True, deadline=None, max_examples=300)
parents_lists = st.lists(st.integers(NEW, 12), max_size=14)


def test_rows_stay_where_nothing_moves() -> None:
    assert assign_rows([0, 1, 2]) == [0, 1, 2]
    assert assign_rows([2, 0, 1]) == [2, 0, 1]


def test_first_child_stays_and_siblings_fill_the_gaps() -> None:
    assert assign_rows([1, 1, 1, NEW]) == [1, 0, 2, 3]


def test_last_row_moves_into_the_place_of_one_that_left() -> None:
    assert assign_rows([0, 2, 3]) == [0, 2, 1]


def test_nobody_needs_no_rows() -> None:
    assert assign_rows([]) == []


@repeatable
@given(parents_lists)
def test_rows_are_the_prefix(parents: list[int]) -> None:
    assert sorted(assign_rows(parents)) == list(range(len(parents)))


@repeatable
@given(parents_lists)
def test_filled_rows_are_nobodys_parent(parents: list[int]) -> None:
    rows = assign_rows(parents)
    filled = {row for row, parent in zip(rows, parents, strict=True) if row != parent}
    assert not filled & set(parents)


@repeatable
@given(parents_lists)
def test_moves_are_as_few_as_can_be(parents: list[int]) -> None:
    rows = assign_rows(parents)
    kept = sum(row == parent for row, parent in zip(rows, parents, strict=True))
    assert kept == len({parent for parent in parents if 0 <= parent < len(parents)})
