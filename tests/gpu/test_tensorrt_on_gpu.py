"""Real engines on a real GPU: skipped where there is none, or no TensorRT for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.engines.build import build_engines
from export.runners.gpu.device import DeviceUnavailableError
from export.runners.gpu.opening import check_target, open_gpu_runners
from export.runners.ort_cpu import OrtCpuRunner
from export.targets import Precision
from tests.export.tiny import export_model, padded, random_model, sources_of
from tests.gpu.test_gpu_runner import answers, decode, make_jobs

ROWS = 8


def missing() -> str:
    try:
        check_target("tensorrt")
    except DeviceUnavailableError as error:
        return str(error)
    return ""


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(missing()), reason=missing())]


def test_what_engines_decode_is_what_the_cpu_decodes(tmp_path: Path) -> None:
    model = random_model(seed=2, tied_embeddings="none", norm="pre", activation="swish")
    bundle = export_model(model, tmp_path / "bundle", target="tensorrt")
    engines = build_engines(bundle, tmp_path / "engines", max_rows=ROWS)
    (runner,) = open_gpu_runners(bundle, target="tensorrt", engines=engines.path, max_rows=ROWS)
    cpu = OrtCpuRunner.open(bundle, threads=1, max_rows=ROWS)
    jobs, wanted = make_jobs(), make_jobs()
    decode(runner, jobs, rounds_between=1)
    decode(cpu, wanted, rounds_between=1)
    assert answers(jobs) == answers(wanted)
    runner.close()
    cpu.close()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_gives_nearly_the_same_logits(precision: Precision, tmp_path: Path) -> None:
    model = random_model(seed=2, tied_embeddings="none", norm="pre", activation="swish")
    bundle = export_model(model, tmp_path / "bundle", target="tensorrt", precision=precision)
    engines = build_engines(bundle, tmp_path / "engines", max_rows=ROWS)
    (runner,) = open_gpu_runners(bundle, target="tensorrt", engines=engines.path, max_rows=ROWS)
    cpu = OrtCpuRunner.open(bundle, threads=1, max_rows=ROWS)
    array, lengths = padded(sources_of((7, 1, 13, 2, 30, 5), vocab=301, seed=9))
    rows, worst = np.arange(len(lengths)), 0.0
    for one in (runner, cpu):
        one.encode(sources=array, lengths=lengths, rows=rows)
    tokens = np.random.default_rng(5).integers(4, 301, (20, len(rows)))
    for position in range(20):
        for one in (runner, cpu):
            one.step(tokens=tokens[position], positions=np.full(len(rows), position))
        worst = max(worst, float(np.abs(runner.logits() - cpu.logits()).max()))
    print(f"{precision}: worst difference {worst:.1e}")
    assert 0.0 < worst < (0.05 if precision == "fp16" else 0.5)
    runner.close()
    cpu.close()
