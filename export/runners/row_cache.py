"""Caches of a runner on the host: preallocated, one row per hypothesis, and only what differs is ever moved."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.contract import ModelDimensions
from export.runners.protocol import IntArray, ShapeError

Values = NDArray[Any]
"""Keys or values, in the dtype that the model's graphs keep them in."""

_SMALLEST_CAPACITY = 32
_STEPS_PUT_OFF = 256


class RowCaches:
    """Self-attention and cross-attention caches of all decoder layers.

    Each buffer is [2 * layers, rows, heads, capacity, head_dim], key and value of a layer side by side, so that the
    first rows of every layer are one contiguous piece. Capacities begin small and double as tokens come that need it:
    the few tokens that most rows hold then lie on few pages of memory, not on one of its own for every head. They stay
    as large as they ever were.

    Attributes:
        own: self-attention keys and values, one row per hypothesis; anew where the capacity has grown.
        cross: cross-attention keys and values of the row's source; likewise.
        cache_bytes: address space of all buffers at their largest.
        source_lengths: int32 [rows], tokens of each row's source, the last that it held; 0: it never held one.
    """

    def __init__(
        self, dims: ModelDimensions, *, rows: int, source_capacity: int, target_capacity: int, dtype: np.dtype[Any]
    ) -> None:
        """Reserve the buffers; capacities are in tokens, the largest that will be asked for."""
        buffers = 2 * dims.decoder_layers
        self._capacities = target_capacity, source_capacity
        self.own, self.cross = (
            _zeros((buffers, rows, dims.heads, min(_SMALLEST_CAPACITY, most), dims.head_dim), dtype)
            for most in self._capacities
        )
        token_bytes = buffers * rows * dims.attention_width * dtype.itemsize
        self.cache_bytes = sum(self._capacities) * token_bytes
        self.source_lengths: NDArray[np.int32] = np.zeros(rows, np.int32)
        # What a row holds, and each place of it: a number of its own for every source and every entry ever written.
        # Only rows of one source are compared: while no two share one, entries get no numbers.
        self._sources = [0] * rows
        self._sources_written = 0
        self._shared_sources = False
        self._entries: IntArray = np.zeros((rows, target_capacity), np.int64)
        self._entries_written = 1
        self._numbers: IntArray = np.arange(rows)
        self._steps: list[Sequence[int]] = []  # entries that have no number yet: only a move asks for them

    @property
    def layout(self) -> tuple[int, int]:
        """Capacities of ``own`` and ``cross`` at present: others mean other buffers."""
        return self.own.shape[3], self.cross.shape[3]

    @property
    def sources(self) -> Sequence[int]:
        """What source each row holds: a number of its own for every source ever written."""
        return self._sources

    def write_sources(self, memory: Values, *, lengths: IntArray, rows: IntArray) -> None:
        """Write what the encoder gave for a batch of sources.

        Args:
            memory: [2 * layers, batch, heads, src_len, head_dim].
            lengths: int64 [batch].
            rows: int64 [batch], the row of each source.
        """
        numbers, longest = rows.tolist(), max(lengths.tolist())
        if longest > self.cross.shape[3]:
            held = np.flatnonzero(self.source_lengths)
            self.cross = _grown(self.cross, longest, most=self._capacities[1], rows=held)
        first, count = numbers[0], len(numbers)
        # Rows that follow each other, as those of newcomers mostly do, are one piece of each buffer.
        where = slice(first, first + count) if numbers == list(range(first, first + count)) else rows
        self.cross[:, where, :, :longest] = memory[:, :, :, :longest]
        self.source_lengths[where] = lengths
        for source, row in enumerate(numbers, self._sources_written + 1):
            self._sources[row] = source
        self._sources_written += count

    def keep(self, rows: int, *, tokens: int) -> None:
        """Let the first ``rows`` rows have room for so many tokens each, and what lies beyond them be lost."""
        self._sources[rows:] = [0] * (len(self._sources) - rows)
        if tokens > self.own.shape[3]:
            self.own = _grown(self.own, tokens, most=self._capacities[0], rows=np.arange(rows))

    def write_step(self, positions: Sequence[int]) -> None:
        """Take note that a step writes each live row's entry at its position."""
        if self._shared_sources:
            self._steps.append(positions)
            if len(self._steps) == _STEPS_PUT_OFF:
                self._number_entries()

    def _number_entries(self) -> None:
        """Give every entry that was written since the last time its number."""
        for positions in self._steps:
            rows = self._numbers[: len(positions)]
            self._entries[rows, positions] = rows + self._entries_written
            self._entries_written += len(positions)
        self._steps.clear()

    def move(self, parents: Sequence[int], *, positions: Sequence[int]) -> None:
        """Let each row continue the caches of its parent. To be followed by ``keep``: what lies beyond them is lost.

        Hypotheses of one search differ in their last few places only: no more of them is copied.

        Args:
            parents: of each row, any mapping.
            positions: tokens that each row takes over from its parent.

        Raises:
            ShapeError: a parent has lost what it held.
        """
        moved = [(row, parent) for row, parent in enumerate(parents) if parent != row]
        if not moved:
            return
        held, rows = self._sources, len(parents)
        sources = {held[parent] for parent in parents}
        if 0 in sources:
            lost = next(parent for parent in parents if not held[parent])
            raise ShapeError(f"parents: got row {lost}, which holds nothing, wanted rows live before or encoded since")
        across = [move for move in moved if held[move[0]] != held[move[1]]]
        parts = [(*move, 0, positions[move[0]]) for move in across]
        shared_before, self._shared_sources = self._shared_sources, len(sources) < rows
        if shared_before or self._shared_sources:
            parts += self._move_entries(moved, positions=positions)
        _move_rows(self.own, parts)
        if across:
            self._move_sources(across)

    def _move_entries(
        self, moves: Sequence[tuple[int, int]], *, positions: Sequence[int]
    ) -> list[tuple[int, int, int, int]]:
        """Take note of what rows hold after some moves, each (to, from).

        Returns:
            What is to be copied between rows of one source: each (to, from, first place, end).
        """
        self._number_entries()
        held = self._sources
        rows, origins = map(list, zip(*moves, strict=True))
        end = max([positions[row] for row in rows])
        within = [move for move in moves if held[move[0]] == held[move[1]]]
        starts = self._where_rows_part(within, end=end)
        self._entries[rows, :end] = self._entries[origins, :end]
        return [(*move, start, positions[move[0]]) for move, start in zip(within, starts, strict=True)]

    def _where_rows_part(self, moves: Sequence[tuple[int, int]], *, end: int) -> list[int]:
        """For each (to, from) the first place below ``end`` where the two rows differ; ``end``: nowhere."""
        if not moves or not end:
            return [end] * len(moves)
        rows, origins = map(list, zip(*moves, strict=True))
        same = self._entries[rows, :end] == self._entries[origins, :end]
        starts: list[int] = np.where(same.all(axis=1), end, same.argmin(axis=1)).tolist()
        return starts

    def _move_sources(self, moves: Sequence[tuple[int, int]]) -> None:
        """Copy the sources of some rows, each (to, from), all at once in effect."""
        lengths = [int(self.source_lengths[origin]) for _, origin in moves]
        sources = [self._sources[origin] for _, origin in moves]
        _move_rows(self.cross, [(*move, 0, length) for move, length in zip(moves, lengths, strict=True)])
        for (row, _), length, source in zip(moves, lengths, sources, strict=True):
            self.source_lengths[row] = length
            self._sources[row] = source

    def longest_source(self, rows: int) -> int:
        """Tokens of the longest source of the first ``rows`` rows.

        Raises:
            ShapeError: one of these rows has no source, or has lost it.
        """
        held = self._sources[:rows]
        if 0 in held:
            raise ShapeError(f"rows: got row {held.index(0)} without a source, wanted every live row encoded")
        longest: int = max(self.source_lengths[:rows].tolist())
        return longest


def _grown(buffer: Values, needed: int, *, most: int, rows: IntArray) -> Values:
    """A buffer with room for ``needed`` tokens, a power of two of them or ``most``, and the contents of some rows."""
    *before, capacity, head_dim = buffer.shape
    grown = _zeros((*before, min(1 << (needed - 1).bit_length(), most), head_dim), buffer.dtype)
    grown[:, rows, :, :capacity] = buffer[:, rows]
    return grown


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Values:
    """Zeros whose pages stay unallocated until they are written.

    ``np.zeros`` asks for huge pages, each of which would span the heads of several rows: the first token of a row
    would then allocate all of its capacity.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages refuses the advice
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)


def _move_rows(buffer: Values, moves: Sequence[tuple[int, int, int, int]]) -> None:
    """Copy a part of some rows, each (to, from, first place, end), all at once in effect."""
    overwritten = {row for row, *_ in moves}
    contents = []
    for _, origin, start, end in moves:
        content = buffer[:, origin, :, start:end]
        # A row that is itself overwritten is set aside before anything is written.
        contents.append(content.copy() if origin in overwritten else content)
    for (row, _, start, end), content in zip(moves, contents, strict=True):
        buffer[:, row, :, start:end] = content
