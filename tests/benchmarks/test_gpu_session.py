"""A whole run with scripted children: what is ready is measured in order, and nothing that fails stops the rest."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.child import Ended
from benchmarks.gpu.figures import add_figures
from benchmarks.gpu.models.preparation import EngineJob, Preparations
from benchmarks.gpu.plan import EXAM_ROWS, Task, bundles_of, engines_of, plan_tasks
from benchmarks.gpu.report import report
from benchmarks.gpu.session import Session
from benchmarks.gpu.specs import GREEDY_ROWS, MAX_ROWS, MODELS
from benchmarks.gpu.step_bytes import cache_bytes, step_bytes, weight_bytes

ALL = ["tensorrt", "torch", "cuda", "hf", "torch-compiled", "hf-static"]
STEP_S = {"tensorrt": 0.0002, "torch": 0.0004, "hf": 0.002}


class ScriptedChildren:
    """Stands for ``run_child``: answers at once, as a machine with a GPU would."""

    def __init__(self, *, crashing: str = "", failing_builds: str = "", builds_on_gpu: bool = False) -> None:
        self.asked: list[tuple[str, Sequence[str]]] = []
        self.specs: list[dict[str, Any]] = []
        self._crashing, self._failing_builds = crashing, failing_builds
        self._builds_on_gpu = builds_on_gpu
        self._lock = threading.Lock()
        self.on_gpu = threading.Lock()
        self.met: list[str] = []

    def __call__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        log: Path,
        timeout_s: float,
        on_message: Callable[[dict[str, Any]], None] = lambda _: None,
        variables: Mapping[str, str] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Ended:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("SdpaKernel=FLASH_ATTENTION\n")
        with self._lock:
            self.asked.append((module, arguments))
        code = 0
        if module in ("export.engines", "benchmarks.gpu.worker"):
            if self.on_gpu.acquire(blocking=False):
                threading.Event().wait(0.002)  # so that two which may meet do
                self.on_gpu.release()
            else:
                self.met.append(module)
        match module:
            case "benchmarks.gpu.probe" if arguments[0] == "tensorrt" and not self._builds_on_gpu:
                on_message({"failed": "ModuleNotFoundError: No module named 'tensorrt'"})
                code = 3
            case "benchmarks.gpu.probe":
                on_message({"version": "1.0"})
            case "benchmarks.gpu.bandwidth":
                on_message({"bytes_per_second": 3.0e12})
            case "export.engines":
                code = int(self._failing_builds in arguments[0]) if self._failing_builds else 0
            case "benchmarks.gpu.worker":
                code = self._work(json.loads(arguments[0]), on_message)
        return Ended(code=code, seconds=1.0, timed_out=False, last_line=f"words of {module}")

    def _work(self, spec: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> int:
        self.specs.append(spec)
        say({"opened": {"runner": spec["system"]}, "seconds": 0.5})
        for number, part in enumerate(spec["parts"]):
            if spec["system"] == self._crashing and number:
                return -11
            say({"number": number, "seconds": 0.1, "result": answer(spec["system"], part)})
        return 0


def answer(system: str, part: dict[str, Any]) -> dict[str, Any]:
    seconds = STEP_S.get(system, 0.001)
    match part["part"]:
        case "exam":
            figures = {"token_exact_rate": 1.0, "max_log_prob_difference": 0.001, "sentences": 64}
            verdict: dict[str, Any] = {"passed": system != "cuda", "missed": ["token-exact rate 0.5"]}
            return figures | verdict | {"runner": system, "precision": "fp16", "greedy": [[5, 6]], "beam": [[5]]}
        case "step":
            return {"median_s": seconds, "least_s": seconds, "p90_s": seconds, "count": 100}
        case "decode":
            return {"output_tokens": 1000, "median_s": 100 * seconds, "outputs": [[1, 2], [3]]}
    return {"rows": 64, "kernels": [], "attention": [{"kernel": "fmha_fwd", "count": 6, "microseconds": 9.0}]}


def session_of(tmp_path: Path, children: ScriptedChildren, *, seconds: float = 480.0) -> Session:
    budget = Budget(seconds)
    preparations = Preparations(tmp_path / "work", tmp_path / "logs", "tensorrt", lambda: budget.left, run=children)
    return Session(tmp_path / "out", "cuda", budget, preparations, run=children)


def run_all(session: Session, tasks: list[Task]) -> dict[str, Any]:
    session.prepare_bundles(tasks)
    session.probe()
    session.measure_bandwidth()
    session.prepare_engines(tasks)
    session.measure(tasks)
    session.preparations.close()
    add_figures(session.results, session.outputs)
    session.save()
    results: dict[str, Any] = json.loads((session.out / "gpu.json").read_text())
    return results


def plan(systems: list[str] = ALL, *, quick: bool = False) -> list[Task]:
    return plan_tasks(models=["demo", "base", "big"], systems=systems, max_rows=MAX_ROWS, quick=quick)


def test_the_plan_begins_with_the_trained_models_exam_and_ends_with_what_takes_long() -> None:
    names = [task.name for task in plan()]
    assert names[:6] == [
        *("exam demo fp16 tensorrt", "exam demo fp16 cuda"),
        *("steps base fp16 tensorrt", "steps base fp16 torch", "steps base fp16 cuda", "steps base fp16 hf"),
    ]
    assert {"exam demo fp32 cuda", "steps big fp16 torch", "kernels base fp16 tensorrt"} < set(names)
    assert names.index("steps base fp16 torch-compiled") > names.index("steps big fp16 hf")
    assert len(set(names)) == len(names)


def test_every_row_count_is_asked_for_greedily_and_with_a_beam() -> None:
    (task,) = [task for task in plan() if task.name == "steps big fp16 tensorrt"]
    asked = {(part["rows"], part["beam_size"]) for part in task.parts if part["part"] == "step"}
    assert asked == {(rows, 1) for rows in GREEDY_ROWS} | {(rows, 4) for rows in (4, 8, 32, 64, 128, 256, 512)}
    assert [part["beam_size"] for part in task.parts if part["part"] == "decode"] == [1, 4]


def test_engines_are_built_once_for_a_bundle_for_the_most_rows_asked_of_it() -> None:
    tasks = plan()
    assert engines_of(tasks)[:2] == [EngineJob("demo", "fp16", EXAM_ROWS), EngineJob("base", "fp16", MAX_ROWS)]
    assert len(engines_of(tasks)) == len({(job.model, job.precision) for job in engines_of(tasks)})
    for task in tasks:
        if task.system == "tensorrt":
            assert EngineJob(task.model, task.precision, task.max_rows) in engines_of(tasks), task.name
    assert engines_of(plan(["torch", "cuda"])) == []
    assert bundles_of(plan(quick=True))[0] == ("demo", "fp16")


def test_all_is_measured_and_told(tmp_path: Path) -> None:
    children = ScriptedChildren()
    results = run_all(session_of(tmp_path, children), plan())
    assert results["left_out"] == {}
    assert {task["task"] for task in results["tasks"]} == {task.name for task in plan()}
    builds = [arguments for module, arguments in children.asked if module == "export.engines"]
    assert list(builds[1])[3:5] == ["--max-rows", "512"]
    (steps,) = [task for task in results["tasks"] if task["task"] == "steps base fp16 tensorrt"]
    one_row = next(part for part in steps["parts"] if part["part"] == "step" and part["rows"] == 1)
    assert one_row["result"]["of_copy"] == pytest.approx(step_bytes(MODELS["base"], "fp16", rows=1) / 0.0002 / 3e12)
    loop = next(part for part in steps["parts"] if part["part"] == "decode")
    assert loop["result"]["tokens_per_second"] == pytest.approx(50_000)
    assert loop["result"]["outputs_equal_to_torch"] == 2
    assert "outputs" not in loop["result"], "tokens are kept apart from the figures"
    outputs = json.loads((tmp_path / "out" / "outputs.json").read_text())
    assert outputs["exam demo fp16 tensorrt: exam: greedy"] == [[5, 6]]


def test_the_tables_tell_speeds_over_the_peers(tmp_path: Path) -> None:
    results = run_all(session_of(tmp_path, ScriptedChildren()), plan())
    text = report(results)
    lines = text.splitlines()
    title = next(number for number, line in enumerate(lines) if line.startswith("base fp16, greedy"))
    one_row = lines[title + 2].split()
    assert lines[title + 1].split()[:4] == ["rows", "tensorrt", "torch", "cuda"]
    assert one_row[0] == "1"
    assert one_row[1:3] == ["0.200", "0.400"]
    assert one_row[-3:-1] == ["2.00", "10.00"]
    assert "FAILED: token-exact rate 0.5" in text
    assert "tensorrt       does not work: ModuleNotFoundError: No module named 'tensorrt'" in text
    assert "attention of cuda, base: fmha_fwd" in text
    assert "left out" not in text


def test_a_crash_harms_only_its_own_task(tmp_path: Path) -> None:
    results = run_all(session_of(tmp_path, ScriptedChildren(crashing="torch")), plan())
    tasks = {task["task"]: task for task in results["tasks"]}
    crashed = tasks["steps base fp16 torch"]
    assert crashed["failed"] == "SIGSEGV; last line of its log: words of benchmarks.gpu.worker"
    assert "result" in crashed["parts"][0], "what was measured before the crash stays"
    assert crashed["parts"][1]["left_out"].startswith("SIGSEGV")
    assert all("failed" not in task for name, task in tasks.items() if not name.endswith(" torch"))
    assert "steps base fp16 torch: SIGSEGV" in report(results)


def test_where_engines_cannot_be_built_the_others_are_measured(tmp_path: Path) -> None:
    results = run_all(session_of(tmp_path, ScriptedChildren(failing_builds="big-")), plan())
    tasks = {task["task"]: task for task in results["tasks"]}
    reason = "engines big fp16: exit 1: words of export.engines"
    assert tasks["steps big fp16 tensorrt"]["failed"] == reason
    assert "failed" not in tasks["steps base fp16 tensorrt"]
    assert "failed" not in tasks["steps big fp16 torch"]
    assert reason in report(results)


def test_builds_that_use_the_gpu_take_turns_with_measurements(tmp_path: Path) -> None:
    children = ScriptedChildren(builds_on_gpu=True)
    results = run_all(session_of(tmp_path, children), plan())
    assert len(results["tasks"]) == len(plan())
    assert children.met == []


def test_without_time_everything_is_named_as_left_out(tmp_path: Path) -> None:
    results = run_all(session_of(tmp_path, ScriptedChildren(), seconds=0.0), plan())
    assert results["tasks"] == []
    assert set(results["left_out"]) == {task.name for task in plan()}


def test_bytes_of_a_step() -> None:
    # 6 layers of 6 * 512^2 + 2 * 512 * 2048 weights, and 32,000 * 512 of the last projection
    assert weight_bytes(MODELS["base"], "fp16") == 2 * (6 * 3_670_016 + 16_384_000)
    # a row: 6 layers, keys and values, of itself and of its source, 25 tokens of 512 numbers
    assert cache_bytes(MODELS["base"], "fp16", rows=3) == 3 * 2 * 6 * 2 * 2 * 25 * 512
    assert step_bytes(MODELS["big"], "fp32", rows=1) == 2 * step_bytes(MODELS["big"], "fp16", rows=1)


@pytest.mark.slow
def test_the_command_runs_where_there_is_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--device", "cpu", "--models", "tiny", "--runners", "cpu,torch", "--max-rows", "8", "--quick"]
    assert main([*options, "--minutes", "1.5", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "tiny fp32, greedy" in printed
    results = json.loads((out / "gpu.json").read_text())
    steps = {task["system"]: task["parts"] for task in results["tasks"] if task["task"].startswith("steps")}
    assert [part["rows"] for part in steps["cpu"] if part["part"] == "step" and "result" in part] == [1, 8, 4, 8]
    loops = [part["result"] for part in steps["cpu"] if part["part"] == "decode"]
    assert [loop["outputs_equal_to_torch"] for loop in loops] == [loop["sources"] for loop in loops]
    assert str(tmp_path) not in (out / "gpu.json").read_text(), "no folder of this machine"
