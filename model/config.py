"""Shape of a Transformer, as one frozen record that is checked once and never altered after."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self


class ConfigError(ValueError):
    """A configuration field is missing, unknown or out of range; the message names got and wanted."""


class Activation(StrEnum):
    """Non-linearity of the feed-forward sub-layer."""

    RELU = "relu"
    GELU = "gelu"
    SWISH = "swish"


class Positions(StrEnum):
    """How a token's position enters its embedding."""

    SINUSOIDAL = "sinusoidal"
    LEARNED = "learned"


class NormPlacement(StrEnum):
    """Where layer normalisation stands: after each residual sum (the paper), or before each sub-layer."""

    POST = "post"
    PRE = "pre"


class TiedEmbeddings(StrEnum):
    """Which of the source embedding, target embedding and output projection are one matrix."""

    ALL = "all"
    DECODER = "decoder"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Everything that decides the shapes and the arithmetic of a Transformer.

    Raises:
        ConfigError: a field is out of range or two fields contradict each other.

    Source: Vaswani et al. 2017, sections 3.1 to 3.5.
    """

    source_vocab_size: int
    target_vocab_size: int
    d_model: int = 512
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    ffn_dim: int = 2048
    dropout: float = 0.1
    activation: Activation = Activation.RELU
    positions: Positions = Positions.SINUSOIDAL
    norm: NormPlacement = NormPlacement.POST
    tied_embeddings: TiedEmbeddings = TiedEmbeddings.ALL
    scale_embeddings: bool = True
    max_positions: int = 512
    layer_norm_epsilon: float = 1e-5
    pad_id: int = 0
    unk_id: int = 1
    bos_id: int = 2
    eos_id: int = 3

    def __post_init__(self) -> None:
        for field, kind in (
            ("activation", Activation),
            ("positions", Positions),
            ("norm", NormPlacement),
            ("tied_embeddings", TiedEmbeddings),
        ):
            got = getattr(self, field)
            allowed = [member.value for member in kind]
            if got not in allowed:
                raise ConfigError(f"{field}: got {got!r}, wanted one of {', '.join(allowed)}")
            object.__setattr__(self, field, kind(got))
        for field in (
            "source_vocab_size",
            "target_vocab_size",
            "d_model",
            "heads",
            "encoder_layers",
            "decoder_layers",
            "ffn_dim",
            "max_positions",
        ):
            got = getattr(self, field)
            if not isinstance(got, int) or got < 1:
                raise ConfigError(f"{field}: got {got!r}, wanted an integer of at least 1")
        if self.d_model % self.heads:
            raise ConfigError(f"d_model: got {self.d_model}, wanted a multiple of heads = {self.heads}")
        if self.positions is Positions.SINUSOIDAL and self.d_model % 2:
            raise ConfigError(f"d_model: got {self.d_model}, wanted an even number for sinusoidal positions")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout: got {self.dropout!r}, wanted 0 <= dropout < 1")
        if self.tied_embeddings is TiedEmbeddings.ALL and self.source_vocab_size != self.target_vocab_size:
            raise ConfigError(
                f"tied_embeddings: got 'all' with vocabularies of {self.source_vocab_size} and "
                f"{self.target_vocab_size} tokens, wanted equal sizes"
            )
        smallest_vocab = min(self.source_vocab_size, self.target_vocab_size)
        for field in ("pad_id", "unk_id", "bos_id", "eos_id"):
            got = getattr(self, field)
            if not 0 <= got < smallest_vocab:
                raise ConfigError(f"{field}: got {got!r}, wanted 0 <= id < {smallest_vocab}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.heads

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Target tokens that a search never selects: padding, unknown and the start token."""
        return tuple(sorted({self.pad_id, self.unk_id, self.bos_id}))

    @property
    def architecture(self) -> str:
        """Short name such as ``transformer-6x512``; unequal depths stand as ``transformer-12+3x512``."""
        depth = (
            f"{self.encoder_layers}"
            if self.encoder_layers == self.decoder_layers
            else f"{self.encoder_layers}+{self.decoder_layers}"
        )
        return f"transformer-{depth}x{self.d_model}"

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Read a configuration from plain values, as ``to_dict`` writes them.

        Raises:
            ConfigError: a field is unknown, missing or out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ConfigError(f"unknown field {', '.join(unknown)}; known fields are {', '.join(sorted(known))}")
        missing = sorted({"source_vocab_size", "target_vocab_size"} - set(fields))
        if missing:
            raise ConfigError(f"missing field {', '.join(missing)}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            name: value.value if isinstance(value, StrEnum) else value
            for name, value in dataclasses.asdict(self).items()
        }
