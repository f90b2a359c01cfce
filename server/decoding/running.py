"""A sequence being decoded, and the inputs of a step."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import NamedTuple

from export.runners.protocol import IntArray
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
    """A step of which every row is given anew, as ``Runner.step`` takes them.

    Attributes:
        tokens: int64 [rows].
        positions: int64 [rows].
        parents: int64 [rows]; None where every row continues itself.
    """

    tokens: IntArray
    positions: IntArray
    parents: IntArray | None

    @property
    def rows(self) -> int:
        """Live rows."""
        return len(self.tokens)


class Onward(NamedTuple):
    """Steps in which every row goes on with its best token, as ``Runner.go_on`` takes them.

    Attributes:
        rows: live rows.
        origins: the rows that others continue, by those; all others continue themselves.
        steps: nobody has to be asked before so many.
    """

    rows: int
    origins: dict[int, int]
    steps: int
