"""A GPU for tests: its runners are the CPU's under other names, and its engines are built when a test says so.

Run as a module it is ``dragoman`` on a machine with such a GPU: ``STAND_IN_GATE`` is the gate of its builds,
``STAND_IN_RUNS`` the targets that can run.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import server.runners
from export.bundle import GOLDEN_FILE, Bundle, BundleError
from export.runners.gpu.device import DeviceUnavailableError
from export.runners.ort_cpu import OrtCpuRunner
from export.runners.protocol import IntArray, Runner, RunnerError
from server.config import Target
from server.runners import Choice
from tests.server.bundles import copy_demo, sign
from tests.server.running import PATIENCE_S

ON_GPU = (Target.CUDA, Target.TENSORRT)
_NAMES = {Target.CUDA: "onnxruntime-cuda", Target.TENSORRT: "tensorrt"}
_GOLDEN_SENTENCES = 6

_BUILD = """
import os, pathlib, sys
gate, folder, *orders = sys.argv[1:]
print("building, process", os.getpid(), flush=True)
order = orders[0] if orders else open(gate).read()
if order == "fail":
    print("something about the parser", file=sys.stderr)
    sys.exit("step.onnx: got Attention with lengths, wanted a mask")
if order == "lie":
    print("all is well")
    sys.exit()
if order == "crash":
    os.abort()
pathlib.Path(folder).mkdir(parents=True)
print("built into", folder)
"""


class WrongRunner(OrtCpuRunner):
    """Chooses one token beside the best."""

    def argmax(self) -> IntArray:
        return super().argmax() ^ 1

    def greedy_steps(self, steps: int, *, end_id: int, **arguments: Any) -> list[list[int]]:
        self.step(**arguments)
        return [self.argmax().tolist()]  # one is enough of them


class StandInGpu:
    """Implements ``server.runners.GpuAccess``.

    Attributes:
        opened: every runner that was opened, the CPU's not counted.
        asked: every target it was asked about.
        orders: how builds are to end, by the model's name; one that is not named waits to be told.
        max_rows_of_engines: that engines are built for, whatever was asked; None: as was asked.
    """

    def __init__(
        self,
        gate: Path,
        *,
        there: bool = True,
        runs: Collection[Target] = ON_GPU,
        kind: type[OrtCpuRunner] = OrtCpuRunner,
        precision: str = "fp16",
    ) -> None:
        """A pipe at ``gate`` tells a build how to end; see ``order``."""
        self.opened: list[OrtCpuRunner] = []
        self.asked: list[Target] = []
        self.orders: dict[str, str] = {}
        self.max_rows_of_engines: int | None = None
        self._gate = gate
        self._there = there
        self._runs = runs
        self._kind = kind
        self._precision = precision
        if not gate.exists():
            os.mkfifo(gate)

    def order(self, word: str) -> None:
        """Let the build end: build, fail, lie or crash. Waits for a build that listens."""
        self._gate.write_text(word)

    def is_there(self) -> bool:
        return self._there

    def check(self, target: Target) -> None:
        self.asked.append(target)
        if target not in self._runs:
            raise DeviceUnavailableError(f"{target.value} needs: pip install the-{target.value}-library")

    def find_engines(self, bundle: Bundle, cache: Path | None, *, max_rows: int, max_candidates: int) -> Path | None:
        assert cache is not None
        folder = _folder(bundle, cache, max_rows)
        return folder if folder.is_dir() else None

    def open_runners(
        self, bundle: Bundle, choice: Choice, *, workers: int, max_rows: int, max_candidates: int
    ) -> tuple[Runner, ...]:
        target = choice.target
        if target is Target.TENSORRT:
            if choice.engines is None or (choice.engines / "broken").exists():
                raise BundleError(f"{choice.engines}: got broken engines, wanted sound ones")
            max_rows = self.max_rows_of_engines or max_rows
        sizes = {"workers": workers, "max_rows": max_rows, "max_candidates": max_candidates}
        runners = self._kind.open_workers(bundle, threads=1, shortlist=False, **sizes)
        for runner in runners:
            runner.name, runner.precision = _NAMES[target], self._precision
            runner.device_description = "a stand-in GPU"
        self.opened += runners
        return runners

    def build_command(self, bundle: Bundle, cache: Path, *, max_rows: int, max_candidates: int) -> list[str]:
        order = self.orders.get(bundle.manifest.name)
        places = (str(self._gate), str(_folder(bundle, cache, max_rows)))
        return [sys.executable, "-c", _BUILD, *places, *([order] if order else [])]


def _folder(bundle: Bundle, cache: Path, max_rows: int) -> Path:
    return cache / f"{bundle.digest[:8]}-{max_rows}"


def put_engines(bundle: Path, cache: Path, *, max_rows: int = 8) -> Path:
    """Engines that were built before."""
    folder = _folder(Bundle.open(bundle), cache, max_rows)
    folder.mkdir(parents=True)
    return folder


def copy_for_gpu(models: Path, name: str, *, targets: Collection[Target] = ON_GPU, on_cpu: bool = True) -> Path:
    """The demo with graphs for a GPU too, with a short exam, certified on the CPU alone."""
    path = copy_demo(models, name)
    golden = path / GOLDEN_FILE
    golden.write_text("".join(golden.read_text().splitlines(keepends=True)[:_GOLDEN_SENTENCES]))
    names = [target.value for target in (*([Target.CPU] if on_cpu else []), *targets)]
    sign(path, graphs=dict.fromkeys(names, "ort-fp32"))
    return path


class Hold:
    """Lets runners stand still before their next step.

    Attributes:
        reached: set once one of them stands there.
    """

    def __init__(self, runners: Collection[Runner]) -> None:
        self.reached = threading.Event()
        self._released = threading.Event()
        for runner in runners:
            for name in ("step", "greedy_steps"):
                setattr(runner, name, partial(self._step, getattr(runner, name)))

    def _step(self, step: Callable[..., Any], *steps: int, **arguments: object) -> Any:
        self.reached.set()
        assert self._released.wait(PATIENCE_S), "never released"
        return step(*steps, **arguments)

    def release(self) -> None:
        self._released.set()


def assert_closed(runner: Runner) -> None:
    with pytest.raises(RunnerError, match="closed"):
        runner.argmax()


def events(log: pytest.LogCaptureFixture, name: str) -> list[dict[str, Any]]:
    """The fields of every event of that name."""
    return [vars(record)["dragoman_fields"] for record in log.records if record.getMessage() == name]


def is_running(process: int) -> bool:
    """Whether a process has not ended; one that nobody has asked how it ended has."""
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    from server.cli import main

    runs = [Target(name) for name in os.environ["STAND_IN_RUNS"].split()]
    server.runners.THIS_GPU = StandInGpu(Path(os.environ["STAND_IN_GATE"]), runs=runs)
    sys.exit(main())
