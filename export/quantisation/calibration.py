"""Calibration: the Transformer in PyTorch reads sentences; inputs of matrix products, keys and values are watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.errors import ExportError
from export.quantisation.ranges import MEMORY, Calibration, Histogram
from model.transformer import Transformer

_Sentence = tuple[Sequence[int], Sequence[int]]


class _Tensor(NamedTuple):
    """A tensor that is watched: what goes into a layer of the graphs, or what comes out of a projection."""

    layer: str
    kind: Literal["input", "output"]


_Watch = Callable[[_Tensor, NDArray[np.float32]], None]
# The graphs compute projections of one input together; their input is measured at one of them.
_TOGETHER = {"self_attention.query": "self_attention.query_key_value"}
_LEFT_OUT = ("self_attention.key", "self_attention.value", "cross_attention.key", "cross_attention.value")
_OF_MEMORY = "decoder.0.cross_attention.key"
_CACHED = tuple(f"{attention}_attention.{part}" for attention in ("self", "cross") for part in ("key", "value"))


def calibrate(
    model: Transformer, sentences: Sequence[_Sentence], *, on_sentence: Callable[[], object] = lambda: None
) -> Calibration:
    """Measure the range of every matrix product's input, and of every key and value that is kept.

    Sources are encoded and outputs teacher-forced twice: for the smallest and largest value of each tensor, then for
    how often each value came.

    Args:
        model: in eval mode.
        sentences: at least one; token ids of a source, end token included, and of an output, end token excluded.
        on_sentence: called as each sentence has been read, twice for each.

    Raises:
        ExportError: there is no sentence, or a value is not finite; the message names the layer.
    """
    if not sentences:
        raise ExportError("calibration: got no sentence, wanted at least one")
    bounds: dict[_Tensor, tuple[float, float]] = {}

    def widen(tensor: _Tensor, values: NDArray[np.float32]) -> None:
        low, high = float(values.min()), float(values.max())
        if not np.isfinite((low, high)).all():
            raise ExportError(
                f"{tensor.layer}: got an {tensor.kind} from {low} to {high} in calibration, wanted finite numbers"
            )
        lowest, highest = bounds.get(tensor, (low, high))
        bounds[tensor] = min(low, lowest), max(high, highest)

    _read(model, sentences, widen, on_sentence)
    histograms = {tensor: Histogram(low=low, high=high) for tensor, (low, high) in bounds.items()}
    _read(model, sentences, lambda tensor, values: histograms[tensor].add(values), on_sentence)
    found = histograms.items()
    return Calibration(
        inputs={tensor.layer: histogram.activation_range() for tensor, histogram in found if tensor.kind == "input"},
        caches={tensor.layer: histogram.cache_scale() for tensor, histogram in found if tensor.kind == "output"},
    )


@torch.no_grad()
def _read(model: Transformer, sentences: Sequence[_Sentence], watch: _Watch, on_sentence: Callable[[], object]) -> None:
    with _watched(model, watch):
        for source_ids, output_ids in sentences:
            source = torch.tensor([list(source_ids)])
            target = torch.tensor([[model.config.start_id, *output_ids]])
            model(source, target, source_mask=torch.ones_like(source, dtype=torch.bool))
            on_sentence()


@contextmanager
def _watched(model: Transformer, watch: _Watch) -> Iterator[None]:
    """Call ``watch`` with the input of every matrix product of the model and all that caches will hold."""
    handles = []
    for name, module in model.named_modules():
        for tensor in _watched_tensors(name) if isinstance(module, nn.Linear) else ():

            def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, tensor: _Tensor = tensor) -> None:
                watch(tensor, (inputs[0] if tensor.kind == "input" else output).numpy())

            handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watched_tensors(name: str) -> Iterator[_Tensor]:
    """What there is to watch at a matrix product of the model."""
    kind = ".".join(name.split(".")[-2:])
    if name == _OF_MEMORY:
        yield _Tensor(MEMORY, "input")
    if kind not in _LEFT_OUT:
        yield _Tensor(name.removesuffix(kind) + _TOGETHER.get(kind, kind), "input")
    if name.startswith("decoder.") and kind in _CACHED:
        yield _Tensor(name, "output")
