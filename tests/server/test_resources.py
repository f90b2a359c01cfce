"""CPUs and memory, from made-up cgroup file systems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.resources import cpu_count, memory_limit_bytes


@pytest.fixture(autouse=True)
def _eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def cgroups(tmp_path: Path, own: str, files: dict[str, str]) -> dict[str, Path]:
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "own").write_text(own)
    return {"root": tmp_path / "fs", "own": tmp_path / "own"}


@pytest.mark.parametrize(
    ("own", "files", "cpus", "memory"),
    [
        ("", {}, 8, None),
        ("0::/\n", {"cpu.max": "max 100000\n", "memory.max": "max\n"}, 8, None),
        ("0::/\n", {"cpu.max": "200000 100000\n", "memory.max": "1048576\n"}, 2, 1048576),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2, None),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1, None),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 8, None),
        (
            "0::/a/b\n",
            {"cpu.max": "", "a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000", "a/memory.max": "7"},
            3,
            7,
        ),
        ("0::/a/b\n", {"a/memory.max": "7", "a/b/memory.max": "9"}, 8, 7),
        ("0::/../../host/path\n", {"cpu.max": "400000 100000"}, 4, None),
        (
            "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n",
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "150000",
                "cpu,cpuacct/cpu.cfs_period_us": "50000",
                "memory/memory.limit_in_bytes": "4096",
            },
            3,
            4096,
        ),
        (
            "4:memory:/docker/x\n3:cpu:/docker/x\n",
            {
                "cpu/docker/x/cpu.cfs_quota_us": "-1",
                "cpu/docker/x/cpu.cfs_period_us": "100000",
                "memory/docker/x/memory.limit_in_bytes": "9223372036854771712",
            },
            8,
            None,
        ),
        ("0::/\n", {"cpu.max": "nonsense", "memory.max": "nonsense"}, 8, None),
    ],
)
def test_limits_of_cgroups(tmp_path: Path, own: str, files: dict[str, str], cpus: int, memory: int | None) -> None:
    where = cgroups(tmp_path, own, files)
    assert cpu_count(**where) == cpus
    assert memory_limit_bytes(**where) == memory


def test_affinity_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert cpu_count(root=tmp_path, own=tmp_path / "none") == 1
    assert memory_limit_bytes(root=tmp_path, own=tmp_path / "none") is None
