"""What graphs of one precision ask of it: matrix products, look-ups and how caches are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.graphs.builder import GraphBuilder
from export.graphs.description import Linear, Weights


class NumberFormat(Protocol):
    """Writes matrix products and look-ups into a graph, and says how numbers are kept in caches."""

    @property
    def cache_dtype(self) -> np.dtype[np.generic]:
        """Of keys and values in the caches."""

    @property
    def flat(self) -> bool:
        """Whether its products want all positions along one axis; else they come as [batch, positions, width]."""

    def narrow(self, graph: GraphBuilder, x: str) -> str:
        """A float32 value as products take it; what follows from it, up to ``widen``, is of that dtype."""

    def widen(self, graph: GraphBuilder, x: str) -> str:
        """What products and attention gave, as float32."""

    def cache_scale(self, name: str) -> float | None:
        """Width of one level of a cache, by the projection that fills it; None: values are kept as they are."""

    def linear(self, graph: GraphBuilder, name: str, x: str, linear: Linear, *, result: str | None = None) -> str:
        """[positions, in] -> [positions, out]; ``name`` names the layer, ``result`` the value where it has to."""

    def cached_linear(self, graph: GraphBuilder, name: str, x: str, linear: Linear, *, caches: Sequence[str]) -> str:
        """What several caches keep of one product: [positions, in] -> [positions, caches * width].

        Args:
            graph: to be written into.
            name: of the product.
            x: its input.
            linear: the projections that fill the caches, stacked.
            caches: their names, in that order.
        """

    def cuts_negatives(self, name: str) -> bool:
        """Whether the product ``name`` reads negative inputs as 0, so that they need not be rectified before."""

    def rows(self, graph: GraphBuilder, name: str, table: Weights, indices: str, *, scale: float = 1.0) -> str:
        """Rows of a table [entries, width] times ``scale``, widened after the gather: nothing copies the table."""


class ShortlistedFormat(NumberFormat, Protocol):
    """A format that can also write a step that ends at the logits of some tokens only."""

    def linear_of_candidates(self, graph: GraphBuilder, name: str, x: str, *, width: int, result: str) -> str:
        """[rows, width] -> [rows, candidates], by the part of the layer ``name`` that the graph takes as inputs.

        An output depends on its row and its candidate alone, to the bit: not on how many there are of either, nor on
        the threads. The inputs are those of ``contract.output_inputs``, candidates in whole panels.
        """

    def output_arrays(self, linear: Linear) -> dict[str, NDArray[Any]]:
        """A layer as ``contract.output_arrays`` wants it, by name: [out, in] and [out]."""


def bias_of(linear: Linear) -> Weights:
    """Its bias, or zeros."""
    return np.zeros(len(linear.weight), np.float32) if linear.bias is None else linear.bias
