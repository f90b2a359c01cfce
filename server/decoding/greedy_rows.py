"""Rows of greedy searches that are stepped together: none is looked at alone until its output may end.

Such a row goes on with the best token of every step, whatever that is. So what the runner finds is the next step's
input as it stands, and a search hears of its tokens all at once, as soon as one may be the last. What a step costs on
the host then hardly grows with its rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items

import numpy as np

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

    Between two steps sequences may ``leave`` and ``join``; then ``place`` tells what to run, and ``take`` takes what
    came of it.
    """

    def __init__(self, *, end_id: int) -> None:
        """Begin with none."""
        self._end_id = end_id
        self._rows: list[_Row] = []
        self._last: list[int] = []  # token of each row
        self._log: list[list[int]] = []  # best token of each row, step by step
        self._next_due = 0
        self._asked: list[int] = []
        self._left: set[int] = set()
        self._newcomers: list[Running] = []

    def adopt(self, running: Iterable[Running], placement: Placement) -> None:
        """Take over all sequences as they have just been placed."""
        self._rows = [_Row(each, steps=0) for each in sorted(running, key=lambda each: each.rows)]
        self._last = placement.tokens.tolist()
        self._settle()

    def join(self, newcomers: Iterable[Running]) -> None:
        """Let sequences begin with the next step."""
        self._newcomers += newcomers

    def leave(self, leaving: Iterable[Running]) -> None:
        """Free the rows of sequences that have had one."""
        self._left.update(running.rows[0] for running in leaving)

    def take(self, best: Items[list[int]]) -> list[Running]:
        """Let every row go on with its best tokens: [steps][rows].

        Returns:
            The sequences whose searches are to be asked about the last one, because their outputs may end there, or
            somebody listens to them. They have heard of all before it. Those that go on hear of it before ``place``.
        """
        *before, self._last = best
        self._log += before
        steps = len(self._log) + 1
        if steps >= self._next_due or self._end_id in self._last:
            self._asked = [
                place
                for place, (row, token) in enumerate(zip(self._rows, self._last, strict=True))
                if steps >= row.due or token == self._end_id
            ]
            for place in self._asked:
                self._tell(place)
        self._log.append(self._last)
        return [self._rows[place].running for place in self._asked]

    def place(self) -> Placement:
        """What to run next. Newcomers get the rows of those who left, and the last rows fill what stays free."""
        for place in self._asked:
            if place not in self._left:
                (self._last[place],) = self._rows[place].running.tokens
                self._rows[place].set_due(len(self._log))
        free = sorted(self._left)
        for running in self._newcomers:
            place = free.pop(0) if free else len(self._rows)
            self._rows[place : place + 1] = [_Row(running, steps=len(self._log))]
            self._last[place : place + 1] = running.tokens
            running.rows = [place]
        origins = self._close_gaps(free)
        if self._asked or self._left or self._newcomers or len(self._log) >= _LONGEST_LOG:
            self._settle()
        steps = len(self._log)
        return Placement(
            np.array(self._last, np.int64),
            np.array([row.running.position + steps - row.known for row in self._rows], np.int64),
            np.array([origins.get(place, place) for place in range(len(self._rows))], np.int64) if origins else None,
            steps=self._next_due - steps,
        )

    def release(self) -> None:
        """Leave every sequence as if it had been stepped alone; nothing more is placed here."""
        for place, row in enumerate(self._rows):
            if place not in self._left and place not in self._asked:
                self._tell(place)
                row.running.tokens, row.running.parents = (self._last[place],), [place]

    def _close_gaps(self, free: list[int]) -> dict[int, int]:
        """Let the last rows move to ``free`` places, in order; returns where each came from, by where it goes."""
        origins = {}
        while free:
            last = len(self._rows) - 1
            if free[-1] == last:
                free.pop()
            else:
                place = free.pop(0)
                self._tell(last)
                self._rows[place], self._last[place] = self._rows[last], self._last[last]
                self._rows[place].running.rows = [place]
                origins[place] = last
            del self._rows[last], self._last[last]
        return origins

    def _settle(self) -> None:
        """Get ready for the next step: everybody has a row."""
        self._asked.clear()
        self._left.clear()
        self._newcomers.clear()
        if len(self._log) >= _LONGEST_LOG:
            for place, row in enumerate(self._rows):
                self._tell(place)
                row.due -= len(self._log)
                row.known = 0
            self._log.clear()
        self._next_due = min([row.due for row in self._rows])

    def _tell(self, place: int) -> None:
        row = self._rows[place]
        row.hear([best[place] for best in self._log[row.known :]])
