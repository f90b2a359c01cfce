"""The gRPC server put together: what it answers, when it is ready, and how it leaves."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
from grpc_health.v1 import health
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1.translation_pb2_grpc import add_TranslationServiceServicer_to_server
from server.config import Address, ServeConfig
from server.metrics import Metrics
from server.models import ModelState, Registry
from server.service.guard import Guard
from server.service.health import Health
from server.service.translation import TranslationService

_DESCRIPTOR = pb.DESCRIPTOR.services_by_name["TranslationService"]
SERVICE = _DESCRIPTOR.full_name
METHODS = tuple(f"{SERVICE}/{method.name}" for method in _DESCRIPTOR.methods)

_WORKERS = 2
_HEALTH_EVERY_S = 1.0
_LAST_REPLIES_S = 0.5
_FRAMING_BYTES = 16
_LEAST_REQUEST_BYTES = 4 * 1024 * 1024
_INT32_MAX = (1 << 31) - 1
_OPTIONS = (
    # Two servers on one port would share its calls in silence.
    ("grpc.so_reuseport", 0),
    # A peer that vanished without a word is noticed, and its sequences are given up.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Clients may keep idle connections alive themselves, every ten seconds at most.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


def _bounds(config: ServeConfig) -> tuple[tuple[str, int], ...]:
    """Bounds of gRPC itself, wide enough that what exceeds a limit of ours is refused by us, with the reason."""
    text_bytes = config.max_source_bytes + _FRAMING_BYTES
    request_bytes = min(config.max_contents, config.max_queue) * text_bytes + _LEAST_REQUEST_BYTES
    calls = 2 * config.max_queue + 1024
    return (
        ("grpc.max_receive_message_length", min(request_bytes, _INT32_MAX)),
        # Per connection. A server counts a call until it has let go of it, a moment after the client saw it end: near
        # the bound, honest calls are refused (RST_STREAM 7), so it lies far from their number.
        ("grpc.max_concurrent_streams", calls),
        # Beyond the first of these, calls that have come but not begun are dropped by chance; beyond the second, all.
        ("grpc.server.max_pending_requests", calls),
        ("grpc.server.max_pending_requests_hard_limit", calls),
    )


class BindError(Exception):
    """An address cannot be listened on; one line says which and why."""


class App:
    """A server over the models of a registry; lives on one event loop.

    Attributes:
        drained: set once new calls are refused.
    """

    def __init__(self, config: ServeConfig, *, registry: Registry, metrics: Metrics) -> None:
        """Put the parts together; must run on the event loop that will serve."""
        self._config = config
        self._registry = registry
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="tokenise")
        self._guard = Guard(metrics, registry, measured=frozenset(METHODS))
        self._health = Health(registry, service=SERVICE, clock=time.monotonic)
        self._server = grpc.aio.server(interceptors=[self._guard], options=(*_OPTIONS, *_bounds(config)))
        add_TranslationServiceServicer_to_server(TranslationService(registry, workers=self._workers), self._server)
        add_HealthServicer_to_server(self._health.servicer, self._server)
        if config.reflection:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self._watching: asyncio.Task[None] | None = None
        self.drained = asyncio.Event()

    async def start(self) -> Address:
        """Listen; health says NOT_SERVING until the models serve. Returns the address, its port resolved.

        Raises:
            BindError: the address cannot be bound.
        """
        listen = self._config.listen
        try:
            port = self._server.add_insecure_port(str(listen))
        except RuntimeError as error:
            raise BindError(f"{listen}: cannot listen there: the port is in use, or the host is not ours") from error
        await self._health.refresh()
        await self._server.start()
        self._watching = asyncio.create_task(self._watch())
        return Address(listen.host, port)

    async def refresh_health(self) -> None:
        """Tell at once what has changed, rather than within a second."""
        await self._health.refresh()

    async def calls_ended(self) -> None:
        """Wait until no accepted call is in progress."""
        await self._guard.idle.wait()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_HEALTH_EVERY_S)
            await self._health.refresh()

    async def shut_down(self, *, lame_duck_s: float, grace_s: float, hurry: asyncio.Event) -> bool:
        """Leave without losing a call: lame duck, drain, stop.

        Args:
            lame_duck_s: how long calls are still served after health says NOT_SERVING.
            grace_s: how long accepted calls then have to finish.
            hurry: ends both waits at once.

        Returns:
            True where every accepted call was answered.
        """
        await self._health.leave()
        await _first_of(hurry, timeout_s=lame_duck_s)
        self._registry.drain()
        self.drained.set()
        await _first_of(hurry, self._guard.idle, timeout_s=grace_s)
        all_answered = self._guard.in_progress == 0
        for model in self._registry.loaded():
            for backend in model.backends:
                await asyncio.to_thread(backend.decode_loop.close, timeout_s=0.0)
        # Calls that were cut short are told so; calls that come now still get their UNAVAILABLE.
        await _first_of(self._guard.idle, timeout_s=_LAST_REPLIES_S)
        await self._server.stop(_LAST_REPLIES_S)
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        self._workers.shutdown(wait=False, cancel_futures=True)
        for model in self._registry.loaded():
            # One that is still warming up is used by the thread that loads it.
            if model.state is not ModelState.LOADING:
                model.close_runners()
        return all_answered


async def _first_of(*events: asyncio.Event, timeout_s: float) -> None:
    """Wait until one of ``events`` is set, at most ``timeout_s``."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
