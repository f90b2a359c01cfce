"""The ``ort`` flavour: contrib operators of ONNX Runtime, for the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from onnx import TensorProto

from export.contract import FlavourName, GraphContract, ModelDimensions, ort_step_contract
from export.graphs.attention import scale_of
from export.graphs.builder import MICROSOFT, ORT_OPSETS, GraphBuilder, Opsets
from export.graphs.description import ModelDescription
from export.graphs.flavour import PARTS
from export.graphs.numbers.format import NumberFormat, ShortlistedFormat

_INPUTS_BEFORE_SCALES = 5  # of rotary embeddings, bias and sinks, which these models do not have
_PER_TENSOR: dict[str, Any] = {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}


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

    def step_contract(self, dims: ModelDimensions) -> GraphContract:
        """Inputs and outputs of its step."""
        return ort_step_contract(dims, self.numbers.cache_dtype)

    def step_attention(self, graph: GraphBuilder, model: ModelDescription) -> OrtStepAttention:
        """GroupQueryAttention that updates the caches it attends to."""
        return OrtStepAttention(graph, model, numbers=self.numbers)

    def swish(self, graph: GraphBuilder, x: str) -> str:
        """One operator of ONNX Runtime's own."""
        return graph.op("QuickGelu", x, domain=MICROSOFT, alpha=1.0)


class OrtStepAttention:
    """GroupQueryAttention over caches whose past and present are one buffer; rows are ragged at no cost."""

    def __init__(self, graph: GraphBuilder, model: ModelDescription, *, numbers: NumberFormat) -> None:
        self._graph = graph
        self._numbers = numbers
        heads = model.dims.heads
        self._operator = {"domain": MICROSOFT, "num_heads": heads, "kv_num_heads": heads, **scale_of(model)}
        self._width = model.dims.attention_width
        self._positions = graph.op("Cast", "positions", to=TensorProto.INT32)
        self._last_source = graph.op("Sub", "source_lengths", graph.constant(1, np.int32))
        self._nothing = ""  # keys and values of no token

    def attend_self(self, layer: int, query_key_value: str) -> str:
        """Append to the row's own cache and attend to it: [rows, 3 * attention_width] -> [rows, attention_width]."""
        caches = (f"past_key_{layer}", f"past_value_{layer}")
        return self._attend(
            (self._apart(query_key_value, 3 * self._width), "", "", *caches, self._positions, "longest_target"),
            present=(f"present_key_{layer}", f"present_value_{layer}"),
            scales=self._scales(f"decoder.{layer}.self_attention"),
        )

    def attend_cross(self, layer: int, query: str) -> str:
        """Attend to the row's source: [rows, attention_width] -> [rows, attention_width]."""
        graph, query = self._graph, self._apart(query, self._width)
        if not self._nothing:
            none, places = graph.constant([0]), graph.constant([1])
            self._nothing = graph.op("Slice", query, none, none, places)
        caches = (f"cross_key_{layer}", f"cross_value_{layer}")
        return self._attend(
            (query, self._nothing, self._nothing, *caches, self._last_source, "longest_source"),
            present=(f"cross_present_key_{layer}", f"cross_present_value_{layer}"),
            scales=self._scales(f"decoder.{layer}.cross_attention"),
        )

    def _apart(self, x: str, width: int) -> str:
        """[rows, 1, width], as the operator wants it."""
        return self._graph.op("Reshape", x, self._graph.constant([-1, 1, width])) if self._numbers.flat else x

    def _scales(self, attention: str) -> tuple[str, ...]:
        """Scales of the caches of keys and values, float32 [1]; none where they hold float32."""
        scales = (self._numbers.cache_scale(f"{attention}.{part}") for part in PARTS)
        return tuple(self._graph.constant([scale], np.float32) for scale in scales if scale is not None)

    def _attend(self, inputs: tuple[str, ...], *, present: tuple[str, str], scales: tuple[str, ...]) -> str:
        attended, _, _ = self._graph.ops(
            "GroupQueryAttention",
            (*inputs, *[""] * _INPUTS_BEFORE_SCALES, *scales) if scales else inputs,
            outputs=(None, *present),
            **self._operator,
            **(_PER_TENSOR if scales else {}),
        )
        flat = self._graph.constant([-1, self._width])
        return self._graph.op("Reshape", attended, flat) if self._numbers.flat else attended
