"""The fixed sources that decode loops translate, and those that steps are timed on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.specs import BEAM_SIZE, CACHED_TOKENS, END

_FIRST_ORDINARY_ID = 4
_SHORTEST, _LONGEST = 5, 60
_SEED = 7


@dataclass(frozen=True, kw_only=True)
class Work:
    """Sources to translate, all at once; each output is as long as its source.

    Attributes:
        name: as the table shows it.
        sources: token ids, end token included.
        outputs: tokens of each output.
        beam_size: 1 is greedy.
    """

    name: str
    sources: tuple[tuple[int, ...], ...]
    outputs: tuple[int, ...]
    beam_size: int

    @property
    def tokens(self) -> int:
        """Of all outputs."""
        return sum(self.outputs)

    def record(self) -> dict[str, Any]:
        """What it is, in a few words."""
        return {
            "work": self.name,
            "sources": len(self.sources),
            "source_tokens": sum(map(len, self.sources)),
            "output_tokens": self.tokens,
            "beam_size": self.beam_size,
        }


def draw_sources(lengths: list[int], *, vocab: int) -> tuple[tuple[int, ...], ...]:
    """Seeded random sources of these lengths, end token last."""
    draw = random.Random(_SEED)
    return tuple((*draw.choices(range(_FIRST_ORDINARY_ID, vocab), k=length - 1), END) for length in lengths)


def step_sources(count: int, *, vocab: int) -> tuple[tuple[int, ...], ...]:
    """Sources of one length, on which steps are timed."""
    return draw_sources([CACHED_TOKENS] * count, vocab=vocab)


def mixed_work(sources: int, *, beam_size: int, vocab: int) -> Work:
    """Sources of 5 to 60 tokens."""
    draw = random.Random(_SEED)
    lengths = [draw.randint(_SHORTEST, _LONGEST) for _ in range(sources)]
    return Work(
        name="greedy" if beam_size == 1 else f"beam {beam_size}",
        sources=draw_sources(lengths, vocab=vocab),
        outputs=tuple(lengths),
        beam_size=beam_size,
    )


def decode_works(*, vocab: int, sources: int) -> list[Work]:
    """Greedy, and with a beam over a quarter of the sources."""
    return [
        mixed_work(sources, beam_size=1, vocab=vocab),
        mixed_work(max(1, sources // BEAM_SIZE), beam_size=BEAM_SIZE, vocab=vocab),
    ]
