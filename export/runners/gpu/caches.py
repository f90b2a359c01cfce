"""Caches in device memory: one kind for all layers, in two buffers of which one is in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from export.contract import ModelDimensions
from export.runners.gpu.device import Block, Device, Stream
from export.runners.gpu.graphs import Tensor


class Move(NamedTuple):
    """A row that continues another one's caches.

    Attributes:
        row: where they go.
        origin: where they are.
        length: tokens in them.
    """

    row: int
    origin: int
    length: int


@dataclass(frozen=True)
class CacheShape:
    """Sizes of one kind of cache.

    Attributes:
        buffers: keys and values of all layers.
        rows: rows there is room for.
        heads: attention heads.
        token_bytes: of one head's key or value of one token.
    """

    buffers: int
    rows: int
    heads: int
    token_bytes: int

    @classmethod
    def of(cls, dims: ModelDimensions, *, rows: int, itemsize: int) -> CacheShape:
        """The caches of a model's decoder; ``itemsize`` in bytes."""
        return cls(2 * dims.decoder_layers, rows, dims.heads, dims.head_dim * itemsize)

    def bytes_at(self, capacity: int) -> int:
        """Bytes of one buffer set of ``capacity`` tokens."""
        return self.buffers * self.rows * self.heads * capacity * self.token_bytes


class DeviceCaches:
    """Keys and values of one kind, [2 * layers, rows, heads, capacity, head_dim] in one piece of memory.

    A step costs what its capacity costs, so the capacity follows what the live rows need. Another capacity is another
    layout; that, and whatever else moves many rows at once, is copied into the buffer that is not in use, which then
    takes the other's place.

    Attributes:
        shape: sizes that never change.
        capacity: tokens that a row of the buffer in use has room for.
        side: which buffer is in use, 0 or 1.
    """

    def __init__(self, device: Device, shape: CacheShape, *, capacities: Sequence[int], head_dim: int) -> None:
        """Reserve both buffers, zeros, each with room for the largest of ``capacities``."""
        size = shape.bytes_at(max(capacities))
        self.shape = shape
        self.capacity = min(capacities)
        self.side = 0
        self._head_dim = head_dim
        self._buffers = (device.allocate(size), device.allocate(size))

    @property
    def layout(self) -> tuple[int, int]:
        """What addresses and shapes follow from: capacity and side."""
        return self.capacity, self.side

    def tensors(self, names: Sequence[str], *, rows: int, other_side: bool = False) -> dict[str, Tensor]:
        """The first ``rows`` rows of every buffer, by name, in the layout in use."""
        shape, base = self.shape, self._buffers[self.side ^ other_side]
        plane = shape.rows * shape.heads * self.capacity * shape.token_bytes
        sizes = (rows, shape.heads, self.capacity, self._head_dim)
        return {name: Tensor(base + number * plane, sizes) for number, name in enumerate(names)}

    def write(self, stream: Stream, row: int, origin: Block, *, length: int) -> None:
        """Copy one row from elsewhere, as far as it is long; ``origin`` has a line for each head."""
        self._copy(stream, self._row(self.side, row), origin, length=length)

    def lay_out(self, stream: Stream, capacity: int, *, used: int) -> None:
        """Change the capacity; of each row the first ``used`` tokens are kept."""
        shape = self.shape
        if used:
            lines = shape.rows * shape.heads
            origin = Block(self._buffers[self.side], self.capacity * shape.token_bytes, lines)
            to = Block(self._buffers[self.side ^ 1], capacity * shape.token_bytes, lines)
            stream.copy_block(to, origin, line=used * shape.token_bytes, lines=lines, planes=shape.buffers)
            self.swap()
        self.capacity = capacity

    def move(self, stream: Stream, moves: Sequence[Move]) -> None:
        """Copy some rows over others in place; none is both read and written."""
        for row, origin, length in moves:
            self.write(stream, row, self._row(self.side, origin), length=length)

    def rearrange(self, stream: Stream, moves: Sequence[Move]) -> None:
        """Copy all rows that are to live on, each from any other; what is not named is lost."""
        for row, origin, length in moves:
            self._copy(stream, self._row(self.side ^ 1, row), self._row(self.side, origin), length=length)
        self.swap()

    def swap(self) -> None:
        """Use the other buffer, which holds what is to go on."""
        self.side ^= 1

    def _copy(self, stream: Stream, to: Block, origin: Block, *, length: int) -> None:
        """Copy one row, a line for each head."""
        shape = self.shape
        stream.copy_block(to, origin, line=length * shape.token_bytes, lines=shape.heads, planes=shape.buffers)

    def _row(self, side: int, row: int) -> Block:
        shape = self.shape
        lines = shape.rows * shape.heads
        return Block(self._buffers[side], self.capacity * shape.token_bytes, lines, first=row * shape.heads)
