"""ONNX Runtime sessions on the CPU, with the settings that a decoder step wants, and their bound buffers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from export.bundle import BundleError
from export.contract import GraphContract
from export.runners.protocol import RunnerError

Arrays = Mapping[str, NDArray[Any]]
_TILED_ATTENTION_OFF = "ORT_GQA_DISABLE_FLASH_ATTENTION"


def open_session(path: Path, *, contract: GraphContract, threads: int, arena: bool = True) -> Any:
    """Load a graph and hold its inputs and outputs against the contract.

    Args:
        path: ONNX file; its weights lie beside it, which may be read-only.
        contract: what the runner will bind.
        threads: that one run uses.
        arena: whether the session keeps the memory of its runs for itself. Pays where they are large; many small pieces
            are faster had from the process's own heap.

    Raises:
        BundleError: the file cannot be loaded, or has other inputs or outputs.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # More would fuse Add and LayerNormalization into SkipLayerNormalization, which is several times slower.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # Keeps a plan and a block of memory for every shape that ever came, and is no faster.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = arena
    # The threads of one session must not spin while another one runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Would move QuantizeLinear before a Reshape and leave another pair of nodes behind.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.log_severity_level = 4  # a failure comes as an exception, once
    try:
        with _plain_attention() if _keeps_int8(contract) else contextlib.nullcontext():
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding's exceptions have no base of their own
        raise BundleError(f"{path}: {first_line(error)}") from error
    check_session(session, path, contract=contract)
    return session


def check_session(session: Any, path: Path, *, contract: GraphContract) -> None:
    """Hold the inputs and outputs of a loaded graph against the contract.

    Raises:
        BundleError: it has others.
    """
    for kind, got, wanted in (
        ("inputs", session.get_inputs(), contract.inputs),
        ("outputs", session.get_outputs(), contract.outputs),
    ):
        got_shapes = [(value.name, list(value.shape)) for value in got]
        wanted_shapes = [(spec.name, list(spec.shape)) for spec in wanted]
        if got_shapes != wanted_shapes:
            raise BundleError(f"{path}: {kind}: got {got_shapes}, wanted {wanted_shapes}")


def _keeps_int8(contract: GraphContract) -> bool:
    return any(spec.dtype == np.int8 for spec in contract.inputs)


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Let the sessions that are made in here attend to caches in 8 bits without the runtime's tiled kernel.

    For one token per row the plain kernel is the faster one: a whole step of a base model takes 3 % less time at 32
    rows and 20 tokens, 12 % at 64 rows and 250 tokens, on one thread of an EPYC with AVX-512 VNNI. The runtime knows
    no other switch, and reads it as a session is made.
    """
    before = os.environ.get(_TILED_ATTENTION_OFF)
    os.environ[_TILED_ATTENTION_OFF] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TILED_ATTENTION_OFF]
        else:
            os.environ[_TILED_ATTENTION_OFF] = before


class Binding:
    """A session on buffers of the caller's own, which it keeps alive."""

    def __init__(self, session: Any, inputs: Arrays, outputs: Arrays) -> None:
        """Bind contiguous arrays by name.

        Raises:
            RunnerError: the runtime does not take them.
        """
        self._session = session
        self._keep: list[Any] = []  # an OrtValue borrows the array's memory
        try:
            self._binding = session.io_binding()
            self._bind(inputs, self._binding.bind_ortvalue_input)
            self._bind(outputs, self._binding.bind_ortvalue_output)
        except Exception as error:  # the binding's exceptions have no base of their own
            raise RunnerError(first_line(error)) from error

    def run(self) -> None:
        """Run once.

        Raises:
            RunnerError: the runtime failed.
        """
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # as above
            raise RunnerError(first_line(error)) from error

    def _bind(self, arrays: Arrays, bind: Callable[[str, Any], None]) -> None:
        for name, array in arrays.items():
            assert array.flags.c_contiguous, f"{name} is not contiguous: ONNX Runtime would work on a copy"
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
            bind(name, value)
            self._keep.append(value)


class BoundGraph:
    """A session that runs on the caller's own buffers; a binding is made once for each shape and kept."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._bindings: dict[Hashable, Binding] = {}

    def on(self, shape: Hashable, buffers: Callable[[], tuple[Arrays, Arrays]]) -> Binding:
        """What runs it.

        Args:
            shape: names the binding; equal shapes must mean equal buffers.
            buffers: inputs and outputs by name, contiguous; asked for only where the shape is new.

        Raises:
            RunnerError: the runtime does not take them.
        """
        binding = self._bindings.get(shape)
        if binding is None:
            binding = self._bindings[shape] = Binding(self._session, *buffers())
        return binding


def run_graph(session: Any, inputs: Arrays) -> list[NDArray[Any]]:
    """Run once on buffers of the runtime's own; every output, in order.

    Raises:
        RunnerError: the runtime failed.
    """
    try:
        outputs: list[NDArray[Any]] = session.run(None, dict(inputs))
    except Exception as error:  # the binding's exceptions have no base of their own
        raise RunnerError(first_line(error)) from error
    return outputs


def first_line(error: Exception) -> str:
    """What an error of the runtime says, in one line."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
