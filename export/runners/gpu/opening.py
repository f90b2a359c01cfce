"""From a bundle to runners on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from export.bundle import Bundle, BundleError
from export.runners.gpu.device import Device, Streams
from export.runners.gpu.graphs import DeviceGraphs
from export.runners.gpu.runner import GpuRunner

GpuTarget = Literal["cuda", "tensorrt"]


def check_target(target: GpuTarget) -> None:
    """Hold that there are a GPU and the libraries that ``target`` needs, as far as it shows without loading graphs.

    Raises:
        DeviceUnavailableError: something is missing; one line says what to install.
    """
    from export.runners.gpu.cuda import find_gpu  # noqa: PLC0415 - reports a missing library when it is called

    gpu = find_gpu()
    if target == "cuda":
        from export.runners.gpu.ort import check_build  # noqa: PLC0415 - not where engines run

        check_build()
    else:
        from export.runners.tensorrt_library import find_library  # noqa: PLC0415 - not where ONNX Runtime runs

        find_library().check_gpu(gpu)


def open_gpu_runners(
    bundle: Bundle,
    *,
    target: GpuTarget,
    engines: Path | None = None,
    workers: int = 1,
    max_rows: int = 128,
    max_candidates: int = 32,
) -> tuple[GpuRunner, ...]:
    """Load a bundle's graphs for runners on the GPU.

    Args:
        bundle: exported for ``target``.
        target: ``cuda``: by ONNX Runtime; ``tensorrt``: by engines that have been built.
        engines: the folder of engines, for ``tensorrt``; None: those that the bundle carries.
        workers: runners that may be at work at once.
        max_rows: most live rows of a step, for each runner.
        max_candidates: largest ``k`` of ``top_k``; lowered to the number of selectable tokens.

    Raises:
        DeviceUnavailableError: there is no GPU, or a library for it is missing; one line says what to install.
        BundleError: the bundle has no graphs for ``target``, or the engines do not fit it.
        RunnerError: the device failed, or has too little memory free.
    """
    if target not in bundle.manifest.graphs:
        wanted = f"one that `dragoman export --target {target}` wrote"
        raise BundleError(f"{bundle.path}: got a bundle without graphs for {target}, wanted {wanted}")
    sizes = {"max_rows": max_rows, "max_candidates": max_candidates}
    load = _loader(bundle, target=target, engines=engines, **sizes)
    with contextlib.ExitStack() as opened:
        runners = []
        for _ in range(workers):
            runner = _open(bundle, load, **sizes)
            opened.callback(runner.close)
            runners.append(runner)
        opened.pop_all()
    return tuple(runners)


def _loader(
    bundle: Bundle, *, target: GpuTarget, engines: Path | None, max_rows: int, max_candidates: int
) -> Callable[[Streams], DeviceGraphs]:
    """What loads the graphs for one runner, in its streams."""
    if target == "cuda":
        from export.runners.gpu.ort import OrtGraphs  # noqa: PLC0415 - not where engines run

        return lambda streams: OrtGraphs(bundle, streams, max_rows=max_rows)
    from export.runners.gpu.tensorrt import TensorrtGraphs  # noqa: PLC0415 - not where ONNX Runtime runs

    return lambda streams: TensorrtGraphs.open(
        bundle, engines, streams, max_rows=max_rows, max_candidates=max_candidates
    )


def _open(bundle: Bundle, load: Callable[[Streams], DeviceGraphs], *, max_rows: int, max_candidates: int) -> GpuRunner:
    from export.runners.gpu.cuda import CudaDevice  # noqa: PLC0415 - reports a missing library when it is opened

    device: Device = CudaDevice()
    with contextlib.ExitStack() as opened:
        opened.callback(device.close)
        streams = Streams.of(device)
        graphs = load(streams)
        opened.callback(graphs.close)  # before the streams that they know
        sizes = {"max_rows": max_rows, "max_candidates": max_candidates}
        runner = GpuRunner(bundle.manifest, device, streams, graphs, **sizes)
        opened.pop_all()  # the runner closes them from now on
    return runner
