"""Compares a runner's outputs with the golden ones, token by token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

from export.bundle import GoldenHypothesis
from server.decoding.sequence import FinishReason, Hypothesis

SearchName = Literal["greedy", "beam"]
GAP_PER_TOKEN = 1e-5
NO_TOKEN = -1
# Up to here the runner's scores can stand for the reference's where the golden set does not hold one.
_CLOSE_LOG_PROB = 1e-5


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Where an output first left the reference's.

    Attributes:
        sentence: number of the golden sentence, from 1.
        search: which search.
        step: number of the output token, from 1, end token counted.
        wanted: the reference's token; -1: none any more.
        got: the runner's token; -1: none any more.
        gap: how much the reference preferred its own choice; None where it cannot be told.
        allowed: gap below which the difference is an exception, not a fault.
    """

    sentence: int
    search: SearchName
    step: int
    wanted: int
    got: int
    gap: float | None
    allowed: float

    @property
    def excused(self) -> bool:
        """Whether the reference itself was all but undecided.

        A beam may pass over the better token of a step for the sake of the whole: that was decided, not a tie.
        """
        return self.gap is not None and abs(self.gap) < self.allowed

    def record(self) -> dict[str, Any]:
        """As the certificate lists it."""
        return dataclasses.asdict(self)


def chosen_tokens(ids: Items[int], *, ended: bool, eos_id: int) -> tuple[int, ...]:
    """Every token that a search chose for an output, its end token included."""
    return (*ids, eos_id) if ended else tuple(ids)


def golden_tokens(golden: GoldenHypothesis, *, eos_id: int) -> tuple[int, ...]:
    """Every token that the reference chose."""
    return chosen_tokens(golden.ids, ended=golden.finish_reason == FinishReason.END_TOKEN.name, eos_id=eos_id)


def grade(
    got: Hypothesis,
    golden: GoldenHypothesis,
    *,
    sentence: int,
    search: SearchName,
    eos_id: int,
    log_prob_error: float,
) -> Difference | None:
    """The first difference between an output and the reference's; None where there is none.

    Args:
        got: the runner's output.
        golden: the reference's.
        sentence: number of the golden sentence, from 1.
        search: which search; the scores of two beam outputs may tell what the steps do not.
        eos_id: end token.
        log_prob_error: largest difference of the runner's log-probs of the golden tokens, teacher-forced.
    """
    wanted_tokens = golden_tokens(golden, eos_id=eos_id)
    got_tokens = chosen_tokens(got.tokens, ended=got.finish_reason is FinishReason.END_TOKEN, eos_id=eos_id)
    pairs = zip_longest(wanted_tokens, got_tokens, fillvalue=NO_TOKEN)
    step, (wanted, chosen) = next(
        ((step, pair) for step, pair in enumerate(pairs) if pair[0] != pair[1]), (0, (NO_TOKEN, NO_TOKEN))
    )
    if wanted == chosen:
        return None
    difference = Difference(
        sentence=sentence,
        search=search,
        step=step + 1,
        wanted=wanted,
        got=chosen,
        gap=_gap_of_step(golden, step, wanted=wanted, got=chosen),
        allowed=GAP_PER_TOKEN * (step + 1),
    )
    if search == "beam" and not difference.excused and got.score is not None and log_prob_error < _CLOSE_LOG_PROB:
        # Two whole hypotheses may tie although no single step does.
        whole = dataclasses.replace(
            difference, gap=abs(golden.score - got.score), allowed=GAP_PER_TOKEN * len(wanted_tokens)
        )
        return whole if whole.excused else difference
    return difference


def _gap_of_step(golden: GoldenHypothesis, step: int, *, wanted: int, got: int) -> float | None:
    """By how much the reference's log-prob of ``wanted`` is above that of ``got``, where it recorded both."""
    known = dict(golden.best[step]) if step < len(golden.best) else {}
    return known[wanted] - known[got] if wanted in known and got in known else None
