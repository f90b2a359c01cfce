"""Graphs in 16 bits, for GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export import contract
from export.errors import ExportError
from export.graphs.builder import GraphBuilder
from export.graphs.description import Linear, Weights

HalfPrecision = Literal["fp16", "bf16"]


class Half:
    """Products, attention and caches in 16 bits; everything between two sub-layers stays float32.

    So the residual stream, layer norms, log-probs and the order of the best tokens are as exact as they were, and a
    step, which waits for memory, reads half of it.
    """

    flat = True

    def __init__(self, precision: HalfPrecision) -> None:
        """Of ``fp16``, with more digits, or ``bf16``, with the range of float32."""
        self._precision = precision
        self.cache_dtype = contract.cache_dtype(precision)
        self._type = helper.np_dtype_to_tensor_dtype(self.cache_dtype)

    def narrow(self, graph: GraphBuilder, x: str) -> str:
        """A float32 value in 16 bits."""
        return graph.op("Cast", x, to=self._type)

    def widen(self, graph: GraphBuilder, x: str) -> str:
        """A value in 16 bits as float32."""
        return graph.op("Cast", x, to=TensorProto.FLOAT)

    def cache_scale(self, name: str) -> None:
        """Values are kept as they are."""

    def linear(self, graph: GraphBuilder, name: str, x: str, linear: Linear, *, result: str | None = None) -> str:
        """[positions, in] -> [positions, out]; ``result`` is float32.

        Raises:
            ExportError: a weight is too large for 16 bits.
        """
        inputs = [x, self._weight(graph, f"{name}.weight", linear.weight)]
        if linear.bias is not None:
            inputs.append(self._weight(graph, f"{name}.bias", linear.bias))
        product = graph.op("Gemm", *inputs, transB=1)
        return product if result is None else graph.op("Cast", product, output=result, to=TensorProto.FLOAT)

    def cached_linear(self, graph: GraphBuilder, name: str, x: str, linear: Linear, *, caches: Sequence[str]) -> str:
        """[positions, in] -> [positions, caches * width]."""
        del caches  # they keep what the product gives
        return self.linear(graph, name, x, linear)

    def cuts_negatives(self, name: str) -> bool:  # noqa: ARG002 - of no product
        """No product does."""
        return False

    def rows(self, graph: GraphBuilder, name: str, table: Weights, indices: str, *, scale: float = 1.0) -> str:
        """Rows of a table [entries, width] times ``scale``, as float32.

        Raises:
            ExportError: an entry is too large for 16 bits.
        """
        rows = self.widen(graph, graph.op("Gather", self._weight(graph, name, table), indices))
        return rows if scale == 1.0 else graph.op("Mul", rows, graph.constant(scale, np.float32))

    def _weight(self, graph: GraphBuilder, name: str, values: NDArray[Any]) -> str:
        with np.errstate(over="ignore"):
            narrow = values.astype(self.cache_dtype)
        lost = np.isfinite(values) & ~np.isfinite(narrow.astype(np.float32))  # a bias of -inf bars a token
        if lost.any():
            largest = np.abs(values[lost]).max()
            raise ExportError(f"{name}: got {largest:g}, wanted weights that {self._precision} can hold; try bf16")
        return graph.packed_weight(name, narrow)
