"""What tells one flavour of encoder and step graphs from another; all else is written once, for every flavour."""

from __future__ import annotations

from typing import Literal, Protocol

from export.contract import FlavourName, GraphContract, ModelDimensions
from export.graphs.builder import GraphBuilder, Opsets
from export.graphs.description import ModelDescription
from export.graphs.numbers.format import NumberFormat

Part = Literal["key", "value"]
PARTS: tuple[Part, ...] = ("key", "value")


def memory_caches(layers: int) -> list[str]:
    """The projections that fill the cross caches of so many decoder layers, in buffer order."""
    return [f"decoder.{layer}.cross_attention.{part}" for layer in range(layers) for part in PARTS]


class StepAttention(Protocol):
    """Attention of one decoder step over the caches, which it updates in place."""

    def attend_self(self, layer: int, query_key_value: str) -> str:
        """Append to the row's own cache and attend to it: [rows, 3 * attention_width] -> [rows, attention_width]."""

    def attend_cross(self, layer: int, query: str) -> str:
        """Attend to the row's source: [rows, attention_width] -> [rows, attention_width]."""


class Flavour(Protocol):
    """A flavour of encoder and step graphs, in one precision."""

    @property
    def name(self) -> FlavourName:
        """As folders of graphs are called."""

    @property
    def opsets(self) -> Opsets:
        """The operators that its graphs may use."""

    @property
    def numbers(self) -> NumberFormat:
        """How its graphs multiply matrices and keep their caches."""

    def step_contract(self, dims: ModelDimensions) -> GraphContract:
        """Inputs and outputs of its step."""

    def step_attention(self, graph: GraphBuilder, model: ModelDescription) -> StepAttention:
        """Attention of the step ``graph``."""

    def swish(self, graph: GraphBuilder, x: str) -> str:
        """The activation x * sigmoid(x)."""
