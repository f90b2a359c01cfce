"""Learning-rate schedule."""

from __future__ import annotations

import math


def learning_rate(update: int, *, peak: float, warmup_updates: int) -> float:
    """Linear warm-up to ``peak``, then decay with the inverse square root of the update.

    Args:
        update: number of the update, from 1.
        peak: the rate at ``warmup_updates``.
        warmup_updates: length of the warm-up.

    Source: Vaswani et al. 2017, section 5.3, equation 3, with a free peak.
    """
    return peak * min(update / warmup_updates, math.sqrt(warmup_updates / update))
