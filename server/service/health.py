"""grpc.health.v1: ready, alive, and one service per model."""

from __future__ import annotations

from collections.abc import Callable

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio

from server.decoding.loop import DecodeLoop
from server.models import Registry

READINESS = "readiness"
LIVENESS = "liveness"
RESERVED_NAMES = (LIVENESS, READINESS)
"""Names that no model can have: each model is a health service too."""

LONGEST_ROUND_S = 60.0
"""A decode loop that shows no sign of life for longer is taken for dead."""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Keeps the health service's answers up to date with the models."""

    def __init__(self, registry: Registry, *, service: str, clock: Callable[[], float]) -> None:
        """Begin not serving.

        Args:
            registry: the models.
            service: full name of the gRPC service.
            clock: the decode loops' clock.
        """
        self.servicer = aio.HealthServicer()
        self._registry = registry
        self._services = ("", READINESS, service)
        self._clock = clock
        self._leaving = False

    async def refresh(self) -> None:
        """Set every answer anew."""
        ready = self._registry.ready and not self._leaving
        for name in self._services:
            await self._set(name, serving=ready)
        backends = (backend for model in self._registry.loaded() for backend in model.backends)
        alive = all(self._turns(backend.decode_loop) for backend in backends)
        await self._set(LIVENESS, serving=alive)
        for model in self._registry.all():
            await self._set(model.name, serving=model.healthy and not self._leaving)

    async def leave(self) -> None:
        """Tell load balancers to send calls elsewhere; liveness stays, so that nobody kills us before we are done."""
        self._leaving = True
        await self.refresh()

    def _turns(self, decode_loop: DecodeLoop) -> bool:
        return self._clock() - decode_loop.last_round_at <= LONGEST_ROUND_S

    async def _set(self, name: str, *, serving: bool) -> None:
        await self.servicer.set(name, _SERVING if serving else _NOT_SERVING)
