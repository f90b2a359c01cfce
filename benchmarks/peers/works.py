"""What is measured: sources as token ids, each with the output length that is asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

BASE_SOURCE_IDS = range(2, 31_999)
BASE_END = 0
LONGEST_DEMO_OUTPUT = 100


@dataclass(frozen=True, kw_only=True)
class Work:
    """Sources to translate, all at once.

    Attributes:
        name: as the table shows it.
        sources: token ids, the end token included.
        outputs: for each source the most tokens of its output. Where the model's end token is barred, that is how long
            the output is.
        beam_size: 1 is greedy.
    """

    name: str
    sources: tuple[tuple[int, ...], ...]
    outputs: tuple[int, ...]
    beam_size: int = 1

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a pipe."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Work:
        """What ``to_json`` wrote."""
        sources = tuple(tuple(source) for source in fields["sources"])
        return cls(**fields | {"sources": sources, "outputs": tuple(fields["outputs"])})


@dataclass(frozen=True)
class Outputs:
    """What came out of a work: the tokens of every source's best output, the end token left out."""

    tokens: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """Tokens in all."""
        return sum(map(len, self.tokens))

    def equal_to(self, other: Outputs) -> int:
        """How many outputs are the same in both."""
        return sum(mine == theirs for mine, theirs in zip(self.tokens, other.tokens, strict=True))


def base_works() -> list[Work]:
    """The works of the seeded model: random sources, every output as long as asked."""
    draw = random.Random(512)
    mixed = [draw.randint(5, 60) for _ in range(512)]
    return [
        _random_work("one request, greedy", [20], output=25),
        _random_work("one request, beam 4", [20], output=25, beam_size=4),
        *(_random_work(f"batch of {rows}, greedy", [20] * rows, output=25) for rows in (8, 32, 64, 128)),
        _random_work("512 mixed requests, greedy", mixed),
        _random_work("32 sources, beam 4", [20] * 32, output=25, beam_size=4),
    ]


def demo_works(sources: Sequence[Sequence[int]]) -> list[Work]:
    """The works of the demo model on real sentences: every output ends where the model ends it."""
    works = []
    for name, rows in (("one request, greedy", 1), ("batch of 32, greedy", 32), ("batch of 64, greedy", 64)):
        assert len(sources) >= rows, f"got {len(sources)} sentences, wanted at least {rows}"
        chosen = tuple(tuple(source) for source in sources[:rows])
        works.append(Work(name=name, sources=chosen, outputs=(LONGEST_DEMO_OUTPUT,) * rows))
    return works


def _random_work(name: str, lengths: Sequence[int], *, beam_size: int = 1, output: int | None = None) -> Work:
    draw = random.Random(len(lengths))
    return Work(
        name=name,
        sources=tuple((*draw.choices(BASE_SOURCE_IDS, k=length - 1), BASE_END) for length in lengths),
        outputs=tuple(output or length for length in lengths),
        beam_size=beam_size,
    )
