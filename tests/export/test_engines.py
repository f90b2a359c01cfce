"""TensorRT engines, really built where TensorRT-RTX is installed: it needs no GPU to build, only to run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.gpu.models.graph_weights import read_description
from benchmarks.gpu.models.prepare import DEMO_BUNDLE
from export.bundle import GOLDEN_FILE, GRAPHS_FOLDER, Bundle, write_bundle, write_golden
from export.contract import GRAPH_NAMES, cache_names
from export.engines.__main__ import main
from export.engines.build import build_engines
from export.engines.network import Network, parse_network
from export.engines.profiles import profiles_of
from export.engines.report import report
from export.engines.specialise import specialise
from export.errors import ExportError
from export.graphs.folder import write_graphs
from export.graphs.numbers.half import Half
from export.graphs.standard import StandardFlavour
from export.runners.gpu.engine_files import EngineSet
from export.runners.gpu.engine_keys import EngineSizes
from export.runners.gpu.rows import ENCODER_TOKENS
from export.runners.tensorrt_library import TensorrtLibrary, find_library
from tests.export.tiny import export_model, random_model

BASE: dict[str, Any] = {
    "source_vocab_size": 32_000,
    "target_vocab_size": 32_000,
    "d_model": 512,
    "heads": 8,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "ffn_dim": 2048,
    "max_positions": 512,
}
ROWS = [[rows] * 3 for rows in (1, 8, 32, 64, 128)]
ENGINES = ["encoder", "step-128", "step-256", "step-512", "greedy", "top_k", "reorder"]


@pytest.fixture(scope="module")
def library() -> TensorrtLibrary:
    return find_library("tensorrt-rtx")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a tiny model, in float16."""
    path = tmp_path_factory.mktemp("tiny") / "bundle"
    return export_model(random_model(), path, target="tensorrt", precision="fp16")


def bundled_model(out: Path) -> Bundle:
    """The bundled model's own weights as graphs for TensorRT, with its own limits."""
    bundle = Bundle.open(DEMO_BUNDLE)
    manifest = bundle.manifest
    weights = bundle.graph_path("cpu", "step").parent
    model = read_description(weights, manifest.dims, suppressed_ids=manifest.suppressed_ids)

    def fill(folder: Path) -> None:
        write_golden(folder / GOLDEN_FILE, bundle.golden())
        write_graphs(model, folder / GRAPHS_FOLDER / "standard-fp16", flavour=StandardFlavour(Half("fp16")))

    return write_bundle(out, manifest=replace(manifest, graphs={"tensorrt": "standard-fp16"}), fill=fill)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers"), [("demo", 3), ("base", 6)])
def test_engines_of_a_model_in_half_precision(name: str, layers: int, tmp_path: Path, library: TensorrtLibrary) -> None:
    if name == "demo":
        bundle = bundled_model(tmp_path / "bundle")
    else:
        bundle = export_model(random_model(**BASE), tmp_path / "bundle", target="tensorrt", precision="fp16")
    told: list[str] = []
    built = build_engines(bundle, tmp_path / "engines", library=library, say=told.append)

    table = report(built)
    print(table)
    assert built == EngineSet.read(tmp_path / "engines")
    assert [Path(engine.file).stem for engine in built.engines] == ENGINES
    assert [line.split()[1] for line in told] == [f"{engine}:" for engine in ENGINES]
    assert all(engine.bytes == len(built.load(engine)) > 100_000 for engine in built.engines)
    by_name = dict(zip(ENGINES, built.engines, strict=True))
    for engine in ENGINES[1:]:
        assert [list(profile["rows"]) for profile in by_name[engine].profiles] == ROWS
    assert {profile["src_capacity"] for profile in by_name["step-256"].profiles} == {(1, 64, 512)}
    assert {profile["k"] for profile in by_name["top_k"].profiles} == {(1, 32, 32)}
    assert len(by_name["encoder"].profiles) == 10

    for engine, attentions in (("encoder", layers), ("step-128", 2 * layers)):
        types = by_name[engine].types
        assert set(types["MATRIX_MULTIPLY"]) == {"HALF"}
        assert types["ATTENTION_OUTPUT"] == {"FLOAT": attentions}, "softmax in float32"
        assert set(types["NORMALIZATION"]) == {"FLOAT"}
    assert by_name["step-128"].types["KV_CACHE_UPDATE"] == {"HALF": 2 * layers}
    assert re.search(rf"^KV_CACHE_UPDATE +{2 * layers} fp16 +{2 * layers} fp16", table, re.MULTILINE)
    assert all(engine in table for engine in ENGINES)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_are_kept_too(precision: Any, tmp_path: Path, library: TensorrtLibrary) -> None:
    bundle = export_model(random_model(), tmp_path / "bundle", target="tensorrt", precision=precision)
    built = build_engines(bundle, tmp_path / "engines", library=library, max_rows=8, max_candidates=4)
    types = {engine.graph: engine.types for engine in built.engines}
    wanted = {"fp32": "FLOAT", "bf16": "BF16"}[precision]
    assert [set(types[graph]["MATRIX_MULTIPLY"]) for graph in ("encoder", "step")] == [{wanted}, {wanted}]
    assert set(types["step"]["KV_CACHE_UPDATE"]) == {wanted}
    assert set(types["step"]["ATTENTION_OUTPUT"]) == {"FLOAT"}
    assert built.key.precision == precision
    assert built.key.sizes.row_buckets == (1, 8)


def graph_of(bundle: Bundle, name: str, **sizes: int) -> tuple[onnx.ModelProto, Path]:
    path = bundle.graph_path("tensorrt", name)
    return specialise(onnx.load(str(path), load_external_data=False), sizes=sizes), path


def parsed(library: TensorrtLibrary, model: onnx.ModelProto, path: Path, *, precision: str = "fp16") -> Network:
    return parse_network(library, library.builder(), model, path=path, precision=precision)


def test_every_graph_is_read_and_attention_may_be_several_kernels(tiny: Bundle, library: TensorrtLibrary) -> None:
    api = library.api
    for name in GRAPH_NAMES["standard"]:
        network = parsed(library, *graph_of(tiny, name, **({"capacity": 128} if name == "step" else {})))
        assert (network.name, network.layers) == (name, network.definition.num_layers)
        if name == "step":
            layers = [network.definition.get_layer(place) for place in range(network.layers)]
            attentions = [layer for layer in layers if layer.type == api.LayerType.ATTENTION_OUTPUT]
            for layer in attentions:
                layer.__class__ = api.IAttentionOutputLayer  # the bindings give it as a plain layer
            assert [layer.attention.decomposable for layer in attentions] == [True] * 4


def test_lengths_that_tensorrt_passes_over_are_refused(tiny: Bundle, library: TensorrtLibrary) -> None:
    path = tiny.graph_path("tensorrt", "encoder")
    with pytest.raises(ExportError, match=r"^encoder: Attention_\d+: got lengths lengths, .*, wanted a mask$"):
        parsed(library, onnx.load(str(path), load_external_data=False), path)


@pytest.mark.parametrize("read", ["by nobody", "for nothing"])
def test_an_input_that_does_not_count_is_refused(read: str, tiny: Bundle, library: TensorrtLibrary) -> None:
    model, path = graph_of(tiny, "greedy")
    model.graph.input.append(helper.make_tensor_value_info("extra", TensorProto.INT64, ["rows"]))
    if read == "for nothing":
        model.graph.node.append(helper.make_node("Add", ["extra", "extra"], ["dead"]))
    with pytest.raises(ExportError, match=r"^greedy: got input extra that no output follows from, wanted all of them"):
        parsed(library, model, path)


def copied(graph: onnx.GraphProto) -> None:
    place = next(place for place, node in enumerate(graph.node) if node.output[0] == "present_key_0")
    graph.node[place].output[0] = "aside"
    graph.node.insert(place + 1, helper.make_node("Identity", ["aside"], ["present_key_0"], name="copy"))


def added(graph: onnx.GraphProto) -> None:
    node = next(node for node in graph.node if node.output[0] == "present_key_0")
    node.op_type = "Add"
    del node.attribute[:], node.input[2:]


def swapped(graph: onnx.GraphProto) -> None:
    other = {"past_key_0": "past_value_0", "past_value_0": "past_key_0"}
    for node in graph.node:
        node.input[:] = [other.get(name, name) for name in node.input]


def left_out(graph: onnx.GraphProto) -> None:
    for value in [value for value in graph.output if value.name == "present_key_0"]:
        graph.output.remove(value)


@pytest.mark.parametrize(
    ("alter", "wanted"),
    [
        (copied, "present_key_0: got no update in place, wanted the update of past_key_0"),
        (added, "present_key_0: got no update in place, wanted the update of past_key_0"),
        (swapped, "present_key_0: got an update of past_value_0, wanted the update of past_key_0"),
        (left_out, "past_key_0: got no output present_key_0, wanted the cache's update"),
    ],
)
def test_a_cache_that_is_not_updated_in_place_is_refused(
    alter: Callable[[onnx.GraphProto], None], wanted: str, tiny: Bundle, library: TensorrtLibrary
) -> None:
    model, path = graph_of(tiny, "step", capacity=128)
    assert {f"present_{part}_0" for part in ("key", "value")} <= set(cache_names("present", 2))
    alter(model.graph)
    with pytest.raises(ExportError) as refusal:
        parsed(library, model, path)
    assert str(refusal.value) == f"step: {wanted}"


def test_another_precision_than_the_folders_is_refused(tiny: Bundle, library: TensorrtLibrary) -> None:
    model, path = graph_of(tiny, "encoder")
    with pytest.raises(ExportError, match=r"^encoder: Gemm_\d+: got a product in FLOAT16, wanted fp32$"):
        parsed(library, model, path, precision="fp32")


def test_a_network_that_computes_in_another_type_than_its_graph_is_refused(
    tiny: Bundle, library: TensorrtLibrary
) -> None:
    model, path = graph_of(tiny, "encoder")
    weakly_typed = TensorrtLibrary("tensorrt-rtx", WeaklyTyped(library.api))
    with pytest.raises(ExportError, match=r"^encoder: Attention_\d+_wide_query: got HALF, wanted FLOAT$"):
        parsed(weakly_typed, model, path)


class WeaklyTyped:
    """TensorRT, but for a parser that lets attention be in 16 bits."""

    def __init__(self, api: Any) -> None:
        self._api = api

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def OnnxParser(self, definition: Any, logger: Any) -> NarrowParser:  # noqa: N802
        return NarrowParser(self._api.OnnxParser(definition, logger))


class NarrowParser:
    num_errors = 0

    def __init__(self, parser: Any) -> None:
        self._parser = parser

    def parse(self, text: bytes, path: str) -> bool:
        model = onnx.load_from_string(text)
        for node in model.graph.node:
            for attribute in node.attribute:
                if "_wide_" in node.name and attribute.name == "to":
                    attribute.i = TensorProto.FLOAT16
        return bool(self._parser.parse(model.SerializeToString(), path))


def test_a_graph_that_cannot_be_read_is_named_in_one_line(tiny: Bundle, library: TensorrtLibrary) -> None:
    with pytest.raises(ExportError, match=r"^step: tensorrt-rtx \S+ cannot read it: .*static sequence length") as error:
        parsed(library, *graph_of(tiny, "step"))  # its capacity is not known
    assert "\n" not in str(error.value)


def test_a_size_that_no_input_has_is_refused(tiny: Bundle) -> None:
    with pytest.raises(ValueError, match=r"^greedy: got no input of a size called capacity, wanted one$"):
        graph_of(tiny, "greedy", capacity=128)


def test_encoder_profiles_hold_what_the_runner_asks_for() -> None:
    sizes = EngineSizes(
        row_buckets=(1, 8, 32, 64, 128), cache_capacities=(128,), source_capacities=(32, 64, 128), max_candidates=4
    )
    profiles = profiles_of("encoder", sizes)
    for batch in range(1, 129):
        for length in range(1, 129):
            if batch == 1 or batch * length <= ENCODER_TOKENS:
                held = [
                    profile
                    for profile in profiles
                    if all(
                        profile[name].low <= size <= profile[name].high
                        for name, size in (("batch", batch), ("src_len", length))
                    )
                ]
                assert len(held) == 1, (batch, length)
    for profile in profiles:
        assert all(size.low <= size.best <= size.high for size in profile.values())


def test_a_build_that_is_cut_off_leaves_nothing(tiny: Bundle, tmp_path: Path, library: TensorrtLibrary) -> None:
    def cut_off(line: str) -> None:
        raise KeyboardInterrupt(line)

    with pytest.raises(KeyboardInterrupt):
        build_engines(tiny, tmp_path / "engines", library=library, max_rows=1, say=cut_off)
    assert list(tmp_path.iterdir()) == []


def test_engines_replace_engines_and_nothing_else(tiny: Bundle, tmp_path: Path, library: TensorrtLibrary) -> None:
    out = tmp_path / "engines"
    first = build_engines(tiny, out, library=library, max_rows=1, max_candidates=2)
    second = build_engines(tiny, out, library=library, max_rows=1, max_candidates=3)
    assert (first.key.sizes.max_candidates, second.key.sizes.max_candidates) == (2, 3)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["engines.json", *(engine.file for engine in second.engines)]
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ExportError, match=r"other: got something else there, wanted a new folder or one of engines$"):
        build_engines(tiny, tmp_path / "other", library=library, max_rows=1)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "ten years of work"


def spawn(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "export.engines", *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)


def test_command_builds_and_tells_of_it(
    tiny: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], library: TensorrtLibrary
) -> None:
    out = tmp_path / "engines"
    arguments = [str(tiny.path), "--out", str(out), "--library", "tensorrt-rtx", "--max-rows", "1"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.err.splitlines()] == [f"[{number}/5]" for number in range(1, 6)]
    assert said.out.startswith("engine ")
    assert said.out.splitlines()[-1] == f"{out}: tensorrt-rtx {library.version}, for any GPU"
    assert EngineSet.read(out).key.sizes.row_buckets == (1,)


def test_command_fails_in_one_line(tiny: Bundle, tmp_path: Path) -> None:
    bundle = export_model(random_model(), tmp_path / "bundle", target="cuda")
    with spawn(bundle.path, "--out", tmp_path / "engines") as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err == f"engines: {bundle.path}: got a bundle for cpu, cuda, wanted one for tensorrt\n"
    assert not (tmp_path / "engines").exists()


TERMINATED = """
import os, signal, sys
from export.engines import __main__ as command
from export.engines import build as module
build = module.build_engines
def build_until_the_first(*arguments, say, **named):
    def say_and_be_told_to_end(line):
        say(line)
        os.kill(os.getpid(), signal.SIGTERM)
    return build(*arguments, say=say_and_be_told_to_end, **named)
module.build_engines = build_until_the_first
sys.exit(command.main())
"""


def test_a_terminated_build_leaves_nothing(tiny: Bundle, tmp_path: Path) -> None:
    arguments = (str(tiny.path), "--out", str(tmp_path / "engines"), "--library", "tensorrt-rtx")
    ran = subprocess.run(
        [sys.executable, "-c", TERMINATED, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert ran.stderr.startswith("[1/5] encoder: ")
    assert ran.stderr.count("\n") == 1
    assert ran.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_build_left_is_removed_a_day_later(
    tiny: Bundle, tmp_path: Path, library: TensorrtLibrary
) -> None:
    old, running, other = (tmp_path / name for name in (".engines.0a", ".engines.0b", ".others.0c"))
    for folder in (old, running, other):
        folder.mkdir()
    for folder in (old, other):
        os.utime(folder, (1e9, 1e9))
    build_engines(tiny, tmp_path / "engines", library=library, max_rows=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".engines.0b", ".others.0c", "engines"]


def test_building_needs_neither_torch_nor_what_serves() -> None:
    heavy = {"torch", "grpc", "dragoman", "server", "sentencepiece", "tokenizers"}
    code = "import sys, export.engines.build, export.engines.__main__; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert not heavy & {name.split(".")[0] for name in ran.stdout.split()}
