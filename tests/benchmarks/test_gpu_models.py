"""The benchmark's models: the bundled one is read back exactly, and random ones carry an exam that the CPU passes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from benchmarks.gpu.exam import sit, thresholds_of
from benchmarks.gpu.models.graph_weights import read_description
from benchmarks.gpu.models.prepare import DEMO_BUNDLE, prepare
from benchmarks.gpu.specs import MAX_OUTPUT_TOKENS, MAX_SOURCE_TOKENS, MODELS
from export.bundle import Bundle
from export.engines.specialise import specialise
from export.graphs.folder import write_graphs
from export.graphs.numbers.float32 import Float32
from export.graphs.ort import OrtFlavour
from export.runners.ort_cpu import OrtCpuRunner
from tests.gpu.fake_device import open_fake


def test_the_bundled_models_weights_are_read_back_to_the_byte(tmp_path: Path) -> None:
    bundle = Bundle.open(DEMO_BUNDLE)
    manifest, folder = bundle.manifest, bundle.path / "graphs" / "ort-fp32"
    description = read_description(folder, manifest.dims, suppressed_ids=manifest.suppressed_ids)
    write_graphs(description, tmp_path, flavour=OrtFlavour(Float32()))
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(written) == {path.name for path in folder.iterdir()}
    for name, data in written.items():
        assert data == (folder / name).read_bytes(), f"{name} differs"


@pytest.mark.parametrize("padding", ["lengths", "masks"])
def test_the_bundled_models_standard_graphs_pass_its_own_exam(padding: str, tmp_path: Path) -> None:
    (bundle,) = prepare(MODELS["demo"], tmp_path, precisions=["fp32"], target="tensorrt")
    assert bundle.golden() == Bundle.open(DEMO_BUNDLE).golden()
    if padding == "masks":  # as TensorRT is given them
        for path in (bundle.graph_path("tensorrt", name) for name in ("encoder", "step")):
            onnx.save(specialise(onnx.load(str(path), load_external_data=False)), str(path))
    runner, _ = open_fake(bundle, max_rows=32)
    exam = sit(bundle, runner, trained=True)
    assert exam["faults"] == []
    assert (exam["passed"], exam["token_exact_rate"], exam["precision"]) == (True, 1.0, "fp32")
    assert len(exam["greedy"]) == len(exam["beam"]) == exam["sentences"]


@pytest.mark.parametrize("model", ["demo", "tiny"])
def test_half_precision_keeps_within_its_thresholds(model: str, tmp_path: Path) -> None:
    spec = MODELS[model]
    (bundle,) = prepare(spec, tmp_path, precisions=["fp16"], target="tensorrt")
    runner, _ = open_fake(bundle, max_rows=32)
    exam = sit(bundle, runner, trained=not spec.random)
    print(f"{model}: exact {exam['token_exact_rate']}, log-prob {exam['max_log_prob_difference']:.1e}")
    assert exam["precision"] == "fp16"
    assert exam["missed"] == []


def test_a_random_model_passes_the_exam_that_it_is_given(tmp_path: Path) -> None:
    (bundle,) = prepare(MODELS["tiny"], tmp_path, precisions=["fp32"], target="cpu")
    manifest = bundle.manifest
    assert (manifest.max_source_tokens, manifest.max_output_tokens) == (MAX_SOURCE_TOKENS, MAX_OUTPUT_TOKENS)
    exam = sit(bundle, OrtCpuRunner.open(bundle, threads=1, max_rows=16), trained=False)
    assert exam["passed"]
    outputs = [tuple(tokens) for tokens in exam["greedy"]]
    assert len(set(outputs)) == len(outputs), "each source has an output of its own"
    assert all(len(set(tokens)) > 2 for tokens in outputs), "no output repeats one token for ever"


def test_what_an_exam_asks_of_each_precision() -> None:
    assert thresholds_of("fp32", trained=True).min_exact_rate == 1.0
    assert thresholds_of("fp16", trained=True).min_exact_rate == 0.9
    assert thresholds_of("fp16", trained=False).min_exact_rate is None
    assert thresholds_of("fp16", trained=False).max_log_prob_difference == 0.05
