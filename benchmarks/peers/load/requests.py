"""What is sent: texts of random words, the output length that each asks for, and the moments at which they arrive."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.works import Work
from model.tokenizer import Tokenizer

LENGTHS = (5, 60)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Request:
    """One text.

    Attributes:
        text: what a client sends.
        source: its token ids, the end token included, for systems that have no tokenizer here.
        output: the output tokens it asks for; the end token of the seeded model is barred, so it gets as many.
    """

    text: str
    source: tuple[int, ...]
    output: int


@dataclass(frozen=True)
class Arrival:
    """A request and its moment, in seconds from the beginning."""

    at: float
    request: Request

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a pipe."""
        return {"at": self.at, "source": self.request.source, "output": self.request.output}


def draw_requests(tokenizer: Tokenizer, count: int, *, seed: int) -> list[Request]:
    """Texts of evenly drawn lengths, each asking for an output as long as its source."""
    draw = random.Random(seed)
    requests = []
    for _ in range(count):
        wanted = draw.randint(*LENGTHS)
        words = [_word(draw)]
        while len(source := tokenizer.encode(" ".join(words))) < wanted:
            words.append(_word(draw))
        requests.append(Request(" ".join(words), tuple(source), wanted))
    return requests


def draw_arrivals(requests: list[Request], *, rate: float, seconds: float, seed: int) -> list[Arrival]:
    """A Poisson process of ``rate`` requests a second: which of ``requests`` arrives when, drawn beforehand."""
    draw = random.Random(seed)
    arrivals: list[Arrival] = []
    at = draw.expovariate(rate)
    while at < seconds:
        arrivals.append(Arrival(at, draw.choice(requests)))
        at += draw.expovariate(rate)
    return arrivals


def as_work(requests: list[Request]) -> Work:
    """All requests at once."""
    return Work(
        name=f"{len(requests)} mixed texts",
        sources=tuple(request.source for request in requests),
        outputs=tuple(request.output for request in requests),
    )


def _word(draw: random.Random) -> str:
    return "".join(draw.choices(_LETTERS, k=draw.randint(1, 6)))
