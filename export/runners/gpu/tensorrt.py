"""TensorRT as the runtime of a GPU runner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export import contract
from export.bundle import Bundle, BundleError
from export.contract import GRAPH_NAMES, GraphContract
from export.runners.gpu.cuda import find_gpu
from export.runners.gpu.device import Stream, Streams
from export.runners.gpu.engine_files import EngineFile, EngineSet, find_engines
from export.runners.gpu.engine_keys import EngineKey
from export.runners.gpu.graphs import Call, Tensor
from export.runners.protocol import RunnerError
from export.runners.tensorrt_library import TensorrtLibrary, find_library

_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": "INT64"}
"""TensorRT's names of the contract's dtypes."""


def find_fitting(bundle: Bundle, folder: Path | None, wanted: EngineKey) -> EngineSet:
    """The engines of a folder, or those that the bundle carries, that fit.

    Raises:
        BundleError: they do not fit, or there are none.
    """
    if folder is None:
        found = find_engines(bundle, wanted, cache=None)
        if found is None:
            how = f"`python -m export.engines {bundle.path} --out FOLDER`"
            raise BundleError(f"{bundle.path}: got no engines for {wanted.machine_name}, wanted some: {how}")
        return found
    found = EngineSet.read(folder)
    if complaint := found.key.complaint(wanted):
        raise BundleError(f"{folder}: engines for something else: {complaint}")
    return found


class TensorrtGraphs:
    """A bundle's graphs as TensorRT engines; implements ``export.runners.gpu.graphs.DeviceGraphs``.

    Calls share the memory that they need while they run, and a call's shapes and addresses never change, so that it
    can be captured.
    """

    capturable = True

    def __init__(self, bundle: Bundle, engines: EngineSet, streams: Streams, *, library: TensorrtLibrary) -> None:
        """Load the engines.

        Args:
            bundle: whose graphs they are.
            engines: that fit it and this machine.
            streams: in which they will run.
            library: that they were built with.

        Raises:
            BundleError: an engine is altered, or does not follow the contract.
            RunnerError: the library refused one.
        """
        key = engines.key
        self.name = library.name
        self.precision = key.precision
        self.row_buckets = key.sizes.row_buckets
        self.cache_capacities = key.sizes.cache_capacities
        self.source_capacities = key.sizes.source_capacities
        contracts = contract.graph_contracts(bundle.manifest.dims, precision=key.precision, flavour="standard")
        runtime = library.api.Runtime(library.logger)
        self._engines: dict[tuple[str, int], _Engine] = {}
        for engine in engines.engines:
            stream = streams.encoder if engine.graph == "encoder" else streams.steps
            loaded = _Engine(library, runtime, engines, engine, stream)
            loaded.check(contracts[engine.graph])
            self._engines[engine.graph, engine.capacity] = loaded

    @classmethod
    def open(
        cls, bundle: Bundle, folder: Path | None, streams: Streams, *, max_rows: int, max_candidates: int
    ) -> TensorrtGraphs:
        """Load engines for the library and GPU at hand.

        Args:
            bundle: exported for the target ``tensorrt``.
            folder: of engines; None: those that the bundle carries.
            streams: in which they will run.
            max_rows: most live rows of a step.
            max_candidates: largest ``k`` of ``top_k``.

        Raises:
            BundleError: there are no engines that fit, or one is altered.
            DeviceUnavailableError: TensorRT is not installed, or there is no GPU.
            RunnerError: the library refused an engine.
        """
        library = find_library()
        library.check_gpu(find_gpu())
        wanted = EngineKey.of(bundle, library, max_rows=max_rows, max_candidates=max_candidates)
        return cls(bundle, find_fitting(bundle, folder, wanted), streams, library=library)

    def scratch_bytes(self, graph: str) -> int:
        """What a call of ``graph`` needs while it runs, whatever its shapes."""
        return max(engine.scratch_bytes for (name, _), engine in self._engines.items() if name == graph)

    def bind(self, graph: str, tensors: Mapping[str, Tensor], *, scratch: int) -> Call:
        """A call of ``graph`` on these buffers; the capacity of its own caches chooses the engine.

        Raises:
            RunnerError: there is no engine or profile for a shape, or the library refused something.
        """
        assert graph in GRAPH_NAMES["standard"], f"no graph is called {graph}"
        capacity = tensors["past_key_0"].shape[2] if graph == "step" else 0
        if (graph, capacity) not in self._engines:
            wanted = f"one of {', '.join(map(str, self.cache_capacities))}"
            raise RunnerError(f"{graph}: got caches of capacity {capacity}, wanted {wanted}")
        return self._engines[graph, capacity].bind(tensors, scratch)

    def close(self) -> None:
        """Free the engines."""
        self._engines.clear()


class _Engine:
    """One engine, loaded."""

    def __init__(
        self, library: TensorrtLibrary, runtime: Any, engines: EngineSet, file: EngineFile, stream: Stream
    ) -> None:
        self._library, self._stream = library, stream
        self._path, self._graph = engines.path / file.file, file.graph
        with library.listening() as messages:
            self._engine = runtime.deserialize_cuda_engine(engines.load(file))
        if self._engine is None:
            raise RunnerError(f"{self._path}: {library} refused it: {messages.reason('it does not say why')}")
        api = library.api
        names = [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]
        self._inputs = [name for name in names if self._engine.get_tensor_mode(name) == api.TensorIOMode.INPUT]
        self._outputs = [name for name in names if name not in self._inputs]
        self._on_host = {name for name in names if self._engine.get_tensor_location(name) == api.TensorLocation.HOST}
        self._config = self._runtime_config()

    @property
    def scratch_bytes(self) -> int:
        """Of its largest profile."""
        return int(self._engine.device_memory_size_v2)

    def check(self, wanted: GraphContract) -> None:
        """Hold it against the contract, and the caches of a step against being updated in place.

        Raises:
            BundleError: it differs.
        """
        for kind, specs, names in (("inputs", wanted.inputs, self._inputs), ("outputs", wanted.outputs, self._outputs)):
            got = {name: self._engine.get_tensor_dtype(name).name for name in names}
            expected = {spec.name: _TYPES[spec.dtype.name] for spec in specs}
            if got != expected:
                raise BundleError(f"{self._path}: {kind}: got {got}, wanted {expected}")
        if self._graph == "step":
            for present in (name for name in self._outputs if name.startswith("present_")):
                past, own = self._engine.get_aliased_input_tensor(present), present.replace("present_", "past_", 1)
                if past != own:
                    raise BundleError(f"{self._path}: {present}: got {past or 'no input'} updated, wanted {own}")

    def bind(self, tensors: Mapping[str, Tensor], scratch: int) -> Call:
        """An execution context of its own, with all shapes and addresses set."""
        profile = self._profile(tensors)
        with self._library.listening() as messages:
            context = self._context()

            def hold(done: bool, what: str) -> None:
                if not done:
                    raise RunnerError(f"{self._graph}: {what}: {self._library}: {messages.reason('refused')}")

            hold(context is not None, "an execution context")
            hold(context.set_optimization_profile_async(profile, self._stream.handle), f"profile {profile}")
            self._stream.synchronize()
            if size := self._engine.get_device_memory_size_for_profile_v2(profile):
                context.set_device_memory(scratch, size)
            for name in self._inputs:
                hold(context.set_input_shape(name, tensors[name].shape), f"{name} {list(tensors[name].shape)}")
            for name in (*self._inputs, *self._outputs):
                hold(context.set_tensor_address(name, tensors[name].address), f"address of {name}")
            if unknown := context.infer_shapes():
                raise RunnerError(f"{self._graph}: got no shape of {', '.join(unknown)}, wanted all")
        self._check_outputs(context, tensors)
        return _TensorrtCall(self._library, context, self._graph)

    def _profile(self, tensors: Mapping[str, Tensor]) -> int:
        """The first profile that holds all shapes."""
        for profile in range(self._engine.num_optimization_profiles):
            if all(self._holds(profile, name, tensors[name].shape) for name in self._inputs):
                return profile
        shapes = ", ".join(f"{name} {list(tensors[name].shape)}" for name in self._inputs[:4])
        raise RunnerError(f"{self._graph}: got {shapes}, wanted shapes that {self._path.name} has a profile for")

    def _holds(self, profile: int, name: str, shape: tuple[int, ...]) -> bool:
        if name in self._on_host:
            return True  # its value is a size, not its shape
        low, _, high = self._engine.get_tensor_profile_shape(name, profile)
        return len(shape) == len(tuple(low)) and all(
            least <= size <= most for least, size, most in zip(low, shape, high, strict=True)
        )

    def _check_outputs(self, context: Any, tensors: Mapping[str, Tensor]) -> None:
        for name in self._outputs:
            got, wanted = tensors[name], tuple(context.get_tensor_shape(name))
            if got.shape != wanted:
                raise RunnerError(f"{self._graph}: {name}: got {list(got.shape)}, wanted {list(wanted)}")
            past = self._engine.get_aliased_input_tensor(name)
            if past and tensors[past].address != got.address:
                raise RunnerError(f"{self._graph}: {name}: got memory of its own, wanted that of {past}")

    def _runtime_config(self) -> Any:
        """How TensorRT-RTX is to compile for the GPU it meets; None: there is nothing left to compile.

        At once, for exactly the shapes that are bound: else it goes on with other kernels until it has compiled in the
        background, and the same sentence gets other numbers. What one context has compiled the others share.
        """
        strategies = getattr(self._library.api, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None:
            return None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._user_managed)
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        config.set_runtime_cache(config.create_runtime_cache())
        return config

    def _context(self) -> Any:
        return self._engine.create_execution_context(self._user_managed if self._config is None else self._config)

    @property
    def _user_managed(self) -> Any:
        return self._library.api.ExecutionContextAllocationStrategy.USER_MANAGED


class _TensorrtCall:
    """One execution context, bound; implements ``Call``."""

    def __init__(self, library: TensorrtLibrary, context: Any, graph: str) -> None:
        self._library, self._context, self._graph = library, context, graph

    def enqueue(self, stream: int) -> None:
        """Put it into a stream, by handle."""
        with self._library.listening() as messages:
            done = self._context.execute_async_v3(stream)
        if not done:
            raise RunnerError(f"{self._graph}: {self._library}: {messages.reason('it failed without a word')}")
