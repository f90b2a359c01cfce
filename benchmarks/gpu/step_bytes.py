"""Bytes that one decoder step has to read, from the sizes of a model alone."""

from __future__ import annotations

from benchmarks.gpu.specs import CACHED_TOKENS, ModelSpec, Precision

_SIZES: dict[Precision, int] = {"fp16": 2, "fp32": 4}


def weight_bytes(spec: ModelSpec, precision: Precision) -> int:
    """The decoder's matrices and the last projection, each read once.

    A decoder layer has four projections of self-attention, two of cross-attention (keys and values are the encoder's
    work) and two of the feed-forward sub-layer. Norms, biases and the few rows of the embeddings count nothing.
    """
    layer = 6 * spec.d_model**2 + 2 * spec.d_model * spec.ffn_dim
    return _SIZES[precision] * (spec.layers * layer + spec.vocab * spec.d_model)


def cache_bytes(spec: ModelSpec, precision: Precision, *, rows: int) -> int:
    """Keys and values of the tokens that are there: a row's own, and its source's, ``CACHED_TOKENS`` of each."""
    return _SIZES[precision] * rows * spec.layers * 2 * 2 * CACHED_TOKENS * spec.d_model


def step_bytes(spec: ModelSpec, precision: Precision, *, rows: int) -> int:
    """Weights and caches that a step reads."""
    return weight_bytes(spec, precision) + cache_bytes(spec, precision, rows=rows)
