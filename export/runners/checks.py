"""What every runner asks of its arguments; the first fault is told as got and wanted."""

from __future__ import annotations

from collections.abc import Sequence

from export import contract
from export.contract import ModelDimensions
from export.runners.protocol import IntArray, RunnerLimits, ShapeError


def check_sources(
    dims: ModelDimensions, limits: RunnerLimits, *, sources: IntArray, lengths: IntArray, rows: IntArray
) -> None:
    """Hold the arguments of ``Runner.encode`` against the model and the runner's limits.

    Raises:
        ShapeError: a shape does not fit, or a value is out of range.
    """
    contract.SOURCES.check(sources)
    batch, src_len = sources.shape
    contract.LENGTHS.check(lengths, {"batch": batch})
    contract.ROWS.check(rows, {"batch": batch})
    check_size("batch", batch, limits.max_rows)
    check_size("src_len", src_len, limits.max_source_tokens)
    check_range("sources", sources.ravel().tolist(), 0, dims.source_vocab)
    check_range("lengths", lengths.tolist(), 1, src_len + 1)
    check_range("rows", rows.tolist(), 0, limits.max_rows)


def check_step(
    dims: ModelDimensions, limits: RunnerLimits, *, tokens: IntArray, positions: IntArray, parents: IntArray | None
) -> tuple[list[int], list[int], list[int] | None]:
    """Hold the arguments of ``Runner.step`` against the model and the runner's limits.

    Returns:
        The same as lists.

    Raises:
        ShapeError: a shape does not fit, or a value is out of range.
    """
    contract.TOKENS.check(tokens)
    rows = len(tokens)
    contract.POSITIONS.check(positions, {"rows": rows})
    check_size("rows", rows, limits.max_rows)
    given, places = tokens.tolist(), positions.tolist()
    check_range("tokens", given, 0, dims.target_vocab)
    check_range("positions", places, 0, limits.max_output_tokens)
    if parents is None:
        return given, places, None
    contract.PARENTS.check(parents, {"rows": rows})
    origins = parents.tolist()
    check_range("parents", origins, 0, limits.max_rows)
    return given, places, origins


def check_steps(limits: RunnerLimits, steps: int, *, positions: Sequence[int]) -> None:
    """Hold the number of steps of ``Runner.greedy_steps`` against the places of its rows, as ``check_step`` gave them.

    Raises:
        ShapeError: there are none, or a row would get longer than it may.
    """
    check_size("steps", steps, limits.max_output_tokens - max(positions))


def check_size(name: str, got: int, largest: int) -> None:
    """Hold a number from 1 to ``largest``."""
    if not 1 <= got <= largest:
        raise ShapeError(f"{name}: got {got}, wanted 1 to {largest}")


def check_range(name: str, values: Sequence[int], first: int, end: int) -> None:
    """Hold that all values lie from ``first`` to before ``end``."""
    smallest, largest = min(values), max(values)
    if smallest < first or largest >= end:
        raise ShapeError(f"{name}: got {smallest if smallest < first else largest}, wanted {first} to {end - 1}")
