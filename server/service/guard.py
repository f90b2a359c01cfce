"""Around every call: tolerant decoding, errors mapped to statuses, metrics, and the count of calls in progress."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from server.metrics import Metrics
from server.models import Registry
from server.service.errors import REJECTIONS, STATUS_DETAILS_KEY, Internal, ServiceError, Undecodable, to_status

_log = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_UNDECODABLE = object()
"""Stands for a request whose bytes do not decode, until a handler can answer it."""


@dataclass
class _Ending:
    """How a call went, for the metrics."""

    status: str = grpc.StatusCode.OK.name


class Guard(grpc.aio.ServerInterceptor):
    """Wraps all handlers of unary requests.

    Attributes:
        idle: set while no accepted call is in progress: one of a measured method that began before the drain.
    """

    def __init__(self, metrics: Metrics, registry: Registry, *, measured: frozenset[str]) -> None:
        """Count calls of ``measured`` methods (``package.Service/Method``) in ``metrics``."""
        self._metrics = metrics
        self._registry = registry
        self._measured = measured
        self._wrapped: dict[str, Handler] = {}
        self._in_progress = 0
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def in_progress(self) -> int:
        """Accepted calls whose last byte has not gone out."""
        return self._in_progress

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the wrapped handler; unknown methods and streams of requests are left to gRPC."""
        name = handler_call_details.method
        if name not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None or handler.request_streaming:
                return handler
            self._wrapped[name] = self._wrap(handler, name.lstrip("/"))
        return self._wrapped[name]

    def _wrap(self, handler: Handler, method: str) -> Handler:
        tolerant = _tolerant(handler.request_deserializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._guard_stream(handler.unary_stream, method), tolerant, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            self._guard_unary(handler.unary_unary, method), tolerant, handler.response_serializer
        )

    def _guard_unary(self, behaviour: Any, method: str) -> Callable[..., Any]:
        async def guarded(request: Any, context: _Context) -> Any:
            with self._measure(method, context) as ending:
                try:
                    _check_decoded(request)
                    return await behaviour(request, context)
                except Exception as error:
                    await self._abort(error, context, ending)

        return guarded

    def _guard_stream(self, behaviour: Any, method: str) -> Callable[..., Any]:
        async def guarded(request: Any, context: _Context) -> None:
            with self._measure(method, context) as ending:
                try:
                    _check_decoded(request)
                    responses: AsyncGenerator[Any, None] | Awaitable[None] = behaviour(request, context)
                    if isinstance(responses, AsyncGenerator):
                        # Closed here and now, also when a write fails: its sequences are given up at once.
                        async with aclosing(responses):
                            async for response in responses:
                                await context.write(response)
                    else:
                        await responses  # it writes by itself
                except Exception as error:
                    await self._abort(error, context, ending)

        return guarded

    @contextmanager
    def _measure(self, method: str, context: _Context) -> Iterator[_Ending]:
        ending = _Ending()
        if method not in self._measured:
            yield ending
            return
        started_at = time.monotonic()
        self._metrics.call_started(method)
        if not self._registry.draining:
            self._in_progress += 1
            self.idle.clear()
            # Not at the handler's end: by then its reply has not been sent.
            context.add_done_callback(self._call_done)  # type: ignore[arg-type]  # the stub forgot that it is a protocol
        try:
            yield ending
        except asyncio.CancelledError:
            # gRPC cancels the handler both when the client leaves and when its deadline passes.
            remaining_s: float | None = context.time_remaining()
            expired = remaining_s is not None and remaining_s <= 0.0
            ending.status = (grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED).name
            raise
        finally:
            self._metrics.call_ended(method, status=ending.status, seconds=time.monotonic() - started_at)

    def _call_done(self, _: _Context) -> None:
        self._in_progress -= 1
        if self._in_progress == 0:
            self.idle.set()

    async def _abort(self, error: Exception, context: _Context, ending: _Ending) -> None:
        """End the call with the status of ``error``; what is none of ours becomes INTERNAL without detail."""
        if isinstance(error, grpc.aio.AbortError):
            raise error  # a handler, such as the health service's, has ended the call itself
        if not isinstance(error, ServiceError):
            _log.error("a handler failed", exc_info=error)
            error = Internal()
        ending.status = error.code.name
        if isinstance(error, REJECTIONS):
            self._metrics.call_rejected(error.reason, model=error.model)
        details = ((STATUS_DETAILS_KEY, to_status(error).SerializeToString()),)
        await context.abort(error.code, error.message, trailing_metadata=details)


def _tolerant(deserialise: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    assert deserialise is not None, "every method of ours has a request type"

    def tolerant(data: bytes) -> Any:
        try:
            return deserialise(data)
        except DecodeError:
            return _UNDECODABLE

    return tolerant


def _check_decoded(request: Any) -> None:
    if request is _UNDECODABLE:
        raise Undecodable
