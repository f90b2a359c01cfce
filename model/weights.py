"""Tensors of a file into a model: every one that is missing, unexpected or misshapen is named."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from model.config import Positions, TransformerConfig
from model.transformer import Transformer
from model.weight_files import CheckpointError

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FLOAT_NAMES = "float16, bfloat16, float32 or float64"


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
    known = {place.key for place in places.values()}.union(copies, tables)
    strange = {key: fault for key in known & set(stored) if (fault := _strange(stored[key]))}
    plain = {key: tensor for key, tensor in stored.items() if key not in strange}
    faults = [f"unexpected {key} {_shape(stored[key])}" for key in set(stored) - known - set(passed_over)]
    faults += [f"{key}: {fault}" for key, fault in strange.items()]
    faults += _misfits(plain, {name: wanted[name] for name in wanted if places[name].key not in strange}, places)
    faults += [*_different_copies(plain, copies), *_different_tables(plain, tables)]
    if faults:
        listed = _printable("; ".join(sorted(set(faults))))
        raise CheckpointError(f"{where} does not fit its configuration: {listed}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            place = places[name]
            if place.key in stored:
                tensor.copy_(place.take(stored[place.key]))
            else:
                tensor.zero_()


def check_size(config: TransformerConfig, stored: Mapping[str, Tensor], *, where: str) -> None:
    """Hold that a file can hold a model of this size at all, before one of that size is built.

    Raises:
        CheckpointError: a size is far beyond what the file holds.
    """
    layers = config.encoder_layers + config.decoder_layers
    if layers > len(stored):
        raise CheckpointError(
            f"{where}: encoder_layers + decoder_layers: got {layers}, but {len(stored)} tensors in all"
        )
    held = sum(tensor.numel() for tensor in stored.values() if tensor.layout is torch.strided)
    matrices = {
        "source_vocab_size * d_model": config.source_vocab_size * config.d_model,
        "target_vocab_size * d_model": config.target_vocab_size * config.d_model,
        "ffn_dim * d_model": config.ffn_dim * config.d_model,
        "d_model * d_model": config.d_model * config.d_model,
    }
    if config.positions is Positions.LEARNED:
        matrices["max_positions * d_model"] = config.max_positions * config.d_model
    for name, size in matrices.items():
        if size > held:
            raise CheckpointError(f"{where}: {name}: got {size}, but {held} weights in all")


def _strange(tensor: Tensor) -> str:
    """What keeps a tensor from being read as plain floating-point numbers; empty: nothing."""
    kinds = []
    if tensor.is_nested or tensor.layout is not torch.strided:
        kinds.append("nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch."))
    if tensor.device.type != "cpu":
        kinds.append(f"on {tensor.device}")
    if tensor.dtype not in _FLOATS:
        kinds.append(str(tensor.dtype).removeprefix("torch."))
    return f"got {', '.join(kinds)}, wanted plain {_FLOAT_NAMES}" if kinds else ""


def _misfits(stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor], places: Mapping[str, Origin]) -> Iterator[str]:
    for name, tensor in wanted.items():
        place = places[name]
        shape = place.shape_there(tensor.shape)
        if place.key not in stored:
            if not place.zeros_if_missing:
                yield f"missing {place.key}, wanted {shape}"
            continue
        got = stored[place.key]
        if list(got.shape) != shape:
            yield f"{place.key}: got {list(got.shape)}, wanted {shape}"
        elif not bool(got.to(tensor.dtype).isfinite().all()):
            yield f"{place.key}: got values that are not finite"


def _shape(tensor: Tensor) -> str:
    return "nested" if tensor.is_nested else str(list(tensor.shape))


def _printable(text: str) -> str:
    """``text`` without line breaks and terminal codes that stood in a file."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _different_copies(stored: Mapping[str, Tensor], copies: Mapping[str, str]) -> Iterator[str]:
    for key, original in copies.items():
        both = key in stored and original in stored
        if both and not torch.equal(stored[key].float(), stored[original].float()):
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
