"""The scheduler's unit: one source text on its way to a translation."""

from __future__ import annotations

import enum
import threading
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
    """One validated set of decoding options; every field as in the wire contract's DecodingConfig, none unset.

    Attributes:
        beam_size: hypotheses kept; 1 is greedy search.
        num_hypotheses: hypotheses returned, at most ``beam_size``.
        length_penalty: exponent; 0.0 is no penalty.
        length_penalty_type: what the exponent means.
        max_output_tokens: most output tokens, end token not counted.
        min_output_tokens: fewest output tokens, end token not counted.
        return_scores: whether greedy search computes its score too.
    """

    beam_size: int = 1
    num_hypotheses: int = 1
    length_penalty: float = 1.0
    length_penalty_type: LengthPenalty = LengthPenalty.GNMT
    max_output_tokens: int = 256
    min_output_tokens: int = 0
    return_scores: bool = False


@dataclass(frozen=True)
class Hypothesis:
    """One finished output.

    Attributes:
        tokens: output token ids, end token not included.
        score: log-probability, end token counted, over the length penalty (greedy: not divided); None where it
            was not computed.
        finish_reason: why it ended.
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
    """

    source: Items[int]
    options: SearchOptions
    on_finished: Callable[[Result], None]
    on_tokens: Callable[[Items[int]], None] | None = None
    deadline: float | None = None
    submitted_at: float = 0.0
    _cancelled: threading.Event = field(default_factory=threading.Event, repr=False)

    def cancel(self) -> None:
        """Ask the loop to give this sequence up at its next round; safe from any thread, and after the end."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether ``cancel`` was called."""
        return self._cancelled.is_set()
