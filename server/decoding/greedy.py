"""Greedy search: the best token of every step."""

from __future__ import annotations

from collections.abc import Sequence as Items

from server.decoding.search import Continuations, SearchError, forced_places
from server.decoding.sequence import FinishReason, Hypothesis, SearchOptions


class GreedySearch:
    """Keeps one hypothesis; every token is final as soon as it is chosen."""

    rows = 1

    def __init__(self, options: SearchOptions, *, end_id: int) -> None:
        """Start with an empty output."""
        self._options = options
        self._end_id = end_id
        self._forced = forced_places(options, end_id=end_id)
        self._tokens: list[int] = []
        self._log_prob = 0.0
        self._finish_reason: FinishReason | None = None

    @property
    def candidates_needed(self) -> int:
        """The runner-up too while the end token is barred; log-probs only where a score is asked for."""
        if self._forced and len(self._tokens) in self._forced:
            return 0
        return 2 if len(self._tokens) < self._options.min_output_tokens else int(self._options.return_scores)

    @property
    def is_plain(self) -> bool:
        """Whether it needs nothing but the best token of each step, from now on."""
        return not self._options.return_scores and len(self._tokens) >= self._options.min_output_tokens

    @property
    def certain_steps(self) -> int:
        """So many steps from now on take the best token, whatever it is, unless it is the end token."""
        place, last = len(self._tokens), self._options.max_output_tokens - 1
        if self._forced:
            last = min([last, *[forced for forced in self._forced if forced >= place]])
        return last - place

    def follow(self, tokens: Items[int]) -> None:
        """Take the best tokens of as many certain steps, none of them the end token."""
        self._tokens += tokens

    def advance(self, ids: Items[Items[int]], log_probs: Items[Items[float]] | None) -> Continuations:
        """Append the best token that may be chosen, or the forced one, as ``Search.advance`` says."""
        place, best = len(self._tokens), ids[0]
        if self._forced and place in self._forced:
            return self._append(self._forced[place], ended=FinishReason.MAX_TOKENS)
        rank = 1 if best[0] == self._end_id and place < self._options.min_output_tokens else 0
        if log_probs is not None:
            log_prob = log_probs[0][rank]
            if not log_prob > float("-inf"):
                raise SearchError(f"log-prob of the best token: got {log_prob}, wanted a finite number")
            self._log_prob += log_prob
        return self._append(best[rank], ended=FinishReason.END_TOKEN)

    def _append(self, token: int, *, ended: FinishReason) -> Continuations:
        """Take ``token``; where it is the end token, ``ended`` is why."""
        if token == self._end_id:
            self._finish_reason = ended
            return Continuations((), ())
        self._tokens.append(token)
        final = (token,)
        if len(self._tokens) == self._options.max_output_tokens:
            self._finish_reason = FinishReason.MAX_TOKENS
            return Continuations((), (), final)
        return Continuations((0,), final, final)

    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """The one output; its score is the plain sum of log-probs."""
        assert self._finish_reason is not None, "asked before the search ended"
        score = self._log_prob if self._options.return_scores else None
        return (Hypothesis(tuple(self._tokens), score, self._finish_reason),)
