"""How models come to TensorRT engines while they serve on something else: build, exam, change of what executes them."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import fields

from export.bundle import Bundle, BundleError
from export.runners.gpu.device import DeviceUnavailableError
from export.runners.protocol import RunnerError
from server import log
from server.config import Target
from server.engine_build import EngineBuild, EngineBuildError
from server.exam.entrance import NotServableError, sit_whole_exam
from server.gauges import EngineState
from server.models import Backend, Limits, ServedModel
from server.opening import Opener
from server.runners import Choice

_log = logging.getLogger(__name__)

ENGINES_THREAD = "engines"
_FORESEEN = (BundleError, DeviceUnavailableError, EngineBuildError, NotServableError, RunnerError)


class _Stopped(Exception):  # noqa: N818 - no error
    """The server leaves."""


class EngineWork:
    """Gives models their engines, one after the other, on a thread of its own.

    A model whose engines cannot be had goes on serving as it did, and says so.
    """

    def __init__(self, opener: Opener) -> None:
        """Begin with no model; ``opener`` opens what executes the engines."""
        self._opener = opener
        self._waiting: list[tuple[ServedModel, Bundle]] = []
        # Guards the three below: once ``stop`` has returned, nothing is built or changed any more.
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._build: EngineBuild | None = None
        self._thread: threading.Thread | None = None

    def add(self, model: ServedModel, bundle: Bundle) -> None:
        """Let ``model``, which serves, have engines too; before ``start``."""
        model.engines = EngineState.BUILDING
        self._waiting.append((model, bundle))

    def start(self) -> None:
        """Begin, where there is a model to work for."""
        with self._lock:
            if self._waiting and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._run, name=ENGINES_THREAD, daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End a build that is under way; what serves stays as it is from now on. Safe from any thread."""
        with self._lock:
            self._stopping.set()
            if self._build is not None:
                self._build.kill()

    def join(self) -> None:
        """Wait until every model has engines, or has failed to get them, or ``stop`` has been heard."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        for model, bundle in self._waiting:
            if self._stopping.is_set():
                return
            try:
                self._work_for(model, bundle)
            except Exception as error:
                if self._stopping.is_set():
                    return
                model.engines = EngineState.FAILED
                _log_failure(bundle, error)

    def _work_for(self, model: ServedModel, bundle: Bundle) -> None:
        """Take one model all the way."""
        started_at = time.monotonic()
        source = self._opener.source
        # They may be there and have been passed over when the server started: then the log is told why once more.
        engines = source.find_engines(bundle)
        if engines is None:
            self._build_engines(bundle)
            engines = source.built_engines(bundle)
        model.engines = EngineState.VERIFYING
        log.event(_log, "engines sit their exam", model=model.name, engines=str(engines))
        backend = self._opener.open_backend(bundle, Choice(Target.TENSORRT, engines))
        try:
            _check_limits(bundle, model.limits, backend.limits)
            backend.exam = sit_whole_exam(bundle, backend.runner, backend.target)
            before = self._change(model, backend)
        except BaseException:
            backend.decode_loop.close(timeout_s=0.0)
            backend.close_runners()
            raise
        runner, seconds = f"{backend.runner.name} {backend.runner.precision}", round(time.monotonic() - started_at, 3)
        log.event(_log, "engines serve", model=model.name, runner=runner, seconds=seconds)
        before.decode_loop.close(timeout_s=None)
        model.retiring = None
        before.close_runners()

    def _build_engines(self, bundle: Bundle) -> None:
        name = bundle.manifest.name
        command = self._opener.source.build_command(bundle)
        log.event(_log, "engines are being built", model=name, command=command)

        def on_line(line: str) -> None:
            log.event(_log, "engine build", model=name, line=line)

        with self._lock:
            if self._stopping.is_set():
                raise _Stopped
            self._build = EngineBuild(command, on_line=on_line)
        try:
            self._build.wait()
        finally:
            with self._lock:
                self._build = None

    def _change(self, model: ServedModel, backend: Backend) -> Backend:
        """Put ``backend`` in the place of what executes ``model``; returns the one before."""
        with self._lock:
            if self._stopping.is_set():
                raise _Stopped
            backend.decode_loop.start()
            before = model.change_to(backend)
            model.engines = EngineState.SERVING
            return before


def _check_limits(bundle: Bundle, promised: Limits, got: Limits) -> None:
    """Hold that nothing that clients have been told they may ask for is too much for the engines."""
    for field in fields(Limits):
        least, has = getattr(promised, field.name), getattr(got, field.name)
        if has < least:
            raise BundleError(f"{bundle.path}: engines: {field.name}: got {has}, wanted at least {least}")


def _log_failure(bundle: Bundle, error: Exception) -> None:
    foreseen = isinstance(error, _FORESEEN)
    reason = str(error) if foreseen else f"unforeseen {type(error).__name__}, see the log"
    if not foreseen:
        _log.error("engines failed in a way that nobody foresaw", exc_info=error)
    name = bundle.manifest.name
    log.event(_log, "engines failed", level=logging.ERROR, model=name, bundle=str(bundle.path), reason=reason)
