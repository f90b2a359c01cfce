"""Rows of greedy searches that are stepped together: none is looked at alone until its output may end.

Such a row goes on with the best token of every step, whatever that is. So what the runner finds is the next step's
input as it stands, and a search hears of its tokens all at once, as soon as one may be the last. What a step costs on
the host then hardly grows with its rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from export.runners.protocol import IntArray
from server.decoding.greedy import GreedySearch
from server.decoding.running import Placement, Running

_LONGEST_LOG = 256


def is_plain(running: Running) -> bool:
    """Whether a sequence needs nothing but the best token of each step, from now on."""
    return isinstance(running.search, GreedySearch) and running.search.is_plain


class _Row:
    """Who has a row, and when its search is asked again.

    Attributes:
        running: the sequence.
        known: steps of the log that its search has heard of.
        due: length of the log with which it is asked, unless the end token is best before.
    """

    __slots__ = ("_search", "due", "known", "running")

    def __init__(self, running: Running, *, steps: int) -> None:
        """Begin where the log has ``steps`` steps, which are nothing to this sequence."""
        assert isinstance(running.search, GreedySearch), "only plain sequences have rows here"
        self._search = running.search
        self.running = running
        self.set_due(steps)

    def set_due(self, steps: int) -> None:
        """Begin anew where the log has ``steps`` steps, of which the search knows."""
        self.known = steps
        listened_to = self.running.sequence.on_tokens is not None
        self.due = steps + 1 + (0 if listened_to else self._search.certain_steps)

    def hear(self, tokens: list[int]) -> None:
        """Let the search know of the next steps of the log."""
        self._search.follow(tokens)
        self.running.position += len(tokens)
        self.known += len(tokens)


class GreedyRows:
    """The rows of one worker, as long as all its sequences are plain.

    Between two steps sequences may ``leave`` and ``join``; then ``place`` gives the next step's inputs, and ``take``
    takes what came of it.
    """

    def __init__(self, running: Iterable[Running], placement: Placement, *, end_id: int) -> None:
        """Take over sequences that have just been placed."""
        self._end_id = end_id
        self._log: list[list[int]] = []  # the best token of each row, step by step
        self._rows = [_Row(each, steps=0) for each in sorted(running, key=lambda each: each.rows)]
        self._tokens, self._positions = placement.tokens, placement.positions
        self._next_due = self._first_due()
        self._asked: list[int] = []
        self._left: set[int] = set()
        self._newcomers: list[Running] = []

    def join(self, newcomers: Iterable[Running]) -> None:
        """Let sequences begin with the next step."""
        self._newcomers += newcomers

    def leave(self, leaving: Iterable[Running]) -> None:
        """Free the rows of sequences that have had one."""
        self._left.update(running.rows[0] for running in leaving)

    def take(self, best: IntArray) -> list[Running]:
        """Let every row go on with its best token: int64 [rows].

        Returns:
            The sequences whose searches are to be asked, because their outputs may end here, or somebody listens to
            them. They have heard of all earlier tokens. Those that go on hear of it before ``place``.
        """
        tokens = best.tolist()
        self._tokens, self._positions = best, self._positions + 1
        steps = len(self._log)
        if self._end_id in tokens or steps + 1 >= self._next_due:
            self._asked = [
                place
                for place, (row, token) in enumerate(zip(self._rows, tokens, strict=True))
                if token == self._end_id or steps + 1 >= row.due
            ]
            for place in self._asked:
                self._tell(place)
        self._log.append(tokens)
        return [self._rows[place].running for place in self._asked]

    def place(self) -> Placement:
        """The next step's inputs. Newcomers get the rows of those who left, and the last rows fill what stays free."""
        changed = bool(self._asked or self._left or self._newcomers)
        self._tokens = self._tokens.copy() if self._asked else self._tokens
        for place in self._asked:
            if place not in self._left:
                self._tokens[place] = self._rows[place].running.tokens[0]
                self._rows[place].set_due(len(self._log))
        self._asked = []
        parents = self._rearrange() if self._left or self._newcomers else None
        if len(self._log) >= _LONGEST_LOG:
            self._forget_log()
        if changed:
            self._next_due = self._first_due()
        return Placement(self._tokens, self._positions, parents)

    def release(self) -> None:
        """Leave every sequence as if it had been stepped alone; nothing more is placed here."""
        for place, row in enumerate(self._rows):
            if place not in self._left and place not in self._asked:
                self._tell(place)
                row.running.tokens, row.running.parents = (int(self._tokens[place]),), [place]

    def _rearrange(self) -> IntArray | None:
        """Close the gaps; returns the row that each row continues, None where each one continues itself."""
        lines: list[tuple[Any, ...]] = list(
            zip(self._rows, self._tokens.tolist(), self._positions.tolist(), range(len(self._rows)), strict=True)
        )
        free = sorted(self._left)
        for running in self._newcomers:
            place = free.pop(0) if free else len(lines)
            running.rows = [place]
            lines[place : place + 1] = [(_Row(running, steps=len(self._log)), running.tokens[0], 0, place)]
        moved = []
        while free:
            line = lines.pop()
            if len(lines) == free[-1]:
                free.pop()
            else:
                place = free.pop(0)
                self._tell(len(lines))
                self._rows[len(lines)].running.rows = [place]
                lines[place] = line
                moved.append(place)
        self._left.clear()
        self._newcomers.clear()
        rows, tokens, positions, parents = zip(*lines, strict=True)
        self._rows = list(rows)
        self._tokens, self._positions = np.array(tokens, np.int64), np.array(positions, np.int64)
        return np.array(parents, np.int64) if moved else None

    def _tell(self, place: int) -> None:
        row = self._rows[place]
        row.hear([best[place] for best in self._log[row.known :]])

    def _forget_log(self) -> None:
        for place, row in enumerate(self._rows):
            self._tell(place)
            row.due -= len(self._log)
            row.known = 0
        self._log.clear()

    def _first_due(self) -> int:
        return min([row.due for row in self._rows])
