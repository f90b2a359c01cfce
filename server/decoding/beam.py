"""Beam search with a length penalty."""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from operator import itemgetter

from server.decoding.search import Continuations, SearchError, forced_places, length_penalty
from server.decoding.sequence import FinishReason, Hypothesis, SearchOptions


class BeamSearch:
    """Keeps the best ``beam_size`` running hypotheses and a pool of as many finished ones.

    Source: Wu et al. 2016, section 7; it ends as Hugging Face generate() does with ``early_stopping`` False or True.
    """

    def __init__(self, options: SearchOptions, *, end_id: int) -> None:
        """Start with one running hypothesis, empty."""
        self.rows = options.beam_size
        self._options = options
        self._end_id = end_id
        self._forced = forced_places(options, end_id=end_id)
        self._step = 0
        self._running: list[tuple[int, ...]] = [()]
        self._sums: Items[float] = [0.0]
        self._pool: list[tuple[float, Hypothesis]] = []

    @property
    def candidates_needed(self) -> int:
        """One more than the beam: at most one candidate of each row is its end token."""
        return 0 if self._step in self._forced else self.rows + 1

    def advance(self, ids: Items[Items[int]], log_probs: Items[Items[float]] | None) -> Continuations:
        """Take the best continuations of all running hypotheses, as ``Search.advance`` says."""
        forced = self._forced.get(self._step)
        self._step += 1
        if forced is not None:
            # They lie best first, as candidates do, and their sums stay what they are.
            ranked = [(parent, forced, total) for parent, total in enumerate(self._sums)]
            return self._walk(ranked, ended=FinishReason.MAX_TOKENS)
        assert log_probs is not None, "beam search needs log-probs"
        return self._walk(self._rank(ids, log_probs), ended=FinishReason.END_TOKEN)

    def _rank(self, ids: Items[Items[int]], log_probs: Items[Items[float]]) -> list[tuple[int, int, float]]:
        """The best candidates (parent, token, sum) over all running hypotheses, best first."""
        barred = self._end_id if self._step - 1 < self._options.min_output_tokens else None
        candidates = [
            (parent, token, total)
            for parent, (so_far, tokens, steps) in enumerate(zip(self._sums, ids, log_probs, strict=True))
            for token, step in zip(tokens, steps, strict=True)
            # Sums of two in float64: what comes of float32 log-probs does not depend on the length of what came before.
            if (total := so_far + step) > -math.inf and token != barred
        ]
        if not candidates:
            raise SearchError("no candidate may be chosen: every log-prob is -inf or not a number")
        # Stable: on a tie the earlier hypothesis comes first, then its better-ranked token.
        candidates.sort(key=itemgetter(2), reverse=True)
        return candidates[: 2 * self.rows]

    def _walk(self, ranked: list[tuple[int, int, float]], *, ended: FinishReason) -> Continuations:
        """Finish or continue candidates, best first; ``ended`` is why those with an end token do."""
        last_step = self._step == self._options.max_output_tokens
        going_on: list[tuple[int, int, float]] = []
        for rank, (parent, token, total) in enumerate(ranked):
            if token == self._end_id:
                if rank < self.rows:
                    self._finish(self._running[parent], total, ended)
            elif last_step:
                if rank < self.rows:
                    self._finish((*self._running[parent], token), total, FinishReason.MAX_TOKENS)
            elif len(going_on) < self.rows:
                going_on.append((parent, token, total))
        if not going_on or self._may_stop(going_on[0][2]):
            return Continuations((), ())
        parents, tokens, totals = zip(*going_on, strict=True)
        self._running = [(*self._running[parent], token) for parent, token, _ in going_on]
        self._sums = totals
        return Continuations(parents, tokens)

    def _finish(self, tokens: tuple[int, ...], total: float, reason: FinishReason) -> None:
        score = total / length_penalty(self._options, self._step)
        self._pool.append((score, Hypothesis(tokens, score, reason)))
        # A stable sort: on a tie the one that finished earlier stays ahead.
        self._pool.sort(key=lambda finished: -finished[0])
        del self._pool[self.rows :]

    def _may_stop(self, best_running_sum: float) -> bool:
        """Whether the pool is full and good enough: no running hypothesis, were it to end now, could enter it."""
        if len(self._pool) < self.rows:
            return False
        best_running = best_running_sum / length_penalty(self._options, self._step)
        return self._options.early_stopping or best_running <= self._pool[-1][0]

    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """The best ``num_hypotheses`` of the pool."""
        return tuple(hypothesis for _, hypothesis in self._pool[: self._options.num_hypotheses])
