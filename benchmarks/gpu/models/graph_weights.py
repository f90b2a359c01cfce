"""A model read back from its graphs, as ``export.graphs`` wrote them: in float32 every weight is what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from export.contract import ModelDimensions
from export.graphs.description import Attention, EmbeddingTables, Layer, Linear, ModelDescription, Norm, Weights
from export.graphs.flavour import memory_caches
from export.quantisation.ranges import MEMORY
from model.config import Activation

EPSILON = 1e-5
"""Of every norm of the models here."""


class GraphWeights:
    """The initializers of a folder's encoder and step, by name, in float32."""

    def __init__(self, folder: Path) -> None:
        """Read them; they lie in one file beside the graphs.

        Raises:
            FileNotFoundError: a graph or the weights are missing.
        """
        self._arrays: dict[str, NDArray[Any]] = {}
        for graph in ("encoder", "step"):
            model = onnx.load(str(folder / f"{graph}.onnx"), load_external_data=False)
            for tensor in model.graph.initializer:
                self._arrays[tensor.name] = numpy_helper.to_array(tensor, str(folder))

    def __getitem__(self, name: str) -> Weights:
        """The weight of this name; raises KeyError where there is none."""
        return np.asarray(self._arrays[name], np.float32)

    def linear(self, name: str) -> Linear:
        """A projection; a bias that is not there is None."""
        bias = f"{name}.bias"
        return Linear(self[f"{name}.weight"], self[bias] if bias in self._arrays else None)

    def split(self, name: str, parts: int) -> list[Linear]:
        """Projections that were stacked as one."""
        stacked = self.linear(name)
        assert stacked.bias is not None, f"{name}: got no bias"
        pairs = zip(np.split(stacked.weight, parts), np.split(stacked.bias, parts), strict=True)
        return [Linear(weight, bias) for weight, bias in pairs]

    def norm(self, name: str) -> Norm:
        """A layer normalisation."""
        return Norm(self[f"{name}.gain"], self[f"{name}.bias"], EPSILON)


def read_description(folder: Path, dims: ModelDimensions, *, suppressed_ids: tuple[int, ...]) -> ModelDescription:
    """The model of a folder of graphs, of either flavour, in fp32 or in 16 bits.

    Args:
        folder: with ``encoder.onnx``, ``step.onnx`` and ``weights.bin``.
        dims: sizes, as the bundle's manifest has them.
        suppressed_ids: tokens that heads never select, likewise.

    Returns:
        A post-norm model with ReLU whose embeddings are multiplied by sqrt(d_model), as all of ``specs.MODELS`` are.
    """
    weights = GraphWeights(folder)
    memory = weights.split(MEMORY, len(memory_caches(dims.decoder_layers)))
    return ModelDescription(
        dims=dims,
        activation=Activation.RELU,
        attention_scale=None,
        pre_norm=False,
        suppressed_ids=suppressed_ids,
        source=_embedding(weights, "source", dims),
        target=_embedding(weights, "target", dims),
        encoder=tuple(_layer(weights, f"encoder.{number}") for number in range(dims.encoder_layers)),
        decoder=tuple(
            _layer(weights, f"decoder.{number}", memory=(memory[2 * number], memory[2 * number + 1]))
            for number in range(dims.decoder_layers)
        ),
        encoder_norm=None,
        decoder_norm=None,
        output=weights.linear("output"),
    )


def _embedding(weights: GraphWeights, name: str, dims: ModelDimensions) -> EmbeddingTables:
    return EmbeddingTables(
        token=weights[f"{name}.token"],
        position=weights[f"{name}.position"],
        scale=float(dims.d_model) ** 0.5,
        norm=None,
    )


def _layer(weights: GraphWeights, name: str, *, memory: tuple[Linear, Linear] | None = None) -> Layer:
    query, key, value = weights.split(f"{name}.self_attention.query_key_value", 3)
    own = Attention(query, key, value, weights.linear(f"{name}.self_attention.output"))
    cross, cross_norm = None, None
    if memory is not None:
        cross_name = f"{name}.cross_attention"
        cross = Attention(weights.linear(f"{cross_name}.query"), *memory, weights.linear(f"{cross_name}.output"))
        cross_norm = weights.norm(f"{cross_name}.norm")
    return Layer(
        self_attention=own,
        self_attention_norm=weights.norm(f"{name}.self_attention.norm"),
        cross_attention=cross,
        cross_attention_norm=cross_norm,
        inner=weights.linear(f"{name}.feed_forward.inner"),
        outer=weights.linear(f"{name}.feed_forward.outer"),
        feed_forward_norm=weights.norm(f"{name}.feed_forward.norm"),
    )
