"""What this process may use: CPUs from affinity and the cgroup's quota, memory from the cgroup's limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
# cgroup v1 says "no limit" by the largest page-aligned number it can count.
_V1_UNLIMITED_BYTES = 1 << 60


def cpu_count(*, root: Path = _CGROUP_ROOT, own: Path = _OWN_CGROUPS) -> int:
    """CPUs this process may keep busy, at least 1: its affinity, or less where the cgroup's quota is lower."""
    quotas = [quota for folder in _folders(root, own, controller="cpu") if (quota := _cpu_quota(folder)) is not None]
    # A fraction of a CPU is left over rather than overdrawn: a throttled thread stalls the whole step.
    return max(1, min([len(os.sched_getaffinity(0)), *map(int, quotas)]))


def memory_limit_bytes(*, root: Path = _CGROUP_ROOT, own: Path = _OWN_CGROUPS) -> int | None:
    """Most bytes of memory this process and its cgroup may use; None where there is no limit."""
    limits = [
        limit
        for folder in _folders(root, own, controller="memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := _number(folder / name)) is not None and limit < _V1_UNLIMITED_BYTES
    ]
    return min(limits, default=None)


def _folders(root: Path, own: Path, *, controller: str) -> Iterator[Path]:
    """The cgroup folders whose limits bind this process, innermost first: version 2, else ``controller``'s of 1."""
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            hierarchy = root
        elif controller in controllers.split(","):
            hierarchy = next((root / name for name in (controllers, controller) if (root / name).is_dir()), root)
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        # A container sees its own cgroup at the root, whatever its path on the host: missing folders hold no file.
        for parent in (inside, *inside.parents):
            if ".." not in parent.parts:
                yield hierarchy / parent


def _cpu_quota(folder: Path) -> float | None:
    match _read(folder / "cpu.max").split():
        case [quota, period] if quota.isdigit() and period.isdigit():
            return int(quota) / int(period)
    v1_quota, v1_period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return v1_quota / v1_period if v1_quota and v1_period else None


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
