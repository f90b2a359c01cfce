"""A GPU made of host memory, whose streams run as late, as early or as unevenly as a real one's might.

Graphs are executed by ONNX Runtime on the CPU, on the very addresses that they are bound to.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from export.bundle import Bundle
from export.runners.gpu.device import Block, Captured, Event, Streams
from export.runners.gpu.graphs import Call, DeviceGraphs, Tensor
from export.runners.gpu.ort import OrtGraphs
from export.runners.gpu.runner import GpuRunner
from export.runners.protocol import RunnerError

Schedule = Literal["late", "early", "uneven"]
SCHEDULES: tuple[Schedule, ...] = ("late", "early", "uneven")
ALIGNMENT = 256
Operation = Callable[[], None]


class FakeStream:
    """Operations in order, run when the schedule says, or somebody waits for them."""

    def __init__(self, device: FakeDevice, handle: int) -> None:
        self.handle = handle
        self.waits: list[FakeEvent] = []
        self._device = device
        self._queue: list[Operation] = []
        self._done = 0
        self._capturing: list[Operation] | None = None

    def push(self, operation: Operation) -> None:
        if self._capturing is not None:
            self._capturing.append(operation)
            return
        self._queue.append(operation)
        self._device.something_was_pushed()

    def run_to(self, end: int) -> None:
        while self._done < end:
            operation, self._queue[self._done] = self._queue[self._done], lambda: None
            self._done += 1
            operation()

    @property
    def waiting(self) -> int:
        """Operations that have not run."""
        return len(self._queue) - self._done

    def run_some(self, count: int) -> None:
        self.run_to(min(self._done + count, len(self._queue)))

    def upload(self, address: int, values: NDArray[Any]) -> None:
        self._device.check_pinned(values)
        self._device.check(address, values.nbytes)
        self.push(lambda: _copy(address, values.ctypes.data, values.nbytes))

    def download(self, values: NDArray[Any], address: int) -> None:
        self._device.check_pinned(values)
        self._device.check(address, values.nbytes)
        self.push(lambda: _copy(values.ctypes.data, address, values.nbytes))

    def copy(self, to: int, origin: int, size: int) -> None:
        self._device.check(to, size)
        self._device.check(origin, size)
        self.push(lambda: _copy(to, origin, size))

    def copy_block(self, to: Block, origin: Block, *, line: int, lines: int, planes: int) -> None:
        assert line > 0
        assert line <= min(to.line_bytes, origin.line_bytes), "a line is longer than its place"
        for block in (to, origin):
            assert block.first + lines <= block.lines, "a plane is longer than its place"
            self._device.check(block.address, planes * block.lines * block.line_bytes)

        def run() -> None:
            for plane in range(planes):
                for number in range(lines):
                    target = to.address + (plane * to.lines + to.first + number) * to.line_bytes
                    source = origin.address + (plane * origin.lines + origin.first + number) * origin.line_bytes
                    _copy(target, source, line)

        self.push(run)

    def record(self) -> FakeEvent:
        assert self._capturing is None, "an event within captured work"
        return FakeEvent(self, len(self._queue))

    def wait(self, event: Event) -> None:
        assert isinstance(event, FakeEvent)
        self.waits.append(event)
        self.push(event.run)

    def capture(self, enqueue: Callable[[], None]) -> FakeCaptured:
        self._device.captures_tried += 1
        if self._device.refuses_capture:
            raise RunnerError("scripted refusal")
        self._capturing = []
        try:
            enqueue()
            captured = FakeCaptured(self._device, tuple(self._capturing))
        finally:
            self._capturing = None
        self._device.captured.append(captured)
        return captured

    def launch(self, captured: Captured) -> None:
        assert isinstance(captured, FakeCaptured)
        assert not captured.closed
        self._device.launches += 1
        for operation in captured.operations:
            self.push(operation)

    def synchronize(self) -> None:
        self.run_to(len(self._queue))

    @property
    def capturing(self) -> bool:
        return self._capturing is not None


@dataclass(eq=False)
class FakeEvent:
    stream: FakeStream
    end: int

    def run(self) -> None:
        self.stream.run_to(self.end)

    def synchronize(self) -> None:
        self.run()


class FakeCaptured:
    def __init__(self, device: FakeDevice, operations: tuple[Operation, ...]) -> None:
        self.operations = operations
        self.closed = False

    def close(self) -> None:
        self.closed = True


class FakeDevice:
    """Implements Device; every address is a real one."""

    description = "a GPU of paper"

    def __init__(self, schedule: Schedule = "late", *, seed: int = 0, total_bytes: int = 1 << 30) -> None:
        self.schedule = schedule
        self.captured: list[FakeCaptured] = []
        self.captures_tried = 0
        self.refuses_capture = False
        self.launches = 0
        self.closed = False
        self.allocated: dict[int, tuple[int, Any]] = {}
        self.streams: dict[int, FakeStream] = {}
        self.total_bytes = total_bytes
        self._pinned: list[tuple[int, int, Any]] = []
        self._draw = random.Random(seed)

    def free_bytes(self) -> int:
        return self.total_bytes - sum(size for size, _ in self.allocated.values())

    def allocate(self, size: int) -> int:
        if not size:
            return 0
        assert size <= self.free_bytes(), "allocated without asking whether there is room"
        memory = (ctypes.c_uint8 * (size + ALIGNMENT))()
        address = -(-ctypes.addressof(memory) // ALIGNMENT) * ALIGNMENT
        self.allocated[address] = size, memory
        return address

    def free(self, address: int) -> None:
        del self.allocated[address]

    def pinned(self, size: int) -> NDArray[Any]:
        values = np.zeros(size, np.uint8)
        self._pinned.append((values.ctypes.data, size, values))
        return values

    def stream(self) -> FakeStream:
        handle = 1000 + len(self.streams)
        self.streams[handle] = FakeStream(self, handle)
        return self.streams[handle]

    def something_was_pushed(self) -> None:
        if self.schedule == "early":
            for stream in self.streams.values():
                stream.synchronize()
        elif self.schedule == "uneven" and self._draw.random() < 0.5:
            self._draw.choice(list(self.streams.values())).run_some(self._draw.randint(1, 12))

    def check(self, address: int, size: int) -> None:
        """A piece of memory lies within one allocation."""
        assert any(base <= address and address + size <= base + room for base, (room, _) in self.allocated.items()), (
            "a copy beyond what was allocated"
        )

    def check_pinned(self, values: NDArray[Any]) -> None:
        assert values.flags.c_contiguous
        address = values.ctypes.data
        assert any(base <= address and address + values.nbytes <= base + size for base, size, _ in self._pinned), (
            "a copy of memory that is not pinned"
        )

    def close(self) -> None:
        self.closed = True
        for stream in self.streams.values():
            stream.synchronize()
        assert all(captured.closed for captured in self.captured)
        self.allocated.clear()


@dataclass
class FakeGraphs:
    """The graphs of a real runtime on a fake device: enqueued like all else, capturable, and what happens on record."""

    device: FakeDevice
    graphs: DeviceGraphs
    capturable: bool = True
    scratch: int = 0
    bound: list[tuple[str, dict[str, tuple[int, ...]]]] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    closed: bool = False

    def __post_init__(self) -> None:
        self.name, self.precision = "fake-gpu", self.graphs.precision
        self.row_buckets = self.graphs.row_buckets
        self.cache_capacities = self.graphs.cache_capacities
        self.source_capacities = self.graphs.source_capacities

    def scratch_bytes(self, graph: str) -> int:
        return self.scratch

    def bind(self, graph: str, tensors: Mapping[str, Tensor], *, scratch: int) -> Call:
        for name, tensor in tensors.items():
            assert name == "k" or tensor.address % ALIGNMENT == 0, f"{graph}: {name} is not aligned"
        self.bound.append((graph, {name: tensor.shape for name, tensor in tensors.items()}))
        return FakeCall(self, graph, self.graphs.bind(graph, tensors, scratch=scratch))

    def close(self) -> None:
        assert not any(stream.waiting for stream in self.device.streams.values()), "graphs are freed while they run"
        self.closed = True
        self.graphs.close()


@dataclass
class FakeCall:
    graphs: FakeGraphs
    graph: str
    call: Call
    enqueued: int = 0

    def enqueue(self, stream: int) -> None:
        if self.graph in self.graphs.failing:
            raise RunnerError(f"{self.graph}: scripted failure")
        target = self.graphs.device.streams[stream]
        assert self.enqueued or not target.capturing, "captured before it ever ran"
        self.enqueued += 1

        def run() -> None:
            self.graphs.runs.append(self.graph)
            self.call.enqueue(stream)

        target.push(run)


def open_fake(
    bundle: Bundle,
    *,
    schedule: Schedule = "late",
    seed: int = 0,
    max_rows: int = 8,
    max_candidates: int = 32,
    capturable: bool = True,
    device: FakeDevice | None = None,
) -> tuple[GpuRunner, FakeGraphs]:
    """A runner on a fake device that executes the bundle's graphs for GPUs, and what its graphs have on record."""
    device = device or FakeDevice(schedule, seed=seed)
    streams = Streams.of(device)
    graphs = FakeGraphs(device, OrtGraphs(bundle, streams, max_rows=max_rows, device_type="cpu"), capturable=capturable)
    sizes = {"max_rows": max_rows, "max_candidates": max_candidates}
    return GpuRunner(bundle.manifest, device, streams, graphs, **sizes), graphs


def _copy(to: int, origin: int, size: int) -> None:
    assert to + size <= origin or origin + size <= to, "a copy onto itself"
    ctypes.memmove(to, origin, size)
