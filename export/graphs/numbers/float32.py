"""Graphs in the precision that models are trained in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from export import contract
from export.graphs.builder import MICROSOFT, GraphBuilder
from export.graphs.description import Linear, Weights
from export.graphs.numbers.format import bias_of

_PANEL = 16  # divides what runners round the number of candidates up to
"""Outputs of a product that ONNX Runtime never divides among threads."""


class Float32:
    """float32, as the model was trained."""

    cache_dtype: np.dtype[np.generic] = contract.cache_dtype("fp32")
    flat = True

    def narrow(self, graph: GraphBuilder, x: str) -> str:  # noqa: ARG002
        """All values are float32."""
        return x

    def widen(self, graph: GraphBuilder, x: str) -> str:  # noqa: ARG002
        """All values are float32."""
        return x

    def cache_scale(self, name: str) -> None:
        """Values are kept as they are."""

    def linear(self, graph: GraphBuilder, name: str, x: str, linear: Linear, *, result: str | None = None) -> str:
        """[positions, in] -> [positions, out]."""
        inputs = [x, graph.weight(f"{name}.weight", linear.weight)]
        if linear.bias is not None:
            inputs.append(graph.weight(f"{name}.bias", linear.bias))
        return graph.op("Gemm", *inputs, output=result, transB=1)

    def cached_linear(self, graph: GraphBuilder, name: str, x: str, linear: Linear, *, caches: Sequence[str]) -> str:
        """[positions, in] -> [positions, caches * width]."""
        del caches  # they keep what the product gives
        return self.linear(graph, name, x, linear)

    def cuts_negatives(self, name: str) -> bool:  # noqa: ARG002 - of no product
        """No product does."""
        return False

    def linear_of_candidates(self, graph: GraphBuilder, name: str, x: str, *, width: int, result: str) -> str:
        """[rows, width] -> [rows, candidates], ``_PANEL`` candidates at a time.

        The runtime packs constant weights and sums them in one order. Others it sums in parts that depend on how many
        outputs a thread has, unless these are as few as no thread shares, and in yet another order where there is only
        one row. So the candidates come in small panels, and the first row twice.
        """
        del name  # floats need no range
        twice = graph.op("Concat", graph.op("Slice", x, graph.constant([0]), graph.constant([1])), x, axis=0)
        panels = graph.op("Reshape", "output_weight", graph.constant([-1, _PANEL, width]))
        products = graph.op("FusedMatMul", twice, panels, transB=1, domain=MICROSOFT)  # [panels, 1 + rows, _PANEL]
        by_row = graph.op("Reshape", graph.op("Transpose", products, perm=[1, 0, 2]), graph.constant([0, -1]))
        once = graph.op("Slice", by_row, graph.constant([1]), graph.constant([np.iinfo(np.int64).max]))
        return graph.op("Add", once, "output_bias", output=result)

    def output_arrays(self, linear: Linear) -> dict[str, NDArray[Any]]:
        """Weights and bias as they are."""
        return {"output_weight": linear.weight, "output_bias": bias_of(linear)}

    def rows(self, graph: GraphBuilder, name: str, table: Weights, indices: str, *, scale: float = 1.0) -> str:
        """Rows of a table [entries, width] times ``scale``."""
        rows = graph.op("Cast", graph.op("Gather", graph.stored_weight(name, table), indices), to=TensorProto.FLOAT)
        return rows if scale == 1.0 else graph.op("Mul", rows, graph.constant(scale, np.float32))
