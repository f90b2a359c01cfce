"""The Transformer: embeddings, encoder, decoder, output projection.

Source: Vaswani et al. 2017, "Attention Is All You Need"; pre-norm after Xiong et al. 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.attention import KeyValue, MultiHeadAttention
from model.config import Activation, NormPlacement, Positions, TiedEmbeddings, TransformerConfig
from model.dropout import ByteDropout

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.RELU: functional.relu,
    Activation.GELU: functional.gelu,
    Activation.SWISH: functional.silu,
}


def sinusoidal_positions(kind: Positions, *, first: int, count: int, d_model: int) -> Tensor:
    """Sines and cosines of the positions from ``first`` on, placed as ``kind`` says: float [count, d_model].

    Source: Vaswani et al. 2017, section 3.5; fairseq's wavelengths after tensor2tensor.
    """
    # In the precision in which each was trained: far positions differ in the fifth decimal.
    dtype = torch.float32 if kind is Positions.SINUSOIDAL_FAIRSEQ else torch.float64
    steps = d_model // 2 - 1 if kind is Positions.SINUSOIDAL_FAIRSEQ else d_model / 2
    position = torch.arange(first, first + count, dtype=dtype).unsqueeze(1)
    rate = torch.exp(torch.arange(d_model // 2, dtype=dtype) * -(math.log(10000.0) / steps))
    sine, cosine = torch.sin(position * rate), torch.cos(position * rate)
    if kind is Positions.SINUSOIDAL:
        return torch.stack((sine, cosine), dim=-1).flatten(1).float()
    return torch.cat((sine, cosine), dim=-1).float()


def _norm(config: TransformerConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)


class Embedding(nn.Module):
    """Token embedding (scaled by sqrt(d_model) on request) plus position, normalised on request, then dropout."""

    def __init__(self, config: TransformerConfig, *, vocab_size: int) -> None:
        super().__init__()
        self.scale = math.sqrt(config.d_model) if config.scale_embeddings else 1.0
        self.token = nn.Embedding(vocab_size, config.d_model)
        if config.positions is Positions.LEARNED:
            self.position: Tensor = nn.Parameter(torch.zeros(config.max_positions, config.d_model))
        else:
            table = sinusoidal_positions(
                config.positions, first=config.position_offset, count=config.max_positions, d_model=config.d_model
            )
            self.register_buffer("position", table, persistent=False)
        self.norm = _norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = ByteDropout(config.dropout)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Embed ``tokens`` int64 [...] at ``positions`` int64 (broadcastable): float [..., d_model]."""
        embedded: Tensor = self.dropout(self.norm(self.token(tokens) * self.scale + self.position[positions]))
        return embedded


class Residual(nn.Module):
    """Layer normalisation and the residual sum around one sub-layer, post- or pre-norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre = config.norm is NormPlacement.PRE
        self.norm = _norm(config)
        self.dropout = ByteDropout(config.dropout)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply ``sublayer`` to ``x`` float [..., d_model]."""
        if self.pre:
            summed: Tensor = x + self.dropout(sublayer(self.norm(x)))
            return summed
        normed: Tensor = self.norm(x + self.dropout(sublayer(x)))
        return normed


class FeedForward(nn.Module):
    """Two linear maps with a non-linearity between, position by position (section 3.3)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.d_model, config.ffn_dim)
        self.outer = nn.Linear(config.ffn_dim, config.d_model)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = ByteDropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``x`` float [..., d_model] into float [..., d_model]."""
        outer: Tensor = self.outer(self.dropout(self.activation(self.inner(x))))
        return outer


class EncoderLayer(nn.Module):
    """Self-attention, then feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(d_model=config.d_model, heads=config.heads)
        self.self_attention_residual = Residual(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config)

    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        """``x`` float [batch, src_len, d_model], ``mask`` bool [batch, 1, 1, src_len], True on real tokens."""
        attention = self.self_attention
        x = self.self_attention_residual(x, lambda y: attention(y, attention.project_memory(y), mask=mask))
        out: Tensor = self.feed_forward_residual(x, self.feed_forward)
        return out


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention to the source, then feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(d_model=config.d_model, heads=config.heads)
        self.self_attention_residual = Residual(config)
        self.cross_attention = MultiHeadAttention(d_model=config.d_model, heads=config.heads)
        self.cross_attention_residual = Residual(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_residual = Residual(config)

    def forward(self, x: Tensor, cross: KeyValue, *, source_mask: Tensor) -> Tensor:
        """All target positions at once: ``x`` float [batch, tgt_len, d_model]."""
        attention = self.self_attention
        x = self.self_attention_residual(x, lambda y: attention(y, attention.project_memory(y), causal=True))
        x = self.cross_attention_residual(x, lambda y: self.cross_attention(y, cross, mask=source_mask))
        out: Tensor = self.feed_forward_residual(x, self.feed_forward)
        return out

    def step(self, x: Tensor, cache: KeyValue, cross: KeyValue, *, positions: Tensor, source_mask: Tensor) -> Tensor:
        """One target position per row: ``x`` float [rows, d_model]; ``cache`` is updated in place."""
        x = self.self_attention_residual(x, lambda y: self.self_attention.step(y, cache, positions=positions))
        x = self.cross_attention_residual(
            x, lambda y: self.cross_attention(y.unsqueeze(1), cross, mask=source_mask).squeeze(1)
        )
        out: Tensor = self.feed_forward_residual(x, self.feed_forward)
        return out


class Transformer(nn.Module):
    """Encoder-decoder Transformer over token ids."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.source_embedding = Embedding(config, vocab_size=config.source_vocab_size)
        self.target_embedding = Embedding(config, vocab_size=config.target_vocab_size)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.encoder_norm = _norm(config) if config.final_norm else nn.Identity()
        self.decoder_norm = _norm(config) if config.final_norm else nn.Identity()
        self.output = nn.Linear(config.d_model, config.target_vocab_size, bias=config.output_bias)
        if config.tied_embeddings is not TiedEmbeddings.NONE:
            self.output.weight = self.target_embedding.token.weight
        if config.tied_embeddings is TiedEmbeddings.ALL:
            self.source_embedding.token.weight = self.target_embedding.token.weight

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """The decoder's layers, first to last."""
        return [layer for layer in self.decoder if isinstance(layer, DecoderLayer)]

    def initialise(self) -> None:
        """Draw fresh weights: Xavier-uniform matrices, embeddings N(0, 1/d_model), zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.token.weight, std=self.config.d_model**-0.5)
            if isinstance(embedding.position, nn.Parameter):
                nn.init.normal_(embedding.position, std=self.config.d_model**-0.5)

    def encode(self, source: Tensor, *, source_mask: Tensor) -> Tensor:
        """Encoder output.

        Args:
            source: int64 [batch, src_len], end token included, padded with pad_id.
            source_mask: bool [batch, src_len], True on real tokens.

        Returns:
            float [batch, src_len, d_model].
        """
        x = self.source_embedding(source, torch.arange(source.shape[1], device=source.device))
        for layer in self.encoder:
            x = layer(x, mask=source_mask[:, None, None, :])
        encoded: Tensor = self.encoder_norm(x)
        return encoded

    def cross_memory(self, encoded: Tensor) -> list[KeyValue]:
        """Every decoder layer's cross-attention keys and values of ``encoded`` float [batch, src_len, d_model]."""
        return [layer.cross_attention.project_memory(encoded) for layer in self.decoder_layers]

    def decode(self, target: Tensor, cross: list[KeyValue], *, source_mask: Tensor) -> Tensor:
        """Decoder states of every target position; ``output`` makes logits of them.

        Args:
            target: int64 [batch, tgt_len], beginning with start_id, padded on the right.
            cross: ``cross_memory`` of the source.
            source_mask: bool [batch, src_len].

        Returns:
            float [batch, tgt_len, d_model].
        """
        x = self.target_embedding(target, torch.arange(target.shape[1], device=target.device))
        for layer, memory in zip(self.decoder, cross, strict=True):
            x = layer(x, memory, source_mask=source_mask[:, None, None, :])
        states: Tensor = self.decoder_norm(x)
        return states

    def forward(self, source: Tensor, target: Tensor, *, source_mask: Tensor) -> Tensor:
        """Teacher-forced logits float [batch, tgt_len, target_vocab_size]; arguments as ``encode`` and ``decode``."""
        cross = self.cross_memory(self.encode(source, source_mask=source_mask))
        logits: Tensor = self.output(self.decode(target, cross, source_mask=source_mask))
        return logits

    def new_cache(self, *, rows: int, capacity: int) -> list[KeyValue]:
        """Zeroed self-attention caches, one per decoder layer, each [rows, heads, capacity, head_dim]."""
        shape = (rows, self.config.heads, capacity, self.config.head_dim)
        weight = self.output.weight
        return [KeyValue(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.decoder]

    def step(
        self,
        tokens: Tensor,
        cache: list[KeyValue],
        cross: list[KeyValue],
        *,
        positions: Tensor,
        source_mask: Tensor,
    ) -> Tensor:
        """Logits of one next position per row, from the same weights as ``decode``.

        Args:
            tokens: int64 [rows], last token of each row.
            cache: as ``new_cache`` makes it; updated in place.
            cross: ``cross_memory`` of the rows' sources.
            positions: int64 [rows], tokens already in the row's cache.
            source_mask: bool [rows, src_len].

        Returns:
            float [rows, target_vocab_size].
        """
        x = self.target_embedding(tokens, positions)
        for layer, own, memory in zip(self.decoder_layers, cache, cross, strict=True):
            x = layer.step(x, own, memory, positions=positions, source_mask=source_mask[:, None, None, :])
        logits: Tensor = self.output(self.decoder_norm(x))
        return logits
