"""What one worker decodes: whom it admits from the queue, in which rows, and which sources it encodes together."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from export.runners.protocol import IntArray
from server.decoding.beam import BeamSearch
from server.decoding.greedy import GreedySearch
from server.decoding.rows import NEW, assign_rows
from server.decoding.search import Continuations, Search
from server.decoding.sequence import SearchOptions, Sequence
from server.decoding.waiting import WaitingQueue

_NEWCOMERS_PART = 8  # an eighth of the rows
_BATCH_COST_TOKENS = 12  # measured: 231 us a token in a batch of 20 tokens, 142 us in one of 320 (base model, int8)


def begin_search(options: SearchOptions, *, end_id: int) -> Search:
    """The search that ``options`` ask for."""
    if options.beam_size == 1:
        return GreedySearch(options, end_id=end_id)
    return BeamSearch(options, end_id=end_id)


@dataclass(eq=False)
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
    """The inputs of one step.

    Attributes:
        tokens: int64 [rows], as ``Runner.step`` takes them, like the others.
        positions: int64 [rows].
        parents: int64 [rows]; None where every row continues itself.
    """

    tokens: IntArray
    positions: IntArray
    parents: IntArray | None


class Scheduler:
    """Admits, places and drops the sequences of one worker. Not thread-safe: its worker locks around the queue."""

    def __init__(
        self, queue: WaitingQueue, *, max_rows: int, encode_tokens_per_round: int, start_id: int, end_id: int
    ) -> None:
        """Begin with nothing running; arguments as ``DecodeLoop`` takes them."""
        self._queue = queue
        self.running: list[Running] = []
        self._max_rows = max_rows
        self._encode_tokens_per_round = encode_tokens_per_round
        self._start_id = start_id
        self._end_id = end_id

    @property
    def used_rows(self) -> int:
        """Rows that running sequences have reserved."""
        return sum(running.search.rows for running in self.running)

    def admit(self, now: float, *, share: int) -> list[Sequence]:
        """Take from the queue while rows and this round's encoder work allow.

        Encoder work is counted in tokens. A source longer than a round's share is admitted alone. While more wait
        than fit, it pays to let a few rows become free first, so that newcomers share an encoder batch.

        Args:
            now: moment on the loop's clock.
            share: rows in use from which on the rest is left to other workers.
        """
        admitted: list[Sequence] = []
        used_rows, tokens_left = self.used_rows, self._encode_tokens_per_round
        free_rows = self._max_rows - used_rows
        if self.running and free_rows < min(self._queue.rows, self._max_rows // _NEWCOMERS_PART):
            return admitted
        while self._queue.rows and used_rows < share:
            sequence = self._queue.first(now)
            used_rows += sequence.options.beam_size
            tokens_left -= len(sequence.source)
            if used_rows > self._max_rows or (tokens_left < 0 and admitted):
                break
            admitted.append(self._queue.pop(now))
        return admitted

    def begin(self, admitted: Iterable[Sequence]) -> list[Running]:
        """Let what was admitted run."""
        begun = [
            Running(sequence, begin_search(sequence.options, end_id=self._end_id), [self._start_id])
            for sequence in admitted
        ]
        self.running += begun
        return begun

    def place(self) -> Placement:
        """Give every live hypothesis its row for the next step."""
        parents = [parent for running in self.running for parent in running.parents]
        rows = assign_rows(parents)
        stay = rows == parents  # as in nearly every round
        if stay:
            for running in self.running:
                running.rows = running.parents
        else:
            left = iter(rows)
            for running in self.running:
                running.rows = [next(left) for _ in running.parents]
        tokens = _by_row(rows, [token for running in self.running for token in running.tokens])
        positions = _by_row(rows, [running.position for running in self.running for _ in running.tokens])
        if stay or all(parent in (row, NEW) for row, parent in zip(rows, parents, strict=True)):
            return Placement(tokens, positions, None)
        old = [row if parent == NEW else parent for row, parent in zip(rows, parents, strict=True)]
        return Placement(tokens, positions, _by_row(rows, old))

    def step_on(self, last: Placement) -> Placement | None:
        """The step after ``last`` for the same sequences; None: a hypothesis has to change its row."""
        if any(running.parents != running.rows for running in self.running):
            return None
        rows = [row for running in self.running for row in running.rows]
        tokens = _by_row(rows, [token for running in self.running for token in running.tokens])
        return Placement(tokens, last.positions + 1, None)


def _by_row(rows: Items[int], values: Items[int]) -> IntArray:
    """``values`` [n], each at its row: int64 [n]."""
    placed = [0] * len(rows)
    for row, value in zip(rows, values, strict=True):
        placed[row] = value
    return np.array(placed, np.int64)


def encoder_batches(begun: Iterable[Running]) -> list[list[Running]]:
    """Split newcomers into the encoder batches that cost least, each padded to its longest source.

    A batch costs its tokens, padding included, and as much again as ``_BATCH_COST_TOKENS``: each run reads all weights
    anew.
    """
    longest_first = sorted(begun, key=lambda running: -len(running.sequence.source))
    lengths = [len(running.sequence.source) for running in longest_first]
    costs, starts = [0], [0]  # of the best split of the first n, and where its last batch begins
    for end in range(1, len(lengths) + 1):
        cost, start = min(
            (costs[start] + _BATCH_COST_TOKENS + lengths[start] * (end - start), start) for start in range(end)
        )
        costs.append(cost)
        starts.append(start)
    batches: list[list[Running]] = []
    end = len(lengths)
    while end:
        batches.append(longest_first[starts[end] : end])
        end = starts[end]
    return batches


def pad_sources(sources: Items[Items[int]], *, pad_id: int) -> tuple[IntArray, IntArray]:
    """An encoder batch: sources int64 [batch, src_len], filled on the right, and their lengths int64 [batch]."""
    lengths = np.array([len(source) for source in sources], dtype=np.int64)
    batch = np.full((len(sources), int(lengths.max())), pad_id, dtype=np.int64)
    for line, source in zip(batch, sources, strict=True):
        line[: len(source)] = source
    return batch, lengths
