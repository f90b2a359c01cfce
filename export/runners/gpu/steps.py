"""Steps and heads in the stream: bound to the buffers, captured together, and their results on the way to the host."""

from __future__ import annotations

from functools import partial
from typing import Literal

from export.runners.gpu.buckets import smallest
from export.runners.gpu.buffers import Buffers
from export.runners.gpu.device import Device, Event, Streams
from export.runners.gpu.graphs import DeviceGraphs
from export.runners.gpu.programs import Enqueue, Programs
from export.runners.gpu.rows import DeviceRows
from export.runners.protocol import FloatArray, IntArray

Head = Literal["greedy", "top_k"]
SCRATCH_GRAPHS = ("step", "greedy", "top_k")
"""Graphs that run one after the other, and so share the memory that they need while they run."""


class Steps:
    """Runs a step and the head that reads it as one piece of work.

    There is one piece for each number of rows, layout of the caches and head. The greedy head ends in copies that make
    its tokens and positions those of the next step.
    """

    def __init__(
        self, device: Device, streams: Streams, graphs: DeviceGraphs, buffers: Buffers, rows: DeviceRows
    ) -> None:
        """Begin with none prepared."""
        self._stream, self._graphs, self._buffers, self._rows = streams.steps, graphs, buffers, rows
        self._programs = Programs(streams.steps, capturable=graphs.capturable)
        self._scratch = device.allocate(max(map(graphs.scratch_bytes, SCRATCH_GRAPHS)))
        self._downloads = 0

    @property
    def captured(self) -> int:
        """How many pieces of work have been captured."""
        return self._programs.captured

    def run(self, rows: int, head: Head) -> None:
        """A step of so many live rows, whose tokens and positions are on the device, and a head."""
        bucket = self._bucket(rows)
        self._programs.run((bucket, *self._rows.layout, head), lambda: self._prepare_step(bucket, head))

    def run_head(self, head: Head, rows: int) -> None:
        """A head alone, on the logits that the last step left."""
        bucket = self._bucket(rows)
        self._programs.run((bucket, head), lambda: self._prepare_head(bucket, head))

    def download_best(self) -> tuple[IntArray, Event]:
        """Send the best tokens to the host: where they will be until the call after the next, and when."""
        ids = self._buffers.ids[self._downloads % 2]
        self._downloads += 1
        self._stream.download(ids, self._buffers["ids"])
        return ids, self._stream.record()

    def download_top(self) -> Event:
        """Send the top-k head's findings to the host."""
        self._stream.download(self._buffers.top_ids, self._buffers["top_ids"])
        self._stream.download(self._buffers.top_log_probs, self._buffers["top_log_probs"])
        return self._stream.record()

    def download_logits(self, rows: int) -> FloatArray:
        """The logits that the last step left: float32 [rows, padded vocabulary], until the next call."""
        logits = self._buffers.logits[:rows]
        self._stream.download(logits, self._buffers["logits"])
        self._stream.synchronize()
        return logits

    def close(self) -> None:
        """Free what was captured."""
        self._programs.close()

    def _bucket(self, rows: int) -> int:
        return smallest(self._graphs.row_buckets, rows)

    def _prepare_step(self, rows: int, head: Head) -> Enqueue:
        buffers = self._buffers
        tensors = {
            **buffers.step_inputs(rows),
            **self._rows.tensors(rows),
            "logits": buffers.logits_tensor(rows),
        }
        step = self._graphs.bind("step", tensors, scratch=self._scratch)
        read = self._prepare_head(rows, head)

        def enqueue() -> None:
            step.enqueue(self._stream.handle)
            read()

        return enqueue

    def _prepare_head(self, rows: int, head: Head) -> Enqueue:
        buffers, stream = self._buffers, self._stream
        if head == "top_k":
            top_k = self._graphs.bind("top_k", buffers.top_k(rows), scratch=self._scratch)
            return partial(top_k.enqueue, stream.handle)
        greedy = self._graphs.bind("greedy", buffers.greedy(rows), scratch=self._scratch)
        inputs = buffers.step_inputs(rows)

        def enqueue() -> None:
            greedy.enqueue(stream.handle)
            stream.copy(inputs["tokens"].address, buffers["ids"], rows * 8)
            stream.copy(inputs["positions"].address, buffers["next_positions"], rows * 8)

        return enqueue
