"""The training recipe: one YAML file, read once into frozen records."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from model.checkpoint import ModelCard
from model.config import ConfigError

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


@dataclass(frozen=True, kw_only=True)
class OptimisationConfig:
    """How the weights are fitted.

    Attributes:
        seed: decides weights, dropout and the order of batches.
        batch_tokens: padded tokens of a batch on its longer side.
        max_length: sentence pairs longer than this on either side, in tokens, are left out.
        peak_learning_rate: reached after ``warmup_updates``, then decays with 1/sqrt(update).
        label_smoothing: probability mass spread over the whole vocabulary.
        clip_norm: largest gradient norm.
        max_updates: training ends here at the latest.
        validate_every: updates between validations; each also saves a checkpoint.
        patience: validations without a better BLEU before training stops.
        average_last: checkpoints averaged into the final one.
        bf16: autocast matrix products to bfloat16.
        checkpoint_dtype: ``float32`` or ``float16``, of the final checkpoint.

    Source: Vaswani et al. 2017, sections 5.3, 5.4 and 6.1.
    """

    seed: int = 1
    batch_tokens: int = 4096
    max_length: int = 128
    peak_learning_rate: float = 1e-3
    warmup_updates: int = 4000
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    max_updates: int = 100_000
    validate_every: int = 1000
    patience: int = 10
    average_last: int = 5
    bf16: bool = True
    checkpoint_dtype: str = "float32"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            got, kind = getattr(self, field.name), type(field.default)
            # A whole number is a fraction too; True is neither, though Python counts with it.
            if type(got) is not kind and not (kind is float and type(got) is int):
                hint = " (YAML wants 1.0e-3 for 1e-3)" if kind is float and isinstance(got, str) else ""
                raise ConfigError(f"{field.name}: got {got!r}, wanted {_KINDS[kind]}{hint}")
        for name in (
            "batch_tokens",
            "max_length",
            "warmup_updates",
            "max_updates",
            "validate_every",
            "average_last",
            "patience",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}, wanted at least 1")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(f"label_smoothing: got {self.label_smoothing}, wanted 0 <= label_smoothing < 1")
        for name in ("peak_learning_rate", "clip_norm"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: got {getattr(self, name)}, wanted a number above 0")
        if self.checkpoint_dtype not in ("float32", "float16"):
            raise ConfigError(f"checkpoint_dtype: got {self.checkpoint_dtype!r}, wanted float32 or float16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything ``dragoman train`` needs beside the data directory.

    Attributes:
        card: name, languages, licence note and decoding defaults of the model.
        vocab_size: tokens of the joint vocabulary.
        transformer: fields of TransformerConfig; the vocabulary sizes come from the tokenizer.
        optimisation: how the weights are fitted.
    """

    card: ModelCard
    vocab_size: int
    transformer: dict[str, Any]
    optimisation: OptimisationConfig


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        ConfigError: the file is missing, no YAML, or a field is unknown, missing or out of range.
    """
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path}: got {type(fields).__name__}, wanted a mapping")
    try:
        vocab_size = fields["tokenizer"]["vocab_size"]
        if type(vocab_size) is not int or vocab_size < 1:
            raise ConfigError(f"vocab_size: got {vocab_size!r}, wanted a whole number of at least 1")
        return Recipe(
            card=ModelCard(
                name=fields["name"],
                source_languages=(fields["source_language"],),
                target_languages=(fields["target_language"],),
                license_note=fields.get("license_note", ""),
                decoding=fields.get("decoding", {}),
            ),
            vocab_size=vocab_size,
            transformer=dict(fields["transformer"]),
            optimisation=_optimisation(fields["optimisation"]),
        )
    except KeyError as error:
        raise ConfigError(f"{path}: missing field {error}") from error
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _optimisation(fields: Mapping[str, Any]) -> OptimisationConfig:
    known = {field.name for field in dataclasses.fields(OptimisationConfig)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ConfigError(f"optimisation: unknown field {', '.join(unknown)}")
    return OptimisationConfig(**fields)
