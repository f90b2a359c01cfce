"""What one worker decodes: whom it admits from the queue, in which rows, and which sources it encodes together."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from collections.abc import Sequence as Items
from itertools import pairwise

import numpy as np

from export.runners.protocol import IntArray
from server.decoding.beam import BeamSearch
from server.decoding.greedy import GreedySearch
from server.decoding.greedy_rows import GreedyRows, is_plain
from server.decoding.rows import NEW, assign_rows
from server.decoding.running import Placement, Running
from server.decoding.search import Search
from server.decoding.sequence import SearchOptions, Sequence
from server.decoding.waiting import WaitingQueue

_NEWCOMERS_PART = 8  # an eighth of the rows
_BATCH_COST_TOKENS = 12  # measured: 231 us a token in a batch of 20 tokens, 142 us in one of 320 (base model, int8)


def begin_search(options: SearchOptions, *, end_id: int) -> Search:
    """The search that ``options`` ask for."""
    if options.beam_size == 1:
        return GreedySearch(options, end_id=end_id)
    return BeamSearch(options, end_id=end_id)


class Scheduler:
    """Admits, places and drops the sequences of one worker. Not thread-safe: its worker locks around the queue.

    Attributes:
        running: what is being decoded; never changed in place.
        used_rows: that those have reserved.
        end_id: the end token.
    """

    def __init__(
        self, queue: WaitingQueue, *, max_rows: int, encode_tokens_per_round: int, start_id: int, end_id: int
    ) -> None:
        """Begin with nothing running; arguments as ``DecodeLoop`` takes them."""
        self._queue = queue
        self.running: list[Running] = []
        self.used_rows = 0
        self._greedy: GreedyRows | None = None  # while all that runs is plain
        self._max_rows = max_rows
        self._encode_tokens_per_round = encode_tokens_per_round
        self._start_id = start_id
        self.end_id = end_id

    @property
    def candidates_needed(self) -> int:
        """Best tokens per row, with log-probs, that serve every search in the next step; 0: the best token alone."""
        return 0 if self._greedy else max([running.search.candidates_needed for running in self.running])

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
        """Let what was admitted run, from the next step on."""
        begun = [
            Running(sequence, begin_search(sequence.options, end_id=self.end_id), [self._start_id])
            for sequence in admitted
        ]
        # Short ones end first, most likely: in the last rows they leave no gap.
        begun.sort(key=_source_tokens, reverse=True)
        if not self.running:
            self._greedy = GreedyRows(end_id=self.end_id)
        self.running = [*self.running, *begun]
        self.used_rows += _reserved(begun)
        if self._greedy and all(map(is_plain, begun)):
            self._greedy.join(begun)
        elif self._greedy:
            self._greedy.release()
            self._greedy = None
        return begun

    def leave(self, leaving: Collection[Running]) -> None:
        """Drop sequences that have ended or are given up."""
        self.running = [running for running in self.running if running not in leaving]
        self.used_rows = _reserved(self.running)
        if not self.running:
            self._greedy = None
        elif self._greedy:
            self._greedy.leave(leaving)

    def take(self, best: Items[list[int]]) -> Items[Running]:
        """Take over what one or more steps found: the best token of each row, [steps][rows].

        Returns:
            The sequences whose searches have to choose in the last step; all others go on by themselves.
        """
        return self._greedy.take(best) if self._greedy else self.running

    def place(self) -> Placement:
        """Give every live hypothesis its row for the next step, or for several."""
        if self._greedy:
            return self._greedy.place()
        placement = self._place_each()
        if all(map(is_plain, self.running)):
            self._greedy = GreedyRows(end_id=self.end_id)
            self._greedy.adopt(self.running, placement)
        return placement

    def _place_each(self) -> Placement:
        parents = [parent for running in self.running for parent in running.parents]
        rows = assign_rows(parents)
        if rows == parents:
            for running in self.running:
                running.rows = running.parents
        else:
            left = iter(rows)
            for running in self.running:
                running.rows = [next(left) for _ in running.parents]
        tokens = _by_row(rows, [token for running in self.running for token in running.tokens])
        positions = _by_row(rows, [running.position for running in self.running for _ in running.tokens])
        old = [row if parent == NEW else parent for row, parent in zip(rows, parents, strict=True)]
        return Placement(tokens, positions, None if old == rows else _by_row(rows, old))


def _reserved(running: Items[Running]) -> int:
    return sum([each.search.rows for each in running])


def _by_row(rows: Items[int], values: Items[int]) -> IntArray:
    """``values`` [n], each at its row: int64 [n]."""
    placed = [0] * len(rows)
    for row, value in zip(rows, values, strict=True):
        placed[row] = value
    return np.array(placed, np.int64)


def _source_tokens(running: Running) -> int:
    return len(running.sequence.source)


def encoder_batches(begun: Items[Running]) -> list[list[Running]]:
    """Split newcomers into the encoder batches that cost least, each padded to its longest source.

    A batch costs its tokens, padding included, and as much again as ``_BATCH_COST_TOKENS``: each run reads all weights
    anew.
    """
    if len(begun) < 2:
        return [list(begun)] if begun else []
    longest_first = sorted(begun, key=_source_tokens, reverse=True)
    lengths = [len(running.sequence.source) for running in longest_first]
    # A cut between sources of one length saves nothing.
    cuts = [place for place, (longer, shorter) in enumerate(pairwise(lengths), 1) if longer > shorter]
    best = {0: (0, 0)}  # by place of a cut: what the best split before it costs, and where its last batch begins
    for end in (*cuts, len(lengths)):
        best[end] = min(
            (cost + _BATCH_COST_TOKENS + lengths[start] * (end - start), start) for start, (cost, _) in best.items()
        )
    batches: list[list[Running]] = []
    end = len(lengths)
    while end:
        _, start = best[end]
        batches.append(longest_first[start:end])
        end = start
    return batches


def pad_sources(sources: Items[Items[int]], *, pad_id: int) -> tuple[IntArray, IntArray]:
    """An encoder batch: sources int64 [batch, src_len], filled on the right, and their lengths int64 [batch]."""
    lengths = [len(source) for source in sources]
    longest = max(lengths)
    lines = [[*source, *[pad_id] * (longest - length)] for source, length in zip(sources, lengths, strict=True)]
    return np.array(lines, np.int64), np.array(lengths, np.int64)
