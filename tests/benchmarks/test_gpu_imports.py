"""The benchmark and the exam run where there is no grpc, no protobuf but onnx's own, and no tokenizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = ("grpc", "grpc_health", "grpc_reflection", "grpc_status", "sentencepiece", "tokenizers", "sacrebleu")
EXAM = ("server.exam.sitting", "server.exam.thresholds", "server.exam.grading")
PARENT = (
    "__main__",
    "budget",
    "child",
    "figures",
    "machine",
    "models.preparation",
    "plan",
    "report",
    "session",
    "specs",
    "systems.protocol",
)
# transformers itself imports tokenizers: of the modules only the one that runs it, in its own process
CHILDREN = (
    "bandwidth",
    "exam",
    "kernels",
    "models.bundles",
    "models.prepare",
    "probe",
    "systems.opening",
    "systems.ours",
    "systems.torch_graphs",
    "worker",
)

SCRIPT = """
import importlib, sys

blocked, needed, unwanted, modules = (argument.split(",") for argument in sys.argv[1:5])

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")

for name in filter(None, needed):
    importlib.import_module(name)
loaded = {name for name in sys.modules if name.split(".")[0] in blocked}
if "onnx" not in needed:
    assert not loaded, loaded
sys.meta_path.insert(0, Blocker())
for name in modules:
    importlib.import_module(name)
assert not {name.split(".")[0] for name in sys.modules} & set(filter(None, unwanted)), unwanted
"""


def import_without(blocked: tuple[str, ...], modules: tuple[str, ...], *, needed: str = "", unwanted: str = "") -> str:
    """What importing the modules prints where others are not there; empty: it went well."""
    arguments = [",".join(blocked), needed, unwanted, ",".join(modules)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stderr if done.returncode else ""


def test_the_exam_needs_no_grpc_protobuf_or_tokenizer() -> None:
    assert import_without((*FOREIGN, "google", "dragoman", "prometheus_client"), EXAM, unwanted="torch") == ""


def test_the_command_itself_imports_no_library_of_a_runtime() -> None:
    modules = tuple(f"benchmarks.gpu.{name}" for name in PARENT)
    unwanted = "torch,onnx,onnxruntime,transformers,tensorrt,numpy"
    assert import_without((*FOREIGN, "google", "dragoman"), modules, unwanted=unwanted) == ""


def test_its_children_need_no_grpc_or_tokenizer_and_protobuf_only_for_onnx() -> None:
    modules = tuple(f"benchmarks.gpu.{name}" for name in CHILDREN)
    assert import_without((*FOREIGN, "google", "dragoman"), modules, needed="onnx", unwanted="transformers") == ""


def test_every_module_is_asked() -> None:
    root = ROOT / "benchmarks" / "gpu"
    paths = (path.relative_to(root) for path in root.rglob("*.py") if path.stem != "__init__")
    found = {".".join(path.with_suffix("").parts) for path in paths}
    reached = {
        "models.golden",
        "models.graph_weights",
        "models.random_model",
        "step_bytes",
        "stepping",
        "systems.torch_baseline",
        "systems.torch_model",
        "works",
    }
    assert found == {*PARENT, *CHILDREN, *reached, "systems.transformers_generate", "texts"}


@pytest.mark.parametrize("module", ["server.exam.quality", "model.tokenizer"])
def test_a_module_that_needs_a_tokenizer_is_found_out(module: str) -> None:
    assert "is blocked" in import_without(FOREIGN, (module,))
