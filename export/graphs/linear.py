"""How a precision of graph computes y = x weight^T + bias: the only part in which precisions differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from export.errors import ExportError
from export.graphs.builder import MICROSOFT, GraphBuilder
from export.graphs.description import Linear
from export.quantisation.ranges import ActivationRange
from export.quantisation.weights import quantise_weight


class LinearEmitter(Protocol):
    """Writes one matrix product and its bias into a graph."""

    def emit(self, graph: GraphBuilder, name: str, x: str, linear: Linear, *, result: str | None = None) -> str:
        """[positions, in] -> [positions, out]; ``name`` names the layer, ``result`` the value where it has to."""


class FloatLinear:
    """float32, as the model was trained."""

    def emit(self, graph: GraphBuilder, name: str, x: str, linear: Linear, *, result: str | None = None) -> str:
        """[positions, in] -> [positions, out]."""
        inputs = [x, graph.weight(f"{name}.weight", linear.weight)]
        if linear.bias is not None:
            inputs.append(graph.weight(f"{name}.bias", linear.bias))
        return graph.op("Gemm", *inputs, output=result, transB=1)


class Int8Linear:
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
    """

    def __init__(self, ranges: Mapping[str, ActivationRange]) -> None:
        """Take the range of every layer's input, by the layer's name."""
        self._ranges = ranges

    def emit(self, graph: GraphBuilder, name: str, x: str, linear: Linear, *, result: str | None = None) -> str:
        """[positions, in] -> [positions, out].

        Raises:
            ExportError: the layer was never seen in calibration, or its weights or its range are not finite.
        """
        if name not in self._ranges:
            raise ExportError(f"{name}: got no range of its input, wanted it seen in calibration")
        found = self._ranges[name]
        if not (np.isfinite(found.scale) and np.isfinite(linear.weight).all()):
            raise ExportError(f"{name}: got weights or a range that are not finite, wanted finite numbers")
        levels, scales = quantise_weight(linear.weight)
        scale = graph.constant(found.scale, np.float32)
        zero_point = graph.constant(found.zero_point, np.uint8)
        inputs = [
            graph.op("QuantizeLinear", x, scale, zero_point),
            graph.packed_weight(f"{name}.weight", levels),
            scale,
            graph.packed_weight(f"{name}.weight_scales", scales),
            zero_point,
        ]
        if linear.bias is not None:
            inputs += ["", graph.weight(f"{name}.bias", linear.bias)]  # no zero points: weights are symmetric
        return graph.op("MatMulIntegerToFloat", *inputs, output=result, domain=MICROSOFT)
