"""Attention of the ``ort`` flavour: GroupQueryAttention of ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from export.contract import ModelDimensions
from export.graphs.builder import MICROSOFT, GraphBuilder
from export.graphs.number_format import NumberFormat

_INPUTS_BEFORE_SCALES = 5  # of rotary embeddings, bias and sinks, which these models do not have
_PER_TENSOR: dict[str, Any] = {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}


class OrtEncoderAttention:
    """GroupQueryAttention, not causal: each source is attended to as long as it is, so padding costs nothing.

    Nothing beyond a source's length enters any sum, so a source's result cannot depend on its neighbours.
    """

    def __init__(self, graph: GraphBuilder, dims: ModelDimensions, *, scale: float | None) -> None:
        self._graph = graph
        self._operator = _operator(dims, scale)
        self._width = dims.attention_width
        one = graph.constant(1, np.int32)
        self._last_places = graph.op("Sub", "lengths", one)
        self._src_len = graph.op("Cast", graph.op("Shape", "tokens", start=1, end=2), to=TensorProto.INT32)
        self._packed_shape = graph.op("Concat", graph.op("Shape", "tokens"), graph.constant([3 * self._width]), axis=0)

    def attend(self, query_key_value: str) -> str:
        """[batch * src_len, 3 * attention_width] -> [batch * src_len, attention_width]."""
        graph = self._graph
        packed = graph.op("Reshape", query_key_value, self._packed_shape)
        attended, _, _ = graph.ops(
            "GroupQueryAttention",
            (packed, "", "", "", "", self._last_places, self._src_len),
            outputs=(None, None, None),
            **self._operator,
            causal=0,
        )
        return graph.op("Reshape", attended, graph.constant([-1, self._width]))


class OrtStepAttention:
    """GroupQueryAttention over caches whose past and present are one buffer; rows are ragged at no cost.

    Cross-attention appends the source's last key and value anew at their own place: the operator always appends, and
    this leaves the cache as it was.
    """

    def __init__(
        self, graph: GraphBuilder, dims: ModelDimensions, *, scale: float | None, numbers: NumberFormat
    ) -> None:
        self._graph = graph
        self._operator = _operator(dims, scale)
        self._numbers = numbers
        self._width = dims.attention_width
        self._positions = graph.op("Cast", "positions", to=TensorProto.INT32)
        self._last_source = graph.op("Sub", "source_lengths", graph.constant(1, np.int32))
        per_row = graph.op(
            "Reshape", graph.op("Cast", self._last_source, to=TensorProto.INT64), graph.constant([-1, 1, 1])
        )
        self._last_index = graph.op("Expand", per_row, graph.constant([1, dims.heads, 1]))

    def attend_self(self, layer: int, query_key_value: str) -> str:
        """Append to the row's own cache and attend to it: [rows, 3 * attention_width] -> [rows, attention_width]."""
        packed = self._graph.op("Reshape", query_key_value, self._graph.constant([-1, 1, 3 * self._width]))
        return self._attend(
            (packed, "", "", f"past_key_{layer}", f"past_value_{layer}", self._positions, "longest_target"),
            present=(f"present_key_{layer}", f"present_value_{layer}"),
            scales=self._scales(f"decoder.{layer}.self_attention"),
        )

    def attend_cross(self, layer: int, query: str) -> str:
        """Attend to the row's source: [rows, attention_width] -> [rows, attention_width]."""
        caches = (f"cross_key_{layer}", f"cross_value_{layer}")
        single = self._graph.op("Reshape", query, self._graph.constant([-1, 1, self._width]))
        scales = self._scales(f"decoder.{layer}.cross_attention")
        last = [self._last_of(cache, scale) for cache, scale in zip(caches, scales or ("", ""), strict=True)]
        return self._attend(
            (single, *last, *caches, self._last_source, "longest_source"),
            present=(f"cross_present_key_{layer}", f"cross_present_value_{layer}"),
            scales=scales,
        )

    def _scales(self, attention: str) -> tuple[str, str] | None:
        """Scales of the caches of keys and values, float32 [1]; None where they hold float32."""
        names = []
        for part in ("key", "value"):
            scale = self._numbers.cache_scale(f"{attention}.{part}")
            if scale is None:
                return None
            names.append(self._graph.constant([scale], np.float32))
        return names[0], names[1]

    def _last_of(self, cache: str, scale: str) -> str:
        """What a cache holds at each row's last source token: float32 [rows, 1, attention_width]."""
        gathered = self._graph.op("GatherND", cache, self._last_index, batch_dims=2)
        if scale:  # a multiple of the scale comes back as the level that it was
            gathered = self._graph.op("DequantizeLinear", gathered, self._graph.op("Squeeze", scale))
        return self._graph.op("Reshape", gathered, self._graph.constant([-1, 1, self._width]))

    def _attend(self, inputs: tuple[str, ...], *, present: tuple[str, str], scales: tuple[str, str] | None) -> str:
        attended, _, _ = self._graph.ops(
            "GroupQueryAttention",
            (*inputs, *[""] * _INPUTS_BEFORE_SCALES, *scales) if scales else inputs,
            outputs=(None, *present),
            **self._operator,
            **(_PER_TENSOR if scales else {}),
        )
        return self._graph.op("Reshape", attended, self._graph.constant([-1, self._width]))


def _operator(dims: ModelDimensions, scale: float | None) -> dict[str, Any]:
    """What every attention node has in common; no scale: the operator's own, by the width of a head."""
    common = {"domain": MICROSOFT, "num_heads": dims.heads, "kv_num_heads": dims.heads}
    return common if scale is None else {**common, "scale": scale}
