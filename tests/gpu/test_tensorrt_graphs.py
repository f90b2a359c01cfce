"""TensorRT under the runner for GPUs, with a stand-in for the library: engines, profiles, addresses, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.bundle import Bundle, BundleError
from export.contract import cache_names
from export.runners.gpu.device import Streams
from export.runners.gpu.graphs import Tensor
from export.runners.gpu.runner import GpuRunner
from export.runners.gpu.tensorrt import TensorrtGraphs, find_fitting
from export.runners.ort_cpu import OrtCpuRunner
from export.runners.protocol import RunnerError
from tests.export.tiny import export_model, random_model
from tests.gpu.fake_device import SCHEDULES, FakeDevice, FakeGraphs, Schedule
from tests.gpu.fake_tensorrt import SCRATCH, FakeApi, fake_library, key_of, write_engines
from tests.gpu.test_gpu_runner import answers, decode, make_jobs

ROWS = 8


pytestmark = pytest.mark.usefixtures("small_buckets")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    model = random_model(seed=2, tied_embeddings="none", norm="pre", activation="swish")
    return export_model(model, tmp_path_factory.mktemp("gpu") / "bundle", target="tensorrt")


class Opened:
    """Graphs on a device of paper."""

    def __init__(
        self, bundle: Bundle, folder: Path, *, schedule: Schedule = "early", rtx: bool = False, **alterations: Any
    ) -> None:
        self.device = FakeDevice(schedule)
        self.streams = Streams.of(self.device)
        library = fake_library(bundle, self.device, rtx=rtx)
        self.api: FakeApi = library.api
        engines = write_engines(bundle, folder, key_of(bundle, max_rows=ROWS), **alterations)
        self.graphs = TensorrtGraphs(bundle, engines, self.streams, library=library)
        self._bundle = bundle

    def tensors(self, graph: str, *, rows: int = 3, capacity: int = 12, source: int = 16) -> dict[str, Tensor]:
        """Buffers of a call of the step, or of the greedy head."""
        dims = self._bundle.manifest.dims
        allocate = self.device.allocate

        def vector() -> Tensor:
            return Tensor(allocate(8 * rows), (rows,))

        logits = Tensor(allocate(4 * rows * dims.padded_target_vocab), (rows, dims.padded_target_vocab))
        if graph == "greedy":
            return {"logits": logits, "positions": vector(), "ids": vector(), "next_positions": vector()}
        tensors = {name: vector() for name in ("tokens", "positions", "source_lengths")} | {"logits": logits}
        for kind, length in (("past", capacity), ("cross", source)):
            for name in cache_names(kind, dims.decoder_layers):
                shape = (rows, dims.heads, length, dims.head_dim)
                tensors[name] = Tensor(allocate(4 * rows * dims.heads * length * dims.head_dim), shape)
        return tensors | {
            name.replace("past", "present"): tensor for name, tensor in tensors.items() if name.startswith("past")
        }

    def bind(self, graph: str, tensors: dict[str, Tensor]) -> Any:
        return self.graphs.bind(graph, tensors, scratch=self.device.allocate(SCRATCH))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_it_decodes_is_what_the_cpu_decodes(bundle: Bundle, schedule: Schedule, tmp_path: Path) -> None:
    opened = Opened(bundle, tmp_path / "engines", schedule=schedule)
    graphs = FakeGraphs(opened.device, opened.graphs, scratch=SCRATCH)
    runner = GpuRunner(bundle.manifest, opened.device, opened.streams, graphs, max_rows=ROWS, max_candidates=32)
    cpu = OrtCpuRunner.open(bundle, threads=1, max_rows=ROWS)
    jobs, wanted = make_jobs(), make_jobs()
    decode(runner, jobs, rounds_between=1)
    decode(cpu, wanted, rounds_between=1)
    assert answers(jobs) == answers(wanted)
    assert opened.device.launches > 0, "steps were captured"
    used = {context.engine.note["graph"] for context in opened.api.contexts}
    assert used == {"encoder", "step", "greedy", "top_k", "reorder"}
    runner.close()
    cpu.close()


def test_it_says_what_it_is(bundle: Bundle, tmp_path: Path) -> None:
    graphs = Opened(bundle, tmp_path / "engines").graphs
    assert (graphs.name, graphs.precision, graphs.capturable) == ("tensorrt", "fp32", True)
    assert (graphs.row_buckets, graphs.cache_capacities, graphs.source_capacities) == (
        (1, 3, 8),
        (5, 12, 40),
        (4, 16, 40),
    )
    assert graphs.scratch_bytes("step") == SCRATCH


@pytest.mark.parametrize(("rows", "capacity", "profile"), [(1, 5, 0), (3, 40, 1), (3, 12, 1), (8, 5, 2)])
def test_shapes_choose_engine_and_profile(
    bundle: Bundle, rows: int, capacity: int, profile: int, tmp_path: Path
) -> None:
    opened = Opened(bundle, tmp_path / "engines")
    tensors = opened.tensors("step", rows=rows, capacity=capacity)
    opened.bind("step", tensors)
    (context,) = opened.api.contexts
    assert context.profile == profile
    assert context.engine.note["profiles"][profile]["past_key_0"][0][2] == capacity
    assert context.addresses == {name: tensor.address for name, tensor in tensors.items()}
    assert context.shapes == {name: tensors[name].shape for name in context.engine.note["inputs"]}
    assert context.memory[1] == SCRATCH // 2, "as much as this profile needs"


def test_calls_have_contexts_of_their_own(bundle: Bundle, tmp_path: Path) -> None:
    opened = Opened(bundle, tmp_path / "engines")
    for _ in range(2):
        opened.bind("greedy", opened.tensors("greedy"))
    first, second = opened.api.contexts
    assert first.engine is second.engine
    assert not set(first.addresses.values()) & set(second.addresses.values())


def test_tensorrt_rtx_compiles_at_once_and_what_it_compiled_is_shared(bundle: Bundle, tmp_path: Path) -> None:
    opened = Opened(bundle, tmp_path / "engines", rtx=True)
    for graph in ("greedy", "greedy", "step"):
        opened.bind(graph, opened.tensors(graph))
    first, second, of_step = opened.api.configs
    assert first.cache is second.cache is not None
    assert of_step.cache is not first.cache
    eager = opened.api.DynamicShapesKernelSpecializationStrategy.EAGER  # type: ignore[attr-defined]
    assert {config.dynamic_shapes_kernel_specialization_strategy for config in opened.api.configs} == {eager}


def test_shapes_that_nothing_was_built_for_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    opened = Opened(bundle, tmp_path / "engines")
    with pytest.raises(RunnerError, match=r"^step: got caches of capacity 13, wanted one of 5, 12, 40$"):
        opened.bind("step", opened.tensors("step", capacity=13))
    with pytest.raises(
        RunnerError, match=r"^step: got tokens \[9\], .*, wanted shapes that step-12.plan has a profile"
    ):
        opened.bind("step", opened.tensors("step", rows=9))
    with pytest.raises(RunnerError, match=r"^step: got .*, wanted shapes that step-12.plan has a profile for$"):
        opened.bind("step", opened.tensors("step", source=41))


def test_buffers_that_do_not_fit_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    opened = Opened(bundle, tmp_path / "engines")
    tensors = opened.tensors("step")
    apart = tensors | {"present_key_1": tensors["past_key_0"]}
    with pytest.raises(RunnerError, match=r"^step: present_key_1: got memory of its own, wanted that of past_key_1$"):
        opened.bind("step", apart)
    tensors = opened.tensors("greedy")
    with pytest.raises(RunnerError, match=r"^greedy: ids: got \[2\], wanted \[3\]$"):
        opened.bind("greedy", tensors | {"ids": Tensor(tensors["ids"].address, (2,))})
    with pytest.raises(RunnerError, match=r"^greedy: address of ids: tensorrt 11.0.0: ids: not aligned$"):
        opened.bind("greedy", tensors | {"ids": Tensor(tensors["ids"].address + 8, (3,))})


def test_a_run_that_fails_is_told_with_the_librarys_reason(bundle: Bundle, tmp_path: Path) -> None:
    opened = Opened(bundle, tmp_path / "engines")
    call = opened.bind("greedy", opened.tensors("greedy"))
    opened.api.failing.add("greedy")
    with pytest.raises(RunnerError, match=r"^greedy: tensorrt 11.0.0: Cuda Runtime \(an illegal memory access"):
        call.enqueue(opened.streams.steps.handle)
    opened.api.failing.clear()
    call.enqueue(opened.streams.steps.handle)


def test_an_engine_that_does_not_follow_the_contract_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    aliases = {"present_key_0": "past_key_0", "present_value_0": "past_key_0"}
    with pytest.raises(BundleError, match=r"present_value_0: got past_key_0 updated, wanted past_value_0$"):
        Opened(bundle, tmp_path / "crossed", step={"aliases": aliases})
    with pytest.raises(BundleError, match=r"present_key_0: got no input updated, wanted past_key_0$"):
        Opened(bundle, tmp_path / "apart", step={"aliases": {}})
    with pytest.raises(BundleError, match=r"greedy-0.plan: outputs: got \{'ids': 'INT32'\}, wanted \{'ids': 'INT64',"):
        Opened(bundle, tmp_path / "narrow", greedy={"outputs": {"ids": ["INT32", ["rows"]]}})


def test_an_engine_that_the_library_refuses_is_named_with_its_reason(bundle: Bundle, tmp_path: Path) -> None:
    engines = write_engines(bundle, tmp_path / "engines", key_of(bundle, max_rows=ROWS))
    broken = tmp_path / "engines" / "encoder-0.plan"
    opened = Opened(bundle, tmp_path / "others")
    broken.write_bytes(b"{")
    with pytest.raises(BundleError, match=r"encoder-0.plan: got sha256 .*, wanted .*$"):
        TensorrtGraphs(bundle, engines, opened.streams, library=fake_library(bundle, opened.device))
    text = (tmp_path / "engines" / "engines.json").read_text()
    digest = "021fb596db81e6d02bf3d2586ee3981fe519f275c0ac9ca76bbcf2ebb4097d96"  # of "{"
    assert engines.engines[0].sha256 in text
    (tmp_path / "engines" / "engines.json").write_text(text.replace(engines.engines[0].sha256, digest))
    altered = type(engines).read(tmp_path / "engines")
    with pytest.raises(RunnerError, match=r"encoder-0.plan: tensorrt 11.0.0 refused it: Serialization assertion magic"):
        TensorrtGraphs(bundle, altered, opened.streams, library=fake_library(bundle, opened.device))


def test_only_engines_that_fit_are_taken(bundle: Bundle, tmp_path: Path) -> None:
    wanted = key_of(bundle, max_rows=ROWS)
    folder = tmp_path / "engines"
    write_engines(bundle, folder, key_of(bundle, max_rows=ROWS, driver="535.2"))
    with pytest.raises(BundleError, match=r"engines: engines for something else: driver: got 535.2, wanted 580.1$"):
        find_fitting(bundle, folder, wanted)
    with pytest.raises(BundleError, match=r"got no engines for paper-90-tensorrt-11.0.0-fp32, wanted some: "):
        find_fitting(bundle, None, wanted)
    larger = key_of(bundle, max_rows=ROWS, max_candidates=64)
    found = write_engines(bundle, tmp_path / "larger", larger)
    assert find_fitting(bundle, tmp_path / "larger", wanted) == found
