"""A graph as a TensorRT network that is held to say the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from export.engines.specialise import ATTENTION, LENGTHS_INPUT, element_types
from export.errors import ExportError
from export.runners.tensorrt_library import TensorrtLibrary

_DECOMPOSABLE = "TRT_decomposable"
"""Attribute of Attention, read by TensorRT's parser: with no fused kernel for its shapes it may be several."""

_PRODUCTS = ("Gemm", "MatMul")
_PRECISIONS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_TYPES = {"FLOAT": TensorProto.FLOAT, "HALF": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}
"""Floating types, by TensorRT's names."""


@dataclass(frozen=True)
class Network:
    """A parsed graph.

    Attributes:
        name: of the graph.
        definition: the library's network.
        parser: holds the weights that ``definition`` refers to.
        layers: how many there are.
        types: how many layers of each type give each type of values: ``{"MATRIX_MULTIPLY": {"HALF": 19}}``.
    """

    name: str
    definition: Any
    parser: Any
    layers: int
    types: dict[str, dict[str, int]]


def parse_network(
    library: TensorrtLibrary, builder: Any, model: onnx.ModelProto, *, path: Path, precision: str
) -> Network:
    """Parse a graph, and refuse a network that would not compute it.

    Args:
        library: whose parser and network to use.
        builder: of that library.
        model: as ``specialise`` made it.
        path: of the file that the model came from, beside which its weights lie.
        precision: of its matrix products.

    Raises:
        ExportError: TensorRT does not know an operator; an Attention is told of padding by lengths, which it passes
            over; an input does not count; a cache is not updated in place; or a value has another type than in the
            graph. The message names it.
    """
    name = model.graph.name
    types = element_types(model)
    _check_graph(model, types, precision)
    definition = library.network(builder)
    parser = library.api.OnnxParser(definition, library.logger)
    with library.listening() as messages:
        if not parser.parse(_decomposable(model).SerializeToString(), str(path)):
            reasons = [str(parser.get_error(place)) for place in range(parser.num_errors)]
            reason = " ".join((reasons or [messages.reason("it does not say why")])[0].split())
            raise ExportError(f"{name}: {library} cannot read it: {reason}")
    _check_inputs(name, definition)
    if name == "step":
        _check_caches(name, definition)
    _check_types(model, definition, types)
    return Network(name, definition, parser, definition.num_layers, _count_types(definition))


def _decomposable(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.op_type == ATTENTION:
            node.attribute.append(helper.make_attribute(_DECOMPOSABLE, 1))
    return copy


def _check_graph(model: onnx.ModelProto, types: Mapping[str, int], precision: str) -> None:
    """Hold what a network no longer shows: how padding is told of, and in what precision products are meant."""
    wanted = _PRECISIONS[precision]
    for node in model.graph.node:
        where = f"{model.graph.name}: {node.name}"
        if node.op_type == ATTENTION and len(node.input) > LENGTHS_INPUT and node.input[LENGTHS_INPUT]:
            lengths = node.input[LENGTHS_INPUT]
            raise ExportError(f"{where}: got lengths {lengths}, which TensorRT passes over, wanted a mask")
        if node.op_type in _PRODUCTS and types[node.output[0]] != wanted:
            raise ExportError(f"{where}: got a product in {_type_name(types[node.output[0]])}, wanted {precision}")


def _check_inputs(name: str, definition: Any) -> None:
    """Hold that each input counts: TensorRT keeps one that no output follows from, and computes without it."""
    read_by = {tensor.name: _inputs(layer) for layer in _layers(definition) for tensor in _outputs(layer)}
    waiting = [definition.get_output(place).name for place in range(definition.num_outputs)]
    counting = set(waiting)
    while waiting:
        found = {tensor.name for tensor in read_by.get(waiting.pop(), ())} - counting
        counting |= found
        waiting += found
    for place in range(definition.num_inputs):
        given = definition.get_input(place).name
        if given not in counting:
            raise ExportError(f"{name}: got input {given} that no output follows from, wanted all of them to count")


def _check_caches(name: str, definition: Any) -> None:
    """Hold that each ``present_*`` is the update, in place, of the input ``past_*``."""
    updates = {
        layer.get_output(0).name: layer.get_input(0).name
        for layer in _layers(definition)
        if layer.type.name == "KV_CACHE_UPDATE"
    }
    outputs = {definition.get_output(place).name for place in range(definition.num_outputs)}
    pasts = [definition.get_input(place).name for place in range(definition.num_inputs)]
    for past in (past for past in pasts if past.startswith("past_")):
        present = past.replace("past_", "present_", 1)
        if present not in outputs:
            raise ExportError(f"{name}: {past}: got no output {present}, wanted the cache's update")
        if updates.get(present) != past:
            got = f"an update of {updates[present]}" if present in updates else "no update in place"
            raise ExportError(f"{name}: {present}: got {got}, wanted the update of {past}")


def _check_types(model: onnx.ModelProto, definition: Any, wanted: Mapping[str, int]) -> None:
    """Hold that every floating value that goes by its name in the network has the type that it has in the graph."""
    tensors = (tensor for layer in _layers(definition) for tensor in (*_inputs(layer), *_outputs(layer)))
    found = {tensor.name: tensor.dtype.name for tensor in tensors}
    for node in model.graph.node:
        value = node.output[0]
        if node.op_type in (*_PRODUCTS, ATTENTION) and value not in found:
            raise ExportError(f"{model.graph.name}: {node.name}: got no layer that gives {value}, wanted one")
    for value, got in found.items():
        if value in wanted and wanted[value] in _TYPES.values() and _TYPES.get(got) != wanted[value]:
            raise ExportError(f"{model.graph.name}: {value}: got {got}, wanted {_type_name(wanted[value])}")


def _count_types(definition: Any) -> dict[str, dict[str, int]]:
    counted: dict[str, Counter[str]] = {}
    for layer in _layers(definition):
        for tensor in _outputs(layer)[:1]:
            counted.setdefault(layer.type.name, Counter())[tensor.dtype.name] += 1
    return {kind: dict(sorted(types.items())) for kind, types in sorted(counted.items())}


def _layers(definition: Any) -> Iterator[Any]:
    return (definition.get_layer(place) for place in range(definition.num_layers))


def _inputs(layer: Any) -> list[Any]:
    tensors = (layer.get_input(place) for place in range(layer.num_inputs))
    return [tensor for tensor in tensors if tensor is not None]


def _outputs(layer: Any) -> list[Any]:
    return [layer.get_output(place) for place in range(layer.num_outputs)]


def _type_name(element_type: int) -> str:
    return str(TensorProto.DataType.Name(element_type))
