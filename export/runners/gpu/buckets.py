"""Sizes that steps on a GPU come in: a few of each, so that engines and captured graphs stay few."""

from __future__ import annotations

from collections.abc import Sequence

ROW_BUCKETS = (1, 8, 32, 64, 128, 256, 512)
CACHE_CAPACITIES = (128, 256, 512)
SOURCE_CAPACITIES = (32, 64, 128, 256, 512)
_BEYOND = 128


def row_buckets(max_rows: int) -> tuple[int, ...]:
    """Numbers of rows that steps of at most ``max_rows`` come in, ascending."""
    return _up_to(max_rows, ROW_BUCKETS)


def cache_capacities(max_output_tokens: int) -> tuple[int, ...]:
    """Capacities of a row's own caches, in tokens, ascending."""
    return _up_to(max_output_tokens, CACHE_CAPACITIES)


def source_capacities(max_source_tokens: int) -> tuple[int, ...]:
    """Capacities of cross caches, in tokens, ascending."""
    return _up_to(max_source_tokens, SOURCE_CAPACITIES)


def smallest(buckets: Sequence[int], size: int) -> int:
    """The smallest of ascending ``buckets`` that holds ``size``."""
    return next(bucket for bucket in buckets if bucket >= size)


def _up_to(limit: int, buckets: Sequence[int]) -> tuple[int, ...]:
    """Those below the limit and the smallest that holds it; beyond the last: the limit in whole steps of 128."""
    below = tuple(bucket for bucket in buckets if bucket < limit)
    holding = next((bucket for bucket in buckets if bucket >= limit), -(-limit // _BEYOND) * _BEYOND)
    return (*below, holding)
