"""Rows on the device: what each of them holds, and how that gets there and moves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

from export.bundle import Manifest
from export.contract import cache_names
from export.runners.gpu.buckets import smallest
from export.runners.gpu.buffers import Buffers
from export.runners.gpu.caches import CacheShape, DeviceCaches, Move
from export.runners.gpu.device import Block, Device, Event, Streams
from export.runners.gpu.graphs import DeviceGraphs, Tensor
from export.runners.gpu.programs import Enqueue, Programs
from export.runners.protocol import IntArray, ShapeError

ENCODER_TOKENS = 4096
"""Most source tokens of one call of the encoder, padding counted; a longer source goes alone."""

_FEW_MOVES = 8  # so many copies are enqueued before one run of the reorder graph would be


class DeviceRows:
    """The caches of all rows, the encoder that fills them, and the reorder graph that permutes them.

    Sources are encoded in a stream of their own. A step waits for them, and they wait for rows that have just been
    moved, since a newcomer may take the place that another row left.
    """

    def __init__(
        self,
        manifest: Manifest,
        device: Device,
        streams: Streams,
        graphs: DeviceGraphs,
        buffers: Buffers,
        *,
        rows: int,
        itemsize: int,
    ) -> None:
        """Reserve caches for ``rows`` rows."""
        dims = manifest.dims
        shape = CacheShape.of(dims, rows=rows, itemsize=itemsize)
        self._graphs, self._buffers, self._streams = graphs, buffers, streams
        self._pad_id = manifest.pad_id
        self._layers, self._most_rows = dims.decoder_layers, rows
        self._longest_source = manifest.max_source_tokens
        self.own = DeviceCaches(device, shape, capacities=graphs.cache_capacities, head_dim=dims.head_dim)
        self.cross = DeviceCaches(device, shape, capacities=graphs.source_capacities, head_dim=dims.head_dim)
        self._encoder = Programs(streams.encoder, capturable=graphs.capturable)
        self._reorder = Programs(streams.steps, capturable=graphs.capturable)
        self._encoder_scratch = device.allocate(graphs.scratch_bytes("encoder"))
        self._reorder_scratch = device.allocate(graphs.scratch_bytes("reorder"))
        self._lengths = [0] * rows  # of each row's source; 0: it never held one
        self._sources = [0] * rows  # a number of its own for every source ever encoded
        self._encoded_sources = 0
        self._in_use: set[int] = set()  # rows whose sources may be needed again
        self._encoded: Event | None = None
        self._moved: Event | None = None

    @property
    def layout(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """What a step's shapes and addresses follow from, beside its number of rows."""
        return self.own.layout, self.cross.layout

    def tensors(self, rows: int) -> dict[str, Tensor]:
        """The caches of the first rows, as a step takes them."""
        names = partial(cache_names, layers=self._layers)
        own, cross = self.own, self.cross
        return {
            **own.tensors(names("past"), rows=rows),
            **own.tensors(names("present"), rows=rows),
            **cross.tensors(names("cross"), rows=rows),
        }

    def encode(self, sources: IntArray, *, lengths: Sequence[int], rows: Sequence[int]) -> None:
        """Encode sources [batch, src_len] of these lengths into rows."""
        self._in_use.update(rows)
        held = max((self._lengths[row] for row in self._in_use.difference(rows)), default=0)
        self._make_room(max(held, *lengths), held=held)
        if self._moved is not None:
            self._streams.encoder.wait(self._moved)
        for part in self._parts(lengths):
            self._encode(sources[part], lengths=lengths[part], rows=rows[part])
        self._encoded = self._streams.encoder.record()

    def _make_room(self, length: int, *, held: int) -> None:
        """Let the cross caches grow to sources of ``length``; of those that stay the longest is ``held``."""
        capacity = smallest(self._graphs.source_capacities, length)
        if capacity > self.cross.capacity:
            self._lay_out(self.cross, capacity, used=held)

    def _lay_out(self, caches: DeviceCaches, capacity: int, *, used: int) -> None:
        if self._encoded is not None:
            self._streams.steps.wait(self._encoded)
        caches.lay_out(self._streams.steps, capacity, used=used)
        self._moved = self._streams.steps.record()

    def _encode(self, sources: IntArray, *, lengths: Sequence[int], rows: Sequence[int]) -> None:
        """Encode as many sources as one call takes."""
        batch, src_len = self._padded(len(lengths), longest=max(lengths))
        tokens, counts = self._buffers.encoder_arrays(batch, src_len)
        width = min(src_len, sources.shape[1])
        tokens[:], counts[:] = self._pad_id, 1
        tokens[: len(lengths), :width] = sources[:, :width]
        counts[: len(lengths)] = lengths
        stream = self._streams.encoder
        self._buffers.sources.send(stream)
        self._encoder.run((batch, src_len), lambda: self._prepare_encoder(batch, src_len))
        shape = self.cross.shape
        line, lines = src_len * shape.token_bytes, batch * shape.heads
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            origin = Block(self._buffers["memory"], line, lines, first=place * shape.heads)
            self.cross.write(stream, row, origin, length=length)
            self._encoded_sources += 1
            self._lengths[row], self._sources[row] = length, self._encoded_sources

    def _parts(self, lengths: Sequence[int]) -> Iterator[slice]:
        """Cut a batch into parts that the encoder takes in one call each."""
        first = 0
        while first < len(lengths):
            end, longest = first + 1, lengths[first]
            while end < len(lengths):
                longest = max(longest, lengths[end])
                if math.prod(self._padded(end + 1 - first, longest=longest)) > ENCODER_TOKENS:
                    break
                end += 1
            yield slice(first, end)
            first = end

    def _padded(self, sources: int, *, longest: int) -> tuple[int, int]:
        """Batch and tokens that the encoder is given for so many sources: few sizes, so that few are prepared."""
        step = 16 if longest <= 64 else 64
        src_len = -(-longest // step) * step
        return min(1 << (sources - 1).bit_length(), self._most_rows), min(src_len, self._longest_source)

    def _prepare_encoder(self, batch: int, src_len: int) -> Enqueue:
        tensors = self._buffers.encoder(batch, src_len)
        call = self._graphs.bind("encoder", tensors, scratch=self._encoder_scratch)
        return partial(call.enqueue, self._streams.encoder.handle)

    def prepare(self, origins: Sequence[int] | None, *, positions: Sequence[int]) -> None:
        """Make the live rows ready for a step: moved, and in the smallest capacities that hold them.

        Args:
            origins: of each row, the row whose caches it continues; None: its own.
            positions: of each row, tokens that are in its own cache.

        Raises:
            ShapeError: a row has no source.
        """
        rows = range(len(positions))
        for row, origin in enumerate(origins or rows):
            if not self._lengths[origin]:
                raise ShapeError(f"rows: got row {row} without a source, wanted every live row encoded")
        if self._encoded is not None:
            self._streams.steps.wait(self._encoded)
            self._encoded = None
        if origins is not None:
            self._move(origins, positions=positions)
        self._in_use = set(rows)
        longest, longest_source = max(positions), max(self._lengths[row] for row in rows)
        for caches, capacities, wanted, used in (
            (self.own, self._graphs.cache_capacities, longest + 1, longest),
            (self.cross, self._graphs.source_capacities, longest_source, longest_source),
        ):
            capacity = smallest(capacities, wanted)
            if capacity != caches.capacity:
                self._lay_out(caches, capacity, used=used)

    def _move(self, origins: Sequence[int], *, positions: Sequence[int]) -> None:
        """Let each row continue another one's caches."""
        moved = [(row, origin) for row, origin in enumerate(origins) if row != origin]
        own = [Move(row, origin, positions[row]) for row, origin in moved if positions[row]]
        if len(own) <= _FEW_MOVES and _apart(own):
            self.own.move(self._streams.steps, own)
        elif own:
            self._permute(origins)
        sources, lengths = self._sources, self._lengths
        cross = [Move(row, origin, lengths[origin]) for row, origin in moved if sources[row] != sources[origin]]
        if _apart(cross):
            self.cross.move(self._streams.steps, cross)
        else:
            everything = [Move(row, origin, lengths[origin]) for row, origin in enumerate(origins)]
            self.cross.rearrange(self._streams.steps, everything)
        rows = len(origins)
        sources[:rows], lengths[:rows] = [sources[row] for row in origins], [lengths[row] for row in origins]
        self._moved = self._streams.steps.record()

    def _permute(self, origins: Sequence[int]) -> None:
        """Let each row's own caches be those of another row, all at once."""
        rows = smallest(self._graphs.row_buckets, max(len(origins), max(origins) + 1))
        parents = self._buffers.parents.writable()
        parents[:] = range(len(parents))
        parents[: len(origins)] = origins
        self._buffers.parents.send(self._streams.steps)
        self._reorder.run((rows, self.own.layout), lambda: self._prepare_reorder(rows))
        self.own.swap()

    def _prepare_reorder(self, rows: int) -> Enqueue:
        tensors = {
            "parents": Tensor(self._buffers["parents"], (rows,)),
            **self.own.tensors(cache_names("past", self._layers), rows=rows),
            **self.own.tensors(cache_names("present", self._layers), rows=rows, other_side=True),
        }
        call = self._graphs.bind("reorder", tensors, scratch=self._reorder_scratch)
        return partial(call.enqueue, self._streams.steps.handle)

    def upload(self, tokens: Sequence[int], positions: Sequence[int]) -> None:
        """Tell the device of a step's rows; places beyond them stay idle."""
        values, rows = self._buffers.step.writable(), len(tokens)
        values[0], values[1], values[2] = 0, 0, 1
        values[0, :rows], values[1, :rows], values[2, :rows] = tokens, positions, self._lengths[:rows]
        self._buffers.step.send(self._streams.steps)

    def close(self) -> None:
        """Free what was captured."""
        self._encoder.close()
        self._reorder.close()


def _apart(moves: Sequence[Move]) -> bool:
    """Whether no row is both read and written."""
    return {move.row for move in moves}.isdisjoint(move.origin for move in moves)
