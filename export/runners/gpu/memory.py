"""Device memory of a runner, summed up before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from export.runners.gpu.device import Device
from export.runners.protocol import RunnerError


@dataclass(frozen=True)
class MemoryPlan:
    """What a runner will allocate, in bytes, by what it is for."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())


def check_fits(device: Device, plans: dict[int, MemoryPlan]) -> None:
    """Hold that the largest plan fits into what is free.

    Args:
        device: where it is to be.
        plans: by number of rows, ascending.

    Raises:
        RunnerError: it does not; the message says what would.
    """
    free = device.free_bytes()
    rows, plan = list(plans.items())[-1]
    if plan.total <= free:
        return
    fitting = [number for number, smaller in plans.items() if smaller.total <= free]
    hint = f"--max-rows {fitting[-1]} would fit" if fitting else f"not even {next(iter(plans))} would fit"
    parts = ", ".join(f"{name} {_mib(size)}" for name, size in plan.parts.items())
    raise RunnerError(
        f"{device.description}: got {_mib(free)} MiB free, wanted {_mib(plan.total)} MiB for {rows} rows "
        f"({parts}): {hint}"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f}"
