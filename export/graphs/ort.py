"""The ``ort`` flavour: contrib operators of ONNX Runtime, for the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from export.contract import FlavourName, GraphContract, ModelDimensions, ort_encoder_contract, ort_step_contract
from export.graphs.attention import OrtEncoderAttention, OrtStepAttention
from export.graphs.builder import MICROSOFT, ORT_OPSETS, GraphBuilder, Opsets
from export.graphs.description import ModelDescription
from export.graphs.numbers.format import ShortlistedFormat


@dataclass(frozen=True)
class OrtFlavour:
    """Graphs that ONNX Runtime executes fastest; implements ``export.graphs.flavour.Flavour``.

    Attributes:
        name: as folders of graphs are called.
        opsets: the operators that its graphs may use.
        numbers: how its graphs multiply matrices and keep their caches.
    """

    name: ClassVar[FlavourName] = "ort"
    opsets: ClassVar[Opsets] = ORT_OPSETS
    numbers: ShortlistedFormat

    def encoder_contract(self, dims: ModelDimensions) -> GraphContract:
        """Inputs and outputs of its encoder."""
        return ort_encoder_contract(dims, self.numbers.cache_dtype)

    def step_contract(self, dims: ModelDimensions) -> GraphContract:
        """Inputs and outputs of its step."""
        return ort_step_contract(dims, self.numbers.cache_dtype)

    def encoder_attention(self, graph: GraphBuilder, model: ModelDescription) -> OrtEncoderAttention:
        """GroupQueryAttention, not causal."""
        return OrtEncoderAttention(graph, model, numbers=self.numbers)

    def step_attention(self, graph: GraphBuilder, model: ModelDescription) -> OrtStepAttention:
        """GroupQueryAttention that updates the caches it attends to."""
        return OrtStepAttention(graph, model, numbers=self.numbers)

    def swish(self, graph: GraphBuilder, x: str) -> str:
        """One operator of ONNX Runtime's own."""
        return graph.op("QuickGelu", x, domain=MICROSOFT, alpha=1.0)
