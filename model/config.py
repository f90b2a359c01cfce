"""Shape of a Transformer, as one frozen record that is checked once and never altered after."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

_MOST_POSITIONS = 1 << 16
_FAMILY = re.compile(r"[a-z][a-z0-9_]*")


class ConfigError(ValueError):
    """A configuration field is missing, unknown or out of range; the message names got and wanted."""


class Activation(StrEnum):
    """Non-linearity of the feed-forward sub-layer."""

    RELU = "relu"
    GELU = "gelu"
    SWISH = "swish"


class Positions(StrEnum):
    """How a token's position enters its embedding.

    The sinusoids are the paper's (sines in the even columns, cosines in the odd ones), Marian's (all sines first, then
    all cosines) and fairseq's (as Marian's, with wavelengths that reach 10000 * 2 pi in the last column of each half).
    """

    SINUSOIDAL = "sinusoidal"
    SINUSOIDAL_HALVES = "sinusoidal_halves"
    SINUSOIDAL_FAIRSEQ = "sinusoidal_fairseq"
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


class Suppression(StrEnum):
    """Whether tokens that are never selected count in the softmax: masked after it, or left out before it."""

    AFTER_SOFTMAX = "after_softmax"
    BEFORE_SOFTMAX = "before_softmax"


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Everything that decides the shapes and the arithmetic of a Transformer.

    Attributes:
        source_vocab_size: tokens that the encoder reads.
        target_vocab_size: tokens that the decoder writes.
        d_model: width of the model.
        heads: attention heads, of encoder and decoder alike.
        encoder_layers: layers of the encoder.
        decoder_layers: layers of the decoder.
        ffn_dim: width of the feed-forward sub-layer.
        dropout: rate, in training only.
        activation: of the feed-forward sub-layer.
        positions: kind of position embedding.
        position_offset: position that the first token is said to have; 0 for learned positions, whose table begins
            with the first token.
        norm: where layer normalisation stands.
        final_norm: whether encoder and decoder end in a norm; None: where ``norm`` is ``pre``.
        embedding_norm: whether embeddings are normalised before the first layer (BART).
        tied_embeddings: which embeddings are one matrix.
        scale_embeddings: whether token embeddings are multiplied by sqrt(d_model).
        output_bias: whether the logits have a bias.
        max_positions: positions that have an embedding.
        layer_norm_epsilon: of every norm.
        pad_id: fills sources on the right.
        unk_id: what the tokenizer gives for what it does not know.
        start_id: first input token of the decoder.
        eos_id: end token, of sources and of outputs.
        suppressed: tokens that a search never selects; None: padding, unknown and start token.
        suppression: whether those count in the softmax.
        family: first word of the architecture's name.

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
    position_offset: int = 0
    norm: NormPlacement = NormPlacement.POST
    final_norm: bool | None = None
    embedding_norm: bool = False
    tied_embeddings: TiedEmbeddings = TiedEmbeddings.ALL
    scale_embeddings: bool = True
    output_bias: bool = False
    max_positions: int = 512
    layer_norm_epsilon: float = 1e-5
    pad_id: int = 0
    unk_id: int = 1
    start_id: int = 2
    eos_id: int = 3
    suppressed: tuple[int, ...] | None = None
    suppression: Suppression = Suppression.AFTER_SOFTMAX
    family: str = "transformer"

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_sizes()
        self._check_ids()

    def _check_choices(self) -> None:
        for field, kind in (
            ("activation", Activation),
            ("positions", Positions),
            ("norm", NormPlacement),
            ("tied_embeddings", TiedEmbeddings),
            ("suppression", Suppression),
        ):
            got = getattr(self, field)
            allowed = [member.value for member in kind]
            if got not in allowed:
                raise ConfigError(f"{field}: got {got!r}, wanted one of {', '.join(allowed)}")
            object.__setattr__(self, field, kind(got))
        if not _FAMILY.fullmatch(self.family):
            raise ConfigError(f"family: got {self.family!r}, wanted a short lower-case word")
        if self.final_norm is None:
            object.__setattr__(self, "final_norm", self.norm is NormPlacement.PRE)
        for field in ("final_norm", "embedding_norm", "scale_embeddings", "output_bias"):
            got = getattr(self, field)
            if not isinstance(got, bool):
                raise ConfigError(f"{field}: got {got!r}, wanted true or false")

    def _check_sizes(self) -> None:
        for field, least in (
            ("source_vocab_size", 1),
            ("target_vocab_size", 1),
            ("d_model", 1),
            ("heads", 1),
            ("encoder_layers", 1),
            ("decoder_layers", 1),
            ("ffn_dim", 1),
            ("max_positions", 1),
            ("position_offset", 0),
        ):
            got = getattr(self, field)
            if not _is_integer(got) or got < least:
                raise ConfigError(f"{field}: got {got!r}, wanted an integer of at least {least}")
        if self.d_model % self.heads:
            raise ConfigError(f"d_model: got {self.d_model}, wanted a multiple of heads = {self.heads}")
        if self.max_positions + self.position_offset > _MOST_POSITIONS:
            raise ConfigError(f"max_positions: got {self.max_positions}, wanted at most {_MOST_POSITIONS}")
        learned = self.positions is Positions.LEARNED
        if not learned and (self.d_model % 2 or self.d_model < 4):
            raise ConfigError(f"d_model: got {self.d_model}, wanted an even number of at least 4 for sinusoids")
        if learned and self.position_offset:
            raise ConfigError(f"position_offset: got {self.position_offset}, wanted 0 for learned positions")
        for field in ("dropout", "layer_norm_epsilon"):
            got = getattr(self, field)
            if isinstance(got, bool) or not isinstance(got, (int, float)) or not 0.0 <= got < 1.0:
                raise ConfigError(f"{field}: got {got!r}, wanted 0 <= {field} < 1")
        if self.tied_embeddings is TiedEmbeddings.ALL and self.source_vocab_size != self.target_vocab_size:
            raise ConfigError(
                f"tied_embeddings: got 'all' with vocabularies of {self.source_vocab_size} and "
                f"{self.target_vocab_size} tokens, wanted equal sizes"
            )

    def _check_ids(self) -> None:
        smallest_vocab = min(self.source_vocab_size, self.target_vocab_size)
        for field, vocab in (
            ("pad_id", self.source_vocab_size),
            ("unk_id", self.source_vocab_size),
            ("start_id", self.target_vocab_size),
            ("eos_id", smallest_vocab),
        ):
            got = getattr(self, field)
            if not _is_integer(got) or not 0 <= got < vocab:
                raise ConfigError(f"{field}: got {got!r}, wanted 0 <= id < {vocab}")
        if self.suppressed is None:
            return
        allowed = range(self.target_vocab_size)
        if not all(_is_integer(token) and token in allowed and token != self.eos_id for token in self.suppressed):
            wanted = f"ids below {self.target_vocab_size}, not the end token {self.eos_id}"
            raise ConfigError(f"suppressed: got {self.suppressed!r}, wanted {wanted}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.heads

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Target tokens that a search never selects, ascending."""
        if self.suppressed is not None:
            return tuple(sorted(set(self.suppressed)))
        usual = {self.pad_id, self.unk_id, self.start_id} - {self.eos_id}
        return tuple(sorted(token for token in usual if token < self.target_vocab_size))

    @property
    def architecture(self) -> str:
        """Short name such as ``transformer-6x512``; unequal depths stand as ``transformer-12+3x512``."""
        depth = (
            f"{self.encoder_layers}"
            if self.encoder_layers == self.decoder_layers
            else f"{self.encoder_layers}+{self.decoder_layers}"
        )
        return f"{self.family}-{depth}x{self.d_model}"

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
        suppressed = fields.get("suppressed")
        if suppressed is not None and not isinstance(suppressed, (list, tuple)):
            raise ConfigError(f"suppressed: got {suppressed!r}, wanted a list of ids")
        return cls(**{**fields, "suppressed": None if suppressed is None else tuple(suppressed)})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            name: value.value if isinstance(value, StrEnum) else list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
