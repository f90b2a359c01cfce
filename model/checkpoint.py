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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import ConfigError, TransformerConfig
from model.tokenizer import Tokenizer
from model.transformer import Transformer

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FOLDER = "tokenizer"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


class CheckpointError(ValueError):
    """A checkpoint is missing, unreadable or does not fit its own configuration."""


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
            if not isinstance(codes, tuple) or not codes or not all(isinstance(code, str) and code for code in codes):
                raise ConfigError(f"{name}: got {codes!r}, wanted at least one code")
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


def unique_parameters(model: Transformer) -> dict[str, Tensor]:
    """The parameters by name, each tied matrix once, under its first name in sorted order."""
    seen: set[int] = set()
    unique: dict[str, Tensor] = {}
    for name, tensor in sorted(model.named_parameters(remove_duplicate=False)):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor.detach()
    return unique


def save_checkpoint(directory: Path, checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint directory; weights are rounded to ``dtype``."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to(dtype).contiguous() for name, tensor in unique_parameters(checkpoint.model).items()}
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


def _finite(tensor: Tensor | None) -> bool:
    return tensor is None or bool(tensor.isfinite().all())


def load_weights(model: Transformer, path: Path) -> None:
    """Copy the tensors of a safetensors file into ``model``, in the model's own dtype.

    Raises:
        CheckpointError: the file is unreadable, or a tensor is missing, unexpected, misshapen or not finite; all are
            listed.
    """
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    wanted = unique_parameters(model)
    faults = [f"missing {name}, wanted {list(wanted[name].shape)}" for name in sorted(set(wanted) - set(stored))]
    faults += [f"unexpected {name} {list(stored[name].shape)}" for name in sorted(set(stored) - set(wanted))]
    faults += [
        f"{name}: got {list(stored[name].shape)}, wanted {list(wanted[name].shape)}"
        for name in sorted(set(wanted) & set(stored))
        if stored[name].shape != wanted[name].shape
    ]
    faults += [f"{name}: got values that are not finite" for name in sorted(wanted) if not _finite(stored.get(name))]
    if faults:
        raise CheckpointError(f"{path} does not fit its configuration:\n  " + "\n  ".join(faults))
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(stored[name])


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
    if tokenizer.vocab_size != transformer.source_vocab_size:
        raise CheckpointError(
            f"{directory}: tokenizer has {tokenizer.vocab_size} tokens, "
            f"wanted source_vocab_size = {transformer.source_vocab_size}"
        )
    model = Transformer(transformer)
    load_weights(model, directory / WEIGHTS_FILE)
    return Checkpoint(model.eval(), tokenizer, card)
