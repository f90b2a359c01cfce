"""Graph contract: name, dtype and shape of every tensor that crosses a graph's or a runner's edge.

A shape is written in words (``rows``, ``src_len``) where it is known only at run time, in numbers where the model
decides it. The graphs are built from these specs and the runners check against them, so that the words cannot rot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from export.runners.protocol import ShapeError

VOCAB_BLOCK = 128
"""The vocabulary of the logits is padded to a multiple of this, so that heads work in whole blocks."""

HEAD_DIM_MULTIPLE = 8
"""What the attention operators ask of a head's width; narrower heads are padded with zeros, which add nothing."""

FlavourName = Literal["ort", "standard"]
"""Whose operators the encoder and the step are made of: ONNX Runtime's own among them, or none but those of ONNX."""

GRAPH_NAMES = ("encoder", "step", "argmax", "top_k")

SHORTLISTED_STEP = "step_shortlist"
"""The step that computes the logits of some tokens only; beside the others in bundles that have a shortlist."""

OUTPUT_FILE = "output.npz"
"""The last projection, beside the shortlisted step, which takes a part of it as inputs."""


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


def _spec(name: str, dtype: type[np.generic], *shape: int | str) -> TensorSpec:
    return TensorSpec(name, np.dtype(dtype), shape)


def cache_names(prefix: str, layers: int) -> tuple[str, ...]:
    """Names of one kind of cache in buffer order: ``<prefix>_key_0``, ``<prefix>_value_0``, ``<prefix>_key_1`` ..."""
    return tuple(f"{prefix}_{part}_{layer}" for layer in range(layers) for part in ("key", "value"))


def cache_dtype(precision: str) -> np.dtype[Any]:
    """What keys and values are kept as, by the precision of the matrix products."""
    return np.dtype(np.int8 if precision == "int8" else np.float32)


def ort_encoder_contract(dimensions: ModelDimensions, cached: np.dtype[Any]) -> GraphContract:
    """Sources to every decoder layer's cross-attention keys and values, of dtype ``cached``, in buffer order.

    Those of each source's last token come once more, in float32 and with all heads side by side: a step hands them to
    an operator that always appends.
    """
    return GraphContract(
        inputs=(_spec("tokens", np.int64, "batch", "src_len"), _spec("lengths", np.int32, "batch")),
        outputs=(
            _memory(dimensions, cached),
            _spec("cross_last", np.float32, 2 * dimensions.decoder_layers, "batch", 1, dimensions.attention_width),
        ),
    )


def standard_encoder_contract(dimensions: ModelDimensions, cached: np.dtype[Any]) -> GraphContract:
    """Sources to every decoder layer's cross-attention keys and values, of dtype ``cached``, in buffer order."""
    return GraphContract(
        inputs=(_spec("tokens", np.int64, "batch", "src_len"), _spec("lengths", np.int64, "batch")),
        outputs=(_memory(dimensions, cached),),
    )


def _memory(dimensions: ModelDimensions, cached: np.dtype[Any]) -> TensorSpec:
    shape = (2 * dimensions.decoder_layers, "batch", dimensions.heads, "src_len", dimensions.head_dim)
    return TensorSpec("cross", cached, shape)


def ort_step_contract(
    dimensions: ModelDimensions, cached: np.dtype[Any], *, shortlisted: bool = False
) -> GraphContract:
    """One token per row to logits. Each ``present_*`` is bound to the buffer of its ``past_*``: updated in place.

    ``cross_*`` is read and written alike (``cross_present_*``): a step writes ``cross_last_*`` where it already stands.
    The caches are of dtype ``cached``.

    Args:
        dimensions: sizes of the model.
        cached: what the caches hold.
        shortlisted: whether there are logits of some tokens only, the candidates, in the order in which their part of
            the last projection is given.
    """
    own, cross = _step_cache_shapes(dimensions)
    last = ("rows", 1, dimensions.attention_width)
    candidates = output_inputs(dimensions, cached) if shortlisted else ()
    logits = "candidates" if shortlisted else dimensions.padded_target_vocab
    return GraphContract(
        inputs=(
            _spec("tokens", np.int64, "rows"),
            _spec("positions", np.int64, "rows"),
            _spec("source_lengths", np.int32, "rows"),
            _spec("longest_target", np.int32, 1),
            _spec("longest_source", np.int32, 1),
            *_caches("past", dimensions, cached, own),
            *_caches("cross", dimensions, cached, cross),
            *_caches("cross_last", dimensions, np.dtype(np.float32), last),
            *candidates,
        ),
        outputs=(
            _spec("logits", np.float32, "rows", logits),
            *_caches("present", dimensions, cached, own),
            *_caches("cross_present", dimensions, cached, cross),
        ),
    )


def output_inputs(dimensions: ModelDimensions, cached: np.dtype[Any]) -> tuple[TensorSpec, ...]:
    """The candidates' part of the last projection, as a shortlisted step takes it; scales in int8 alone."""
    bias = _spec("output_bias", np.float32, "candidates")
    if cached == np.int8:
        weight = _spec("output_weight", np.int8, dimensions.d_model, "candidates")
        return weight, bias, _spec("output_scales", np.float32, "candidates")
    return _spec("output_weight", np.float32, "candidates", dimensions.d_model), bias


def output_arrays(dimensions: ModelDimensions, cached: np.dtype[Any]) -> tuple[TensorSpec, ...]:
    """The whole last projection, as ``OUTPUT_FILE`` holds it: by token, so that a candidate is one piece of memory."""
    vocab = dimensions.target_vocab
    _, *vectors = output_inputs(dimensions, cached)
    weight = TensorSpec("output_weight", cached, (vocab, dimensions.d_model))
    return weight, *(TensorSpec(spec.name, spec.dtype, (vocab,)) for spec in vectors)


def standard_step_contract(dimensions: ModelDimensions, cached: np.dtype[Any]) -> GraphContract:
    """One token per row to logits. Each ``present_*`` is bound to the buffer of its ``past_*``: updated in place.

    ``cross_*`` is only read. What lies in a cache beyond a row's length has no effect, but must be finite. All caches
    are of dtype ``cached``.
    """
    own, cross = _step_cache_shapes(dimensions)
    return GraphContract(
        inputs=(
            _spec("tokens", np.int64, "rows"),
            _spec("positions", np.int64, "rows"),
            _spec("source_lengths", np.int64, "rows"),
            *_caches("past", dimensions, cached, own),
            *_caches("cross", dimensions, cached, cross),
        ),
        outputs=(
            _spec("logits", np.float32, "rows", dimensions.padded_target_vocab),
            *_caches("present", dimensions, cached, own),
        ),
    )


def _step_cache_shapes(dimensions: ModelDimensions) -> tuple[tuple[int | str, ...], tuple[int | str, ...]]:
    """Shapes of a row's own caches and of those of its source."""
    heads, head_dim = dimensions.heads, dimensions.head_dim
    return ("rows", heads, "capacity", head_dim), ("rows", heads, "src_capacity", head_dim)


def _caches(
    prefix: str, dimensions: ModelDimensions, cached: np.dtype[Any], shape: tuple[int | str, ...]
) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, cached, shape) for name in cache_names(prefix, dimensions.decoder_layers))


def argmax_contract(dimensions: ModelDimensions) -> GraphContract:
    """Logits to the best selectable token of each row."""
    return GraphContract(
        inputs=(_spec("logits", np.float32, "rows", dimensions.padded_target_vocab),),
        outputs=(_spec("ids", np.int64, "rows"),),
    )


def top_k_contract(dimensions: ModelDimensions) -> GraphContract:
    """Logits to the ``k`` best selectable tokens of each row, with log-probs."""
    return GraphContract(
        inputs=(
            _spec("logits", np.float32, "rows", dimensions.padded_target_vocab),
            _spec("k", np.int64, 1),
        ),
        outputs=(_spec("ids", np.int64, "rows", "k"), _spec("log_probs", np.float32, "rows", "k")),
    )


def graph_contracts(
    dimensions: ModelDimensions, *, precision: str, flavour: FlavourName = "ort"
) -> dict[str, GraphContract]:
    """The contract of every graph of one flavour and precision, by graph name."""
    cached = cache_dtype(precision)
    encoder_contract, step_contract = {
        "ort": (ort_encoder_contract, ort_step_contract),
        "standard": (standard_encoder_contract, standard_step_contract),
    }[flavour]
    contracts = {
        "encoder": encoder_contract(dimensions, cached),
        "step": step_contract(dimensions, cached),
        "argmax": argmax_contract(dimensions),
        "top_k": top_k_contract(dimensions),
    }
    if flavour == "ort":
        contracts[SHORTLISTED_STEP] = ort_step_contract(dimensions, cached, shortlisted=True)
    return contracts


# Edge of a runner: arguments of Runner.encode and Runner.step.
SOURCES = _spec("sources", np.int64, "batch", "src_len")
LENGTHS = _spec("lengths", np.int64, "batch")
ROWS = _spec("rows", np.int64, "batch")
TOKENS = _spec("tokens", np.int64, "rows")
POSITIONS = _spec("positions", np.int64, "rows")
PARENTS = _spec("parents", np.int64, "rows")
