"""Parts run in processes of their own, whose ends and last words are kept, and probes that say why nothing loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import child
from benchmarks.gpu.child import Ended, run_child
from benchmarks.gpu.kernels import layers_of
from benchmarks.gpu.machine import describe_gpu
from benchmarks.gpu.probe import PROBES
from benchmarks.gpu.session import first_error

CHILD = """
import json, os, signal, sys, time
print(json.dumps({"said": sys.argv[1]}))
print("no JSON, but a line of the log")
print("a library's complaint", file=sys.stderr, flush=True)
match sys.argv[1]:
    case "fails":
        sys.exit(4)
    case "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    case "hangs":
        time.sleep(600)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "spoken.py").write_text(CHILD)
    monkeypatch.setattr(child, "ROOT", tmp_path)

    def run(how: str, **options: Any) -> tuple[Ended, list[dict[str, Any]], str]:
        said: list[dict[str, Any]] = []
        log = tmp_path / "logs" / f"{how}.log"
        ended = run_child("spoken", [how], log=log, on_message=said.append, **{"timeout_s": 60.0, **options})
        return ended, said, log.read_text()

    return run


def test_what_a_child_says_is_heard_and_its_log_is_kept(run: Any) -> None:
    ended, said, log = run("ends")
    assert (ended.code, ended.fault, ended.timed_out) == (0, "", False)
    assert said == [{"said": "ends"}]
    assert "no JSON, but a line of the log" in log
    assert "a library's complaint" in log


def test_a_failure_is_told_in_one_line(run: Any) -> None:
    ended, said, _ = run("fails")
    assert said == [{"said": "fails"}]
    assert ended.fault.startswith("exit 4: ")


def test_a_crash_names_its_signal_and_the_last_words(run: Any) -> None:
    ended, said, _ = run("crashes")
    assert said == [{"said": "crashes"}], "what was said before the crash is not lost"
    assert ended.fault.startswith("SIGSEGV; last line of its log: ")


def test_a_child_is_ended_when_its_time_is_over(run: Any) -> None:
    ended, said, _ = run("hangs", timeout_s=3.0)
    assert ended.timed_out
    assert ended.fault.startswith("ended after 3 s")
    assert said == [{"said": "hangs"}]


def test_a_child_is_ended_when_nobody_wants_it_any_more(run: Any) -> None:
    ended, _, _ = run("hangs", cancelled=lambda: True)
    assert ended.timed_out


@pytest.mark.skipif("error" not in describe_gpu(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", PROBES)
def test_without_a_gpu_every_probe_says_why_in_one_line(name: str, tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []
    log = tmp_path / "probe.log"
    ended = run_child("benchmarks.gpu.probe", [name], log=log, timeout_s=120.0, on_message=said.append)
    assert ended.code == 3
    (answer,) = said
    wanted = {
        "driver": "nvidia-smi: ",
        "torch": "CUDA is not available",
        "onnxruntime": "wanted CUDAExecutionProvider",
        "tensorrt": "No module named 'tensorrt'",
        "tensorrt-rtx": "builds engines, but loads none",
    }
    assert wanted[name] in answer["failed"]
    assert "\n" not in answer["failed"]
    if name == "tensorrt-rtx":
        assert "CUDA driver version is insufficient" in first_error(log)


def test_layers_of_an_engine_stand_as_names_or_as_records() -> None:
    names = layers_of('{"Layers": ["__myl_Fc_0", "_gemm_mha_v2_1"], "Bindings": []}')
    assert names == {"layers": 2, "types": {}, "attention": ["_gemm_mha_v2_1"]}
    records = layers_of('{"Layers": [{"Name": "softmax_3", "LayerType": "kgen"}, {"Name": "x", "LayerType": "gemm"}]}')
    assert records == {"layers": 2, "types": {"kgen": 1, "gemm": 1}, "attention": ["softmax_3"]}
