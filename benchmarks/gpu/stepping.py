"""Which steps of a decoding are timed, and how many are enough."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.gpu.specs import CACHED_TOKENS

FIRST_TIMED, LAST_TIMED = CACHED_TOKENS - 5, CACHED_TOKENS + 6
"""Positions of the first timed step and of the first one after the last; their mean is ``CACHED_TOKENS``."""

MOST_STEPS = 600
_LEAST_STEPS = 20


def until(deadline: float, *, clock: Callable[[], float] = time.monotonic) -> Callable[[int], bool]:
    """Whether so many timed steps are enough: the time is over, or there are plenty."""
    return lambda steps: steps >= MOST_STEPS or (steps >= _LEAST_STEPS and clock() >= deadline)
