"""Multi-head attention: the full-sequence form and the single-step form, from the same weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class KeyValue(NamedTuple):
    """Keys and values of one attention, each float [batch, heads, length, head_dim]."""

    key: Tensor
    value: Tensor


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention over several heads.

    Source: Vaswani et al. 2017, section 3.2.2.
    """

    def __init__(self, *, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.output = nn.Linear(d_model, d_model)

    def project_memory(self, memory: Tensor) -> KeyValue:
        """Keys and values of ``memory`` float [batch, length, d_model]."""
        return KeyValue(self._split(self.key(memory)), self._split(self.value(memory)))

    def forward(self, x: Tensor, memory: KeyValue, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Attend from every position of ``x`` at once.

        Args:
            x: float [batch, tgt_len, d_model].
            memory: keys and values of the positions to attend to.
            mask: bool, broadcastable to [batch, heads, tgt_len, length]; True where attention is allowed.
            causal: position i sees positions 0..i only; takes no mask beside it.

        Returns:
            float [batch, tgt_len, d_model].
        """
        mixed = functional.scaled_dot_product_attention(
            self._split(self.query(x)), memory.key, memory.value, attn_mask=mask, is_causal=causal
        )
        merged: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return merged

    def step(self, x: Tensor, cache: KeyValue, *, positions: Tensor) -> Tensor:
        """Attend from one new position per row to itself and to all earlier ones.

        The new key and value are written into ``cache`` in place.

        Args:
            x: float [rows, d_model].
            cache: preallocated keys and values, capacity as their length.
            positions: int64 [rows], tokens already in the row's cache.

        Returns:
            float [rows, d_model].
        """
        new = self.project_memory(x.unsqueeze(1))
        rows = torch.arange(x.shape[0], device=x.device)
        cache.key[rows, :, positions] = new.key[:, :, 0]
        cache.value[rows, :, positions] = new.value[:, :, 0]
        slots = torch.arange(cache.key.shape[2], device=x.device)
        seen = (slots <= positions.unsqueeze(1))[:, None, None, :]
        return self.forward(x.unsqueeze(1), cache, mask=seen).squeeze(1)

    def _split(self, x: Tensor) -> Tensor:
        """[batch, length, d_model] -> [batch, heads, length, head_dim]."""
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)
