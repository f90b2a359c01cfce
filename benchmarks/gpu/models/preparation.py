"""Bundles and engines, made in the background in order of importance, while what is ready is measured."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.child import Ended, run_child
from benchmarks.gpu.specs import MAX_CANDIDATES, Precision

Run = Callable[..., Ended]
Key = tuple[str, str, str]
"""What is made (``bundle`` or ``engines``), of which model, in which precision."""


class PreparationError(RuntimeError):
    """What a measurement needs could not be made; one line says why."""


@dataclass(frozen=True)
class EngineJob:
    """Engines that are to be built.

    Attributes:
        model: of the bundle.
        precision: likewise.
        max_rows: of a step; each row bucket up to it is built.
    """

    model: str
    precision: Precision
    max_rows: int


@dataclass
class Preparations:
    """What is being made, below one folder.

    Attributes:
        folder: for bundles and engines.
        logs: for the children's logs.
        target: that bundles are written for, ``tensorrt`` or ``cpu``.
        left: seconds that the whole run has left.
        run: runs a child; tests put their own here.
        exclusive: held while engines are built, where building uses the GPU too.
        records: what took how long, or why it failed.
    """

    folder: Path
    logs: Path
    target: str
    left: Callable[[], float]
    run: Run = run_child
    exclusive: AbstractContextManager[Any] = field(default_factory=contextlib.nullcontext)
    records: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._futures: dict[Key, Future[None]] = {}
        self._bundles, self._engines = (ThreadPoolExecutor(max_workers=1) for _ in range(2))
        self._stopped = threading.Event()

    def bundle_path(self, model: str, precision: str) -> Path:
        """Where a bundle lies once it is ready."""
        return self.folder / f"{model}-{precision}"

    def engines_path(self, model: str, precision: str) -> Path:
        """Where a bundle's engines lie once they are ready."""
        return self.folder / f"engines-{model}-{precision}"

    def start_bundle(self, model: str, precision: str, *, timeout_s: float) -> None:
        """Let a bundle be written after those that were started before."""
        arguments = [model, str(self.folder), "--precision", precision, "--target", self.target]
        self._start(
            ("bundle", model, precision), "benchmarks.gpu.models.prepare", arguments, timeout_s, pool=self._bundles
        )

    def start_engines(self, job: EngineJob, *, timeout_s: float) -> None:
        """Let engines be built once their bundle is there, after those that were started before."""
        bundle, out = (path(job.model, job.precision) for path in (self.bundle_path, self.engines_path))
        limits = ["--max-rows", str(job.max_rows), "--max-candidates", str(MAX_CANDIDATES)]
        self._start(
            ("engines", job.model, job.precision),
            "export.engines",
            [str(bundle), "--out", str(out), *limits],
            timeout_s,
            pool=self._engines,
            after=self._futures[("bundle", job.model, job.precision)],
        )

    def ready(self, needs: Sequence[Key]) -> bool:
        """Whether all of it is made, or has failed."""
        return all(self._futures[key].done() for key in needs)

    def wait(self, needs: Sequence[Key], *, timeout_s: float) -> None:
        """Wait for all of it.

        Raises:
            PreparationError: it failed, or the time is over.
        """
        for key in needs:
            try:
                self._futures[key].result(timeout=timeout_s)
            except TimeoutError:
                raise PreparationError(f"{' '.join(key)}: not ready in time") from None

    @property
    def busy(self) -> bool:
        """Whether anything is being made at this moment."""
        return any(future.running() for future in self._futures.values())

    def close(self) -> None:
        """Make nothing more; what is being made is ended."""
        self._stopped.set()
        for pool in (self._bundles, self._engines):
            pool.shutdown(wait=True, cancel_futures=True)

    def _start(
        self,
        key: Key,
        module: str,
        arguments: list[str],
        timeout_s: float,
        *,
        pool: ThreadPoolExecutor,
        after: Future[None] | None = None,
    ) -> None:
        def make() -> None:
            if after is not None:
                after.result()
            if self._stopped.is_set():
                raise PreparationError(f"{' '.join(key)}: not begun in time")
            with self.exclusive if key[0] == "engines" else contextlib.nullcontext():
                ended = self.run(
                    module,
                    arguments,
                    log=self.logs / f"{'-'.join(key)}.log",
                    timeout_s=min(timeout_s, self.left()),
                    cancelled=self._stopped.is_set,
                )
            record: dict[str, Any] = {"made": " ".join(key), "seconds": round(ended.seconds, 1)}
            self.records.append(record | ({"failed": ended.fault} if ended.fault else {}))
            if ended.fault:
                raise PreparationError(f"{' '.join(key)}: {ended.fault}")

        self._futures[key] = pool.submit(make)
