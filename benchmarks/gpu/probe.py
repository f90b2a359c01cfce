"""Whether one runtime loads and works here, asked in a process of its own.

    python -m benchmarks.gpu.probe NAME

prints one line of JSON: what it found, or ``failed`` with one line of evidence.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.machine import describe_gpu

TENSORRT_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
_FAILED = 3


class ProbeError(RuntimeError):
    """A runtime is not there, or does not work; the message is the evidence."""


def probe_driver() -> dict[str, Any]:
    """GPU and driver, by ``nvidia-smi``, and the CUDA that the driver knows, by its own library."""
    found = describe_gpu()
    if "error" in found:
        raise ProbeError(found["error"])
    from cuda.bindings import driver  # noqa: PLC0415 - each probe loads only its own library

    (status,) = driver.cuInit(0)
    _, version = driver.cuDriverGetVersion()
    if status != driver.CUresult.CUDA_SUCCESS:
        raise ProbeError(f"cuInit: got {status.name}")
    return {**found, "cuda": f"{version // 1000}.{version % 1000 // 10}"}


def probe_torch() -> dict[str, Any]:
    """A product and an attention in fp16 on the GPU."""
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        raise ProbeError(f"torch {torch.__version__}: CUDA is not available")
    x = torch.randn(1, 8, 64, 64, device="cuda", dtype=torch.float16)
    mixed = torch.nn.functional.scaled_dot_product_attention(x, x, x) @ x
    if not bool(mixed.isfinite().all()):
        raise ProbeError(f"torch {torch.__version__}: attention gave values that are not finite")
    return {"version": str(torch.__version__), "cuda": torch.version.cuda, "gpu": torch.cuda.get_device_name()}


def probe_onnxruntime() -> dict[str, Any]:
    """A product by the CUDA provider, which must not be passed on to the CPU."""
    onnxruntime = importlib.import_module("onnxruntime")
    numpy = importlib.import_module("numpy")
    where = f"onnxruntime {onnxruntime.__version__}"
    providers = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in providers:
        raise ProbeError(f"{where}: got providers {', '.join(providers)}, wanted CUDAExecutionProvider")
    onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = onnxruntime.InferenceSession(_product_model(), options, providers=["CUDAExecutionProvider"])
    if "CUDAExecutionProvider" not in session.get_providers():
        raise ProbeError(f"{where}: the CUDA provider did not load; the log says why")
    x = numpy.ones((4, 4), numpy.float32)
    (product,) = session.run(None, {"x": x})
    if not numpy.array_equal(product, x @ x):
        raise ProbeError(f"{where}: a product on the GPU came out wrong")
    return {"version": onnxruntime.__version__, "providers": providers}


def probe_tensorrt(name: str) -> dict[str, Any]:
    """An engine built, loaded and given a context; the build needs no GPU with TensorRT-RTX, all else a driver."""
    library = importlib.import_module(TENSORRT_MODULES[name])
    where = f"{name} {library.__version__}"
    logger = library.Logger(library.Logger.WARNING)
    builder = library.Builder(logger)
    network = builder.create_network(0)
    x = network.add_input("x", library.float32, (4, 4))
    plain = library.MatrixOperation.NONE
    network.mark_output(network.add_matrix_multiply(x, plain, x, plain).get_output(0))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise ProbeError(f"{where}: an engine could not be built; the log says why")
    engine = library.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise ProbeError(f"{where}: builds engines, but loads none: no driver or no GPU; the log says why")
    if engine.create_execution_context() is None:
        raise ProbeError(f"{where}: loads an engine, but makes no context for it; the log says why")
    return {"version": library.__version__}


def _product_model() -> bytes:
    from onnx import TensorProto, helper  # noqa: PLC0415

    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "product", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    return bytes(model.SerializeToString())


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "driver": probe_driver,
    "torch": probe_torch,
    "onnxruntime": probe_onnxruntime,
    "tensorrt": lambda: probe_tensorrt("tensorrt"),
    "tensorrt-rtx": lambda: probe_tensorrt("tensorrt-rtx"),
}


def main() -> int:
    """Ask the probe that the command line names."""
    try:
        found = PROBES[sys.argv[1]]()
    except Exception as error:
        traceback.print_exc()
        evidence = str(error).strip().splitlines() or [""]
        kind = "" if isinstance(error, ProbeError) else f"{type(error).__name__}: "
        print(json.dumps({"failed": f"{kind}{evidence[0]}"}))
        return _FAILED
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
