"""What the runner asks of a GPU runtime: a bundle's graphs, bound to device memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol


class Tensor(NamedTuple):
    """One input or output in device memory, contiguous; ``k`` of ``top_k`` alone lies on the host.

    Attributes:
        address: of its first byte.
        shape: every size.
    """

    address: int
    shape: tuple[int, ...]


class Call(Protocol):
    """One graph with all its inputs and outputs bound; it may be enqueued any number of times."""

    def enqueue(self, stream: int) -> None:
        """Put it into a stream, by handle; raises RunnerError where the runtime failed."""


class DeviceGraphs(Protocol):
    """The graphs of a bundle, loaded by one runtime; names and tensors as ``export.contract`` has them."""

    @property
    def name(self) -> str:
        """Of the runner, as Model.runner of the wire contract: ``onnxruntime-cuda``, ``tensorrt``, ``tensorrt-rtx``."""

    @property
    def precision(self) -> str:
        """Of the matrix products as they really run."""

    @property
    def capturable(self) -> bool:
        """Whether a step may be captured and launched as a whole."""

    @property
    def row_buckets(self) -> tuple[int, ...]:
        """Numbers of rows that a step may have, ascending."""

    @property
    def cache_capacities(self) -> tuple[int, ...]:
        """Capacities of a row's own caches that a step may have, in tokens, ascending."""

    @property
    def source_capacities(self) -> tuple[int, ...]:
        """Capacities of cross caches that a step may have, in tokens, ascending."""

    def scratch_bytes(self, graph: str) -> int:
        """Device memory that a call of ``graph`` needs while it runs, at most, beside its inputs and outputs."""

    def bind(self, graph: str, tensors: Mapping[str, Tensor], *, scratch: int) -> Call:
        """A call of ``graph``.

        Args:
            graph: its name; which engine and profile that takes follows from the shapes.
            tensors: every input and output by name. A cache's past and present are one.
            scratch: address of at least ``scratch_bytes(graph)`` bytes; calls of one stream may share it.

        Raises:
            RunnerError: the runtime refused a shape or an address.
        """

    def close(self) -> None:
        """Free what is loaded; calls of it must not be enqueued any more."""
