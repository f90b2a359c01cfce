"""Graphs in int8: what is rounded, by how much, and that nothing is rounded unseen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn

from export.bundle import Bundle
from export.errors import ExportError
from export.exporter import export_bundle, plan_manifest
from export.graphs.numbers import int8
from export.quantisation.calibration import calibrate
from export.quantisation.ranges import MEMORY, ActivationRange, Calibration, Histogram
from export.quantisation.weights import quantise_rows, quantise_weight
from export.runners.ort_cpu import OrtCpuRunner
from model.checkpoint import Checkpoint
from model.tokenizer import Tokenizer
from model.transformer import Transformer
from tests.export.test_export_parity import CONFIGURATIONS, LENGTHS, STEPS
from tests.export.tiny import CARD, START, NoTokenizer, calibrated, export_model, padded, random_model, sources_of

Open = Callable[..., OrtCpuRunner]
LARGEST_PAIR = 32767 // 255
PARTS = ("key", "value")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    outputs=st.integers(1, 9),
    inputs=st.integers(1, 33),
    heavy=st.booleans(),
)
def test_weights_are_rounded_by_half_a_level_and_no_pair_can_saturate(
    seed: int, outputs: int, inputs: int, heavy: bool
) -> None:
    draw = np.random.default_rng(seed)
    weight = (draw.standard_cauchy if heavy else draw.standard_normal)((outputs, inputs)).astype(np.float32)
    weight[draw.integers(outputs)] = 0.0
    levels, scales = quantise_weight(weight)
    assert (levels.dtype, scales.dtype) == (np.dtype(np.int8), np.dtype(np.float32))
    assert (levels.shape, scales.shape) == ((inputs, outputs), (outputs,))
    assert levels.flags.c_contiguous
    wide = levels.T.astype(np.int64)
    assert np.abs(wide).max() <= 127
    pairs = np.pad(wide, ((0, 0), (0, inputs % 2))).reshape(outputs, -1, 2)
    assert np.abs(pairs.sum(axis=2)).max() <= LARGEST_PAIR
    assert (np.abs(wide * scales[:, None] - weight) <= 0.5001 * scales[:, None]).all()
    assert (scales > 0).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), entries=st.integers(1, 9), width=st.integers(1, 33))
def test_rows_of_a_table_are_rounded_by_half_a_level_of_their_own(seed: int, entries: int, width: int) -> None:
    draw = np.random.default_rng(seed)
    table = (draw.standard_cauchy((entries, width)) * 10.0 ** draw.integers(-6, 6)).astype(np.float32)
    table[draw.integers(entries)] = 0.0
    levels, scales = quantise_rows(table)
    assert (levels.dtype, scales.dtype, scales.shape) == (np.dtype(np.int8), np.dtype(np.float32), (entries, 1))
    assert np.abs(levels.astype(np.int64)).max() <= 127
    assert (np.abs(levels * scales - table) <= 0.5001 * scales).all()
    assert (scales > 0).all()


def restored(values: np.ndarray, found: ActivationRange) -> np.ndarray:
    levels = np.clip(np.rint(values / found.scale) + found.zero_point, 0, 255)
    return cast(np.ndarray, (levels - found.zero_point) * found.scale)


@pytest.mark.parametrize(
    ("low", "high"), [(-3.0, 5.0), (0.0, 4.0), (-7.0, 0.0), (2.0, 6.0), (-1e-20, 1e-20), (0.0, 0.0)]
)
def test_a_range_holds_zero_exactly_and_both_ends(low: float, high: float) -> None:
    found = ActivationRange.spanning(low, high)
    assert 0 <= found.zero_point <= 255
    assert 0.0 < found.scale == np.float32(found.scale)
    ends = np.array([low, 0.0, high])
    assert restored(np.zeros(1), found)[0] == 0.0
    assert np.abs(restored(ends, found) - ends).max() <= found.scale


def test_a_histogram_clips_freaks_and_keeps_the_rest() -> None:
    values = np.random.default_rng(1).normal(size=1_000_000).astype(np.float32)
    values[:3] = 400.0
    histogram = Histogram(low=float(values.min()), high=400.0)
    for part in np.split(values, 10):
        histogram.add(part.reshape(10, -1))
    found = histogram.activation_range()
    low, high = -found.zero_point * found.scale, (255 - found.zero_point) * found.scale
    assert -5.5 < low < -4.0
    assert 4.0 < high < 5.5


def test_an_input_that_never_changes_has_a_range() -> None:
    for value in (0.0, 2.5, -1.0):
        histogram = Histogram(low=value, high=value)
        histogram.add(np.full(1000, value, np.float32))
        assert restored(np.array([value]), histogram.activation_range())[0] == pytest.approx(value, abs=0.01)


@contextmanager
def rounded(model: Transformer) -> Iterator[None]:
    """Let every matrix product, embedding and cache of a PyTorch model round as the graphs do, by integers."""
    calibration = calibrated(model)
    ranges = calibration.inputs
    together = {"query": "query_key_value", "key": "query_key_value", "value": "query_key_value"}

    def range_of(name: str) -> ActivationRange:
        place, _, kind = name.rpartition(".")
        if place.endswith("cross_attention") and kind in ("key", "value"):
            return ranges[MEMORY]
        return ranges[f"{place}.{together[kind]}" if place.endswith("self_attention") and kind in together else name]

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        found = range_of(name)

        def product(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
            assert isinstance(module, nn.Linear)
            levels, scales = quantise_weight(module.weight.detach().numpy())
            x = np.rint(inputs[0].numpy() / np.float32(found.scale)) + found.zero_point
            summed = (np.clip(x, 0, 255).astype(np.int64) - found.zero_point) @ levels.astype(np.int64)
            y = torch.from_numpy(summed.astype(np.float32) * (np.float32(found.scale) * scales))
            bias: Tensor | None = module.bias  # which a module may lack, though its type does not say so
            y = y if bias is None else y + bias
            scale = calibration.caches.get(name)
            return y if scale is None else torch.clamp(torch.round(y / scale), -128, 127) * scale

        return product

    def look_up(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        assert isinstance(module, nn.Embedding)
        levels, scales = map(torch.from_numpy, quantise_rows(module.weight.detach().numpy()))
        rows: Tensor = levels[inputs[0]].float() * scales[inputs[0]]
        return rows

    modules = list(model.named_modules())
    handles = [module.register_forward_hook(hook(name)) for name, module in modules if isinstance(module, nn.Linear)]
    handles += [module.register_forward_hook(look_up) for _, module in modules if isinstance(module, nn.Embedding)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_graphs_round_as_integers_do_and_stay_close_to_float32(name: str, open_runner: Open) -> None:
    model = random_model(**CONFIGURATIONS[name])
    vocab = model.config.target_vocab_size
    sources, lengths = padded(sources_of(LENGTHS, vocab=model.config.source_vocab_size))
    target = np.random.default_rng(5).integers(4, vocab, (len(LENGTHS), STEPS))
    target[:, 0] = START
    mask = torch.arange(sources.shape[1]) < torch.from_numpy(lengths)[:, None]

    def logits() -> np.ndarray:
        with torch.no_grad():
            given: Tensor = model(torch.from_numpy(sources), torch.from_numpy(target), source_mask=mask)
        return given.numpy()

    exact = logits()
    with rounded(model):
        wanted = logits()
    runner = open_runner(model, precision="int8")
    assert runner.precision == "int8"
    runner.encode(sources=sources, lengths=lengths, rows=np.arange(len(LENGTHS)))
    got = np.empty_like(wanted)
    for position in range(STEPS):
        runner.step(tokens=target[:, position].copy(), positions=np.full(len(LENGTHS), position))
        got[:, position] = runner.logits()
    spread = float(exact.std())
    off, lost = np.abs(got - wanted) / spread, np.abs(got - exact) / spread
    print(f"{name}: off {np.median(off):.1e} (worst {off.max():.1e}), lost {lost.mean():.1e} (worst {lost.max():.1e})")
    assert np.median(off) < 1e-5, "a value that lies between two levels may fall on either side, most do not"
    assert lost.mean() < 0.05
    assert lost.mean() > 1e-4, "nothing was rounded"


@pytest.mark.parametrize(
    ("setting", "outputs"), [("_WIDEST_SCALED_AFTER", 0), ("_WIDEST_SCALED_AFTER", 40), ("_WIDEST_BEFORE_CACHES", 24)]
)
def test_the_form_of_a_product_makes_no_difference(
    setting: str, outputs: int, open_runner: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(output_bias=True)
    array, lengths = padded(sources_of(LENGTHS, vocab=model.config.source_vocab_size))
    given = []
    for limit in (4096, outputs):
        monkeypatch.setattr(int8, setting, limit)
        runner = open_runner(model, precision="int8")
        runner.encode(sources=array, lengths=lengths, rows=np.arange(len(LENGTHS)))
        runner.step(tokens=np.full(len(LENGTHS), START), positions=np.zeros(len(LENGTHS), np.int64))
        given.append(runner.logits().copy())
    off = np.abs(given[0] - given[1]) / given[0].std()
    assert np.median(off) < 1e-6
    assert (off.max() > 0.0) == (setting == "_WIDEST_SCALED_AFTER"), "each output is its own sum"


def initializers(bundle: Bundle, graph: str) -> dict[str, np.ndarray]:
    path = bundle.graph_path("cpu", graph)
    tensors = onnx.load(str(path), load_external_data=False).graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor, str(path.parent)) for tensor in tensors}


def test_every_matrix_product_is_in_int8_and_all_else_is_not(tmp_path: Path) -> None:
    model = random_model(norm="pre", output_bias=True)
    bundle = export_model(model, tmp_path / "bundle", precision="int8")
    assert bundle.manifest.graphs == {"cpu": "ort-int8"}
    assert bundle.manifest.precision("cpu") == "int8"
    layers = set(calibrated(model).inputs)
    tables = {"encoder": "source.token", "step": "target.token"}
    for graph in ("encoder", "step"):
        onnx.checker.check_model(str(bundle.graph_path("cpu", graph)))
        kinds = [
            node.op_type
            for node in onnx.load(str(bundle.graph_path("cpu", graph)), load_external_data=False).graph.node
        ]
        stored = initializers(bundle, graph)
        levels = {name: values for name, values in stored.items() if values.dtype == np.int8 and values.ndim}
        rounded_layers = {name.removesuffix(".weight") for name in levels if name.endswith(".weight")}
        assert set(levels) - {f"{name}.weight" for name in rounded_layers} == {tables[graph]}
        caches = {"encoder": 1, "step": 0}  # what the encoder gives, rounded already
        assert kinds.count("MatMulIntegerToFloat") == len(rounded_layers)
        assert kinds.count("QuantizeLinear") == len(rounded_layers) + caches[graph]
        assert not {"Gemm", "MatMul", "Relu"} & set(kinds), "rounding cuts negative inputs off"
        layers -= {name.removesuffix(".0") for name in rounded_layers}  # the one that fills caches may be in parts
    assert not layers, "calibrated, but never used"
    assert initializers(bundle, "step")["decoder.0.feed_forward.inner.weight"].shape == (32, 48), "[in, out]"


def test_the_same_model_always_gives_the_same_bundle(tmp_path: Path) -> None:
    digests = {export_model(random_model(), tmp_path / name, precision="int8").digest for name in ("first", "second")}
    assert len(digests) == 1


def export_with(calibration: Calibration, out: Path, model: Transformer | None = None) -> None:
    checkpoint = Checkpoint(model or random_model(), cast(Tokenizer, NoTokenizer()), CARD)
    export_bundle(
        checkpoint, out, manifest=plan_manifest(checkpoint, precision="int8"), golden=[], calibration=calibration
    )


def without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {other: value for other, value in values.items() if other != name}


@pytest.mark.parametrize("layer", sorted(calibrated(random_model()).inputs))
def test_a_layer_that_calibration_never_saw_is_named(layer: str, tmp_path: Path) -> None:
    found = calibrated(random_model())
    with pytest.raises(ExportError, match=rf"^{layer}: got no range of its input, wanted it seen in calibration$"):
        export_with(dataclasses.replace(found, inputs=without(found.inputs, layer)), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_there_is_a_scale_for_every_cache_of_the_decoder() -> None:
    layers, caches = range(random_model().config.decoder_layers), calibrated(random_model()).caches
    wanted = {f"decoder.{n}.{kind}_attention.{part}" for n in layers for kind in ("self", "cross") for part in PARTS}
    assert set(caches) == wanted


@pytest.mark.parametrize("kind", ["self", "cross"])
@pytest.mark.parametrize("part", PARTS)
def test_a_cache_without_a_usable_scale_is_named(kind: str, part: str, tmp_path: Path) -> None:
    name = f"decoder.1.{kind}_attention.{part}"
    found = calibrated(random_model())
    with pytest.raises(ExportError, match=rf"^{name}: got no scale of its cache, wanted it seen in calibration$"):
        export_with(dataclasses.replace(found, caches=without(found.caches, name)), tmp_path / "bundle")
    with pytest.raises(ExportError, match=rf"^{name}: got a scale of nan, wanted a finite number$"):
        export_with(dataclasses.replace(found, caches={**found.caches, name: np.nan}), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scale", [np.inf, np.nan])
def test_a_scale_that_is_not_finite_is_named(scale: float, tmp_path: Path) -> None:
    found = calibrated(random_model())
    unusable = {**found.inputs, "decoder.1.cross_attention.query": ActivationRange(scale, 128)}
    with pytest.raises(
        ExportError, match=r"^decoder\.1\.cross_attention\.query: got weights or a range that are not finite"
    ):
        export_with(dataclasses.replace(found, inputs=unusable), tmp_path / "bundle")


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = random_model()
    found = calibrated(model)
    with torch.no_grad():
        model.get_parameter("encoder.1.feed_forward.inner.weight")[3, 4] = torch.nan
    with pytest.raises(
        ExportError, match=r"^encoder\.1\.feed_forward\.inner: got weights or a range that are not finite"
    ):
        export_with(found, tmp_path / "bundle", model)


def test_an_input_that_is_not_finite_is_named() -> None:
    model = random_model()
    with torch.no_grad():
        model.get_parameter("encoder.0.feed_forward.inner.bias")[5] = torch.inf
    with pytest.raises(ExportError, match=r"^encoder\.0\.feed_forward\.outer: got an input from 0\.0 to inf"):
        calibrated(model)


def test_calibration_wants_a_sentence_and_tells_of_each() -> None:
    with pytest.raises(ExportError, match="got no sentence, wanted at least one"):
        calibrate(random_model(), [])
    told: list[None] = []
    calibrate(random_model(), [((5, 3), (7,)), ((9, 8, 3), ())], on_sentence=lambda: told.append(None))
    assert len(told) == 4


def test_calibration_leaves_the_model_as_it_was() -> None:
    model = random_model()
    found = calibrated(model)
    assert found == calibrated(model)
    assert not any(module._forward_hooks for module in model.modules())
    assert dataclasses.asdict(found.inputs["output"]).keys() == {"scale", "zero_point"}
