"""``dragoman serve``: binds, loads, serves, and leaves when told to."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from server import log
from server.config import Address, ServeConfig, Target
from server.engines import ENGINES_THREAD, EngineWork
from server.loading import LoadError, load_models
from server.metrics import Metrics, MetricsServer
from server.models import KnownModel, ModelState, Registry, ServedModel
from server.opening import Opener
from server.resources import memory_limit_bytes
from server.service.app import METHODS, App, BindError
from server.service.errors import MODEL_LESS_REASONS

_log = logging.getLogger(__name__)

# A person at a keyboard has no load balancer that needs time to look elsewhere.
_INTERRUPTED_LAME_DUCK_S = 0.0
_EXIT_INTERRUPTED = 130
_LOADING_THREAD = "load-models"


def run_server(config: ServeConfig) -> int:
    """Serve until a signal; returns the exit code."""
    log.configure()
    if two_runtimes():
        hint = "uninstall both, then install one: they write the same files"
        log.event(_log, "onnxruntime and onnxruntime-gpu are both installed", level=logging.WARNING, hint=hint)
    try:
        code = asyncio.run(_serve(config))
        _leave_threads_behind(code)
        return code
    except (BindError, LoadError) as error:
        print(f"dragoman serve: {error}", file=sys.stderr)
        return 1
    except Exception:
        _log.exception("the server failed")
        return 1


def _leave_threads_behind(code: int) -> None:
    """End the process here where models are still loading, or engines sit their exam.

    The interpreter's own end would stop that thread inside ONNX Runtime, which aborts the process.
    """
    if any(thread.name in (_LOADING_THREAD, ENGINES_THREAD) for thread in threading.enumerate()):
        logging.shutdown()
        os._exit(code)


def two_runtimes() -> bool:
    """Whether onnxruntime and onnxruntime-gpu are both installed; then nobody knows which one is imported."""
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return False
    return True


class _Signals:
    """SIGTERM and SIGINT as events; the second of either is in a hurry."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self.interrupted = False
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._received, False)
        loop.add_signal_handler(signal.SIGINT, self._received, True)

    def _received(self, interrupted: bool) -> None:
        if self.stop.is_set():
            self.hurry.set()
        self.interrupted = self.interrupted or interrupted
        self.stop.set()


async def _serve(config: ServeConfig) -> int:
    signals = _Signals()
    metrics = Metrics(methods=METHODS, model_less_reasons=MODEL_LESS_REASONS)
    registry = Registry(loading=True)
    app = App(config, registry=registry, metrics=metrics)
    opener = Opener(config, metrics)
    engine_work = EngineWork(opener)
    metrics_server = _serve_metrics(config.metrics, metrics)
    try:
        listen = await app.start()
        log.event(_log, "listening", listen=str(listen), metrics=str(metrics_server.address))
        stopped = asyncio.ensure_future(signals.stop.wait())
        loaded = _in_daemon_thread(
            lambda: load_models(config, metrics, opener=opener, on_found=registry.add, on_waiting=engine_work.add)
        )
        events: list[asyncio.Future[Any]] = [loaded, stopped]
        await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            return await _leave(app, config, signals, engine_work)
        try:
            loaded.result()
        except Exception:
            await app.shut_down(lame_duck_s=0.0, grace_s=0.0, hurry=signals.hurry)
            raise
        registry.loading = False
        await app.refresh_health()
        _log_start(config, registry, listen=listen, metrics=metrics_server.address)
        # Not before: a build would take processor time from the exams.
        engine_work.start()
        await stopped
        return await _leave(app, config, signals, engine_work)
    finally:
        engine_work.stop()
        metrics_server.close()


def _serve_metrics(address: Address, metrics: Metrics) -> MetricsServer:
    try:
        return MetricsServer(metrics.registry, address)
    except OSError as error:
        raise BindError(f"{address}: cannot serve metrics there: {error.strerror or error}") from error


async def _leave(app: App, config: ServeConfig, signals: _Signals, engine_work: EngineWork) -> int:
    engine_work.stop()
    lame_duck_s = min(config.lame_duck_s, _INTERRUPTED_LAME_DUCK_S) if signals.interrupted else config.lame_duck_s
    log.event(_log, "draining", lame_duck_s=lame_duck_s, grace_s=config.grace_s)
    all_answered = await app.shut_down(lame_duck_s=lame_duck_s, grace_s=config.grace_s, hurry=signals.hurry)
    log.event(_log, "stopped", all_answered=all_answered)
    if signals.interrupted:
        return _EXIT_INTERRUPTED
    return 0 if all_answered else 1


def _log_start(config: ServeConfig, registry: Registry, *, listen: Address, metrics: Address) -> None:
    """The start line: the effective configuration."""
    memory_bytes = memory_limit_bytes()
    in_use = [model for model in registry.loaded() if model.state is not ModelState.FAILED]
    cache_bytes = sum(model.backend.cache_bytes for model in in_use if not model.backend.target.on_gpu)
    log.event(
        _log,
        "started",
        listen=str(listen),
        metrics=str(metrics),
        models=[_describe(model) for model in registry.all()],
        target=config.target.value,
        threads=config.step_threads,
        workers=config.workers_on(Target.CPU),
        rows=config.rows_on(Target.CPU),
        shortlist=config.shortlist,
        admission=config.admission.value,
        cache_bytes=cache_bytes,
        memory_limit_bytes=memory_bytes,
        max_queue=config.max_queue,
        lame_duck_s=config.lame_duck_s,
        grace_s=config.grace_s,
        reflection=config.reflection,
        allow_uncertified=config.allow_uncertified,
    )
    if memory_bytes is not None and cache_bytes > memory_bytes:
        log.event(
            _log,
            "caches may outgrow the memory limit",
            level=logging.WARNING,
            cache_bytes=cache_bytes,
            memory_limit_bytes=memory_bytes,
            hint="lower --max-rows or --workers",
        )


def _describe(model: KnownModel) -> dict[str, object]:
    known: dict[str, object] = {"model": model.name, "state": model.state.value, "digest": model.digest}
    if not isinstance(model, ServedModel):
        return known
    backend = model.backend
    return {
        **known,
        "target": backend.target.value,
        "runner": backend.runner.name,
        "device": backend.runner.device_description,
        "precision": backend.runner.precision,
        "rows": backend.runner.limits.max_rows,
        "workers": len(backend.runners),
        "cache_bytes": backend.cache_bytes,
        "engines": model.engines.value,
        "certified": backend.exam is not None,
        "limits": asdict(model.limits),
    }


def _in_daemon_thread(function: Callable[[], None]) -> asyncio.Future[None]:
    """Run ``function`` on a thread that does not keep the process alive: a signal may come while models load."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def settle(error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def body() -> None:
        error: Exception | None = None
        try:
            function()
        except Exception as raised:
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=body, name=_LOADING_THREAD, daemon=True).start()
    return future
