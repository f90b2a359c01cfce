"""What a figure depends on beside the code: the machine, the versions, the memory of a process."""

from __future__ import annotations

import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from server.resources import cpu_count

ROOT = Path(__file__).resolve().parents[2]
_CPU_INFO = Path("/proc/cpuinfo")
_FLAGS = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
)
_AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_PACKAGES = ("numpy", "onnxruntime", "ctranslate2", "torch", "transformers", "grpcio")


def cpu_flags() -> list[str]:
    """The vector extensions of this CPU that any of the systems may use."""
    flags = set(_cpu_field("flags").split())
    return [flag for flag in _FLAGS if flag in flags]


def has_avx512() -> bool:
    """Whether this CPU has what CTranslate2 calls AVX512."""
    return set(cpu_flags()) >= _AVX512


def describe_machine() -> dict[str, Any]:
    """CPU, cores that may be used, memory, kernel."""
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return {
        "cpu": _cpu_field("model name"),
        "family": _cpu_field("cpu family"),
        "model": _cpu_field("model"),
        "flags": cpu_flags(),
        "cores": cpu_count(),
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "kernel": platform.release(),
    }


def versions() -> dict[str, str]:
    """Of Python, of the packages that are compared, and of this checkout."""
    found = {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES}
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return found | {"commit": commit + (" with changes" if changed else "")}


def command_line(module: str, names: Mapping[Path, str]) -> str:
    """The command that runs now, with paths of this machine by the names that readers know them under."""
    known = {str(path): name for path, name in names.items()}
    return shlex.join(["python", "-m", module, *(known.get(argument, argument) for argument in sys.argv[1:])])


def peak_bytes(process: int) -> int:
    """The most memory that a process ever held at once (VmHWM)."""
    status = Path(f"/proc/{process}/status").read_text()
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status, flags=re.MULTILINE)
    assert peak, f"/proc/{process}/status: got no VmHWM"
    return int(peak[1]) * 1024


def _cpu_field(name: str) -> str:
    line = re.search(rf"^{name}\s*:\s*(.*)$", _CPU_INFO.read_text(), flags=re.MULTILINE)
    return line[1] if line else ""


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
