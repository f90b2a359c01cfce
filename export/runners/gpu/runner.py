"""The runner for GPUs, whatever the runtime: rows, caches and steps on the device, one step ahead of the host."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from export.bundle import Manifest
from export.contract import cache_dtype
from export.runners.checks import check_size, check_sources, check_step, check_steps
from export.runners.gpu.buckets import smallest
from export.runners.gpu.buffers import Buffers, BufferSizes
from export.runners.gpu.caches import CacheShape
from export.runners.gpu.device import Device, Event, Streams
from export.runners.gpu.graphs import DeviceGraphs
from export.runners.gpu.memory import MemoryPlan, check_fits
from export.runners.gpu.rows import ENCODER_TOKENS, DeviceRows
from export.runners.gpu.steps import SCRATCH_GRAPHS, Head, Steps
from export.runners.protocol import Candidates, FloatArray, IntArray, RunnerError, RunnerLimits, ShapeError


@dataclass(eq=False)
class _Step:
    """A step that has been put into the stream.

    Attributes:
        tokens: that went in, by row.
        positions: of each row.
        goes_on: whether every row just continued what the step before chose.
        best: the best tokens, on their way to the host: where they will be, and when.
        ids: the best tokens, once the host has them.
        top: when the top-k head's findings will be on the host.
        ahead: the step after it, begun before anybody asked for it.
    """

    tokens: Sequence[int]
    positions: Sequence[int]
    goes_on: bool = False
    best: tuple[IntArray, Event] | None = None
    ids: list[int] = field(default_factory=list)
    top: Event | None = None
    ahead: _Step | None = None

    @property
    def rows(self) -> int:
        """Live rows."""
        return len(self.positions)


class GpuRunner:
    """Executes a bundle's graphs on a GPU; implements ``export.runners.protocol.Runner``.

    While rows only go on with their best tokens, as they mostly do in greedy search, the device feeds itself: the next
    step is begun before the host has seen this one's tokens, so that the device never waits for the host. A step that
    was begun like this and is not what is then asked for is done for nothing, and harms nothing: all that it leaves
    behind lies at places of the caches that the next step of the same row writes first. It happens only while rows do
    go on, so a server with sequences that come and go at every step does not pay for it.
    """

    shortlisted = False

    def __init__(
        self,
        manifest: Manifest,
        device: Device,
        streams: Streams,
        graphs: DeviceGraphs,
        *,
        max_rows: int,
        max_candidates: int,
    ) -> None:
        """Allocate caches and buffers.

        Args:
            manifest: of the bundle.
            device: where to; nobody else uses the device object.
            streams: of the device, in which the graphs will run.
            graphs: loaded there; the runner closes them.
            max_rows: most live rows of a step.
            max_candidates: largest ``k`` of ``top_k``; lowered to the number of selectable tokens.

        Raises:
            RunnerError: there is not so much memory free; nothing was allocated.
        """
        dims = manifest.dims
        self.name, self.precision = graphs.name, graphs.precision
        self._dims, self._device, self._streams, self._graphs = dims, device, streams, graphs
        itemsize = cache_dtype(graphs.precision).itemsize
        # Rows that no live one needs are computed too, up to the end of a bucket.
        room = smallest(graphs.row_buckets, max_rows)
        candidates = min(max_candidates, manifest.selectable_tokens)
        sizes = BufferSizes(room, candidates, max(ENCODER_TOKENS, manifest.max_source_tokens))
        plans = memory_plans(manifest, graphs, sizes, itemsize=itemsize)
        check_fits(device, plans)
        self._buffers = Buffers(device, dims, sizes, itemsize=itemsize)
        self._rows = DeviceRows(manifest, device, streams, graphs, self._buffers, rows=room, itemsize=itemsize)
        self._steps = Steps(device, streams, graphs, self._buffers, self._rows)
        self.limits = RunnerLimits(
            max_rows=max_rows,
            max_source_tokens=manifest.max_source_tokens,
            max_output_tokens=manifest.max_output_tokens,
            max_candidates=sizes.candidates,
            cache_bytes=plans[room].parts["own caches"] + plans[room].parts["cross caches"],
            encode_tokens=ENCODER_TOKENS,
        )
        self._head: Head = "greedy"  # the one that was asked for last, and will be next
        self._step: _Step | None = None
        self._closed = False

    @property
    def device_description(self) -> str:
        """What it runs on, in words."""
        return self._device.description

    def encode(self, *, sources: IntArray, lengths: IntArray, rows: IntArray) -> None:
        """Encode a batch of sources and write their cross-attention keys and values into ``rows``.

        Args:
            sources: int64 [batch, src_len], end token included, padded on the right with pad_id.
            lengths: int64 [batch], tokens of each source, 1 to src_len.
            rows: int64 [batch], the row of each source.

        Raises:
            ShapeError: a shape does not fit, or exceeds ``limits``.
            RunnerError: the device failed.
        """
        self._check_open()
        check_sources(self._dims, self.limits, sources=sources, lengths=lengths, rows=rows)
        self._rows.encode(sources, lengths=lengths.tolist(), rows=rows.tolist())

    def step(
        self, *, tokens: IntArray, positions: IntArray, parents: IntArray | None = None, alone: bool = True
    ) -> None:
        """Run one decoder step for the live rows 0..rows-1; the logits stay on the device.

        Args:
            tokens: int64 [rows], last token of each row; the start token in a row's first step.
            positions: int64 [rows], tokens already in the row's cache; 0 in its first step.
            parents: int64 [rows], row whose caches each row continues; None: its own.
            alone: of no account: the device shares itself out.

        Raises:
            ShapeError: a shape does not fit, exceeds ``limits``, or a row has no source.
            RunnerError: the device failed.
        """
        del alone
        self._check_open()
        given, places, origins = check_step(
            self._dims, self.limits, tokens=tokens, positions=positions, parents=parents
        )
        self._begin(given, places, origins)

    def greedy_steps(
        self,
        steps: int,
        *,
        tokens: IntArray,
        positions: IntArray,
        parents: IntArray | None = None,
        end_id: int,
        alone: bool = True,
    ) -> list[list[int]]:
        """Run a step, and further ones in each of which every row goes on with its best token, as ``argmax`` gives it.

        They end early, after one in which ``end_id`` was best for some row.

        Args:
            steps: at most so many, at least 1.
            tokens: as of ``step``, for the first one; so are the next two.
            positions: see there.
            parents: see there.
            end_id: the end token.
            alone: of no account.

        Returns:
            Best token of each row after each step: [steps][rows].

        Raises:
            ShapeError: as ``step``, or ``steps`` is not from 1 to the places that the longest row has left.
            RunnerError: the device failed.
        """
        del alone
        self._check_open()
        given, places, origins = check_step(
            self._dims, self.limits, tokens=tokens, positions=positions, parents=parents
        )
        check_steps(self.limits, steps, positions=places)
        best: list[list[int]] = []
        while True:
            self._begin(given, places, origins)
            best.append(self.argmax().tolist())
            if len(best) == steps or end_id in best[-1]:
                return best
            # A list of its own: the other one is the caller's.
            given, places, origins = best[-1].copy(), [place + 1 for place in places], None

    def argmax(self) -> IntArray:
        """Best token of each row of the last step: int64 [rows]; the lowest id where several are equal."""
        step = self._stepped()
        self._head = "greedy"
        if step.best is None:
            self._steps.run_head("greedy", step.rows)
            step.best = self._steps.download_best()
        self._run_ahead(step)
        ids, arrived = step.best
        if not step.ids:
            arrived.synchronize()
            step.ids = ids[: step.rows].tolist()
        return np.array(step.ids, np.int64)

    def top_k(self, k: int) -> Candidates:
        """The ``k`` best tokens of each row of the last step, with log-probs.

        Raises:
            ShapeError: ``k`` exceeds ``limits.max_candidates``.
        """
        step = self._stepped()
        check_size("k", k, self.limits.max_candidates)
        self._head = "top_k"
        if step.top is None:
            self._run_again_if_gone(step, "top_k")
        if step.top is None:
            self._steps.run_head("top_k", step.rows)
            step.top = self._steps.download_top()
        step.top.synchronize()
        ids, log_probs = self._buffers.top_ids, self._buffers.top_log_probs
        return Candidates(ids[: step.rows, :k].copy(), log_probs[: step.rows, :k].copy())

    def logits(self) -> FloatArray:
        """Raw logits of the last step: float32 [rows, target_vocab_size]."""
        step = self._stepped()
        self._run_again_if_gone(step, self._head)
        return self._steps.download_logits(step.rows)[:, : self._dims.target_vocab].copy()

    def close(self) -> None:
        """Free graphs and device memory; calling it again does nothing."""
        if not self._closed:
            self._closed = True
            # A step may be under way that was begun ahead.
            with contextlib.suppress(RunnerError):  # a device that has failed has no work left
                for stream in self._streams:
                    stream.synchronize()
            self._steps.close()
            self._rows.close()
            self._graphs.close()
            self._device.close()

    def _begin(self, given: Sequence[int], places: Sequence[int], origins: Sequence[int] | None) -> None:
        """Run a step of which all has been checked."""
        moved = origins is not None and origins != list(range(len(origins)))
        before, self._step = self._step, None
        goes_on = not moved and before is not None and _continues(before, given, places)
        if goes_on and before is not None and before.ahead is not None:
            self._step = before.ahead
            self._step.tokens = given
            return
        self._rows.prepare(origins if moved else None, positions=places)
        step = _Step(given, places, goes_on=goes_on)
        self._run(step, self._head)
        self._step = step

    def _run(self, step: _Step, head: Head) -> None:
        """Put a step and the head that reads it into the stream, from what the host knows."""
        self._rows.upload(step.tokens, step.positions)
        self._run_on(step, head)

    def _run_on(self, step: _Step, head: Head) -> None:
        """Put a step and its head into the stream; its tokens and positions are on the device."""
        self._steps.run(step.rows, head)
        if head == "greedy":
            step.best = self._steps.download_best()
        else:
            step.top = self._steps.download_top()

    def _run_ahead(self, step: _Step) -> None:
        """Begin the next step while this one's tokens are on their way, where it will most likely be asked for."""
        if not step.goes_on or step.ahead is not None or step.top is not None:
            return
        positions = [position + 1 for position in step.positions]
        if max(positions) < min(self._rows.own.capacity, self.limits.max_output_tokens):
            step.ahead = _Step((), positions, goes_on=True)
            self._run_on(step.ahead, "greedy")

    def _run_again_if_gone(self, step: _Step, head: Head) -> None:
        """Run a step once more whose logits the step after it has overwritten."""
        if step.ahead is not None:
            step.ahead, step.goes_on = None, False
            self._run(step, head)

    def _stepped(self) -> _Step:
        self._check_open()
        if self._step is None:
            raise ShapeError("rows: got a head before any step, wanted a step first")
        return self._step

    def _check_open(self) -> None:
        if self._closed:
            raise RunnerError("the runner is closed")


def _continues(before: _Step, tokens: Sequence[int], positions: Sequence[int]) -> bool:
    """Whether every row goes on with the token that was best, one place further."""
    return before.ids == tokens and [position + 1 for position in before.positions] == positions


def memory_plans(
    manifest: Manifest, graphs: DeviceGraphs, sizes: BufferSizes, *, itemsize: int
) -> dict[int, MemoryPlan]:
    """What a runner needs beside its weights, for each number of rows that its graphs come in, up to its own."""
    return {
        rows: _memory_plan(manifest, graphs, dataclasses.replace(sizes, rows=rows), itemsize=itemsize)
        for rows in graphs.row_buckets
        if rows <= sizes.rows
    }


def _memory_plan(manifest: Manifest, graphs: DeviceGraphs, sizes: BufferSizes, *, itemsize: int) -> MemoryPlan:
    dims = manifest.dims
    shape = CacheShape.of(dims, rows=sizes.rows, itemsize=itemsize)
    return MemoryPlan(
        {
            "own caches": 2 * shape.bytes_at(graphs.cache_capacities[-1]),
            "cross caches": 2 * shape.bytes_at(graphs.source_capacities[-1]),
            "buffers": Buffers.device_bytes(dims, sizes, itemsize=itemsize),
            "scratch": max(map(graphs.scratch_bytes, SCRATCH_GRAPHS))
            + graphs.scratch_bytes("encoder")
            + graphs.scratch_bytes("reorder"),
        }
    )
