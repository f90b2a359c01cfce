"""What a bundle comes to run on: by the settings, its graphs, its certificate, and what the machine can do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from export.bundle import CERTIFICATE_FILE, Bundle, BundleError, read_certificate
from server.cli import main
from server.config import ServeConfig, Target
from server.runners import RunnerSource
from tests.served import ENVIRONMENT, ROOT
from tests.server.commands import ANYWHERE
from tests.server.loaded import Load
from tests.server.running import PATIENCE_S
from tests.server.stand_in_gpu import ON_GPU, StandInGpu, WrongRunner, assert_closed, copy_for_gpu, events, put_engines


def verify(path: Path, target: Target, gpu: StandInGpu, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    """``dragoman verify`` on a machine with that GPU."""
    monkeypatch.setattr("server.runners.THIS_GPU", gpu)
    return main(["verify", str(path), "--target", target.value, *flags])


def source_of(gpu: StandInGpu, cache: Path, **settings: Any) -> RunnerSource:
    return RunnerSource(ServeConfig(engine_cache=cache, threads=1, max_rows=8, **settings), gpu=gpu)


@pytest.mark.parametrize(
    ("asked", "runs", "wanted"),
    [
        (Target.AUTO, ON_GPU, ["cuda", "cpu"]),
        (Target.AUTO, [Target.CUDA], ["cuda", "cpu"]),
        (Target.AUTO, [], ["cpu"]),
        (Target.TENSORRT, ON_GPU, ["cuda", "cpu"]),
        (Target.TENSORRT, [Target.TENSORRT], ["cpu"]),
        (Target.CUDA, ON_GPU, ["cuda"]),
        (Target.CPU, ON_GPU, ["cpu"]),
    ],
)
@pytest.mark.parametrize("built", [False, True])
def test_ways_to_run_a_bundle_at_once_best_first(
    gpu_models: Path,
    cache: Path,
    gate: Path,
    asked: Target,
    runs: Collection[Target],
    wanted: list[str],
    built: bool,
) -> None:
    bundle = Bundle.open(gpu_models / "good")
    folder = put_engines(bundle.path, cache) if built else None
    source = source_of(StandInGpu(gate, runs=runs), cache, target=asked)
    on_engines = asked in (Target.AUTO, Target.TENSORRT) and Target.TENSORRT in runs
    first = ["tensorrt"] if built and on_engines else []
    choices = source.choices(bundle)
    assert [choice.target.value for choice in choices] == [*first, *wanted]
    assert [choice.engines for choice in choices] == [folder] * len(first) + [None] * len(wanted)
    assert source.wants_engines(bundle) is on_engines


def test_a_bundle_for_the_cpu_asks_nothing_of_the_gpu(gate: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(copy_for_gpu(tmp_path, "plain", targets=()))
    gpu = StandInGpu(gate)
    assert [choice.target for choice in source_of(gpu, tmp_path).choices(bundle)] == [Target.CPU]
    assert gpu.asked == []


def test_a_shortlist_is_for_the_cpu(gpu_models: Path, cache: Path, gate: Path) -> None:
    source = source_of(StandInGpu(gate), cache, shortlist=True)
    assert [choice.target for choice in source.choices(Bundle.open(gpu_models / "good"))] == [Target.CPU]


@pytest.mark.parametrize(
    ("targets", "asked", "reason"),
    [
        ((), Target.CUDA, "got a bundle for cpu, wanted one for cuda"),
        ((Target.CUDA,), Target.TENSORRT, "got a bundle for cpu, cuda, wanted one for tensorrt"),
    ],
)
def test_a_bundle_without_graphs_for_the_target_is_refused(
    tmp_path: Path, gate: Path, targets: Collection[Target], asked: Target, reason: str
) -> None:
    bundle = Bundle.open(copy_for_gpu(tmp_path, "some", targets=targets))
    with pytest.raises(BundleError, match=reason):
        source_of(StandInGpu(gate), tmp_path, target=asked).choices(bundle)


@pytest.mark.parametrize(
    ("targets", "runs", "reason"),
    [
        ([Target.CUDA], [], "got graphs for cuda, wanted graphs for a target that runs here"),
        ([Target.TENSORRT], ON_GPU, "got graphs for tensorrt, wanted also graphs for cuda or cpu, to serve on"),
    ],
)
def test_a_bundle_that_nothing_can_run_is_refused(
    tmp_path: Path, gate: Path, targets: Collection[Target], runs: Collection[Target], reason: str
) -> None:
    path = copy_for_gpu(tmp_path, "some", targets=targets, on_cpu=False)
    with pytest.raises(BundleError, match=reason):
        source_of(StandInGpu(gate, runs=runs), tmp_path).choices(Bundle.open(path))


@pytest.mark.parametrize(("there", "wanted"), [(True, ["tensorrt", "cuda"]), (False, [])])
def test_only_a_machine_with_a_gpu_is_told_what_it_lacks(
    load_gpu: Load, cache: Path, gate: Path, log: pytest.LogCaptureFixture, there: bool, wanted: list[str]
) -> None:
    loaded = load_gpu(gpu=StandInGpu(gate, there=there, runs=()), engine_cache=cache)
    assert loaded.model.runner.name == "onnxruntime-cpu"
    assert loaded.engine_states == {"none": 1}
    told = events(log, "a target cannot run here")
    assert [entry["target"] for entry in told] == wanted
    assert all("needs: pip install the-" in entry["reason"] for entry in told)


@pytest.mark.parametrize("target", ON_GPU)
def test_a_target_that_was_asked_for_and_cannot_run_is_one_line(load_gpu: Load, gate: Path, target: Target) -> None:
    loaded = load_gpu(gpu=StandInGpu(gate, runs=()), target=target)
    assert loaded.error == f"--target {target.value}: {target.value} needs: pip install the-{target.value}-library"
    assert loaded.states == {}


def test_the_server_ends_with_that_line(gpu_models: Path, gate: Path) -> None:
    flags = ("--models", str(gpu_models), "--target", "tensorrt")
    done = subprocess.run(
        [sys.executable, "-m", "tests.server.stand_in_gpu", "serve", *ANYWHERE, *flags],
        cwd=ROOT,
        env={**ENVIRONMENT, "STAND_IN_GATE": str(gate), "STAND_IN_RUNS": "cuda"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last == "dragoman serve: --target tensorrt: tensorrt needs: pip install the-tensorrt-library"


def test_cached_engines_serve_at_once(load_gpu: Load, gpu_models: Path, cache: Path, gate: Path) -> None:
    put_engines(gpu_models / "good", cache)
    loaded = load_gpu(gpu=StandInGpu(gate), engine_cache=cache)
    assert loaded.model.runner.name == "tensorrt"
    assert loaded.engine_states == {"serving": 1}
    assert loaded.model.detail == ""
    exam = loaded.model.backend.exam
    assert exam is not None
    assert exam.sentences == 6, "no certificate came with them: they sit the whole exam"
    loaded.engine_work.start()
    loaded.engine_work.join()
    assert loaded.model.backend.exam is exam, "there was nothing to do"


def test_engines_with_a_certificate_sit_a_short_exam(
    load_gpu: Load, gpu_models: Path, cache: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, gpu = gpu_models / "good", StandInGpu(gate)
    put_engines(path, cache, max_rows=128)
    assert verify(path, Target.TENSORRT, gpu, monkeypatch, "--engine-cache", str(cache)) == 0
    monkeypatch.setattr("server.opening.sit_whole_exam", lambda *_: pytest.fail("the whole exam"))
    loaded = load_gpu(gpu=gpu, engine_cache=cache, max_rows=0)
    assert loaded.model.runner.name == "tensorrt"
    assert loaded.model.backend.exam in read_certificate(path / CERTIFICATE_FILE)


@pytest.mark.parametrize("broken", [True, False])
def test_cached_engines_that_are_no_good_leave_it_serving_on_another_target(
    load_gpu: Load, gpu_models: Path, cache: Path, gate: Path, log: pytest.LogCaptureFixture, broken: bool
) -> None:
    folder = put_engines(gpu_models / "good", cache)
    if broken:
        (folder / "broken").touch()
    gpu = StandInGpu(gate, runs=[Target.TENSORRT], kind=WrongRunner)
    loaded = load_gpu(gpu=gpu, engine_cache=cache)
    assert loaded.model.runner.name == "onnxruntime-cpu"
    assert loaded.model.healthy
    loaded.engine_work.start()
    loaded.engine_work.join()
    ((passed_over,), (failed,)) = events(log, "a target is passed over"), events(log, "engines failed")
    assert passed_over["target"] == "tensorrt"
    reason = "got broken engines" if broken else "exam on tensorrt fp16 failed"
    assert reason in passed_over["reason"]
    assert reason in failed["reason"]
    assert loaded.engine_states == {"failed": 1}
    for runner in gpu.opened:
        assert_closed(runner)


def test_cuda_needs_a_certificate_of_its_own(
    load_gpu: Load, gpu_models: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = StandInGpu(gate)
    refused = load_gpu(gpu=gpu, target=Target.CUDA)
    assert refused.states == {"good": "failed"}
    assert "run `dragoman verify --target cuda` or pass --allow-uncertified" in refused.error
    assert verify(gpu_models / "good", Target.CUDA, gpu, monkeypatch) == 0
    loaded = load_gpu(gpu=gpu, target=Target.CUDA)
    assert loaded.states == {"good": "serving"}
    assert (loaded.model.runner.name, len(loaded.model.backend.runners)) == ("onnxruntime-cuda", 1)
    assert loaded.served_by == ["onnxruntime-cuda"]
    assert loaded.engine_states == {"none": 1}


def test_until_there_are_engines_cuda_serves_where_it_is_certified(
    load_gpu: Load, gpu_models: Path, cache: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = StandInGpu(gate)
    gpu.orders = {"good": "build"}
    assert verify(gpu_models / "good", Target.CUDA, gpu, monkeypatch) == 0
    loaded = load_gpu(gpu=gpu, engine_cache=cache)
    assert loaded.served_by == ["onnxruntime-cuda"]
    assert loaded.engine_states == {"building": 1}
    loaded.engine_work.start()
    loaded.engine_work.join()
    assert loaded.served_by == ["tensorrt"]
    assert loaded.engine_states == {"serving": 1}


def test_verify_builds_engines_that_are_not_there(
    gpu_models: Path, cache: Path, gate: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, gpu = gpu_models / "good", StandInGpu(gate)
    gpu.orders = {"good": "build"}
    assert verify(path, Target.TENSORRT, gpu, monkeypatch, "--engine-cache", str(cache)) == 0
    printed = capsys.readouterr()
    assert "runner  tensorrt, fp16, on a stand-in GPU" in printed.out
    assert "building, process" in printed.err
    exams = {exam.runner: exam for exam in read_certificate(path / CERTIFICATE_FILE)}
    assert {*exams} == {"onnxruntime-cpu", "tensorrt"}
    exam = exams["tensorrt"]
    assert (exam.passed, exam.device, exam.precision) == (True, "a stand-in GPU", "fp16")
    assert exam.thresholds == {"max_bleu_loss": 0.2}
    assert "onnxruntime" not in exam.tool_versions
    assert_closed(gpu.opened[0])


def test_verify_says_why_there_are_no_engines(
    gpu_models: Path, cache: Path, gate: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, gpu = gpu_models / "good", StandInGpu(gate)
    gpu.orders = {"good": "fail"}
    assert verify(path, Target.TENSORRT, gpu, monkeypatch, "--engine-cache", str(cache)) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last == f"dragoman verify: {path}: engines: step.onnx: got Attention with lengths, wanted a mask"


def test_verify_on_a_target_that_cannot_run_is_one_line(
    gpu_models: Path, gate: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = gpu_models / "good"
    assert verify(path, Target.CUDA, StandInGpu(gate, runs=()), monkeypatch) == 1
    assert capsys.readouterr().err == "dragoman verify: cuda needs: pip install the-cuda-library\n"
    assert verify(path, Target.CUDA, StandInGpu(gate), monkeypatch, "--shortlist") == 2
    said = "dragoman verify: --shortlist: got it with --target cuda, wanted --target cpu\n"
    assert capsys.readouterr().err == said


def test_engines_are_kept_below_the_users_cache(
    gpu_models: Path, gate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = put_engines(gpu_models / "good", tmp_path / "home" / "dragoman" / "engines", max_rows=128)
    source = RunnerSource(ServeConfig(), gpu=StandInGpu(gate))
    assert source.find_engines(Bundle.open(gpu_models / "good")) == folder
