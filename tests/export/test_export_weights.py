"""How weights are stored: fp16 where that loses nothing, each matrix once, the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.bundle import Bundle
from export.graphs.weight_file import WEIGHTS_FILE, WeightFile, smallest_lossless
from export.runners.ort_cpu import OrtCpuRunner
from tests.export.tiny import export_model, random_model


def weights_size(bundle: Bundle) -> int:
    return (bundle.graph_path("cpu", "step").parent / WEIGHTS_FILE).stat().st_size


def test_float16_is_taken_only_where_every_value_survives() -> None:
    assert smallest_lossless(np.array([0.5, -2.0, -np.inf, 2.0**-24], np.float32)).dtype == np.float16
    for value in (0.1, 1e6, 2.0**-26, np.float32(1.0 + 2.0**-12)):
        kept = smallest_lossless(np.array([0.5, value], np.float32))
        assert kept.dtype == np.float32
        assert kept[1] == np.float32(value)


def test_equal_tensors_share_their_bytes(tmp_path: Path) -> None:
    with WeightFile(tmp_path) as weights:
        first, second = (weights.add(name, np.ones((3, 5), np.float16)) for name in ("a", "b"))
        other = weights.add("c", np.ones((5, 3), np.float16))
    place = [{entry.key: entry.value for entry in tensor.external_data} for tensor in (first, second, other)]
    assert place[0] == place[1]
    assert place[2]["offset"] == "64"


def test_a_half_precision_checkpoint_is_stored_in_half_and_served_unchanged(tmp_path: Path) -> None:
    model = random_model()
    single = export_model(model, tmp_path / "single")
    half_model = random_model()
    with torch.no_grad():
        for parameter in half_model.parameters():
            parameter.copy_(parameter.half().float())
    half = export_model(half_model, tmp_path / "half")
    table = model.config.max_positions * model.config.d_model * 4  # sines do not fit float16
    assert weights_size(half) - table == pytest.approx((weights_size(single) - table) / 2, rel=0.05)

    source, target = torch.tensor([[9, 8, 3]]), torch.tensor([[2]])
    with torch.no_grad():
        wanted = half_model(source, target, source_mask=torch.ones_like(source, dtype=torch.bool))[0].numpy()
    runner = OrtCpuRunner.open(half, threads=1)
    runner.encode(sources=source.numpy(), lengths=np.array([3]), rows=np.array([0]))
    runner.step(tokens=np.array([2]), positions=np.array([0]))
    assert np.abs(runner.logits() - wanted).max() < 1e-5


def test_tied_matrices_are_stored_once(tmp_path: Path) -> None:
    table = 384 * 32 * 4  # 301 tokens padded to whole blocks
    sizes = {
        tied: weights_size(export_model(random_model(tied_embeddings=tied), tmp_path / tied))
        for tied in ("all", "decoder", "none")
    }
    assert sizes["decoder"] - sizes["all"] == table
    assert sizes["none"] - sizes["decoder"] == table


def test_the_same_model_always_gives_the_same_bundle(tmp_path: Path) -> None:
    first, second = (export_model(random_model(), tmp_path / name) for name in ("first", "second"))
    assert first.digest == second.digest
    assert first.digest != export_model(random_model(seed=2), tmp_path / "third").digest


def test_graphs_pass_the_checker(tiny_bundle: Bundle) -> None:
    for name in ("encoder", "step", "argmax", "top_k"):
        onnx.checker.check_model(str(tiny_bundle.graph_path("cpu", name)))


def test_a_bundle_on_a_read_only_mount_is_served(tmp_path: Path) -> None:
    bundle = export_model(random_model(), tmp_path / "bundle")
    folders = [path for path in (bundle.path, *bundle.path.rglob("*")) if path.is_dir()]
    before = sorted(bundle.path.rglob("*"))
    try:
        for folder in folders:
            folder.chmod(0o555)
        OrtCpuRunner.open(Bundle.open(bundle.path), threads=1).close()
        assert sorted(bundle.path.rglob("*")) == before
    finally:
        for folder in folders:
            folder.chmod(0o755)
