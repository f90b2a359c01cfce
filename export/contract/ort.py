"""Graphs of the ``ort`` flavour."""

from __future__ import annotations

from typing import Any

import numpy as np

from export.contract.tensors import (
    GraphContract,
    ModelDimensions,
    TensorSpec,
    caches,
    spec,
    step_cache_shapes,
)

SHORTLISTED_STEP = "step_shortlist"
"""The step that computes the logits of some tokens only; beside the others in bundles that have a shortlist."""

OUTPUT_FILE = "output.npz"
"""The last projection, beside the shortlisted step, which takes a part of it as inputs."""


def ort_step_contract(
    dimensions: ModelDimensions, cached: np.dtype[Any], *, shortlisted: bool = False
) -> GraphContract:
    """One token per row to logits. Each ``present_*`` is bound to the buffer of its ``past_*``: updated in place.

    ``cross_*`` is bound to ``cross_present_*`` alike, though a step only reads it: the operator wants the outputs. The
    caches are of dtype ``cached``.

    Args:
        dimensions: sizes of the model.
        cached: what the caches hold.
        shortlisted: whether there are logits of some tokens only, the candidates, in the order in which their part of
            the last projection is given.
    """
    own, cross = step_cache_shapes(dimensions)
    candidates = output_inputs(dimensions, cached) if shortlisted else ()
    logits = "candidates" if shortlisted else dimensions.padded_target_vocab
    return GraphContract(
        inputs=(
            spec("tokens", np.int64, "rows"),
            spec("positions", np.int64, "rows"),
            spec("source_lengths", np.int32, "rows"),
            spec("longest_target", np.int32, 1),
            spec("longest_source", np.int32, 1),
            *caches("past", dimensions, cached, own),
            *caches("cross", dimensions, cached, cross),
            *candidates,
        ),
        outputs=(
            spec("logits", np.float32, "rows", logits),
            *caches("present", dimensions, cached, own),
            *caches("cross_present", dimensions, cached, cross),
        ),
    )


def output_inputs(dimensions: ModelDimensions, cached: np.dtype[Any]) -> tuple[TensorSpec, ...]:
    """The candidates' part of the last projection, as a shortlisted step takes it; scales in int8 alone."""
    bias = spec("output_bias", np.float32, "candidates")
    if cached == np.int8:
        weight = spec("output_weight", np.int8, dimensions.d_model, "candidates")
        return weight, bias, spec("output_scales", np.float32, "candidates")
    return spec("output_weight", np.float32, "candidates", dimensions.d_model), bias


def output_arrays(dimensions: ModelDimensions, cached: np.dtype[Any]) -> tuple[TensorSpec, ...]:
    """The whole last projection, as ``OUTPUT_FILE`` holds it: by token, so that a candidate is one piece of memory."""
    vocab = dimensions.target_vocab
    _, *vectors = output_inputs(dimensions, cached)
    weight = TensorSpec("output_weight", cached, (vocab, dimensions.d_model))
    return weight, *(TensorSpec(spec.name, spec.dtype, (vocab,)) for spec in vectors)
