"""The ``standard`` flavour: operators of ONNX itself, opset 24, for runtimes on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from export.contract import (
    FlavourName,
    GraphContract,
    ModelDimensions,
    reorder_contract,
    standard_encoder_contract,
    standard_step_contract,
)
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

    def encoder_contract(self, dims: ModelDimensions) -> GraphContract:
        """Inputs and outputs of its encoder."""
        return standard_encoder_contract(dims, self.numbers.cache_dtype)

    def step_contract(self, dims: ModelDimensions) -> GraphContract:
        """Inputs and outputs of its step."""
        return standard_step_contract(dims, self.numbers.cache_dtype)

    def reorder_contract(self, dims: ModelDimensions) -> GraphContract:
        """Inputs and outputs of its reorder of caches."""
        return reorder_contract(dims, self.numbers.cache_dtype)

    def encoder_attention(self, graph: GraphBuilder, model: ModelDescription) -> StandardEncoderAttention:
        """Attention over a batch of sources."""
        return StandardEncoderAttention(graph, model)

    def step_attention(self, graph: GraphBuilder, model: ModelDescription) -> StandardStepAttention:
        """Attention over caches that TensorScatter updates."""
        return StandardStepAttention(graph, model)

    def swish(self, graph: GraphBuilder, x: str) -> str:
        """As opset 24 defines its Swish, in two operators that every runtime has a kernel of."""
        return graph.op("Mul", x, graph.op("Sigmoid", x))


class StandardEncoderAttention:
    """Attention over sources that are padded to the longest of the batch.

    Positions beyond a source's length attend too, to what is within; nobody reads what comes of it.
    """

    def __init__(self, graph: GraphBuilder, model: ModelDescription) -> None:
        dims = model.dims
        self._graph = graph
        # heads stay side by side: the operator takes them apart itself
        self._operator = {"q_num_heads": dims.heads, "kv_num_heads": dims.heads, **_scale(model)}
        self._width = dims.attention_width
        self._packed_shape = graph.op("Concat", graph.op("Shape", "tokens"), graph.constant([3 * self._width]), axis=0)
        self._unpadded = _unpadded("lengths")

    def attend(self, query_key_value: str) -> str:
        """[batch * src_len, 3 * attention_width] -> [batch * src_len, attention_width]."""
        graph = self._graph
        packed = graph.op("Reshape", query_key_value, self._packed_shape)
        parts = graph.ops("Split", (packed,), outputs=(None, None, None), axis=-1, num_outputs=3)
        attended = graph.op("Attention", *parts, *self._unpadded, **self._operator)
        return graph.op("Reshape", attended, graph.constant([-1, self._width]))

    def keep(self, memory: str) -> None:
        """Give out all cross-attention keys and values: [batch, src_len, 2 * layers, heads, head_dim]."""
        self._graph.op("Transpose", memory, perm=[2, 0, 3, 1, 4], output="cross")


class StandardStepAttention:
    """Attention over whole caches; TensorScatter writes a row's new key and value where the row stands.

    A cache that goes in as past and the one that comes out as present may be one buffer. Cross caches are only read.
    """

    def __init__(self, graph: GraphBuilder, model: ModelDescription) -> None:
        dims = model.dims
        self._graph = graph
        self._operator = _scale(model)
        self._heads, self._head_dim = dims.heads, dims.head_dim
        own_lengths = graph.op("Add", "positions", graph.constant(1))
        self._own = _unpadded(own_lengths)
        self._cross = _unpadded("source_lengths")

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


def _scale(model: ModelDescription) -> dict[str, Any]:
    """None: the operator's own, by the width of a head."""
    return {} if model.attention_scale is None else {"scale": model.attention_scale}


def _unpadded(lengths: str) -> tuple[str, ...]:
    """What Attention takes after query, key and value so that each row attends to its first ``lengths`` keys."""
    no_mask, no_past_key, no_past_value = "", "", ""
    return no_mask, no_past_key, no_past_value, lengths
