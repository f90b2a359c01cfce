"""The ``standard`` flavour: operators of ONNX itself, opset 24, for runtimes on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from export.contract import FlavourName, GraphContract, ModelDimensions, reorder_contract, standard_step_contract
from export.graphs.attention import scale_of, unpadded
from export.graphs.builder import STANDARD_OPSETS, GraphBuilder, Opsets
from export.graphs.description import ModelDescription
from export.graphs.flavour import PARTS
from export.graphs.numbers.format import NumberFormat


@dataclass(frozen=True)
class StandardFlavour:
    """Graphs for any runtime that knows opset 24; implements ``export.graphs.flavour.Flavour``.

    Attributes:
        name: as folders of graphs are called.
        opsets: the operators that its graphs may use.
        numbers: how its graphs multiply matrices and keep their caches; nothing that only ONNX Runtime can do.
    """

    name: ClassVar[FlavourName] = "standard"
    opsets: ClassVar[Opsets] = STANDARD_OPSETS
    numbers: NumberFormat

    def step_contract(self, dims: ModelDimensions) -> GraphContract:
        """Inputs and outputs of its step."""
        return standard_step_contract(dims, self.numbers.cache_dtype)

    def reorder_contract(self, dims: ModelDimensions) -> GraphContract:
        """Inputs and outputs of its reorder of caches."""
        return reorder_contract(dims, self.numbers.cache_dtype)

    def step_attention(self, graph: GraphBuilder, model: ModelDescription) -> StandardStepAttention:
        """Attention over caches that TensorScatter updates."""
        return StandardStepAttention(graph, model)

    def swish(self, graph: GraphBuilder, x: str) -> str:
        """As opset 24 defines its Swish, in two operators that every runtime has a kernel of."""
        return graph.op("Mul", x, graph.op("Sigmoid", x))


class StandardStepAttention:
    """Attention over whole caches; TensorScatter writes a row's new key and value where the row stands.

    A cache that goes in as past and the one that comes out as present may be one buffer. Cross caches are only read.
    """

    def __init__(self, graph: GraphBuilder, model: ModelDescription) -> None:
        dims = model.dims
        self._graph = graph
        self._operator = scale_of(model)
        self._heads, self._head_dim = dims.heads, dims.head_dim
        own_lengths = graph.op("Add", "positions", graph.constant(1))
        self._own = unpadded(own_lengths)
        self._cross = unpadded("source_lengths")

    def attend_self(self, layer: int, query_key_value: str) -> str:
        """Append to the row's own cache and attend to it: [rows, 3 * attention_width] -> [rows, attention_width]."""
        graph = self._graph
        packed = graph.op("Reshape", query_key_value, graph.constant([-1, 3 * self._heads, 1, self._head_dim]))
        query, *new = graph.ops("Split", (packed,), outputs=(None, None, None), axis=1, num_outputs=3)
        present = [
            graph.op(
                "TensorScatter",
                f"past_{part}_{layer}",
                values,
                "positions",
                output=f"present_{part}_{layer}",
                axis=-2,
                mode="linear",
            )
            for part, values in zip(PARTS, new, strict=True)
        ]
        return self._attend(query, *present, *self._own)

    def attend_cross(self, layer: int, query: str) -> str:
        """Attend to the row's source: [rows, attention_width] -> [rows, attention_width]."""
        apart = self._graph.op("Reshape", query, self._graph.constant([-1, self._heads, 1, self._head_dim]))
        return self._attend(apart, f"cross_key_{layer}", f"cross_value_{layer}", *self._cross)

    def _attend(self, *inputs: str) -> str:
        attended = self._graph.op("Attention", *inputs, **self._operator)
        return self._graph.op("Reshape", attended, self._graph.constant([-1, self._heads * self._head_dim]))
