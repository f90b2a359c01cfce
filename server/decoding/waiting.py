"""Sequences that wait, and in which order their turn comes.

Sequences that one call submitted together are one party. Whatever the order, none starves: where the first does not
fit the free rows, the others wait with it.
"""

from __future__ import annotations

import enum
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from typing import Protocol

from server.decoding.sequence import Sequence

PATIENCE_S = 10.0
"""After so long, the order ``longest-first`` prefers whoever came first."""
_KEPT_GONE = 64  # those who have left and are looked through at most, beside one for each who waits


class Order(enum.Enum):
    """Who is next; values as on the command line."""

    FAIR = "fair"
    LONGEST_FIRST = "longest-first"


class WaitingQueue(Protocol):
    """Sequences that wait. Not thread-safe: the loop locks around it."""

    @property
    def rows(self) -> int:
        """Rows that all who wait will need."""

    def __len__(self) -> int:
        """How many wait."""

    def __iter__(self) -> Iterator[Sequence]:
        """All who wait, in no order that matters."""

    def add(self, party: Items[Sequence]) -> None:
        """Let the sequences of one call wait, ``submitted_at`` set."""

    def rows_ahead(self, party: Items[Sequence]) -> Iterator[int]:
        """For each of ``party``, if it came now: the rows of those who are admitted before it, as far as is known."""

    def first(self, now: float) -> Sequence:
        """Whose turn it is; somebody must wait."""

    def pop(self, now: float) -> Sequence:
        """Remove and return ``first(now)``."""

    def remove(self, leaves: Callable[[Sequence], bool]) -> None:
        """Remove all of whom ``leaves`` says so."""


def waiting_queue(order: Order) -> WaitingQueue:
    """An empty queue that keeps ``order``."""
    return FairQueue() if order is Order.FAIR else LongestFirstQueue()


class FairQueue:
    """Parties take turns, one sequence each: a single text does not wait for a thousand of another call."""

    def __init__(self) -> None:
        """Begin empty."""
        self._parties: deque[deque[Sequence]] = deque()
        self._waiting = 0
        self._first_rows = 0  # of the first of each party
        self.rows = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._waiting

    def __iter__(self) -> Iterator[Sequence]:
        """All who wait, party by party."""
        return itertools.chain.from_iterable(self._parties)

    def add(self, party: Items[Sequence]) -> None:
        """Let the sequences of one call wait."""
        if party:
            self._append(deque(party))
            self._waiting += len(party)
            self.rows += _rows(party)

    def rows_ahead(self, party: Items[Sequence]) -> Iterator[int]:
        """One more of every other party for each of this one."""
        ahead = self._first_rows
        turns: Iterator[Items[Sequence | None]] | None = None
        for sequence in party:
            if turns is not None:
                ahead += _rows([other for other in next(turns, ()) if other is not None])
            yield ahead
            ahead += sequence.options.beam_size
            if turns is None:  # most parties are single texts, of which nobody asks for a second one
                longer = (itertools.islice(other, 1, None) for other in self._parties if len(other) > 1)
                turns = itertools.zip_longest(*longer)

    def first(self, now: float) -> Sequence:  # noqa: ARG002 - time changes nothing here
        """Whose turn it is."""
        return self._parties[0][0]

    def pop(self, now: float) -> Sequence:  # noqa: ARG002 - time changes nothing here
        """Remove and return whose turn it is; the rest of its party goes to the end."""
        party = self._parties.popleft()
        sequence = party.popleft()
        self._first_rows -= sequence.options.beam_size
        if party:
            self._append(party)
        self._waiting -= 1
        self.rows -= sequence.options.beam_size
        return sequence

    def remove(self, leaves: Callable[[Sequence], bool]) -> None:
        """Remove all of whom ``leaves`` says so."""
        staying = (deque(s for s in party if not leaves(s)) for party in self._parties)
        self._parties = deque(party for party in staying if party)
        self._waiting = sum(map(len, self._parties))
        self._first_rows = _rows([party[0] for party in self._parties])
        self.rows = _rows(self)

    def _append(self, party: deque[Sequence]) -> None:
        self._parties.append(party)
        self._first_rows += party[0].options.beam_size


class LongestFirstQueue:
    """Long sources first, for the most tokens per second.

    Sources of one length share encoder batches, and no long one is left over at the end. Who has waited for
    ``PATIENCE_S`` comes before all, first come first.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._by_age: deque[Sequence] = deque()
        self._by_length: list[tuple[int, int, Sequence]] = []
        self._waiting: set[Sequence] = set()
        self._numbers = itertools.count()
        self.rows = 0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        """All who wait, first come first."""
        return (sequence for sequence in self._by_age if sequence in self._waiting)

    def add(self, party: Items[Sequence]) -> None:
        """Let the sequences of one call wait."""
        for sequence in party:
            heapq.heappush(self._by_length, (-len(sequence.source), next(self._numbers), sequence))
        self._by_age.extend(party)
        self._waiting.update(party)
        self.rows += _rows(party)

    def rows_ahead(self, party: Items[Sequence]) -> Iterator[int]:
        """All who wait: longer ones may come yet."""
        return itertools.accumulate((sequence.options.beam_size for sequence in party), initial=self.rows)

    def first(self, now: float) -> Sequence:
        """Whose turn it is."""
        while self._by_age[0] not in self._waiting:
            self._by_age.popleft()
        while self._by_length[0][2] not in self._waiting:
            heapq.heappop(self._by_length)
        oldest = self._by_age[0]
        return oldest if now - oldest.submitted_at >= PATIENCE_S else self._by_length[0][2]

    def pop(self, now: float) -> Sequence:
        """Remove and return whose turn it is."""
        sequence = self.first(now)
        self._waiting.remove(sequence)
        self.rows -= sequence.options.beam_size
        if len(self._by_length) > 2 * len(self._waiting) + _KEPT_GONE:
            self._forget_gone()
        return sequence

    def remove(self, leaves: Callable[[Sequence], bool]) -> None:
        """Remove all of whom ``leaves`` says so."""
        self._waiting = {sequence for sequence in self._waiting if not leaves(sequence)}
        self._forget_gone()
        self.rows = _rows(self)

    def _forget_gone(self) -> None:
        self._by_age = deque(self)
        self._by_length = [entry for entry in self._by_length if entry[2] in self._waiting]
        heapq.heapify(self._by_length)


def _rows(sequences: Items[Sequence] | WaitingQueue) -> int:
    return sum(sequence.options.beam_size for sequence in sequences)
