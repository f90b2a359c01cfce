"""An NVIDIA GPU through cuda-bindings: the first that the process sees (CUDA_VISIBLE_DEVICES chooses)."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runners.gpu.device import Block, Captured, DeviceUnavailableError, Event
from export.runners.protocol import RunnerError

_DRIVER_VERSION = Path("/proc/driver/nvidia/version")
_NO_DRIVER = ("cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorSystemDriverMismatch")


@dataclass(frozen=True)
class Gpu:
    """What tells one GPU from another.

    Attributes:
        name: for example ``NVIDIA H100 80GB HBM3``.
        capability: compute capability, such as ``9.0``.
        driver: version of the driver.
    """

    name: str
    capability: str
    driver: str

    def __str__(self) -> str:
        return f"{self.name}, driver {self.driver}"


def find_gpu() -> Gpu:
    """The GPU that ``CudaDevice`` opens.

    Raises:
        DeviceUnavailableError: there is none, or no driver or library for it.
    """
    runtime = _load()
    properties = _call(runtime.cudaGetDeviceProperties, 0)
    name = properties.name
    text = name.decode() if isinstance(name, bytes) else str(name)
    return Gpu(text.rstrip("\0"), f"{properties.major}.{properties.minor}", _driver_version(runtime))


def _load() -> Any:
    """The CUDA runtime, where there is a device for it."""
    try:
        from cuda.bindings import runtime  # noqa: PLC0415 - an extra; a server on the CPU goes without
    except ImportError as error:
        raise DeviceUnavailableError('a GPU needs cuda-bindings: pip install "dragoman[tensorrt]"') from error
    status, count = runtime.cudaGetDeviceCount()
    if status.name in _NO_DRIVER or (status.name == "cudaSuccess" and not count):
        raise DeviceUnavailableError(
            f"got no usable NVIDIA GPU ({status.name}), wanted one with a driver for CUDA 13: "
            "install NVIDIA driver 580 or newer, and in a container the NVIDIA Container Toolkit"
        )
    if status.name != "cudaSuccess":
        raise DeviceUnavailableError(f"the NVIDIA GPU cannot be used: {status.name}")
    return runtime


def _driver_version(runtime: Any) -> str:
    """The driver's own version, or where that cannot be read the newest CUDA that it knows."""
    try:
        found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", _DRIVER_VERSION.read_text())
    except OSError:
        found = None
    if found is not None:
        return found[1]
    version = _call(runtime.cudaDriverGetVersion)
    return f"for CUDA {version // 1000}.{version % 1000 // 10}"


def _call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """What a call of the CUDA runtime gave.

    Raises:
        RunnerError: it failed.
    """
    status, *results = function(*arguments)
    if status.value:
        raise RunnerError(f"{function.__name__}: {status.name}")
    return results[0] if results else None


class CudaDevice:
    """Implements ``export.runners.gpu.device.Device``."""

    def __init__(self) -> None:
        """Open the GPU.

        Raises:
            DeviceUnavailableError: there is none, or no driver or library for it.
        """
        self._runtime = _load()
        self.gpu = find_gpu()
        self._allocated: set[int] = set()
        self._pinned: list[int] = []
        self._streams: list[int] = []

    @property
    def description(self) -> str:
        """Model and driver."""
        return str(self.gpu)

    def free_bytes(self) -> int:
        """Memory that could be allocated now."""
        status, free, _ = self._runtime.cudaMemGetInfo()
        if status.value:
            raise RunnerError(f"cudaMemGetInfo: {status.name}")
        return int(free)

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes of zeros; 0 where none are wanted."""
        if not size:
            return 0
        address = int(_call(self._runtime.cudaMalloc, size))
        self._allocated.add(address)
        _call(self._runtime.cudaMemset, address, 0, size)
        # It runs in the default stream, for which the others do not wait.
        _call(self._runtime.cudaStreamSynchronize, 0)
        return address

    def free(self, address: int) -> None:
        """Give memory back."""
        if address in self._allocated:
            self._allocated.remove(address)
            _call(self._runtime.cudaFree, address)

    def pinned(self, size: int) -> NDArray[Any]:
        """Host memory that copies can use directly: uint8 [size], zeros."""
        address = int(_call(self._runtime.cudaHostAlloc, size, self._runtime.cudaHostAllocDefault))
        self._pinned.append(address)
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        memory[:] = 0
        return memory

    def stream(self) -> CudaStream:
        """A new stream, which does not wait for the default one."""
        handle = int(_call(self._runtime.cudaStreamCreateWithFlags, self._runtime.cudaStreamNonBlocking))
        self._streams.append(handle)
        return CudaStream(self._runtime, handle)

    def close(self) -> None:
        """Free streams, pinned memory and what is still allocated; a device that has failed frees what it can."""
        runtime = self._runtime
        for handle in self._streams:
            runtime.cudaStreamSynchronize(handle)
            runtime.cudaStreamDestroy(handle)
        for address in self._pinned:
            runtime.cudaFreeHost(address)
        for address in self._allocated:
            runtime.cudaFree(address)
        self._streams, self._pinned, self._allocated = [], [], set()


class CudaStream:
    """Implements ``export.runners.gpu.device.Stream``."""

    def __init__(self, runtime: Any, handle: int) -> None:
        """Wrap a stream that exists."""
        self.handle = handle
        self._runtime = runtime
        kinds = runtime.cudaMemcpyKind
        self._up, self._down = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
        self._within = kinds.cudaMemcpyDeviceToDevice

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """Copy pinned host memory to the device."""
        _call(self._runtime.cudaMemcpyAsync, address, values.ctypes.data, values.nbytes, self._up, self.handle)

    def download(self, values: NDArray[Any], address: int) -> None:
        """Copy device memory to pinned host memory."""
        _call(self._runtime.cudaMemcpyAsync, values.ctypes.data, address, values.nbytes, self._down, self.handle)

    def copy(self, to: int, origin: int, size: int) -> None:
        """Copy bytes within the device."""
        _call(self._runtime.cudaMemcpyAsync, to, origin, size, self._within, self.handle)

    def copy_block(self, to: Block, origin: Block, *, line: int, lines: int, planes: int) -> None:
        """Copy ``planes`` times ``lines`` lines of ``line`` bytes within the device."""
        runtime = self._runtime
        extent = runtime.cudaExtent()
        extent.width, extent.height, extent.depth = line, lines, planes
        parameters = runtime.cudaMemcpy3DParms()
        parameters.srcPtr, parameters.dstPtr = self._pitched(origin), self._pitched(to)
        parameters.srcPos, parameters.dstPos = self._first(origin), self._first(to)
        parameters.extent, parameters.kind = extent, self._within
        _call(runtime.cudaMemcpy3DAsync, parameters, self.handle)

    def _pitched(self, block: Block) -> Any:
        pointer = self._runtime.cudaPitchedPtr()
        pointer.ptr, pointer.pitch = block.address, block.line_bytes
        pointer.xsize, pointer.ysize = block.line_bytes, block.lines
        return pointer

    def _first(self, block: Block) -> Any:
        position = self._runtime.cudaPos()
        position.x, position.y, position.z = 0, block.first, 0
        return position

    def record(self) -> Event:
        """Mark this moment."""
        # One that measures no time is the cheaper kind.
        handle = _call(self._runtime.cudaEventCreateWithFlags, self._runtime.cudaEventDisableTiming)
        event = CudaEvent(self._runtime, handle)
        _call(self._runtime.cudaEventRecord, event.handle, self.handle)
        return event

    def wait(self, event: Event) -> None:
        """Let what follows wait for an event of another stream."""
        assert isinstance(event, CudaEvent), "an event of this device"
        _call(self._runtime.cudaStreamWaitEvent, self.handle, event.handle, 0)

    def capture(self, enqueue: Callable[[], None]) -> Captured:
        """Capture what ``enqueue`` puts into this stream, without running it."""
        runtime = self._runtime
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal  # other threads go on as they like
        _call(runtime.cudaStreamBeginCapture, self.handle, mode)
        try:
            enqueue()
        except BaseException:
            status, graph = runtime.cudaStreamEndCapture(self.handle)  # which fails too, and knows less
            if not status.value:
                runtime.cudaGraphDestroy(graph)
            raise
        graph = _call(runtime.cudaStreamEndCapture, self.handle)
        try:
            return CudaCaptured(runtime, _call(runtime.cudaGraphInstantiate, graph, 0))
        finally:
            _call(runtime.cudaGraphDestroy, graph)

    def launch(self, captured: Captured) -> None:
        """Run captured work."""
        assert isinstance(captured, CudaCaptured), "work of this device"
        _call(self._runtime.cudaGraphLaunch, captured.graph, self.handle)

    def synchronize(self) -> None:
        """Wait on the host until all of it is done."""
        _call(self._runtime.cudaStreamSynchronize, self.handle)


class CudaEvent:
    """Implements ``export.runners.gpu.device.Event``."""

    def __init__(self, runtime: Any, handle: Any) -> None:
        """Own an event that exists."""
        self._runtime = runtime
        self.handle = handle

    def synchronize(self) -> None:
        """Wait on the host until everything before it is done."""
        _call(self._runtime.cudaEventSynchronize, self.handle)

    def __del__(self) -> None:
        self._runtime.cudaEventDestroy(self.handle)


class CudaCaptured:
    """Implements ``export.runners.gpu.device.Captured``."""

    def __init__(self, runtime: Any, graph: Any) -> None:
        """Keep an instantiated graph."""
        self._runtime = runtime
        self.graph = graph

    def close(self) -> None:
        """Free it."""
        _call(self._runtime.cudaGraphExecDestroy, self.graph)
