"""Tensors of a file into a model: every one that is missing, unexpected or misshapen is named.

Files are read as safetensors, or by ``torch.load`` with ``weights_only``: nothing in them is ever executed.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Size, Tensor

from model.transformer import Transformer

SAFETENSORS_SUFFIX = ".safetensors"
_HF_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


class CheckpointError(ValueError):
    """A checkpoint is missing, unreadable or does not fit its own configuration."""


@dataclass(frozen=True)
class Origin:
    """Where one of our tensors stands in another toolkit's file.

    Attributes:
        key: its name there.
        skip: rows to pass over, as of position tables that begin with unused positions.
        part: (number, of how many) equal parts along the first axis, as of packed projections.
        row: whether it stands there as a matrix of one row.
        zeros_if_missing: whether it may be absent and then is zero.
    """

    key: str
    skip: int = 0
    part: tuple[int, int] = (0, 1)
    row: bool = False
    zeros_if_missing: bool = False

    def shape_there(self, ours: Size) -> list[int]:
        """The shape of the other tensor, where ours is ``ours``."""
        if self.row:
            return [1, *ours]
        return [ours[0] * self.part[1] + self.skip, *ours[1:]]

    def take(self, theirs: Tensor) -> Tensor:
        """Our tensor, out of theirs."""
        if self.row:
            return theirs[0]
        return theirs[self.skip :].chunk(self.part[1])[self.part[0]]


def unique_parameters(model: Transformer) -> dict[str, Tensor]:
    """The parameters by name, each tied matrix once, under its first name in sorted order."""
    seen: set[int] = set()
    unique: dict[str, Tensor] = {}
    for name, tensor in sorted(model.named_parameters(remove_duplicate=False)):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor.detach()
    return unique


def copy_weights(
    model: Transformer,
    stored: Mapping[str, Tensor],
    *,
    where: str,
    origins: Mapping[str, Origin] | None = None,
    passed_over: Collection[str] = (),
    copies: Mapping[str, str] | None = None,
    tables: Mapping[str, Tensor] | None = None,
) -> None:
    """Copy tensors into ``model``, in the model's own dtype.

    Args:
        model: its parameters are overwritten.
        stored: the file's tensors by their names there.
        where: names the file in messages.
        origins: for each of our parameters where it stands in the file; None: under our own name.
        passed_over: names in the file that may be there and are not needed.
        copies: names in the file that may be there, each with the name of the tensor it must equal.
        tables: names in the file that may be there, each with the values it must hold.

    Raises:
        CheckpointError: a tensor is missing, unexpected, misshapen, not finite or not what it must equal; all are
            listed.
    """
    copies, tables = copies or {}, tables or {}
    wanted = unique_parameters(model)
    places = {name: Origin(name) if origins is None else origins[name] for name in wanted}
    faults = []
    for name, tensor in wanted.items():
        place = places[name]
        shape = place.shape_there(tensor.shape)
        if place.key not in stored:
            faults += [] if place.zeros_if_missing else [f"missing {place.key}, wanted {shape}"]
        elif list(stored[place.key].shape) != shape:
            faults.append(f"{place.key}: got {list(stored[place.key].shape)}, wanted {shape}")
        elif not bool(stored[place.key].isfinite().all()):
            faults.append(f"{place.key}: got values that are not finite")
    known = {place.key for place in places.values()}.union(passed_over, copies, tables)
    faults += [f"unexpected {key} {list(stored[key].shape)}" for key in stored if key not in known]
    faults += [*_different_copies(stored, copies), *_different_tables(stored, tables)]
    if faults:
        raise CheckpointError(f"{where} does not fit its configuration: {'; '.join(sorted(set(faults)))}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            place = places[name]
            if place.key in stored:
                tensor.copy_(place.take(stored[place.key]))
            else:
                tensor.zero_()


def _different_copies(stored: Mapping[str, Tensor], copies: Mapping[str, str]) -> Iterator[str]:
    for key, original in copies.items():
        if key in stored and original in stored and not torch.equal(stored[key], stored[original]):
            yield f"{key}: got values of its own, wanted those of {original}, to which the configuration ties it"


def _different_tables(stored: Mapping[str, Tensor], tables: Mapping[str, Tensor]) -> Iterator[str]:
    for key, wanted in tables.items():
        if key not in stored:
            continue
        got = stored[key]
        if got.shape != wanted.shape:
            yield f"{key}: got {list(got.shape)}, wanted {list(wanted.shape)}"
        elif not torch.allclose(got.float(), wanted, atol=1e-5 if got.dtype == torch.float32 else 1e-2):
            yield f"{key}: got other values than the fixed ones of this family"


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
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
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


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(files.values()))
        plain = all(name and Path(name).name == name and name != ".." for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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
