"""ONNX Runtime sessions on the CPU, with the settings that a decoder step wants, and their bound buffers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from export.bundle import BundleError
from export.contract import GraphContract
from export.runners.protocol import RunnerError

Arrays = Mapping[str, NDArray[Any]]


def open_session(path: Path, *, contract: GraphContract, threads: int) -> Any:
    """Load a graph and hold its inputs and outputs against the contract.

    Args:
        path: ONNX file; its weights lie beside it, which may be read-only.
        contract: what the runner will bind.
        threads: that one run uses.

    Raises:
        BundleError: the file cannot be loaded, or has other inputs or outputs.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # More would fuse Add and LayerNormalization into SkipLayerNormalization, which is several times slower.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # The threads of one session must not spin while another one runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # a failure comes as an exception, once
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding's exceptions have no base of their own
        raise BundleError(f"{path}: {_first_line(error)}") from error
    for kind, got, wanted in (
        ("inputs", session.get_inputs(), contract.inputs),
        ("outputs", session.get_outputs(), contract.outputs),
    ):
        got_shapes = [(value.name, list(value.shape)) for value in got]
        wanted_shapes = [(spec.name, list(spec.shape)) for spec in wanted]
        if got_shapes != wanted_shapes:
            raise BundleError(f"{path}: {kind}: got {got_shapes}, wanted {wanted_shapes}")
    return session


class BoundGraph:
    """A session that runs on the caller's own buffers; a binding is made once for each shape and kept."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._bindings: dict[Hashable, tuple[Any, list[Any]]] = {}

    def run(self, shape: Hashable, buffers: Callable[[], tuple[Arrays, Arrays]]) -> None:
        """Run once.

        Args:
            shape: names the binding; equal shapes must mean equal buffers.
            buffers: inputs and outputs by name, contiguous; asked for only where the shape is new.

        Raises:
            RunnerError: the runtime failed.
        """
        try:
            if shape not in self._bindings:
                self._bindings[shape] = self._bind(*buffers())
            self._session.run_with_iobinding(self._bindings[shape][0])
        except Exception as error:  # the binding's exceptions have no base of their own
            raise RunnerError(_first_line(error)) from error

    def _bind(self, inputs: Arrays, outputs: Arrays) -> tuple[Any, list[Any]]:
        binding = self._session.io_binding()
        keep = []  # an OrtValue borrows the array's memory, and the binding does not keep the array alive
        for arrays, bind in ((inputs, binding.bind_ortvalue_input), (outputs, binding.bind_ortvalue_output)):
            for name, array in arrays.items():
                assert array.flags.c_contiguous, f"{name} is not contiguous: ONNX Runtime would work on a copy"
                value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
                bind(name, value)
                keep.append(value)
        return binding, keep


def run_graph(session: Any, inputs: Arrays) -> list[NDArray[np.float32]]:
    """Run once on buffers of the runtime's own; every output, in order.

    Raises:
        RunnerError: the runtime failed.
    """
    try:
        outputs: list[NDArray[np.float32]] = session.run(None, dict(inputs))
    except Exception as error:  # the binding's exceptions have no base of their own
        raise RunnerError(_first_line(error)) from error
    return outputs


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
