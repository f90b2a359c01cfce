"""Files of weights, read without ever running what is in them: safetensors, and what ``torch.save`` wrote."""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

SAFETENSORS_SUFFIX = ".safetensors"
_HF_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# What the readers of damaged archives and pickles raise.
_DAMAGED = (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


class CheckpointError(ValueError):
    """A checkpoint is missing, unreadable or does not fit its own configuration."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of one file: safetensors by its suffix, anything else as ``torch.save`` wrote it.

    Raises:
        CheckpointError: it cannot be read, is cut short, or holds anything but tensors by name.
    """
    if path.suffix == SAFETENSORS_SUFFIX:
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: {_one_line(error)}") from error
    values = read_saved(path)
    if not isinstance(values, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in values.items()
    ):
        raise CheckpointError(f"{path}: got {_describe(values)}, wanted tensors by name")
    return dict(values)


def read_saved(path: Path) -> Any:
    """What ``torch.save`` wrote, as far as it is tensors and plain values.

    Raises:
        CheckpointError: it cannot be read, or would have to run code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols that torch.save itself does not write
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks for {asked.group(1)}, which may run code" if asked else "is no plain file of tensors"
        raise CheckpointError(f"{path}: {what}; wanted tensors only") from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        struct.error,
        ValueError,
        KeyError,
        AttributeError,
        IndexError,
        TypeError,
    ) as error:
        # What the readers of damaged archives and pickles raise.
        raise CheckpointError(f"{path}: damaged: {_one_line(error)}") from error


def read_directory(directory: Path) -> dict[str, Tensor]:
    """The tensors of a Hugging Face directory, in one file or several; safetensors come before ``.bin``.

    Raises:
        CheckpointError: there are none, or a file cannot be read.
    """
    for name in _HF_FILES:
        path = directory / name
        if path.is_file():
            return _read_shards(path) if path.suffix == ".json" else read_weights(path)
    raise CheckpointError(f"{directory}: got no weights, wanted one of {', '.join(_HF_FILES)}")


def is_file_name(text: str) -> bool:
    """Whether ``text`` names a file beside the one it stands in, and no other place."""
    return text not in ("", ".", "..") and Path(text).name == text


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(files.values()))
        plain = all(map(is_file_name, names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: got no weight_map of tensor names and file names") from error
    if not plain:
        raise CheckpointError(f"{index}: got {names}, wanted names of files beside it")
    stored: dict[str, Tensor] = {}
    for name in names:
        stored |= read_weights(index.parent / name)
    lost = sorted(set(files) - set(stored))
    if lost:
        raise CheckpointError(f"{index}: its files lack {', '.join(lost)}")
    return stored


def _describe(values: object) -> str:
    if not isinstance(values, dict):
        return type(values).__name__
    others = sorted(
        {f"{key}: {type(value).__name__}" for key, value in values.items() if not isinstance(value, Tensor)}
    )
    return f"entries that are no tensors ({', '.join(others[:5])})"


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
