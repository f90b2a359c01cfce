"""The CUDA device where there is no GPU: what it says is missing, and that CUDA takes what it is given."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export.bundle import Bundle, BundleError
from export.runners.gpu import cuda
from export.runners.gpu.cuda import CudaDevice, CudaStream, find_gpu
from export.runners.gpu.device import Block, DeviceUnavailableError
from export.runners.gpu.opening import open_gpu_runners
from export.runners.gpu.ort import OrtGraphs
from export.runners.protocol import RunnerError
from tests.export.tiny import export_model, random_model

runtime = pytest.importorskip("cuda.bindings.runtime")


def has_gpu() -> bool:
    status, count = runtime.cudaGetDeviceCount()
    return bool(status.value == 0 and count)


without_gpu = pytest.mark.skipif(has_gpu(), reason="there is a GPU")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_model(random_model(), tmp_path_factory.mktemp("cuda") / "bundle", target="cuda")


@without_gpu
@pytest.mark.parametrize("opening", [find_gpu, CudaDevice])
def test_without_a_driver_one_line_says_what_to_install(opening: Callable[[], Any]) -> None:
    with pytest.raises(DeviceUnavailableError, match=r"^got no usable NVIDIA GPU .*: install NVIDIA driver 580"):
        opening()


def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(
        DeviceUnavailableError, match=r'^a GPU needs cuda-bindings: pip install "dragoman\[tensorrt\]"$'
    ):
        find_gpu()


class NoStream:
    handle = 0


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="built for CUDA")
def test_an_onnxruntime_for_cpus_is_named(bundle: Bundle) -> None:
    streams: Any = type("Streams", (), {"encoder": NoStream, "steps": NoStream})
    with pytest.raises(DeviceUnavailableError, match=r"^onnxruntime: got the build for CPUs, .* `make install-gpu`"):
        OrtGraphs(bundle, streams, max_rows=8)


@without_gpu
def test_runners_are_refused_before_anything_is_loaded(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailableError, match="got no usable NVIDIA GPU"):
        open_gpu_runners(bundle, target="cuda")


def test_a_bundle_without_graphs_for_it_is_refused(demo_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"without graphs for cuda, wanted one that `dragoman export --target cuda`"):
        open_gpu_runners(demo_bundle, target="cuda")


@pytest.fixture
def demo_bundle() -> Bundle:
    return Bundle.open(Path(__file__).parents[2] / "server" / "assets" / "multi30k-en-de")


VALUES = np.zeros(4, np.int64)
BLOCK = Block(1 << 20, 64, 8)
# Each must get past the conversion of its arguments and fail for want of a driver.
CALLS: dict[str, Callable[[CudaStream, CudaDevice], Any]] = {
    "cudaMemcpyAsync": lambda stream, _: stream.upload(1 << 20, VALUES),
    "cudaMemcpyAsync ": lambda stream, _: stream.download(VALUES, 1 << 20),
    "cudaMemcpyAsync  ": lambda stream, _: stream.copy(1 << 20, 1 << 21, 8),
    "cudaMemcpy3DAsync": lambda stream, _: stream.copy_block(BLOCK, BLOCK, line=8, lines=2, planes=3),
    "cudaEventCreateWithFlags": lambda stream, _: stream.record(),
    "cudaStreamBeginCapture": lambda stream, _: stream.capture(lambda: None),
    "cudaStreamSynchronize": lambda stream, _: stream.synchronize(),
    "cudaMalloc": lambda _, device: device.allocate(8),
    "cudaHostAlloc": lambda _, device: device.pinned(8),
    "cudaStreamCreateWithFlags": lambda _, device: device.stream(),
    "cudaMemGetInfo": lambda _, device: device.free_bytes(),
}


@without_gpu
@pytest.mark.parametrize("function", CALLS)
def test_cuda_takes_what_it_is_given(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_load", lambda: runtime)
    monkeypatch.setattr(cuda, "find_gpu", lambda: cuda.Gpu("none", "0.0", "0"))
    device = CudaDevice()
    with pytest.raises(RunnerError, match=rf"^{function.strip()}: cudaError\w+$"):
        CALLS[function](CudaStream(runtime, 0), device)


@without_gpu
def test_nothing_is_wanted_of_a_device_without_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_load", lambda: runtime)
    monkeypatch.setattr(cuda, "find_gpu", lambda: cuda.Gpu("none", "0.0", "0"))
    assert CudaDevice().allocate(0) == 0


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build", "580.159.04"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.51  Thu", "575.51"),
    ],
)
def test_the_drivers_version_is_read(text: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(cuda, "_DRIVER_VERSION", tmp_path / "version")
    assert cuda._driver_version(runtime) == version


def test_else_the_cuda_that_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_DRIVER_VERSION", tmp_path / "nothing")
    assert cuda._driver_version(runtime).startswith("for CUDA ")
