"""TensorRT's runtime as it is documented, its engines being notes of what they would do; ONNX Runtime does it."""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from export.bundle import Bundle
from export.contract import graph_contracts
from export.engines.profiles import profiles_of
from export.runners.gpu.device import Streams
from export.runners.gpu.engine_files import ENGINES_FILE, EngineFile, EngineSet, engines_of
from export.runners.gpu.engine_keys import EngineKey, EngineSizes
from export.runners.gpu.graphs import Tensor
from export.runners.gpu.ort import OrtGraphs
from export.runners.tensorrt_library import TensorrtLibrary
from tests.gpu.fake_device import FakeDevice

SCRATCH = 512
DTYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64"}


def key_of(bundle: Bundle, *, max_rows: int, max_candidates: int = 32, **changes: Any) -> EngineKey:
    """Of engines that a GPU of paper runs."""
    graphs = hashlib.sha256(bundle.digest.encode()).hexdigest()
    machine = {"library": "tensorrt", "version": "11.0.0", "gpu": "Paper 90", "compute_capability": "9.0"}
    sizes = EngineSizes.of(bundle.manifest, max_rows=max_rows, max_candidates=max_candidates)
    precision = bundle.manifest.precision("tensorrt")
    usual: dict[str, Any] = {"graphs": graphs, **machine, "driver": "580.1", "precision": precision, "sizes": sizes}
    return EngineKey(**usual | changes)


def write_engines(bundle: Bundle, folder: Path, key: EngineKey, **alterations: Any) -> EngineSet:
    """Engines of paper in a folder; ``alterations`` of what they note."""
    contracts = graph_contracts(bundle.manifest.dims, precision=key.precision, flavour="standard")
    folder.mkdir(parents=True)
    engines = []
    for graph, capacity in engines_of(key.sizes):
        profiles = profiles_of(graph, key.sizes)
        note: dict[str, Any] = {"graph": graph, "aliases": {}, "profiles": []}
        for kind in ("inputs", "outputs"):
            specs = getattr(contracts[graph], kind)
            note[kind] = {spec.name: [DTYPES[spec.dtype.name], list(spec.shape)] for spec in specs}
        if graph == "step":
            note["aliases"] = {name: name.replace("present", "past") for name in note["outputs"] if name != "logits"}
        for profile in profiles:
            ranges = {"capacity": (capacity,) * 3, **profile}
            note["profiles"].append(
                {
                    name: [
                        [ranges[size][which] if isinstance(size, str) else size for size in shape] for which in range(3)
                    ]
                    for name, (_, shape) in note["inputs"].items()
                }
            )
        text = json.dumps(note | alterations.get(graph, {})).encode()
        file = f"{graph}-{capacity}.plan"
        (folder / file).write_bytes(text)
        engines.append(
            EngineFile(
                file=file,
                graph=graph,
                capacity=capacity,
                profiles=tuple({name: tuple(sizes) for name, sizes in profile.items()} for profile in profiles),
                sha256=hashlib.sha256(text).hexdigest(),
                bytes=len(text),
                seconds=0.5,
                layers=1,
                types={"MATRIX_MULTIPLY": {"FLOAT": 1}},
            )
        )
    engine_set = EngineSet(folder, key, tuple(engines))
    (folder / ENGINES_FILE).write_text(engine_set.to_json())
    return engine_set


def fake_library(bundle: Bundle, device: FakeDevice, *, rtx: bool = False) -> TensorrtLibrary:
    """A library whose engines run on a device of paper."""
    return TensorrtLibrary("tensorrt-rtx" if rtx else "tensorrt", (FakeRtxApi if rtx else FakeApi)(bundle, device))


class FakeApi:
    """The module."""

    __version__ = "11.0.0"
    TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
    TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
    ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", ["STATIC", "USER_MANAGED"])

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    def __init__(self, bundle: Bundle, device: FakeDevice) -> None:
        self.device = device
        self.graphs = OrtGraphs(bundle, Streams.of(device), max_rows=8, device_type="cpu")
        self.contexts: list[FakeContext] = []
        self.configs: list[FakeRuntimeConfig] = []
        self.failing: set[str] = set()

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        def deserialize(plan: bytes) -> FakeEngine | None:
            try:
                return FakeEngine(self, json.loads(plan), logger)
            except ValueError:
                logger.log(self.ILogger.ERROR, "Serialization assertion\n  magicTag failed")
                return None

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class FakeRtxApi(FakeApi):
    """The module of TensorRT-RTX, which compiles when it meets its GPU."""

    DynamicShapesKernelSpecializationStrategy = enum.Enum(
        "DynamicShapesKernelSpecializationStrategy", ["LAZY", "EAGER", "NONE"]
    )


class FakeEngine:
    """An engine: its inputs, outputs and profiles."""

    def __init__(self, api: FakeApi, note: dict[str, Any], logger: Any) -> None:
        self.api, self.note, self.logger = api, note, logger
        self._names = [*note["inputs"], *note["outputs"]]
        self.num_io_tensors = len(self._names)
        self.num_optimization_profiles = len(note["profiles"])
        self.device_memory_size_v2 = SCRATCH

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 0 if self.note["graph"] == "reorder" else SCRATCH // 2

    def get_tensor_name(self, place: int) -> str:
        return str(self._names[place])

    def get_tensor_mode(self, name: str) -> Any:
        return self.api.TensorIOMode.INPUT if name in self.note["inputs"] else self.api.TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> Any:
        return self.api.TensorLocation.HOST if name == "k" else self.api.TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=(self.note["inputs"] | self.note["outputs"])[name][0])

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return self.note["profiles"][profile][name]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        found: str | None = self.note["aliases"].get(name)
        return found

    def create_runtime_config(self) -> Any:
        return FakeRuntimeConfig()

    def create_execution_context(self, asked: Any) -> FakeContext:
        if isinstance(asked, FakeRuntimeConfig):
            self.api.configs.append(asked)
            asked = asked.strategy
        assert asked == self.api.ExecutionContextAllocationStrategy.USER_MANAGED
        self.api.contexts.append(FakeContext(self))
        return self.api.contexts[-1]


class FakeRuntimeConfig:
    """How TensorRT-RTX compiles."""

    strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None
    cache: object | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> object:
        return object()

    def set_runtime_cache(self, cache: object) -> bool:
        self.cache = cache
        return True


class FakeContext:
    """An execution context, which refuses what TensorRT refuses."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.api = engine, engine.api
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)

    def refuse(self, message: str) -> bool:
        self.engine.logger.log(self.api.ILogger.ERROR, message)
        return False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream in self.api.device.streams
        self.profile = profile
        return 0 <= profile < self.engine.num_optimization_profiles

    def set_device_memory(self, address: int, size: int) -> None:
        assert size > 0
        assert size >= self.engine.get_device_memory_size_for_profile_v2(self.profile or 0)
        self.api.device.check(address, size)
        self.memory = address, size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None, "a shape before its profile"
        low, _, high = self.engine.note["profiles"][self.profile][name]
        if name != "k" and not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
            return self.refuse(f"{name}: outside of profile")
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if not address or (name != "k" and address % 256):
            return self.refuse(f"{name}: not aligned")
        self.addresses[name] = address
        return True

    def infer_shapes(self) -> list[str]:
        inputs = self.engine.note["inputs"]
        missing = [name for name in inputs if name not in self.shapes]
        return missing + [name for name in ("k",) if name in inputs and name not in self.addresses]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes: dict[Any, int] = {}
        for given, (_, shape) in self.engine.note["inputs"].items():
            sizes |= dict(zip(shape, self.shapes[given], strict=True))
        if "k" in self.addresses:
            sizes["k"] = ctypes.c_int64.from_address(self.addresses["k"]).value
        return tuple(sizes[size] if isinstance(size, str) else size for size in self.engine.note["outputs"][name][1])

    def execute_async_v3(self, stream: int) -> bool:
        graph = self.engine.note["graph"]
        if graph in self.api.failing:
            return self.refuse("Cuda Runtime (an illegal memory access was encountered)")
        address, size = self.memory
        assert size >= self.engine.get_device_memory_size_for_profile_v2(self.profile or 0), "no memory to work in"
        ctypes.memset(address, 0xFF, size)  # scratch memory is anybody's
        shapes = self.shapes | {name: self.get_tensor_shape(name) for name in self.engine.note["outputs"]}
        tensors = {name: Tensor(address, shapes[name]) for name, address in self.addresses.items()}
        for present, past in self.engine.note["aliases"].items():
            assert self.addresses[present] == self.addresses[past]
        self.api.graphs.bind(graph, tensors, scratch=0).enqueue(stream)
        return True
