"""Which row of the caches each live hypothesis gets."""

from __future__ import annotations

from collections.abc import Sequence as Items

NEW = -1
"""In place of a parent's row: a hypothesis whose row the encoder is about to write."""


def assign_rows(parents: Items[int]) -> list[int]:
    """Give ``len(parents)`` hypotheses the rows 0..n-1, moving as few as possible.

    A hypothesis stays in its parent's row where that row is below n and no earlier sibling took it; the others and
    the new ones fill the rows that are left, in order. So a row that is filled is nobody's parent, and the encoder
    may write it before the step moves anything.

    Args:
        parents: the row that each hypothesis continues, or ``NEW``.

    Returns:
        The row of each hypothesis.
    """
    count = len(parents)
    if count and len(set(parents)) == count and min(parents) >= 0 and max(parents) < count:
        return list(parents)  # each stays where its parent is
    rows = [NEW] * count
    taken = [False] * count
    for index, parent in enumerate(parents):
        if 0 <= parent < count and not taken[parent]:
            taken[parent] = True
            rows[index] = parent
    free = (row for row in range(count) if not taken[row])
    return [next(free) if row == NEW else row for row in rows]
