"""A small builder of ONNX graphs: nodes in order, constants inline, weights in the shared file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from export.contract import GraphContract, TensorSpec
from export.graphs.weight_file import WeightFile, smallest_lossless

MICROSOFT = "com.microsoft"


@dataclass(frozen=True, kw_only=True)
class Opsets:
    """Versions of the operators that a graph may use.

    Attributes:
        ir_version: of the file format; the runtimes to come are asked for no newer one than the opset needs.
        onnx: of the domain ai.onnx.
        microsoft: of the domain of ONNX Runtime's own operators; None: not to be used.
    """

    ir_version: int
    onnx: int
    microsoft: int | None = None

    def versions(self) -> dict[str, int]:
        """By domain; ai.onnx is written as an empty one."""
        return {"": self.onnx} if self.microsoft is None else {"": self.onnx, MICROSOFT: self.microsoft}


ORT_OPSETS = Opsets(ir_version=12, onnx=24, microsoft=1)
STANDARD_OPSETS = Opsets(ir_version=12, onnx=24)


class GraphBuilder:
    """Collects the nodes of one graph; every method returns names of values."""

    def __init__(
        self, name: str, *, contract: GraphContract, opsets: Opsets, weights: WeightFile | None = None
    ) -> None:
        """Begin a graph with the inputs and outputs of ``contract``."""
        self._name = name
        self._opsets = opsets
        self._contract = contract
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._widened: dict[str, str] = {}

    def op(self, kind: str, *inputs: str, output: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output; an empty input name is an input that is left out."""
        return self.ops(kind, inputs, outputs=(output,), domain=domain, **attributes)[0]

    def ops(
        self, kind: str, inputs: Sequence[str], *, outputs: Sequence[str | None], domain: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """Add a node with several outputs; None: a fresh name."""
        assert domain in self._opsets.versions(), f"{kind}: this graph has no operators of {domain}"
        node_name = f"{kind}_{len(self._nodes)}"
        names = tuple(output or f"{node_name}_{place}" for place, output in enumerate(outputs))
        self._nodes.append(
            helper.make_node(kind, list(inputs), list(names), name=node_name, domain=domain, **attributes)
        )
        return names

    def constant(self, values: ArrayLike, dtype: type[np.generic] = np.int64) -> str:
        """A small constant inside the graph; equal ones are one."""
        array = np.array(values, dtype=dtype)
        text = "_".join(map(str, array.ravel().tolist()))
        name = f"constant_{array.dtype}_{'x'.join(map(str, array.shape))}_{text}"
        return name if name in self._initializers else self.table(name, array)

    def table(self, name: str, values: NDArray[Any]) -> str:
        """A named constant inside the graph."""
        self._initializers[name] = numpy_helper.from_array(values, name)
        return name

    def weight(self, name: str, values: NDArray[Any]) -> str:
        """A float32 weight, stored in float16 where that loses nothing; the runtime widens it once, at load."""
        stored = self.stored_weight(name, values)
        if self._initializers[stored].data_type == TensorProto.FLOAT:
            return stored
        if stored not in self._widened:
            self._widened[stored] = self.op("Cast", stored, to=TensorProto.FLOAT)
        return self._widened[stored]

    def stored_weight(self, name: str, values: NDArray[Any]) -> str:
        """A weight in the dtype it is stored in, for a gather that widens only the rows it takes."""
        assert self._weights is not None, "this graph has no weight file"
        if name not in self._initializers:
            self._initializers[name] = self._weights.add(name, smallest_lossless(values))
        return name

    def packed_weight(self, name: str, values: NDArray[Any]) -> str:
        """A weight in exactly the dtype it comes in."""
        assert self._weights is not None, "this graph has no weight file"
        if name not in self._initializers:
            self._initializers[name] = self._weights.add(name, values)
        return name

    def save(self, path: Path) -> None:
        """Write the graph; the same graph always gives the same bytes."""
        graph = helper.make_graph(
            self._nodes,
            self._name,
            [_value_info(spec) for spec in self._contract.inputs],
            [_value_info(spec) for spec in self._contract.outputs],
            initializer=list(self._initializers.values()),
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in self._opsets.versions().items()]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="dragoman")
        model.ir_version = self._opsets.ir_version
        path.write_bytes(model.SerializeToString(deterministic=True))


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(spec.dtype), list(spec.shape))
