"""What the health service and the gauges beside it say of a server whose models come, fail and mend."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dragoman.v1 import translation_pb2 as pb
from server.models import ModelState, ServedModel
from server.service.health import LONGEST_ROUND_S, Health
from tests.server.running import PATIENCE_S, RunningServer, broken_model


def test_becomes_ready_with_its_models(server: RunningServer) -> None:
    ready = ("", "readiness", "dragoman.v1.TranslationService")
    server.registry.loading = True
    server.run(server.app.refresh_health())
    assert [server.health(name) for name in ready] == ["NOT_SERVING"] * 3
    assert server.health("liveness") == "SERVING"
    assert server.health("copy") == "NOT_FOUND"
    model = server.add_model()
    model.state = ModelState.LOADING
    server.run(server.app.refresh_health())
    assert server.health("copy") == "NOT_SERVING"
    model.state = ModelState.SERVING
    server.registry.loading = False
    server.run(server.app.refresh_health())
    assert [server.health(name) for name in (*ready, "copy", "liveness")] == ["SERVING"] * 5


def test_one_model_out_of_order_leaves_the_others_ready(server: RunningServer, model: ServedModel) -> None:
    server.add_model(name="broken").state = ModelState.FAILED
    server.registry.add(broken_model("lost"))
    server.run(server.app.refresh_health())
    names = ("", "readiness", "copy", "broken", "lost", "liveness")
    wanted = ["SERVING", "SERVING", "SERVING", "NOT_SERVING", "NOT_SERVING", "SERVING"]
    assert [server.health(name) for name in names] == wanted


def test_no_model_in_order_is_not_ready(server: RunningServer, model: ServedModel) -> None:
    model.state = ModelState.FAILED
    server.run(server.app.refresh_health())
    assert [server.health(name) for name in ("", "copy", "liveness")] == ["NOT_SERVING", "NOT_SERVING", "SERVING"]


def test_a_watcher_hears_of_a_change(server: RunningServer, model: ServedModel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(server.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=PATIENCE_S)
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    server.run(server.app.refresh_health())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_a_loop_that_is_stuck_is_not_alive_and_an_idle_one_is(server: RunningServer, model: ServedModel) -> None:
    now = [0.0]
    health = Health(server.registry, service="s", clock=lambda: model.decode_loop.last_round_at + now[0])

    async def liveness() -> int:
        await health.refresh()
        servicer: Any = health.servicer
        status: int = (await servicer.Check(health_pb2.HealthCheckRequest(service="liveness"), None)).status
        return status

    now[0] = LONGEST_ROUND_S - 1
    assert server.run(liveness()) == health_pb2.HealthCheckResponse.SERVING
    now[0] = LONGEST_ROUND_S + 1
    assert server.run(liveness()) == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_loop_that_keeps_failing_is_not_ready(server: RunningServer) -> None:
    model = server.add_model(failing_steps=(1, 2, 3))
    for _ in range(3):
        with pytest.raises(grpc.RpcError):
            server.stub.TranslateText(pb.TranslateTextRequest(contents=["a man"]), timeout=PATIENCE_S)
    assert model.decode_loop.failed
    server.run(server.app.refresh_health())
    assert (server.health(""), server.health("copy"), server.health("liveness")) == (
        "NOT_SERVING",
        "NOT_SERVING",
        "SERVING",
    )


def test_a_loop_that_keeps_failing_leaves_the_others_ready(server: RunningServer, model: ServedModel) -> None:
    server.add_model(name="failing", target_languages=("fr",), failing_steps=(1, 2, 3))
    for _ in range(3):
        with pytest.raises(grpc.RpcError):
            server.stub.TranslateText(pb.TranslateTextRequest(contents=["a man"], model="failing"), timeout=PATIENCE_S)
    server.run(server.app.refresh_health())
    names = ("", "copy", "failing", "liveness")
    assert [server.health(name) for name in names] == ["SERVING", "SERVING", "NOT_SERVING", "SERVING"]
    assert [server.sample("dragoman_model_serving", model=name) for name in ("copy", "failing")] == [1.0, 0.0]
    # It may mend: its next call succeeds.
    french = pb.TranslateTextRequest(contents=["a man"], target_language_code="fr")
    server.stub.TranslateText(french, timeout=PATIENCE_S)
    server.run(server.app.refresh_health())
    assert server.health("failing") == "SERVING"
    assert server.sample("dragoman_model_serving", model="failing") == 1.0
