"""Checkpoints: a directory of ``config.json``, ``model.safetensors`` and ``tokenizer/``.

Nothing is ever unpickled. Tied matrices are stored once.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model.config import ConfigError, TransformerConfig
from model.tokenizer import Tokenizer
from model.transformer import Transformer
from model.weight_files import CheckpointError, read_weights
from model.weights import check_size, copy_weights, unique_parameters

__all__ = ["Checkpoint", "CheckpointError", "ModelCard", "check_vocabulary", "load_checkpoint", "save_checkpoint"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FOLDER = "tokenizer"
_CODE = re.compile(r"[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a checkpoint says of itself beside its shape.

    Attributes:
        name: lower-case model name.
        source_languages: BCP-47 codes.
        target_languages: BCP-47 codes.
        license_note: licence of the weights and of the data they were trained on.
        decoding: defaults of the search, names as in the wire contract's DecodingConfig.
    """

    name: str
    source_languages: tuple[str, ...]
    target_languages: tuple[str, ...]
    license_note: str = ""
    decoding: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Hold what a bundle will be held to, before hours of training."""
        values: dict[str, Any] = vars(self)  # as YAML and JSON gave them
        if not isinstance(values["name"], str) or not _NAME.fullmatch(values["name"]):
            raise ConfigError(f"name: got {self.name!r}, wanted lower-case letters, digits and . _ - as in en-de")
        for name in ("source_languages", "target_languages"):
            codes = values[name]
            fits = isinstance(codes, tuple) and all(isinstance(code, str) and _CODE.fullmatch(code) for code in codes)
            if not fits or not codes or len(set(codes)) < len(codes):
                raise ConfigError(f"{name}: got {codes!r}, wanted at least one code like en or zh-Hant, none twice")
        if not isinstance(values["license_note"], str):
            raise ConfigError(f"license_note: got {self.license_note!r}, wanted a text")
        if not isinstance(values["decoding"], dict):
            raise ConfigError(f"decoding: got {self.decoding!r}, wanted a mapping")


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with its tokenizer, ready to decode or to export."""

    model: Transformer
    tokenizer: Tokenizer
    card: ModelCard


def save_checkpoint(directory: Path, checkpoint: Checkpoint, *, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint directory.

    Args:
        directory: what it holds of a checkpoint is replaced.
        checkpoint: what to write.
        dtype: weights are rounded to it; None: to float16 where that changes nothing, else kept as they are.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (_narrowed(tensor) if dtype is None else tensor.to(dtype)).contiguous()
        for name, tensor in unique_parameters(checkpoint.model).items()
    }
    save_file(weights, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    card = checkpoint.card
    config = {
        "transformer": checkpoint.model.config.to_dict(),
        "name": card.name,
        "source_languages": list(card.source_languages),
        "target_languages": list(card.target_languages),
        "license_note": card.license_note,
        "decoding": card.decoding,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    checkpoint.tokenizer.save(directory / TOKENIZER_FOLDER)


def _narrowed(tensor: torch.Tensor) -> torch.Tensor:
    narrow = tensor.to(torch.float16)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def check_vocabulary(tokenizer: Tokenizer, config: TransformerConfig, *, where: str) -> None:
    """Hold that every id a tokenizer gives has an embedding. A model may have more, which no text ever gives.

    Raises:
        CheckpointError: the tokenizer has more tokens than the model.
    """
    for name, got, wanted in (
        ("source", tokenizer.vocab_size, config.source_vocab_size),
        ("target", tokenizer.target_vocab_size, config.target_vocab_size),
    ):
        if got > wanted:
            raise CheckpointError(f"{where}: tokenizer has {got} tokens, wanted at most {name}_vocab_size = {wanted}")


def _codes(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def load_checkpoint(directory: Path) -> Checkpoint:
    """Read a checkpoint directory; the model comes in float32 and in eval mode.

    Raises:
        CheckpointError: a file is missing or unreadable, or the parts do not fit each other.
    """
    path = directory / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        transformer = TransformerConfig.from_dict(config["transformer"])
        card = ModelCard(
            name=config["name"],
            source_languages=_codes(config["source_languages"]),
            target_languages=_codes(config["target_languages"]),
            license_note=config["license_note"],
            decoding=config["decoding"],
        )
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise CheckpointError(f"{path}: missing field {error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    tokenizer = Tokenizer.load(directory / TOKENIZER_FOLDER)
    check_vocabulary(tokenizer, transformer, where=str(directory))
    weights = directory / WEIGHTS_FILE
    stored = read_weights(weights)
    check_size(transformer, stored, where=str(weights))
    model = Transformer(transformer)
    copy_weights(model, stored, where=str(weights))
    return Checkpoint(model.eval(), tokenizer, card)
