"""Graphs in 8 bits, for the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from export import contract
from export.errors import ExportError
from export.graphs.builder import MICROSOFT, GraphBuilder
from export.graphs.description import Linear, Weights
from export.graphs.numbers.format import bias_of
from export.quantisation.ranges import ActivationRange, Calibration
from export.quantisation.weights import quantise_rows, quantise_weight

_WIDEST_SCALED_AFTER = 4096
"""Outputs of a product up to which its weights' scales are applied to what comes out; see ``Int8``."""
_WIDEST_BEFORE_CACHES = 2048
"""Most outputs of one product that fills caches: as many as the widest product of a base model's layers has."""


class Int8:
    """8-bit activations by 8-bit weights, summed in 32 bits; everything between two products stays float32.

    The range of a layer's input is static: it was calibrated, and stands in the graph as constants. So a row's result
    does not depend on its neighbours, to the bit, as it would with ranges taken from each batch. Weights have one scale
    per output channel. Activations are unsigned and weights signed, for which ONNX Runtime has its fast kernels on
    x86; its kernels for two signed factors are many times slower there. The weights lie [in, out] and constant, so that
    the runtime packs them once, at load, and frees what it read.

    Every projection is quantised, for every one gains. Medians on one thread of an EPYC with AVX-512 VNNI, float32
    against 8 bits, the rounding of the input included, in microseconds:

    ============  ===========  ===========  ============
    in -> out     1 row        8 rows       64 rows
    ============  ===========  ===========  ============
    256 -> 256    5.3 / 5.2    16 / 7       77 / 28
    256 -> 4096   57 / 32      170 / 63     1354 / 368
    512 -> 2048   55 / 25      158 / 55     1296 / 342
    512 -> 32128  2973 / 1212  5422 / 1910  21957 / 6410
    ============  ===========  ===========  ============

    ONNX Runtime multiplies scales that come as a vector with the input's, anew in each run, at 3 ns an output. Those
    that come as [1, 1, out] it applies to the sums, with the bias in units of its scale; that reads and writes every
    output once more, and so pays for few rows and for outputs that stay in the cache. A whole step of the bundled model
    takes 0.83 of the time at one row, 0.95 at 8, 0.98 at 16, the same at 32; of a base model, whose logits are wider
    than that, 0.90 at one row, 0.94 at 8 and the same from 32 to 96.

    Keys and values are kept in 8 bits too, signed, with one scale for each cache: attention over many rows waits for
    memory, and reads a quarter of it. So are embeddings, with one scale for each token: the table is the largest thing
    that a small model has in memory, and rounding it costs a thirtieth of what rounding the products does (mean
    divergence of the teacher-forced distributions of the bundled model: 9e-6).
    """

    cache_dtype: np.dtype[np.generic] = contract.cache_dtype("int8")
    flat = False

    def __init__(self, calibration: Calibration) -> None:
        """Take what calibration found."""
        self._calibration = calibration

    def narrow(self, graph: GraphBuilder, x: str) -> str:  # noqa: ARG002
        """What is not in 8 bits is float32."""
        return x

    def widen(self, graph: GraphBuilder, x: str) -> str:  # noqa: ARG002
        """What is not in 8 bits is float32."""
        return x

    def cache_scale(self, name: str) -> float:
        """Width of one level of a cache.

        Raises:
            ExportError: the cache was never seen in calibration, or its scale is not finite.
        """
        if name not in self._calibration.caches:
            raise ExportError(f"{name}: got no scale of its cache, wanted it seen in calibration")
        scale = self._calibration.caches[name]
        if not np.isfinite(scale):
            raise ExportError(f"{name}: got a scale of {scale}, wanted a finite number")
        return scale

    def linear(self, graph: GraphBuilder, name: str, x: str, linear: Linear, *, result: str | None = None) -> str:
        """[positions, in] -> [positions, out].

        Raises:
            ExportError: the layer was never seen in calibration, or its weights or its range are not finite.
        """
        found = self._input_range(name)
        return self._product(graph, name, _rounded(graph, x, found), found, linear, result=result)

    def cached_linear(self, graph: GraphBuilder, name: str, x: str, linear: Linear, *, caches: Sequence[str]) -> str:
        """[positions, in] -> int8 [positions, caches * width].

        The products give levels, which only need rounding. Each rounds some outputs, so that few wait as float32.

        Raises:
            ExportError: as ``linear`` and ``cache_scale`` do.
        """
        found = self._input_range(name)
        rounded = _rounded(graph, x, found)
        width = len(linear.weight) // len(caches)
        scales = np.array([self.cache_scale(cache) for cache in caches], np.float32)
        in_levels: Weights = np.repeat(np.float32(1.0) / scales, width)
        parts: list[str] = []
        for first in range(0, len(linear.weight), _WIDEST_BEFORE_CACHES):
            outputs = slice(first, first + _WIDEST_BEFORE_CACHES)
            bias = None if linear.bias is None else linear.bias[outputs] * in_levels[outputs]
            part = Linear(linear.weight[outputs] * in_levels[outputs, None], bias)
            levels = self._product(graph, f"{name}.{len(parts)}", rounded, found, part)
            scale, zero_point = graph.constant(1.0, np.float32), graph.constant(0, np.int8)
            parts.append(graph.op("QuantizeLinear", levels, scale, zero_point))
        return parts[0] if len(parts) == 1 else graph.op("Concat", *parts, axis=-1)

    def _product(
        self,
        graph: GraphBuilder,
        name: str,
        rounded: str,
        found: ActivationRange,
        linear: Linear,
        *,
        result: str | None = None,
    ) -> str:
        """[positions, in], rounded to the range ``found``, -> float32 [positions, out]."""
        if not (np.isfinite(found.scale) and np.isfinite(linear.weight).all()):
            raise ExportError(f"{name}: got weights or a range that are not finite, wanted finite numbers")
        levels, scales = quantise_weight(linear.weight)
        bias = linear.bias
        if len(scales) <= _WIDEST_SCALED_AFTER:
            bias = None if bias is None else bias / scales
            scales = scales[None, None]
        scale, zero_point = _constants(graph, found)
        inputs = [
            rounded,
            graph.packed_weight(f"{name}.weight", levels),
            scale,
            graph.packed_weight(f"{name}.weight_scales", scales),
            zero_point,
        ]
        if bias is not None:
            inputs += ["", graph.weight(f"{name}.bias", bias)]  # no zero points: weights are symmetric
        return graph.op("MatMulIntegerToFloat", *inputs, output=result, domain=MICROSOFT)

    def cuts_negatives(self, name: str) -> bool:
        """Where the lowest level of its input stands for 0.

        Raises:
            ExportError: the layer was never seen in calibration.
        """
        return self._input_range(name).zero_point == 0

    def linear_of_candidates(self, graph: GraphBuilder, name: str, x: str, *, width: int, result: str) -> str:
        """[rows, width] -> [rows, candidates]; sums of whole numbers are the same in any order.

        Raises:
            ExportError: the layer was never seen in calibration.
        """
        del width  # the operator finds out
        found = self._input_range(name)
        scale, zero_point = _constants(graph, found)
        inputs = (_rounded(graph, x, found), "output_weight", scale, "output_scales", zero_point, "", "output_bias")
        return graph.op("MatMulIntegerToFloat", *inputs, output=result, domain=MICROSOFT)

    def output_arrays(self, linear: Linear) -> dict[str, NDArray[Any]]:
        """Weights in 8 bits, bias, and one scale per output."""
        levels, scales = quantise_weight(linear.weight)
        weight = np.ascontiguousarray(levels.T)
        return {"output_weight": weight, "output_bias": bias_of(linear), "output_scales": scales}

    def _input_range(self, name: str) -> ActivationRange:
        if name not in self._calibration.inputs:
            raise ExportError(f"{name}: got no range of its input, wanted it seen in calibration")
        return self._calibration.inputs[name]

    def rows(self, graph: GraphBuilder, name: str, table: Weights, indices: str, *, scale: float = 1.0) -> str:
        """Rows of a table [entries, width] times ``scale``.

        Raises:
            ExportError: the table is not finite.
        """
        if not np.isfinite(table).all():
            raise ExportError(f"{name}: got weights that are not finite, wanted finite numbers")
        levels, scales = quantise_rows(table)
        rounded = graph.op("Gather", graph.packed_weight(name, levels), indices)
        widths = graph.op("Gather", graph.packed_weight(f"{name}_scales", scales * np.float32(scale)), indices)
        return graph.op("Mul", graph.op("Cast", rounded, to=TensorProto.FLOAT), widths)


def _constants(graph: GraphBuilder, found: ActivationRange) -> tuple[str, str]:
    """Scale and zero point."""
    return graph.constant(found.scale, np.float32), graph.constant(found.zero_point, np.uint8)


def _rounded(graph: GraphBuilder, x: str, found: ActivationRange) -> str:
    return graph.op("QuantizeLinear", x, *_constants(graph, found))
