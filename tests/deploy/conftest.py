"""What the tests of deploy/ share: the folder's files, and the tools that check them."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def deploy() -> Path:
    """The folder deploy/."""
    return ROOT / "deploy"


@pytest.fixture(scope="session")
def run_tool() -> Callable[..., str]:
    """Runs a tool of the test environment or of the machine; skips where it is not installed, shows what it says."""

    def run(tool: str, *arguments: str | Path, timeout_s: float = 60.0) -> str:
        beside_python = Path(sys.executable).parent / tool
        path = str(beside_python) if beside_python.exists() else shutil.which(tool)
        if path is None:
            pytest.skip(f"{tool} is not installed")
        result = subprocess.run(
            [path, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout_s
        )
        assert result.returncode == 0, f"{tool} exits {result.returncode}\n{result.stdout}{result.stderr}"
        return result.stdout

    return run


@pytest.fixture(scope="session")
def image(deploy: Path) -> dict[str, Any]:
    """What the Dockerfile's last stage sets: "env", "ports", "user", "entrypoint", "cmd", "stop_signal"."""
    text = (deploy / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    stages: list[dict[str, Any]] = []
    for line in text.splitlines():
        instruction, _, value = line.partition(" ")
        match instruction:
            case "FROM":
                stages.append({"env": {}})
            case "ENV":
                stages[-1]["env"].update(pair.split("=", 1) for pair in value.split())
            case "EXPOSE":
                stages[-1]["ports"] = {int(port) for port in value.split()}
            case "USER":
                stages[-1]["user"] = tuple(int(number) for number in value.split(":"))
            case "ENTRYPOINT" | "CMD":
                stages[-1][instruction.lower()] = yaml.safe_load(value)
            case "STOPSIGNAL":
                stages[-1]["stop_signal"] = value
    return stages[-1]
