"""The scheduler's unit: one source text on its way to a translation."""

from __future__ import annotations

import enum
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field


class FinishReason(enum.Enum):
    """Why a hypothesis ended; names as in the wire contract."""

    END_TOKEN = "end_token"
    MAX_TOKENS = "max_tokens"


class LengthPenalty(enum.Enum):
    """How the length of a hypothesis enters its score; names as in the wire contract."""

    GNMT = "GNMT"
    POWER = "POWER"


class Outcome(enum.Enum):
    """How a sequence left the decode loop."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """One validated set of decoding options, none unset.

    The first seven are those of the wire contract's DecodingConfig; the rest comes from the model and its tokenizer.

    Attributes:
        beam_size: hypotheses kept; 1 is greedy search.
        num_hypotheses: hypotheses returned, at most ``beam_size``.
        length_penalty: exponent; 0.0 is no penalty.
        length_penalty_type: what the exponent means.
        max_output_tokens: most output tokens, forced ones counted, end token not.
        min_output_tokens: fewest output tokens, forced ones counted, end token not.
        return_scores: whether greedy search computes its score too.
        early_stopping: whether a beam search ends as soon as ``beam_size`` hypotheses have finished.
        forced_end: whether the token at place ``max_output_tokens`` is always the end token, so that an output holds
            one token less; it adds nothing to a score.
        forced_tokens: what every output begins with, such as the token of its language; adds nothing to a score.
    """

    beam_size: int = 1
    num_hypotheses: int = 1
    length_penalty: float = 1.0
    length_penalty_type: LengthPenalty = LengthPenalty.GNMT
    max_output_tokens: int = 256
    min_output_tokens: int = 0
    return_scores: bool = False
    early_stopping: bool = False
    forced_end: bool = False
    forced_tokens: tuple[int, ...] = ()

    @property
    def longest_output(self) -> int:
        """Most tokens that an output can hold, end token not counted."""
        return self.max_output_tokens - self.forced_end


@dataclass(frozen=True)
class Hypothesis:
    """One finished output.

    Attributes:
        tokens: output token ids, forced ones included, end token not.
        score: log-probability of what was chosen, end token counted, over the length penalty (greedy: not divided);
            None where it was not computed.
        finish_reason: why it ended; ``MAX_TOKENS`` too where its end was forced.
    """

    tokens: tuple[int, ...]
    score: float | None
    finish_reason: FinishReason


@dataclass(frozen=True)
class Result:
    """What the decode loop hands back, exactly once per sequence.

    Attributes:
        outcome: how the sequence left the loop.
        hypotheses: best first, ``num_hypotheses`` of them; empty unless ``outcome`` is FINISHED.
    """

    outcome: Outcome
    hypotheses: tuple[Hypothesis, ...] = ()


@dataclass(eq=False)
class Sequence:
    """A source and what the loop must know to translate it. Callbacks run on the decode loop's thread.

    Attributes:
        source: token ids, end token included.
        options: how to search.
        on_finished: called exactly once, whatever the outcome.
        on_tokens: called with the tokens that have become final since the last call (end token excluded); greedy
            search: every token as it is chosen; beam search: never.
        deadline: moment on the loop's clock (seconds) after which the sequence is given up; None: never.
        submitted_at: moment on the loop's clock; set by the loop.
        cancelled: whether ``cancel`` was called.
    """

    source: Items[int]
    options: SearchOptions
    on_finished: Callable[[Result], None]
    on_tokens: Callable[[Items[int]], None] | None = None
    deadline: float | None = None
    submitted_at: float = 0.0
    cancelled: bool = field(default=False, init=False)

    def given_up(self, now: float) -> Outcome | None:
        """Why nobody wants its result any more at the moment ``now``; None: somebody does."""
        if self.cancelled:
            return Outcome.CANCELLED
        if self.deadline is not None and now >= self.deadline:
            return Outcome.DEADLINE_EXCEEDED
        return None

    def cancel(self) -> None:
        """Ask the loop to give this sequence up at its next round; safe from any thread, and after the end."""
        self.cancelled = True
