"""The committed stubs are what `make proto` writes from the committed contract."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

PROTO_ROOT = Path(__file__).parent.parent / "proto"
CONTRACT = "dragoman/v1/translation.proto"
STUBS = ("translation_pb2.py", "translation_pb2.pyi", "translation_pb2_grpc.py", "translation_pb2_grpc.pyi")


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the stubs as the installed generators write them now."""
    out = tmp_path_factory.mktemp("stubs")
    outputs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    includes = [f"-I{PROTO_ROOT}", f"-I{sysconfig.get_path('purelib')}"]
    # protoc looks for mypy-protobuf's plugins on the path, where an environment that is not activated has nothing.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    command = [sys.executable, "-m", "grpc_tools.protoc", *includes, *outputs, CONTRACT]
    result = subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return out / "dragoman" / "v1"


@pytest.mark.parametrize("name", STUBS)
def test_committed_stub_is_what_the_contract_generates(regenerated: Path, name: str) -> None:
    committed = PROTO_ROOT / "dragoman" / "v1" / name
    assert committed.read_text() == (regenerated / name).read_text(), f"{name} is stale: run `make proto`"


def test_no_stub_is_missing_or_left_over(regenerated: Path) -> None:
    committed = {path.name for path in (PROTO_ROOT / "dragoman" / "v1").glob("*_pb2*.py*")}
    assert committed == {path.name for path in regenerated.iterdir()} == set(STUBS)


def test_the_source_root_is_no_package() -> None:
    # proto/__init__.py would overwrite the proto-plus package where both are installed.
    assert not (PROTO_ROOT / "__init__.py").exists()
