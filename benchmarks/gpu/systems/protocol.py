"""What is compared: every system runs in a process of its own, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.gpu.works import Work

Tokens = list[tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a system is opened with.

    Attributes:
        system: one of ``SYSTEMS``.
        bundle: of the model, in the precision that is asked for.
        device: ``cuda``, or ``cpu`` for trying the command out.
        max_rows: most rows of a step.
        engines: folder of TensorRT engines.
    """

    system: str
    bundle: Path
    device: str
    max_rows: int
    engines: Path


class System(Protocol):
    """One way to decode a model."""

    @property
    def facts(self) -> dict[str, Any]:
        """What is worth knowing of how it runs: names, versions, kernels."""

    def step_seconds(self, *, rows: int, beam_size: int, enough: Callable[[int], bool]) -> list[float]:
        """Time steps whose rows hold about ``specs.CACHED_TOKENS`` tokens.

        Args:
            rows: of each step, hypotheses counted.
            beam_size: 1 is greedy.
            enough: told how many steps were timed; asked between whole decodings.

        Returns:
            Seconds of each step, from what the host gives to what the host gets.
        """

    def decode(self, work: Work) -> Tokens:
        """Translate all sources."""

    def close(self) -> None:
        """Free what it holds."""


SYSTEMS = ("tensorrt", "torch", "cuda", "hf", "torch-compiled", "hf-static", "cpu")
"""``tensorrt``, ``cuda`` and ``cpu`` are this project's runners, by their target."""

OURS = ("tensorrt", "cuda", "cpu")


def by_length(work: Work, *, size: int) -> list[list[int]]:
    """Places of the sources in batches of up to ``size``, longest outputs first."""
    order = sorted(range(len(work.sources)), key=lambda place: -work.outputs[place])
    return [order[start : start + size] for start in range(0, len(order), size)]


def smallest_holding(sizes: Sequence[int], count: int) -> int:
    """The smallest of ``sizes`` that holds ``count``; the largest where none does."""
    return min((size for size in sizes if size >= count), default=max(sizes))
