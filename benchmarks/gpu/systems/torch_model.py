"""The arithmetic of the PyTorch baseline: packed projections, caches that never move, attention by SDPA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from export.graphs.description import EmbeddingTables, Layer, Linear, ModelDescription, Norm

Attend = Callable[..., Tensor]
"""(query [rows, heads, queries, head_dim], key, value, mask) -> as the query; queries come scaled, masks are added."""


def by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention as two matrix products and a softmax, which some sizes run faster than any fused kernel."""
    return torch.matmul((torch.matmul(query, key.transpose(-1, -2)) + mask).softmax(-1), value)


def by_sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """PyTorch's scaled dot-product attention, whichever kernel is enabled."""
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)


@dataclass(frozen=True)
class _Product:
    """A projection on the device."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class _Norm:
    gain: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.gain.shape, self.gain, self.bias, self.epsilon)


@dataclass(frozen=True)
class _Layer:
    query_key_value: _Product
    mixed: _Product
    self_norm: _Norm
    cross_query: _Product | None
    cross_mixed: _Product | None
    cross_norm: _Norm | None
    inner: _Product
    outer: _Product
    last_norm: _Norm

    def feed_forward(self, x: Tensor) -> Tensor:
        """The feed-forward sub-layer with its residual sum."""
        return self.last_norm(x + self.outer(torch.relu(self.inner(x))))


class TorchModel:
    """A post-norm Transformer with ReLU, all of it in one dtype, without dropout or training."""

    def __init__(self, description: ModelDescription, *, device: torch.device, dtype: torch.dtype) -> None:
        """Move the weights to the device."""
        assert not description.pre_norm, "the baseline is written for post-norm models"
        self.dims = description.dims
        self.device, self.dtype = device, dtype
        put = _Mover(device, dtype, heads=self.dims.heads)
        self._source, self._source_positions = put.embedding(description.source)
        self._target, self._target_positions = put.embedding(description.target)
        self._encoder = [put.layer(layer) for layer in description.encoder]
        self._decoder = [put.layer(layer) for layer in description.decoder]
        self._memory = put.linear(description.memory)
        self._output = put.linear(description.output)
        suppressed = torch.zeros(self.dims.padded_target_vocab, device=device, dtype=dtype)
        suppressed[list(description.suppressed_ids)] = -torch.inf
        self.suppressed = suppressed
        bias = suppressed if self._output.bias is None else self._output.bias + suppressed
        self._selectable_output = _Product(self._output.weight, bias)

    def encode(self, sources: Tensor, lengths: Tensor) -> Tensor:
        """Cross-attention keys and values: [layers, 2, batch, heads, src_len, head_dim].

        Args:
            sources: int64 [batch, src_len], padded on the right.
            lengths: int64 [batch], at least 1.
        """
        batch, length = sources.shape
        places = torch.arange(length, device=self.device)
        mask = self.mask(places < lengths[:, None])
        x = self._source[sources] + self._source_positions[places]
        for layer in self._encoder:
            query, key, value = self._heads(layer.query_key_value(x), 3)
            mixed = by_sdpa(query, key, value, mask).transpose(1, 2).flatten(2)
            x = layer.feed_forward(layer.self_norm(x + layer.mixed(mixed)))
        memory = self._memory(x).view(batch, length, len(self._decoder), 2, self.dims.heads, self.dims.head_dim)
        return memory.permute(2, 3, 0, 4, 1, 5)

    def step(
        self, tokens: Tensor, positions: Tensor, own: Tensor, cross: Tensor, source_mask: Tensor, *, attend: Attend
    ) -> Tensor:
        """Decoder states of one token per row; ``own`` is updated in place.

        Args:
            tokens: int64 [rows].
            positions: int64 [rows], tokens already in the row's cache.
            own: [layers, 2, rows, heads, capacity, head_dim].
            cross: [layers, 2, sources, heads, src_capacity, head_dim]; as many rows in turn share a source as there are
                rows for each.
            source_mask: [sources, 1, 1, src_capacity], as ``mask`` makes it.
            attend: the kernel of attention.

        Returns:
            [rows, d_model].
        """
        rows, sources = len(tokens), cross.shape[2]
        heads, head_dim = self.dims.heads, self.dims.head_dim
        index = torch.arange(rows, device=self.device)
        own_mask = self.mask(torch.arange(own.shape[4], device=self.device) <= positions[:, None])
        x = self._target[tokens] + self._target_positions[positions]
        for layer, cache, memory in zip(self._decoder, own, cross, strict=True):
            packed = layer.query_key_value(x).view(rows, 3, heads, head_dim)
            cache[:, index, :, positions] = packed[:, 1:]
            mixed = attend(packed[:, 0].unsqueeze(2), cache[0], cache[1], own_mask)
            x = layer.self_norm(x + layer.mixed(mixed.reshape(rows, -1)))
            assert layer.cross_query
            assert layer.cross_mixed
            assert layer.cross_norm
            query = layer.cross_query(x).view(sources, -1, heads, head_dim).transpose(1, 2)
            mixed = attend(query, memory[0], memory[1], source_mask).transpose(1, 2)
            x = layer.cross_norm(x + layer.cross_mixed(mixed.reshape(rows, -1)))
            x = layer.feed_forward(x)
        return x

    def mask(self, seen: Tensor) -> Tensor:
        """What is added to scores: 0 where bool ``seen`` [rows, keys] holds, else -inf; [rows, 1, 1, keys]."""
        barred = torch.zeros(seen.shape, device=self.device, dtype=self.dtype)
        return barred.masked_fill_(~seen, -torch.inf)[:, None, None, :]

    def best(self, states: Tensor) -> Tensor:
        """The best selectable token of each row: int64 [rows]."""
        return self._selectable_output(states).argmax(-1)

    def log_probs(self, states: Tensor) -> Tensor:
        """Over the whole vocabulary, -inf for tokens that are never selected: float32 [rows, vocab]."""
        return self._output(states).float().log_softmax(-1) + self.suppressed

    def _heads(self, packed: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[batch, length, parts * width] -> parts of [batch, heads, length, head_dim]."""
        apart = packed.view(*packed.shape[:2], parts, self.dims.heads, self.dims.head_dim)
        return tuple(apart.permute(2, 0, 3, 1, 4))


class _Mover:
    """Puts numpy weights onto a device."""

    def __init__(self, device: torch.device, dtype: torch.dtype, *, heads: int) -> None:
        self._to: dict[str, Any] = {"device": device, "dtype": dtype}
        self._heads = heads

    def linear(self, linear: Linear) -> _Product:
        bias = None if linear.bias is None else torch.tensor(linear.bias, **self._to)
        return _Product(torch.tensor(linear.weight, **self._to), bias)

    def norm(self, norm: Norm) -> _Norm:
        return _Norm(torch.tensor(norm.gain, **self._to), torch.tensor(norm.bias, **self._to), norm.epsilon)

    def embedding(self, tables: EmbeddingTables) -> tuple[Tensor, Tensor]:
        """Token table, its scale multiplied in, and position table."""
        token, position = (torch.tensor(table, **self._to) for table in (tables.token, tables.position))
        return token * tables.scale, position

    def scaled(self, query: Linear) -> Linear:
        """A projection of queries with the scale of attention's scores in it."""
        assert query.bias is not None
        scale = np.float32((len(query.weight) // self._heads) ** -0.5)
        return Linear(query.weight * scale, query.bias * scale)

    def layer(self, layer: Layer) -> _Layer:
        own, cross, norm = layer.self_attention, layer.cross_attention, layer.cross_attention_norm
        own = replace(own, query=self.scaled(own.query))
        return _Layer(
            query_key_value=self.linear(own.query_key_value),
            mixed=self.linear(own.output),
            self_norm=self.norm(layer.self_attention_norm),
            cross_query=None if cross is None else self.linear(self.scaled(cross.query)),
            cross_mixed=None if cross is None else self.linear(cross.output),
            cross_norm=None if norm is None else self.norm(norm),
            inner=self.linear(layer.inner),
            outer=self.linear(layer.outer),
            last_norm=self.norm(layer.feed_forward_norm),
        )
