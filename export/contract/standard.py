"""Graphs of the ``standard`` flavour."""

from __future__ import annotations

from typing import Any

import numpy as np

from export.contract.tensors import GraphContract, ModelDimensions, caches, spec, step_cache_shapes


def standard_step_contract(dimensions: ModelDimensions, cached: np.dtype[Any]) -> GraphContract:
    """One token per row to logits. Each ``present_*`` is bound to the buffer of its ``past_*``: updated in place.

    ``cross_*`` is only read. What lies in a cache beyond a row's length has no effect, but must be finite. All caches
    are of dtype ``cached``.
    """
    own, cross = step_cache_shapes(dimensions)
    return GraphContract(
        inputs=(
            spec("tokens", np.int64, "rows"),
            spec("positions", np.int64, "rows"),
            spec("source_lengths", np.int64, "rows"),
            *caches("past", dimensions, cached, own),
            *caches("cross", dimensions, cached, cross),
        ),
        outputs=(
            spec("logits", np.float32, "rows", dimensions.padded_target_vocab),
            *caches("present", dimensions, cached, own),
        ),
    )


def reorder_contract(dimensions: ModelDimensions, cached: np.dtype[Any]) -> GraphContract:
    """Own caches to own caches of which row i is row ``parents[i]`` of what came in; past and present lie apart."""
    own, _ = step_cache_shapes(dimensions)
    return GraphContract(
        inputs=(spec("parents", np.int64, "rows"), *caches("past", dimensions, cached, own)),
        outputs=caches("present", dimensions, cached, own),
    )
