"""Where runners come from: what a bundle can run on here, and opening its runners on one of these."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from export.bundle import Bundle, BundleError
from export.runners.gpu.device import DeviceUnavailableError
from export.runners.ort_cpu import OrtCpuRunner
from export.runners.protocol import Runner
from server import log
from server.config import ServeConfig, Target

if TYPE_CHECKING:
    from export.runners.gpu.engine_keys import EngineKey

_log = logging.getLogger(__name__)

_BEST_FIRST = (Target.TENSORRT, Target.CUDA, Target.CPU)
_NVIDIA_DEVICES = ("/dev/nvidiactl", "/dev/dxg")


class Choice(NamedTuple):
    """One way to run a bundle.

    Attributes:
        target: never ``AUTO``.
        engines: folder of the TensorRT engines; None for all other targets.
    """

    target: Target
    engines: Path | None = None


class GpuAccess(Protocol):
    """What this asks of a machine's GPU and its libraries; tests put a stand-in in its place."""

    def is_there(self) -> bool:
        """Whether the machine has a GPU at all, usable or not."""

    def check(self, target: Target) -> None:
        """Raise DeviceUnavailableError, one line that says what to install, where ``target`` cannot run here."""

    def find_engines(self, bundle: Bundle, cache: Path | None, *, max_rows: int, max_candidates: int) -> Path | None:
        """A folder of engines, in the bundle or ``cache``, that fit bundle, machine and sizes; None: there are none.

        Raises:
            DeviceUnavailableError: a library or driver is missing.
            BundleError: the bundle was not exported for TensorRT.
        """

    def open_runners(
        self, bundle: Bundle, choice: Choice, *, workers: int, max_rows: int, max_candidates: int
    ) -> tuple[Runner, ...]:
        """Load a bundle's graphs or engines once, for several runners.

        Raises:
            DeviceUnavailableError: a library or driver is missing.
            BundleError: the bundle or the engines do not fit.
            RunnerError: the device refused, for example for want of memory.
        """

    def build_command(self, bundle: Bundle, cache: Path, *, max_rows: int, max_candidates: int) -> list[str]:
        """What builds engines of ``bundle`` into ``cache``: exits 0, or not, with a last line of error that says why.

        Raises:
            DeviceUnavailableError, BundleError: as of ``find_engines``.
        """


class NvidiaGpu:
    """The GPU of this machine. Nothing of it is imported before a bundle has graphs for it."""

    def is_there(self) -> bool:
        """See GpuAccess."""
        return any(Path(device).exists() for device in _NVIDIA_DEVICES)

    def check(self, target: Target) -> None:
        """See GpuAccess."""
        from export.runners.gpu.opening import check_target  # noqa: PLC0415

        check_target("cuda" if target is Target.CUDA else "tensorrt")

    def find_engines(self, bundle: Bundle, cache: Path | None, *, max_rows: int, max_candidates: int) -> Path | None:
        """See GpuAccess."""
        from export.runners.gpu.engine_files import find_engines  # noqa: PLC0415

        wanted = _engine_key(bundle, max_rows=max_rows, max_candidates=max_candidates)
        found = find_engines(bundle, wanted, cache=cache)
        return None if found is None else found.path

    def open_runners(
        self, bundle: Bundle, choice: Choice, *, workers: int, max_rows: int, max_candidates: int
    ) -> tuple[Runner, ...]:
        """See GpuAccess."""
        from export.runners.gpu.opening import open_gpu_runners  # noqa: PLC0415

        return open_gpu_runners(
            bundle,
            target="cuda" if choice.target is Target.CUDA else "tensorrt",
            engines=choice.engines,
            workers=workers,
            max_rows=max_rows,
            max_candidates=max_candidates,
        )

    def build_command(self, bundle: Bundle, cache: Path, *, max_rows: int, max_candidates: int) -> list[str]:
        """See GpuAccess."""
        key = _engine_key(bundle, max_rows=max_rows, max_candidates=max_candidates)
        places = (str(bundle.path), "--out", str(cache / key.folder_name))
        sizes = ("--max-rows", str(max_rows), "--max-candidates", str(max_candidates))
        return [sys.executable, "-m", "export.engines", *places, *sizes]


def _engine_key(bundle: Bundle, *, max_rows: int, max_candidates: int) -> EngineKey:
    from export.runners.gpu.engine_keys import EngineKey  # noqa: PLC0415
    from export.runners.tensorrt_library import find_library  # noqa: PLC0415

    return EngineKey.of(bundle, find_library(), max_rows=max_rows, max_candidates=max_candidates)


THIS_GPU: GpuAccess = NvidiaGpu()


class RunnerSource:
    """Opens runners as the settings say, on what this machine has."""

    def __init__(self, config: ServeConfig, *, gpu: GpuAccess | None = None) -> None:
        """Nothing is looked for yet.

        Args:
            config: the settings; of them only what concerns runners.
            gpu: None: this machine's.
        """
        self._config = config
        self._max_candidates = 2 * config.max_beam_size
        self._gpu = gpu or THIS_GPU
        self._runs_here: dict[Target, bool] = {}

    def check(self) -> None:
        """Hold that a target that was asked for by name can run here.

        Raises:
            DeviceUnavailableError: it cannot; one line says what to install.
        """
        if self._config.target.on_gpu:
            self._gpu.check(self._config.target)

    def choices(self, bundle: Bundle) -> list[Choice]:
        """The ways to run ``bundle`` at once, best first; TensorRT only where engines of it are there already.

        Raises:
            BundleError: there is none, or the bundle has no graphs for the target that was asked for.
        """
        targets = self._targets(bundle)
        engines = None
        if Target.TENSORRT in targets:
            try:
                engines = self.find_engines(bundle)
            except (BundleError, DeviceUnavailableError) as error:
                fields = {"model": bundle.manifest.name, "reason": str(error)}
                log.event(_log, "engines cannot be looked for", level=logging.WARNING, **fields)
        choices = [Choice(Target.TENSORRT, engines)] if engines is not None else []
        choices += [Choice(target) for target in targets if target is not Target.TENSORRT]
        if not choices:
            have = ", ".join(sorted(bundle.manifest.graphs)) or "no target"
            wanted = "also graphs for cuda or cpu, to serve on" if targets else "graphs for a target that runs here"
            raise BundleError(f"{bundle.path}: got graphs for {have}, wanted {wanted}")
        return choices

    def wants_engines(self, bundle: Bundle) -> bool:
        """Whether TensorRT is the best way to run ``bundle``, whether or not its engines are there."""
        return Target.TENSORRT in self._targets(bundle)

    def open(self, bundle: Bundle, choice: Choice) -> tuple[Runner, ...]:
        """Open the runners of one choice, all alike, one for each worker.

        Raises:
            DeviceUnavailableError: a library or driver is missing.
            BundleError: the graphs or engines do not fit the bundle or this machine.
            RunnerError: the device refused.
        """
        config, target = self._config, choice.target
        sizes = {
            "workers": config.workers_on(target),
            "max_rows": config.rows_on(target),
            "max_candidates": self._max_candidates,
        }
        if target is Target.CPU:
            return OrtCpuRunner.open_workers(bundle, threads=config.step_threads, shortlist=config.shortlist, **sizes)
        return self._gpu.open_runners(bundle, choice, **sizes)

    def find_engines(self, bundle: Bundle) -> Path | None:
        """The folder of engines that fit ``bundle`` here, in the bundle or in the cache; None: they are to be built.

        Raises:
            DeviceUnavailableError: a library or driver is missing.
        """
        return self._gpu.find_engines(bundle, self._cache, **self._engine_sizes)

    def built_engines(self, bundle: Bundle) -> Path:
        """The folder of the engines that have just been built.

        Raises:
            DeviceUnavailableError: a library or driver is missing.
            BundleError: there are none.
        """
        engines = self.find_engines(bundle)
        if engines is None:
            raise BundleError(f"{bundle.path}: engines: got none that fit from the build, wanted them in {self._cache}")
        return engines

    def build_command(self, bundle: Bundle) -> list[str]:
        """What builds the engines of ``bundle`` into the cache, where ``find_engines`` then finds them.

        Raises:
            DeviceUnavailableError: a library or driver is missing.
            BundleError: there is no place for them.
        """
        if self._cache is None:
            raise BundleError(f"{bundle.path}: got no place for engines, wanted one: --engine-cache DIR")
        return self._gpu.build_command(bundle, self._cache, **self._engine_sizes)

    @property
    def _engine_sizes(self) -> dict[str, int]:
        return {"max_rows": self._config.rows_on(Target.TENSORRT), "max_candidates": self._max_candidates}

    @property
    def _cache(self) -> Path | None:
        return self._config.engine_cache or _users_cache()

    def _targets(self, bundle: Bundle) -> list[Target]:
        """What the bundle has graphs for, the settings allow, and runs here; best first."""
        asked, graphs = self._config.target, bundle.manifest.graphs
        if asked is not Target.AUTO:
            bundle.graph_path(asked.value, "encoder")  # raises where there is none
        if asked in (Target.CPU, Target.CUDA):
            return [asked]
        if self._config.shortlist:
            return [Target.CPU]
        return [target for target in _BEST_FIRST if target.value in graphs and self._can_run(target)]

    def _can_run(self, target: Target) -> bool:
        """Whether this machine can run ``target``; why it cannot is logged once, if it has a GPU."""
        if target not in self._runs_here:
            self._runs_here[target] = True
            try:
                if target.on_gpu:
                    self._gpu.check(target)
            except DeviceUnavailableError as error:
                self._runs_here[target] = False
                level = logging.INFO if self._gpu.is_there() else logging.DEBUG
                log.event(_log, "a target cannot run here", level=level, target=target.value, reason=str(error))
        return self._runs_here[target]


def _users_cache() -> Path | None:
    """Where the user keeps what can be made anew; None: the user has no home."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return caches / "dragoman" / "engines"
