"""Calibration: the Transformer in PyTorch reads sentences, and the input of every matrix product is watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.errors import ExportError
from export.quantisation.ranges import ActivationRange, Histogram
from model.transformer import Transformer

_Sentence = tuple[Sequence[int], Sequence[int]]
_Watch = Callable[[str, NDArray[np.float32]], None]
_Hook = Callable[[nn.Module, tuple[Tensor, ...]], None]
# The graphs compute projections of one input together; their input is measured at one of them.
_TOGETHER = {
    "self_attention.query": "self_attention.query_key_value",
    "cross_attention.key": "cross_attention.key_value",
}
_LEFT_OUT = ("self_attention.key", "self_attention.value", "cross_attention.value")


def calibrate(
    model: Transformer, sentences: Sequence[_Sentence], *, on_sentence: Callable[[], object] = lambda: None
) -> dict[str, ActivationRange]:
    """Measure the range of every matrix product's input.

    Sources are encoded and outputs teacher-forced twice: for the smallest and largest value of each input, then for
    how often each value came.

    Args:
        model: in eval mode.
        sentences: at least one; token ids of a source, end token included, and of an output, end token excluded.
        on_sentence: called as each sentence has been read, twice for each.

    Returns:
        The range of each layer, by its name in the graphs.

    Raises:
        ExportError: there is no sentence, or an input is not finite; the message names the layer.
    """
    if not sentences:
        raise ExportError("calibration: got no sentence, wanted at least one")
    bounds: dict[str, tuple[float, float]] = {}

    def widen(layer: str, values: NDArray[np.float32]) -> None:
        low, high = float(values.min()), float(values.max())
        if not np.isfinite((low, high)).all():
            raise ExportError(f"{layer}: got an input from {low} to {high} in calibration, wanted finite numbers")
        lowest, highest = bounds.get(layer, (low, high))
        bounds[layer] = min(low, lowest), max(high, highest)

    _read(model, sentences, widen, on_sentence)
    histograms = {layer: Histogram(low=low, high=high) for layer, (low, high) in bounds.items()}
    _read(model, sentences, lambda layer, values: histograms[layer].add(values), on_sentence)
    return {layer: histogram.activation_range() for layer, histogram in histograms.items()}


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
    """Call ``watch`` with the name and the input of every matrix product of the model."""

    def hook(layer: str) -> _Hook:
        return lambda _, inputs: watch(layer, inputs[0].numpy())

    handles = [module.register_forward_pre_hook(hook(layer)) for layer, module in _layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: Transformer) -> Iterator[tuple[str, nn.Module]]:
    """Every matrix product, by its name in the graphs, with the module that sees its input."""
    for name, module in model.named_modules():
        kind = ".".join(name.split(".")[-2:])
        if isinstance(module, nn.Linear) and kind not in _LEFT_OUT:
            yield name.removesuffix(kind) + _TOGETHER.get(kind, kind), module
