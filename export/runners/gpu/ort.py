"""ONNX Runtime as the runtime of a GPU runner."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import onnxruntime

from export import contract
from export.bundle import Bundle, BundleError
from export.contract import GRAPH_NAMES, TensorSpec
from export.runners.gpu.buckets import cache_capacities, row_buckets, source_capacities
from export.runners.gpu.device import DeviceUnavailableError, Streams
from export.runners.gpu.graphs import Call, Tensor
from export.runners.ort_session import check_session, first_line
from export.runners.protocol import RunnerError

TARGET = "cuda"
_BFLOAT16 = 16  # as onnx.TensorProto numbers it; numpy has no name for it
_ON_HOST = "k"


class OrtGraphs:
    """A bundle's graphs for a GPU, loaded by ONNX Runtime; implements ``export.runners.gpu.graphs.DeviceGraphs``.

    It allocates what a run needs by itself, and knows nothing of capturing from outside.
    """

    capturable = False

    def __init__(self, bundle: Bundle, streams: Streams, *, max_rows: int, device_type: str = "cuda") -> None:
        """Load the graphs.

        Args:
            bundle: exported for the target ``cuda``.
            streams: in which they will run.
            max_rows: most live rows of a step.
            device_type: where the buffers will lie; ``cpu``, which knows no streams, is for tests.

        Raises:
            BundleError: the bundle has no such graphs, or they do not follow the contract.
            DeviceUnavailableError: this ONNX Runtime is not built for CUDA, or cannot load its libraries.
        """
        manifest = bundle.manifest
        self.name = f"onnxruntime-{device_type}"
        self.precision = manifest.precision(TARGET)
        self.row_buckets = row_buckets(max_rows)
        self.cache_capacities = cache_capacities(manifest.max_output_tokens)
        self.source_capacities = source_capacities(manifest.max_source_tokens)
        self._device_type = device_type
        self._contracts = contract.graph_contracts(manifest.dims, precision=self.precision, flavour="standard")
        self._sessions = {}
        for name in GRAPH_NAMES["standard"]:
            stream = streams.encoder if name == "encoder" else streams.steps
            path = bundle.graph_path(TARGET, name)
            session = _open(str(path), device_type=device_type, stream=stream.handle)
            check_session(session, path, contract=self._contracts[name])
            self._sessions[name] = session

    def scratch_bytes(self, graph: str) -> int:  # noqa: ARG002
        """None: it allocates by itself."""
        return 0

    def bind(self, graph: str, tensors: Mapping[str, Tensor], *, scratch: int) -> Call:
        """A call of ``graph`` on these buffers.

        Raises:
            RunnerError: the runtime refused one of them.
        """
        del scratch
        session, wanted = self._sessions[graph], self._contracts[graph]
        try:
            binding = session.io_binding()
            for specs, bind in ((wanted.inputs, binding.bind_input), (wanted.outputs, binding.bind_output)):
                for spec in specs:
                    tensor = tensors[spec.name]
                    where = "cpu" if spec.name == _ON_HOST else self._device_type
                    bind(spec.name, where, 0, _element_type(spec), tensor.shape, tensor.address)
        except Exception as error:  # the binding's exceptions have no base of their own
            raise RunnerError(f"{graph}: {first_line(error)}") from error
        return _OrtCall(session, binding)

    def close(self) -> None:
        """Free the sessions."""
        self._sessions.clear()


class _OrtCall:
    """One run on bound buffers; implements ``Call``. The stream is the one that the session was made for."""

    def __init__(self, session: Any, binding: Any) -> None:
        self._session, self._binding = session, binding
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def enqueue(self, stream: int) -> None:  # noqa: ARG002
        """Put it into the session's stream."""
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:  # the binding's exceptions have no base of their own
            raise RunnerError(first_line(error)) from error


def check_build() -> None:
    """Hold that this ONNX Runtime is built for CUDA.

    Raises:
        DeviceUnavailableError: it is not; one line says what to install.
    """
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise DeviceUnavailableError(
            "onnxruntime: got the build for CPUs, wanted the one for CUDA: "
            "`make install-gpu`, or pip uninstall onnxruntime and pip install onnxruntime-gpu"
        )


@functools.cache
def _preload() -> None:
    """Load CUDA's libraries from where pip has put them, once."""
    onnxruntime.preload_dlls()


def _open(path: str, *, device_type: str, stream: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a failure comes as an exception, once
    options.intra_op_num_threads = 1  # nothing but sizes is computed on the CPU
    options.enable_mem_pattern = False  # keeps a plan and a block of memory for every shape that ever came
    providers: list[Any] = ["CPUExecutionProvider"]
    if device_type == "cuda":
        check_build()
        _preload()
        # fp32 means fp32: the products of tensor cores would keep ten bits of it.
        settings = {"device_id": 0, "user_compute_stream": str(stream), "use_tf32": 0}
        providers = [("CUDAExecutionProvider", settings), *providers]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # the binding's exceptions have no base of their own
        raise BundleError(f"{path}: {first_line(error)}") from error
    if device_type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise DeviceUnavailableError(
            "onnxruntime: got no CUDA although it is built for it, wanted its libraries: "
            'pip install "onnxruntime-gpu[cuda,cudnn]"'
        )
    return session


def _element_type(spec: TensorSpec) -> Any:
    return spec.dtype.type if spec.dtype.kind != "V" else _BFLOAT16
