"""Rewrites a graph into the form that TensorRT takes; weights stay in their file, and are not read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

ATTENTION = "Attention"
MASK_INPUT, LENGTHS_INPUT = 3, 6
"""Places among the inputs of Attention."""

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def specialise(model: onnx.ModelProto, *, sizes: Mapping[str, int] | None = None) -> onnx.ModelProto:
    """A copy of ``model`` that TensorRT computes as it is meant.

    - Attention is told of padding by masks: TensorRT's parser passes over its lengths in silence, and attends to the
      padding too.
    - Attention in 16 bits becomes float32, between casts: TensorRT has no attribute for the precision of its softmax
      and may sum its products in 16 bits. Its compiler reads caches in 16 bits all the same: no wide copy is made.
    - Some sizes become numbers: a cache that is updated in place has a capacity that is known before.

    Args:
        model: a graph of the ``standard`` flavour.
        sizes: values of symbolic sizes of inputs and outputs, such as ``{"capacity": 128}``.

    Raises:
        ValueError: no input has a size of one of these names.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _fix_sizes(copy.graph, sizes or {})
    _rewrite_attention(copy.graph, types=element_types(model))
    return copy


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value of a graph that ONNX can tell, as ``TensorProto.DataType``."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    known = {value.name: value.type.tensor_type.elem_type for value in values}
    return known | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _fix_sizes(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> None:
    found = set()
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            name = size.dim_param
            if name in sizes:
                found.add(name)
                size.dim_value = sizes[name]  # of the two only one is ever set
    if missing := sorted(set(sizes) - found):
        raise ValueError(f"{graph.name}: got no input of a size called {', '.join(missing)}, wanted one")


def _rewrite_attention(graph: onnx.GraphProto, *, types: Mapping[str, int]) -> None:
    masks = _Masks(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != ATTENTION:
            nodes.append(node)
            continue
        if len(node.input) > LENGTHS_INPUT and node.input[LENGTHS_INPUT]:
            nodes.extend(masks.put(node))
        nodes.extend(_widened(node, types.get(node.input[0], TensorProto.UNDEFINED)))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _widened(node: onnx.NodeProto, element_type: int) -> Iterator[onnx.NodeProto]:
    """An Attention in 16 bits as one in float32 between casts; any other as it is."""
    if element_type not in _HALVES:
        yield node
        return
    for place, part in enumerate(("query", "key", "value")):
        wide = f"{node.name}_wide_{part}"
        yield helper.make_node("Cast", [node.input[place]], [wide], name=wide, to=TensorProto.FLOAT)
        node.input[place] = wide
    narrow, wide = node.output[0], f"{node.name}_wide"
    node.output[0] = wide
    yield node
    yield helper.make_node("Cast", [wide], [narrow], name=f"{node.name}_narrow", to=element_type)


class _Masks:
    """Writes masks, true where a key is before the end of its row: one for all nodes that share their lengths."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._made: dict[tuple[str, bool], str] = {}

    def put(self, attention: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Put a mask in the place of an Attention's lengths; returns the nodes that make it, none where it is there.

        Heads that lie side by side, in inputs of three dimensions, mean as many queries as tokens; else there is one.
        """
        lengths = attention.input[LENGTHS_INPUT]
        sequences = any(attribute.name == "q_num_heads" for attribute in attention.attribute)
        key = (lengths, sequences)
        written = []
        if key not in self._made:
            self._made[key] = f"unpadded_{lengths}"
            written = self._write(self._made[key], attention, lengths, sequences=sequences)
        attention.input[MASK_INPUT] = self._made[key]
        del attention.input[MASK_INPUT + 1 :]
        return written

    def _write(self, name: str, attention: onnx.NodeProto, lengths: str, *, sequences: bool) -> list[onnx.NodeProto]:
        """Nodes that make the mask ``name``: bool [batch, 1, queries, keys]."""
        queries, keys = attention.input[:2]
        axis = 1 if sequences else 2
        ends = [f"{name}_ends"]
        nodes = [
            helper.make_node("Shape", [keys], [f"{name}_keys"], start=axis, end=axis + 1),
            helper.make_node("Squeeze", [f"{name}_keys"], [f"{name}_count"]),
            helper.make_node("Range", [self._constant(0), f"{name}_count", self._constant(1)], [f"{name}_places"]),
            helper.make_node("Reshape", [lengths, self._constant([-1, 1, 1, 1])], ends),
        ]
        if sequences:  # ONNX Runtime broadcasts a mask over heads, but not over queries
            one, narrow, ends = self._constant([1]), ends, [f"{name}_all_ends"]
            nodes += [
                helper.make_node("Shape", [queries], [f"{name}_queries"], start=axis, end=axis + 1),
                helper.make_node("Concat", [one, one, f"{name}_queries", one], [f"{name}_shape"], axis=0),
                helper.make_node("Expand", [*narrow, f"{name}_shape"], ends),
            ]
        nodes.append(helper.make_node("Less", [f"{name}_places", *ends], [name]))
        for node in nodes:
            node.name = node.output[0]
        return nodes

    def _constant(self, values: ArrayLike) -> str:
        array = np.array(values, np.int64)
        name = f"unpadded_constant_{'x'.join(map(str, array.shape))}_{'_'.join(map(str, array.ravel().tolist()))}"
        if not any(made.name == name for made in self._graph.initializer):
            self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name
