"""Sizes of a model, and what one tensor of the contract looks like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.runners.protocol import ShapeError

VOCAB_BLOCK = 128
"""The vocabulary of the logits is padded to a multiple of this, so that heads work in whole blocks."""

HEAD_DIM_MULTIPLE = 8
"""What the attention operators ask of a head's width; narrower heads are padded with zeros, which add nothing."""


@dataclass(frozen=True, kw_only=True)
class ModelDimensions:
    """The sizes that decide the shape of every tensor.

    Attributes:
        encoder_layers: layers of the encoder.
        decoder_layers: layers of the decoder.
        heads: attention heads.
        head_dim: width of one head in caches and attention: the model's own, rounded up to a multiple of
            ``HEAD_DIM_MULTIPLE``.
        d_model: width of the model.
        source_vocab: tokens of the source vocabulary.
        target_vocab: tokens of the target vocabulary.
        max_positions: positions the model has an embedding for.
    """

    encoder_layers: int
    decoder_layers: int
    heads: int
    head_dim: int
    d_model: int
    source_vocab: int
    target_vocab: int
    max_positions: int

    @property
    def attention_width(self) -> int:
        """Width of all heads together; ``d_model`` where no head is padded."""
        return self.heads * self.head_dim

    @property
    def padded_target_vocab(self) -> int:
        """Width of the logits: ``target_vocab`` rounded up to whole blocks."""
        return -(-self.target_vocab // VOCAB_BLOCK) * VOCAB_BLOCK


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the contract.

    Attributes:
        name: as the graph or the runner's method names it.
        dtype: numpy dtype.
        shape: a number where the model decides it, a word where the call does.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]

    def check(self, array: object, sizes: Mapping[str, int] | None = None) -> None:
        """Hold ``array`` against this spec.

        Args:
            array: what the caller gave.
            sizes: values of the words that are already known; a word that is not in it fits any size.

        Raises:
            ShapeError: dtype or shape differ; the message names got and wanted.
        """
        known = sizes or {}
        if isinstance(array, np.ndarray) and array.dtype == self.dtype and array.ndim == len(self.shape):
            for got, size in zip(array.shape, self.shape, strict=True):
                if got != (known.get(size, got) if isinstance(size, str) else size):
                    break
            else:
                return
        raise ShapeError(self._complaint(array, known))

    def _complaint(self, array: object, known: Mapping[str, int]) -> str:
        shape = f"[{', '.join(str(known.get(size, size) if isinstance(size, str) else size) for size in self.shape)}]"
        if not isinstance(array, np.ndarray):
            return f"{self.name}: got {type(array).__name__}, wanted array {self.dtype} {shape}"
        return f"{self.name}: got {array.dtype} {list(array.shape)}, wanted {self.dtype} {shape}"


@dataclass(frozen=True)
class GraphContract:
    """Inputs and outputs of one graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def spec(name: str, dtype: type[np.generic], *shape: int | str) -> TensorSpec:
    """One tensor, its shape as it is read."""
    return TensorSpec(name, np.dtype(dtype), shape)


def cache_names(prefix: str, layers: int) -> tuple[str, ...]:
    """Names of one kind of cache in buffer order: ``<prefix>_key_0``, ``<prefix>_value_0``, ``<prefix>_key_1`` ..."""
    return tuple(f"{prefix}_{part}_{layer}" for layer in range(layers) for part in ("key", "value"))


def cache_dtype(precision: str) -> np.dtype[Any]:
    """What keys and values are kept as, by the precision of the matrix products."""
    if precision == "bf16":
        import ml_dtypes  # noqa: PLC0415 - numpy itself has no such numbers, and serving on the CPU needs none

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    names: dict[str, type[np.generic]] = {"int8": np.int8, "fp16": np.float16, "fp32": np.float32}
    return np.dtype(names[precision])


def step_cache_shapes(dimensions: ModelDimensions) -> tuple[tuple[int | str, ...], tuple[int | str, ...]]:
    """Shapes of a row's own caches and of those of its source."""
    heads, head_dim = dimensions.heads, dimensions.head_dim
    return ("rows", heads, "capacity", head_dim), ("rows", heads, "src_capacity", head_dim)


def caches(
    prefix: str, dimensions: ModelDimensions, cached: np.dtype[Any], shape: tuple[int | str, ...]
) -> tuple[TensorSpec, ...]:
    """One kind of cache of all layers, in buffer order."""
    return tuple(TensorSpec(name, cached, shape) for name in cache_names(prefix, dimensions.decoder_layers))
