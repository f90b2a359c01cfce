"""One work, several systems: each in its own process, taken in turn round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.peers.ours import FAIR, LONGEST_FIRST
from benchmarks.peers.prepare import Prepared
from benchmarks.peers.process import Process
from benchmarks.peers.works import Outputs, Work

SystemName = Literal["ours", "ctranslate2", "transformers"]
SYSTEMS: tuple[SystemName, ...] = ("ours", "ctranslate2", "transformers")
REST_S = 0.5
LEAST_S = 0.25
"""A work that takes less is done several times in a round, and the mean of a round counts."""
_MOST_TRANSFORMERS_SOURCES = 64


@dataclass(frozen=True)
class Setting:
    """One way to run a system.

    Attributes:
        system: which.
        label: the setting in words.
        spec: what its process is started with.
    """

    system: SystemName
    label: str
    spec: Mapping[str, Any]


@dataclass(kw_only=True)
class Measured:
    """What a setting needed for a work.

    Attributes:
        setting: which.
        loaded_bytes: its process's peak of memory while it loaded.
        peak_bytes: the same after the last round.
        outputs: of the last round.
        seconds: of every round, the first one, which warms up, left out.
    """

    setting: Setting
    loaded_bytes: int
    peak_bytes: int = 0
    outputs: Outputs = field(default_factory=lambda: Outputs(()))
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of the seconds."""
        return statistics.median(self.seconds)


def settings_of(system: SystemName, model: Prepared, work: Work, *, cores: int, rows: int) -> list[Setting]:
    """The settings in which a system may be fastest at a work; none: it is not asked to do that work.

    Args:
        system: which.
        model: its files.
        work: what is to be done.
        cores: that each may keep busy.
        rows: of each worker of ours.
    """
    many = f"{cores} threads" if cores > 1 else "1 thread"
    if system == "ours":
        # The order decides only where some have to wait, and only where they are of unlike lengths.
        orders = (FAIR,) if min(work.outputs) == max(work.outputs) else (FAIR, LONGEST_FIRST)
        place = {"path": model.bundle, "cores": cores, "max_rows": rows}
        return [Setting(system, f"{rows} rows, {order}", {**place, "admission": order}) for order in orders]
    if system == "transformers":
        fits = len(work.sources) <= _MOST_TRANSFORMERS_SOURCES
        return [Setting(system, f"fp32, {many}", {"path": model.marian, "threads": cores})] if fits else []
    place = {"path": model.converted, "precision": model.precision}
    if len(work.sources) == 1:
        # Which one is faster depends on the machine.
        shapes = {"1 thread": (1, 1), many: (1, cores)}
    else:
        shapes = {f"{cores} workers of 1 thread": (cores, 1)}
    return [
        Setting(system, label, {**place, "workers": workers, "threads": threads})
        for label, (workers, threads) in shapes.items()
    ]


def measure(settings: Sequence[Setting], work: Work, *, rounds: int) -> list[Measured]:
    """Time every setting ``rounds`` times, in turn, so that other load on the machine meets all alike.

    All processes are fresh, so that their peaks of memory belong to this work. Before each run there is a rest, for the
    threads of a pool go on spinning for a while after their last work.
    """
    with ExitStack() as stack:
        running = []
        for setting in settings:
            process = stack.enter_context(Process({"system": setting.system, **setting.spec}))
            running.append((process, Measured(setting=setting, loaded_bytes=process.peak_bytes())))
        for turn in range(rounds + 1):
            for process, measured in running:
                time.sleep(REST_S)
                reply = process.run(work, least_s=LEAST_S)
                measured.outputs = Outputs(tuple(map(tuple, reply["outputs"])))
                measured.peak_bytes = process.peak_bytes()
                if turn:
                    measured.seconds.append(reply["seconds"])
    return [measured for _, measured in running]


def best_of(measured: Sequence[Measured]) -> dict[SystemName, Measured]:
    """For every system its setting with the least median."""
    best: dict[SystemName, Measured] = {}
    for one in sorted(measured, key=lambda one: one.median, reverse=True):
        best[one.setting.system] = one
    return {system: best[system] for system in SYSTEMS if system in best}
