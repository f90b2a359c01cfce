"""What a figure depends on beside the code: GPU, driver, processor, versions, command."""

from __future__ import annotations

import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from server.resources import cpu_count

ROOT = Path(__file__).resolve().parents[2]

_PACKAGES = ("numpy", "onnx", "cuda-bindings", "torch", "triton", "transformers")
_QUERY = ("name", "driver_version", "memory.total", "compute_cap", "clocks.max.sm", "clocks.max.memory")
_TIMEOUT_S = 30


def describe_gpu() -> dict[str, str]:
    """GPU and driver as ``nvidia-smi`` has them; ``error`` says in one line why there is nothing to tell."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": f"nvidia-smi: {error}"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stdout + done.stderr).strip().splitlines()
        return {"error": f"nvidia-smi: exit {done.returncode}: {said[0] if said else 'no output'}"}
    return dict(zip(_QUERY, (value.strip() for value in lines[0].split(",")), strict=True))


def describe_machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory, kernel."""
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
    return {
        "cpu": model[1] if model else "",
        "cores": cpu_count(),
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "kernel": platform.release(),
    }


def versions() -> dict[str, str]:
    """Of Python, of packages and of this checkout; those of the runtimes are what the probes find loaded."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit = _git("rev-parse", "HEAD")
    if commit:
        found["commit"] = commit + (" with changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    return found


def command_line(arguments: Sequence[str], *, folders: Sequence[Path | None]) -> str:
    """The command as it was given, folders by their names alone."""
    names = {str(folder): folder.name for folder in folders if folder is not None}
    return shlex.join(["python", "-m", "benchmarks.gpu", *(names.get(each, each) for each in arguments)])


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
