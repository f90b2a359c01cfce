"""A sequence being decoded, what to run next, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import NamedTuple

from export.runners.protocol import Candidates, IntArray
from server.decoding.rows import NEW
from server.decoding.search import Continuations, Search
from server.decoding.sequence import Sequence


@dataclass(eq=False, slots=True)
class Running:
    """A sequence being decoded, with its live hypotheses best first.

    Attributes:
        sequence: what is decoded.
        search: how.
        tokens: last token of each live hypothesis.
        parents: row that each continues, ``NEW`` before its first step.
        position: tokens already in the cache of each.
        rows: row of each in the step at hand.
    """

    sequence: Sequence
    search: Search
    tokens: Items[int]
    parents: list[int] = field(default_factory=lambda: [NEW])
    position: int = 0
    rows: list[int] = field(default_factory=list)

    def go_on(self, continuations: Continuations) -> None:
        """Take over the hypotheses that a step has chosen."""
        rows = self.rows
        self.parents = [rows[parent] for parent in continuations.parents]
        self.tokens = continuations.tokens
        self.position += 1


class Placement(NamedTuple):
    """What to run next, as ``Runner.step`` and ``Runner.greedy_steps`` take it.

    Attributes:
        tokens: int64 [rows].
        positions: int64 [rows].
        parents: int64 [rows]; None where every row continues itself.
        steps: nobody has to be asked before so many, unless the end token is best for some row.
    """

    tokens: IntArray
    positions: IntArray
    parents: IntArray | None
    steps: int = 1

    @property
    def rows(self) -> int:
        """Live rows."""
        return len(self.tokens)


class Found(NamedTuple):
    """What steps found.

    Attributes:
        best: best token of each row after each step: [steps][rows].
        top: the best ones of the last step, with log-probs; None where nobody needs more than the best.
        seconds: that each step took.
    """

    best: Items[list[int]]
    top: Candidates | None
    seconds: float
