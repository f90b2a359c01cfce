"""Who is decoded next: two queues, waiting and running, hold all scheduling state.

Sequences are admitted strictly in the order they came, so that none starves: where the first does not fit, the
others wait with it. Lengths only decide which of the admitted sources share an encoder batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import numpy as np

from export.runners.protocol import IntArray
from server.decoding.beam import BeamSearch
from server.decoding.greedy import GreedySearch
from server.decoding.observer import Stage
from server.decoding.rows import NEW, assign_rows
from server.decoding.search import Continuations, Search
from server.decoding.sequence import Outcome, SearchOptions, Sequence


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
    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [NEW])
    position: int = 0
    rows: list[int] = field(default_factory=list)

    def go_on(self, continuations: Continuations) -> None:
        """Take over the hypotheses that a step has chosen."""
        self.parents = [self.rows[parent] for parent in continuations.parents]
        self.tokens = list(continuations.tokens)
        self.position += 1


@dataclass(frozen=True)
class GivenUp:
    """A sequence that leaves before its end."""

    sequence: Sequence
    outcome: Outcome
    stage: Stage


@dataclass(frozen=True)
class Placement:
    """The inputs of one step.

    Attributes:
        order: int64 [rows], the row of each hypothesis, running sequences in order.
        tokens: int64 [rows], as ``Runner.step`` takes them, like the next two.
        positions: int64 [rows].
        parents: int64 [rows]; None where every row continues itself.
    """

    order: IntArray
    tokens: IntArray
    positions: IntArray
    parents: IntArray | None


class Scheduler:
    """Admits, places and drops sequences. Not thread-safe: the loop locks around what ``waiting`` is part of."""

    def __init__(self, *, max_rows: int, encode_tokens_per_round: int, start_id: int, end_id: int) -> None:
        """Begin with empty queues; arguments as ``DecodeLoop`` takes them."""
        self.waiting: deque[Sequence] = deque()
        self.running: list[Running] = []
        self._max_rows = max_rows
        self._encode_tokens_per_round = encode_tokens_per_round
        self._start_id = start_id
        self._end_id = end_id

    @property
    def free_rows(self) -> int:
        """Rows that no running sequence has reserved."""
        return self._max_rows - sum(running.search.rows for running in self.running)

    def give_up(self, now: float) -> list[GivenUp]:
        """Remove what was cancelled or has passed its deadline from both queues."""
        gone = [GivenUp(s, outcome, "queued") for s in self.waiting if (outcome := _why_given_up(s, now))]
        if gone:
            leaving = {id(given_up.sequence) for given_up in gone}
            self.waiting = deque(s for s in self.waiting if id(s) not in leaving)
        staying: list[Running] = []
        for running in self.running:
            if outcome := _why_given_up(running.sequence, now):
                gone.append(GivenUp(running.sequence, outcome, "decoding"))
            else:
                staying.append(running)
        self.running = staying
        return gone

    def admit(self) -> list[Running]:
        """Move sequences from waiting to running while rows and this round's encoder work allow.

        Encoder work is counted in tokens, padding included. A source longer than a round's share is admitted alone.
        """
        admitted: list[Running] = []
        free_rows, tokens_left = self.free_rows, self._encode_tokens_per_round
        while self.waiting:
            sequence = self.waiting[0]
            free_rows -= sequence.options.beam_size
            tokens_left -= padded_length(len(sequence.source))
            if free_rows < 0 or (tokens_left < 0 and admitted):
                break
            search = begin_search(sequence.options, end_id=self._end_id)
            admitted.append(Running(self.waiting.popleft(), search, [self._start_id]))
        self.running += admitted
        return admitted

    def place(self) -> Placement:
        """Give every live hypothesis its row for the next step."""
        parents = [parent for running in self.running for parent in running.parents]
        rows = assign_rows(parents)
        start = 0
        for running in self.running:
            end = start + len(running.parents)
            running.rows = rows[start:end]
            start = end
        order = np.array(rows, dtype=np.int64)
        tokens, positions, by_row = (np.empty(len(rows), dtype=np.int64) for _ in range(3))
        tokens[order] = [token for running in self.running for token in running.tokens]
        positions[order] = [running.position for running in self.running for _ in running.tokens]
        moved = any(parent not in (row, NEW) for row, parent in zip(rows, parents, strict=True))
        by_row[order] = [row if parent == NEW else parent for row, parent in zip(rows, parents, strict=True)]
        return Placement(order, tokens, positions, by_row if moved else None)


def _why_given_up(sequence: Sequence, now: float) -> Outcome | None:
    if sequence.cancelled:
        return Outcome.CANCELLED
    if sequence.deadline is not None and now >= sequence.deadline:
        return Outcome.DEADLINE_EXCEEDED
    return None


def padded_length(source_tokens: int) -> int:
    """Length that a source is padded to at most: a multiple of 8 or, from 64 tokens on, of up to a quarter of it."""
    multiple = max(8, (1 << source_tokens.bit_length()) >> 3)
    return -(-source_tokens // multiple) * multiple


def encoder_batches(admitted: Iterable[Running]) -> list[list[Running]]:
    """Split the newly admitted so that sources of about one length share an encoder batch."""
    by_length: dict[int, list[Running]] = {}
    for running in admitted:
        by_length.setdefault(padded_length(len(running.sequence.source)), []).append(running)
    return list(by_length.values())


def pad_sources(sources: Items[Items[int]], *, pad_id: int) -> tuple[IntArray, IntArray]:
    """An encoder batch: sources int64 [batch, src_len], filled on the right, and their lengths int64 [batch]."""
    lengths = np.array([len(source) for source in sources], dtype=np.int64)
    batch = np.full((len(sources), int(lengths.max())), pad_id, dtype=np.int64)
    for line, source in zip(batch, sources, strict=True):
        line[: len(source)] = source
    return batch, lengths
