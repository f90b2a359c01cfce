"""Graphs of the standard flavour, on ONNX Runtime's CPU: as written, and as rewritten for TensorRT, they give what the
model gives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import onnx
import pytest
import torch

from export.bundle import Bundle
from export.contract import GRAPH_NAMES, ModelDimensions, cache_names, graph_contracts
from export.engines.specialise import LENGTHS_INPUT, MASK_INPUT, specialise
from export.errors import ExportError
from export.exporter import export_bundle, plan_manifest
from export.graphs.description import describe, dimensions_of
from export.graphs.folder import write_graphs
from export.graphs.numbers.float32 import Float32
from export.graphs.standard import StandardFlavour
from export.runners.ort_cpu import OrtCpuRunner
from export.runners.ort_session import BoundGraph, open_session, run_graph
from export.runners.protocol import IntArray
from export.targets import Target
from model.checkpoint import Checkpoint
from model.reference import ReferenceOptions, greedy_search
from model.tokenizer import Tokenizer
from model.transformer import Transformer
from tests.export.test_export_parity import CONFIGURATIONS, LENGTHS, STEPS, TOLERANCE
from tests.export.tiny import CARD, START, NoTokenizer, padded, random_model, sources_of

Padding = Literal["lengths", "masks"]
PADDINGS: tuple[Padding, ...] = ("lengths", "masks")  # as written; as rewritten for TensorRT
JUNK = 1e6  # what lies in a cache where no token has been
CAPACITY = 40
LIMIT = 20
# random models with much to say; one output of the second one ends early
TALKATIVE: dict[str, dict[str, Any]] = {
    "pre-swish": {"seed": 2, "tied_embeddings": "none", "norm": "pre", "activation": "swish"},
    "post-heads-of-4": {
        "seed": 3,
        "tied_embeddings": "none",
        "positions": "learned",
        "heads": 8,
        "activation": "gelu",
    },
}


class StandardGraphs:
    """Runs the graphs of one folder as a runner would; a step reads and writes the caches where they lie."""

    def __init__(self, folder: Path, dims: ModelDimensions, *, rows: int) -> None:
        contracts = graph_contracts(dims, precision="fp32", flavour="standard")
        self._encoder, step, self._greedy = (
            open_session(folder / f"{name}.onnx", contract=contracts[name], threads=1)
            for name in ("encoder", "step", "greedy")
        )
        self._step = BoundGraph(step)
        self._layers = dims.decoder_layers
        caches = (2 * dims.decoder_layers, rows, dims.heads, CAPACITY, dims.head_dim)
        self.own, self.cross = (np.full(caches, JUNK, np.float32) for _ in range(2))
        self._tokens, self._positions, self._lengths = (np.zeros(rows, np.int64) for _ in range(3))
        self.logits = np.zeros((rows, dims.padded_target_vocab), np.float32)

    def encode(self, *, sources: IntArray, lengths: IntArray, rows: IntArray) -> None:
        (memory,) = run_graph(self._encoder, {"tokens": sources, "lengths": lengths})
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            self.cross[:, row, :, :length] = memory[:, place, :, :length]
        self._lengths[rows] = lengths

    def step(self, *, tokens: IntArray, positions: IntArray) -> None:
        self._tokens[:], self._positions[:] = tokens, positions
        own = zip(cache_names("past", self._layers), self.own, strict=True)
        cross = zip(cache_names("cross", self._layers), self.cross, strict=True)
        present = zip(cache_names("present", self._layers), self.own, strict=True)
        vectors = {"tokens": self._tokens, "positions": self._positions, "source_lengths": self._lengths}
        inputs, outputs = {**vectors, **dict(own), **dict(cross)}, {"logits": self.logits, **dict(present)}
        self._step.on(None, lambda: (inputs, outputs)).run()

    def argmax(self) -> IntArray:
        ids, next_positions = run_graph(self._greedy, {"logits": self.logits, "positions": self._positions})
        assert np.array_equal(next_positions, self._positions + 1)
        return ids


def opened(model: Transformer, folder: Path, *, padding: Padding, rows: int) -> StandardGraphs:
    write_graphs(describe(model, positions=CAPACITY), folder, flavour=StandardFlavour(Float32()))
    if padding == "masks":
        for path in folder.glob("*.onnx"):
            onnx.save(specialise(onnx.load(str(path), load_external_data=False)), str(path))
    return StandardGraphs(folder, dimensions_of(model), rows=rows)


def exported(model: Transformer, out: Path, target: Target) -> Bundle:
    checkpoint = Checkpoint(model, cast(Tokenizer, NoTokenizer()), CARD)
    return export_bundle(checkpoint, out, manifest=plan_manifest(checkpoint, target=target), golden=[])


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_are_the_models_own_whatever_the_place_of_each_row(name: str, padding: Padding, tmp_path: Path) -> None:
    model = random_model(**CONFIGURATIONS[name])
    vocab = model.config.target_vocab_size
    sources, lengths = padded(sources_of(LENGTHS, vocab=model.config.source_vocab_size))
    target = np.random.default_rng(5).integers(4, vocab, (len(LENGTHS), STEPS))
    target[:, 0] = START
    mask = torch.arange(sources.shape[1]) < torch.from_numpy(lengths)[:, None]
    with torch.no_grad():
        wanted = model(torch.from_numpy(sources), torch.from_numpy(target), source_mask=mask).numpy()

    graphs = opened(model, tmp_path, padding=padding, rows=len(LENGTHS))
    rows, begin = np.arange(len(LENGTHS)), np.array([0, 3, 1, 4, 2])
    graphs.encode(sources=sources, lengths=lengths, rows=rows)
    memory = graphs.cross.copy()
    worst = 0.0
    for number in range(STEPS + begin.max()):
        positions = np.clip(number - begin, 0, STEPS - 1)
        graphs.step(tokens=target[rows, positions], positions=positions)
        worst = max(worst, float(np.abs(graphs.logits[:, :vocab] - wanted[rows, positions]).max()))
    print(f"{name}, {padding}: worst difference {worst:.1e}")
    assert worst < TOLERANCE
    assert (graphs.own[:, :, :, :STEPS] != JUNK).all(), "the caches were updated in place"
    assert (graphs.own[:, :, :, STEPS:] == JUNK).all()
    assert np.array_equal(graphs.cross, memory), "cross caches are only read"


def greedy(model: Transformer, sources: list[IntArray], runner: StandardGraphs | OrtCpuRunner) -> list[list[int]]:
    """What is chosen for each source until the end token or the limit."""
    config, rows = model.config, np.arange(len(sources))
    array, lengths = padded(sources)
    runner.encode(sources=array, lengths=lengths, rows=rows)
    chosen = [np.full(len(sources), config.start_id)]
    for position in range(LIMIT):
        runner.step(tokens=chosen[-1], positions=np.full(len(sources), position))
        chosen.append(runner.argmax())
    outputs = np.stack(chosen[1:], axis=1).tolist()
    return [output[: output.index(config.eos_id)] if config.eos_id in output else output for output in outputs]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", TALKATIVE)
def test_greedy_tokens_are_the_references(name: str, padding: Padding, tmp_path: Path) -> None:
    model = random_model(**TALKATIVE[name])
    sources = sources_of((7, 1, 13, 2, 30, 5), vocab=301, seed=9)
    graphs = opened(model, tmp_path, padding=padding, rows=len(sources))
    options = ReferenceOptions(max_output_tokens=LIMIT)
    wanted = [list(greedy_search(model, source.tolist(), options).tokens) for source in sources]
    assert greedy(model, sources, graphs) == wanted
    assert len({token for tokens in wanted for token in tokens}) > 20, "a model that says the same all the time"
    assert len({tuple(tokens) for tokens in wanted}) == len(sources)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("activation", ["relu", "gelu", "swish"])
def test_all_is_written_in_onnx_opset_24_and_every_input_counts(
    activation: str, padding: Padding, tmp_path: Path
) -> None:
    model = random_model(activation=activation, norm="pre", output_bias=True, suppressed=(0,))
    opened(model, tmp_path, padding=padding, rows=1)
    for name in GRAPH_NAMES["standard"]:
        path = tmp_path / f"{name}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        loaded = onnx.load(str(path), load_external_data=False)
        assert [(opset.domain, opset.version) for opset in loaded.opset_import] == [("", 24)]
        assert {node.domain for node in loaded.graph.node} == {""}
        used = {value for node in loaded.graph.node for value in node.input}
        assert {value.name for value in loaded.graph.input} <= used
        assert {value.name for value in loaded.graph.initializer} <= used


@pytest.mark.parametrize("padding", PADDINGS)
def test_padding_is_told_in_one_form_made_once(padding: Padding, tmp_path: Path) -> None:
    model = random_model(encoder_layers=3, decoder_layers=3)
    opened(model, tmp_path, padding=padding, rows=1)
    for name, layers, forms in (("encoder", 3, 1), ("step", 6, 2)):
        nodes = onnx.load(str(tmp_path / f"{name}.onnx"), load_external_data=False).graph.node
        inputs = [[*node.input, *[""] * 7][:7] for node in nodes if node.op_type == "Attention"]
        assert len(inputs) == layers
        told, untold = (LENGTHS_INPUT, MASK_INPUT) if padding == "lengths" else (MASK_INPUT, LENGTHS_INPUT)
        assert {given[untold] for given in inputs} == {""}
        assert len({given[told] for given in inputs} - {""}) == forms
        assert all(given[told] for given in inputs)
        kinds = [node.op_type for node in nodes]
        assert kinds.count("Less") == (forms if padding == "masks" else 0)


def test_cpu_and_cuda_graphs_of_one_bundle_give_the_same_tokens(tmp_path: Path) -> None:
    model = random_model(**TALKATIVE["pre-swish"])
    bundle = exported(model, tmp_path / "bundle", "cuda")
    assert bundle.manifest.graphs == {"cpu": "ort-fp32", "cuda": "standard-fp32"}
    sources = sources_of((7, 1, 13, 2, 30, 5), vocab=301, seed=9)
    graphs = StandardGraphs(bundle.graph_path("cuda", "step").parent, bundle.manifest.dims, rows=len(sources))
    runner = OrtCpuRunner.open(bundle, threads=1)
    assert greedy(model, sources, graphs) == greedy(model, sources, runner)
    runner.close()


def test_a_bundle_for_cuda_holds_what_one_for_the_cpu_holds(tmp_path: Path) -> None:
    cpu, cuda = (exported(random_model(), tmp_path / target, target).manifest for target in ("cpu", "cuda"))
    assert cpu.files.items() <= cuda.files.items()
    names = ("weights.bin", *(f"{name}.onnx" for name in GRAPH_NAMES["standard"]))
    added = {f"graphs/standard-fp32/{name}" for name in names}
    assert set(cuda.files) - set(cpu.files) == added


def test_graphs_that_nobody_can_write_are_refused() -> None:
    checkpoint = Checkpoint(random_model(), cast(Tokenizer, NoTokenizer()), CARD)
    with pytest.raises(ExportError, match=r"^precision: got int8 for target cuda, wanted fp32 or fp16 or bf16$"):
        plan_manifest(checkpoint, target="cuda", precision="int8")
