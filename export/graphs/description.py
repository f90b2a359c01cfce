"""What the graphs are built from: a Transformer as plain numpy arrays, free of any framework.

Every flavour and precision of graph is built from this one description.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from export.contract import HEAD_DIM_MULTIPLE, VOCAB_BLOCK, ModelDimensions
from model.attention import MultiHeadAttention
from model.config import Activation, NormPlacement, Suppression
from model.transformer import DecoderLayer, Embedding, EncoderLayer, Transformer

Weights = NDArray[np.float32]


@dataclass(frozen=True)
class Linear:
    """y = x weight^T + bias; weight [out, in] as PyTorch keeps it, bias [out] or None."""

    weight: Weights
    bias: Weights | None


@dataclass(frozen=True)
class Norm:
    """Layer normalisation over d_model."""

    gain: Weights
    bias: Weights
    epsilon: float


@dataclass(frozen=True)
class Attention:
    """The four projections of one attention."""

    query: Linear
    key: Linear
    value: Linear
    output: Linear

    @property
    def query_key_value(self) -> Linear:
        """The three input projections as one: [3 * attention_width, d_model]."""
        return _stacked(self.query, self.key, self.value)

    @property
    def key_value(self) -> Linear:
        """Keys and values as one: [2 * attention_width, d_model]."""
        return _stacked(self.key, self.value)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer; each sub-layer comes with the norm of its residual. An encoder layer has no cross-attention."""

    self_attention: Attention
    self_attention_norm: Norm
    cross_attention: Attention | None = None
    cross_attention_norm: Norm | None = None
    inner: Linear
    outer: Linear
    feed_forward_norm: Norm


@dataclass(frozen=True, kw_only=True)
class EmbeddingTables:
    """Token table, padded with zero rows to whole vocabulary blocks; position table; scale of the tokens; norm."""

    token: Weights
    position: Weights
    scale: float
    norm: Norm | None


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A Transformer, ready to be written as graphs.

    Attributes:
        dims: sizes.
        activation: of the feed-forward sub-layer.
        attention_scale: what scores are multiplied by; None: 1 / sqrt(head_dim), as no head is padded.
        pre_norm: norms before each sub-layer instead of after each residual sum.
        suppressed_ids: tokens that heads never select.
        source: embedding of the encoder.
        target: embedding of the decoder.
        encoder: its layers.
        decoder: its layers.
        encoder_norm: after the encoder, where there is one.
        decoder_norm: after the decoder, where there is one.
        output: projection to the logits, [padded_target_vocab, d_model]; its bias is -inf for the padding, and for
            suppressed tokens that do not count in the softmax.
    """

    dims: ModelDimensions
    activation: Activation
    attention_scale: float | None
    pre_norm: bool
    suppressed_ids: tuple[int, ...]
    source: EmbeddingTables
    target: EmbeddingTables
    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]
    encoder_norm: Norm | None
    decoder_norm: Norm | None
    output: Linear

    @property
    def memory(self) -> Linear:
        """Keys and values of all decoder layers' cross-attention as one: [layers * 2 * attention_width, d_model]."""
        return _stacked(*(layer.cross_attention.key_value for layer in self.decoder if layer.cross_attention))


def dimensions_of(model: Transformer) -> ModelDimensions:
    """The sizes of a model."""
    config = model.config
    return ModelDimensions(
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        heads=config.heads,
        head_dim=-(-config.head_dim // HEAD_DIM_MULTIPLE) * HEAD_DIM_MULTIPLE,
        d_model=config.d_model,
        source_vocab=config.source_vocab_size,
        target_vocab=config.target_vocab_size,
        max_positions=config.max_positions,
    )


def describe(model: Transformer, *, positions: int) -> ModelDescription:
    """Describe ``model`` with its first ``positions`` position embeddings."""
    config = model.config
    dims = dimensions_of(model)
    return ModelDescription(
        dims=dims,
        activation=config.activation,
        attention_scale=None if dims.head_dim == config.head_dim else config.head_dim**-0.5,
        pre_norm=config.norm is NormPlacement.PRE,
        suppressed_ids=config.suppressed_ids,
        source=_embedding(model.source_embedding, positions=positions),
        target=_embedding(model.target_embedding, positions=positions),
        encoder=tuple(map(_encoder_layer, model.encoder)),
        decoder=tuple(map(_decoder_layer, model.decoder)),
        encoder_norm=_optional_norm(model.encoder_norm),
        decoder_norm=_optional_norm(model.decoder_norm),
        output=_output(
            model.output,
            has_bias=config.output_bias,
            left_out=config.suppressed_ids if config.suppression is Suppression.BEFORE_SOFTMAX else (),
        ),
    )


def _array(tensor: Tensor) -> Weights:
    array: Weights = tensor.detach().float().numpy()
    return array


def _linear(linear: nn.Linear) -> Linear:
    return Linear(_array(linear.weight), _array(linear.bias))


def _norm(norm: nn.Module) -> Norm:
    assert isinstance(norm, nn.LayerNorm)
    return Norm(_array(norm.weight), _array(norm.bias), norm.eps)


def _optional_norm(norm: nn.Module) -> Norm | None:
    return None if isinstance(norm, nn.Identity) else _norm(norm)


def _attention(attention: MultiHeadAttention) -> Attention:
    query, key, value = (
        _padded_heads(_linear(part), attention.heads) for part in (attention.query, attention.key, attention.value)
    )
    output = _linear(attention.output)
    widened = _padded_heads(Linear(output.weight.T, None), attention.heads)
    return Attention(
        query=query, key=key, value=value, output=Linear(np.ascontiguousarray(widened.weight.T), output.bias)
    )


def _padded_heads(linear: Linear, heads: int) -> Linear:
    """A projection whose heads are padded with zero rows to a whole multiple of ``HEAD_DIM_MULTIPLE``."""
    head_dim = len(linear.weight) // heads
    missing = -head_dim % HEAD_DIM_MULTIPLE
    if not missing:
        return linear

    def pad(values: Weights) -> Weights:
        apart = values.reshape(heads, head_dim, *values.shape[1:])
        padded = np.pad(apart, ((0, 0), (0, missing), *((0, 0) for _ in values.shape[1:])))
        return padded.reshape(-1, *values.shape[1:])

    return Linear(pad(linear.weight), None if linear.bias is None else pad(linear.bias))


def _encoder_layer(layer: nn.Module) -> Layer:
    assert isinstance(layer, EncoderLayer)
    return Layer(
        self_attention=_attention(layer.self_attention),
        self_attention_norm=_norm(layer.self_attention_residual.norm),
        inner=_linear(layer.feed_forward.inner),
        outer=_linear(layer.feed_forward.outer),
        feed_forward_norm=_norm(layer.feed_forward_residual.norm),
    )


def _decoder_layer(layer: nn.Module) -> Layer:
    assert isinstance(layer, DecoderLayer)
    return Layer(
        self_attention=_attention(layer.self_attention),
        self_attention_norm=_norm(layer.self_attention_residual.norm),
        cross_attention=_attention(layer.cross_attention),
        cross_attention_norm=_norm(layer.cross_attention_residual.norm),
        inner=_linear(layer.feed_forward.inner),
        outer=_linear(layer.feed_forward.outer),
        feed_forward_norm=_norm(layer.feed_forward_residual.norm),
    )


def _embedding(embedding: Embedding, *, positions: int) -> EmbeddingTables:
    return EmbeddingTables(
        token=_padded(_array(embedding.token.weight)),
        position=_array(embedding.position)[:positions],
        scale=embedding.scale,
        norm=_optional_norm(embedding.norm),
    )


def _output(output: nn.Linear, *, has_bias: bool, left_out: tuple[int, ...]) -> Linear:
    weight = _padded(_array(output.weight))
    bias = np.full(len(weight), -np.inf, np.float32)
    bias[: output.out_features] = _array(output.bias) if has_bias else 0.0
    bias[list(left_out)] = -np.inf
    return Linear(weight, None if np.all(bias == 0.0) else bias)


def _padded(table: Weights) -> Weights:
    """Zero rows up to whole vocabulary blocks, in every table alike, so that tied ones stay equal."""
    return np.pad(table, ((0, -len(table) % VOCAB_BLOCK), (0, 0)))


def _stacked(*linears: Linear) -> Linear:
    biases = [linear.bias for linear in linears if linear.bias is not None]
    return Linear(np.concatenate([linear.weight for linear in linears]), np.concatenate(biases))
