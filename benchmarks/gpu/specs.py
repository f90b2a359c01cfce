"""What is measured: the models, their limits, and how many rows a step has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp16", "fp32"]

MAX_SOURCE_TOKENS = 64
MAX_OUTPUT_TOKENS = 128
"""Limits of the bundles: engines of one cache capacity, so that they are built within minutes."""

CACHED_TOKENS = 25
"""Tokens in a row's own cache about which steps are timed; a source has as many."""

MAX_ROWS = 512
GREEDY_ROWS = (1, 64, 8, 32, 128, 512, 256)
BEAM_ROWS = (64, 4, 8, 32, 128, 512, 256)
BEAM_SIZE = 4
MAX_CANDIDATES = 8

PAD, UNK, START, END = 0, 1, 2, 3
"""Special tokens of every model here."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model; all are post-norm, with ReLU, sinusoids and tied embeddings, as Vaswani et al. 2017 have it.

    Attributes:
        name: as the table shows it.
        layers: of the encoder, and of the decoder.
        d_model: width.
        ffn_dim: width of the feed-forward sub-layer.
        heads: attention heads.
        vocab: tokens, of source and target alike.
        random: whether its weights are drawn at random and its end token is barred; else they are the bundled model's.
    """

    name: str
    layers: int
    d_model: int
    ffn_dim: int
    heads: int
    vocab: int
    random: bool = True


MODELS = {
    spec.name: spec
    for spec in (
        ModelSpec(name="demo", layers=3, d_model=256, ffn_dim=512, heads=4, vocab=4096, random=False),
        ModelSpec(name="base", layers=6, d_model=512, ffn_dim=2048, heads=8, vocab=32_000),
        ModelSpec(name="big", layers=12, d_model=1024, ffn_dim=4096, heads=16, vocab=32_000),
        ModelSpec(name="tiny", layers=2, d_model=128, ffn_dim=256, heads=4, vocab=512),
    )
}
"""By name; ``tiny`` is for trying the command itself out."""
