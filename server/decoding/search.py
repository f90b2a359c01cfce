"""What greedy and beam search have in common: how the decode loop drives a search."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import NamedTuple, Protocol

from server.decoding.sequence import Hypothesis, LengthPenalty, SearchOptions


class SearchError(RuntimeError):
    """A search cannot go on: the runner offered no token that may be chosen."""


class Continuations(NamedTuple):
    """The hypotheses that go on after a step, best first; none where the search has ended.

    Attributes:
        parents: which of the step's hypotheses each one continues.
        tokens: the token each one appends.
        final: output tokens that no later step can take back, in order.
    """

    parents: Items[int]
    tokens: Items[int]
    final: Items[int] = ()


class Search(Protocol):
    """One source's search. It starts with one live hypothesis; each step replaces the live ones by continuations."""

    @property
    def rows(self) -> int:
        """Most hypotheses that are ever live at once."""

    @property
    def candidates_needed(self) -> int:
        """Best tokens per row that the next ``advance`` needs with their log-probs; 0: at most the best token."""

    def advance(self, ids: Items[Items[int]], log_probs: Items[Items[float]] | None) -> Continuations:
        """Choose how the live hypotheses go on.

        Args:
            ids: [live][k], the best tokens of each live hypothesis, best first.
            log_probs: [live][k]; -inf: not to be chosen. None where ``candidates_needed`` is 0.

        Raises:
            SearchError: there is nothing to choose.
        """

    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """What the search found, best first; asked once it has ended."""


def forced_places(options: SearchOptions, *, end_id: int) -> dict[int, int]:
    """The tokens that a search must take, by their place in the output, from 0.

    Their steps run like all others, because the tokens must get into the caches, but nothing is chosen there.
    """
    forced = dict(enumerate(options.forced_tokens)) if options.forced_tokens else {}
    if options.forced_end:
        forced[options.max_output_tokens - 1] = end_id
    return forced


def length_penalty(options: SearchOptions, output_tokens: int) -> float:
    """What the log-probability of a hypothesis is divided by.

    Args:
        options: the exponent and its meaning.
        output_tokens: tokens of the hypothesis, forced ones and end token counted.

    Source: Wu et al. 2016, equation 14 (GNMT).
    """
    gnmt = options.length_penalty_type is LengthPenalty.GNMT
    base = (5 + output_tokens) / 6 if gnmt else float(output_tokens)
    return float(base**options.length_penalty)
