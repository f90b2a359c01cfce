"""Cancellation, deadlines, a full queue and shutdown."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dragoman.v1 import translation_pb2 as pb
from model.tokenizer import Tokenizer
from server.config import Address, ServeConfig
from server.decoding.loop import DeadlineUnmeetable
from server.decoding.sequence import Outcome, Result, Sequence
from server.models import ModelState, ServedModel
from server.service.app import App, BindError
from tests.server.running import (
    PATIENCE_S,
    TEXTS,
    RunningServer,
    code_of,
    detail_of,
    gate_of,
    heard,
    reason_of,
    status_of,
)

ANYWHERE = Address("127.0.0.1", 0)
REQUEST = pb.TranslateTextRequest(contents=TEXTS)
STREAM_REQUEST = pb.StreamTranslateTextRequest(contents=TEXTS)


def begin(server: RunningServer, model: ServedModel, *, texts: int = len(TEXTS)) -> Any:
    """A call whose first texts are being decoded and stand before a closed gate."""
    gate_of(model).close()
    call = server.stub.TranslateText.future(pb.TranslateTextRequest(contents=(TEXTS * 100)[:texts]), timeout=PATIENCE_S)
    heard(model).wait_until(lambda: heard(model).active > 0)
    return call


def refusals(server: RunningServer) -> list[grpc.RpcError]:
    """The errors of a unary and a streamed call, both of which must be refused."""
    with pytest.raises(grpc.RpcError) as unary:
        server.stub.TranslateText(REQUEST, timeout=PATIENCE_S)
    with pytest.raises(grpc.RpcError) as streamed:
        next(server.stub.StreamTranslateText(STREAM_REQUEST, timeout=PATIENCE_S))
    return [unary.value, streamed.value]


def retry_after_s(error: Any) -> float:
    """RetryInfo of a failed call."""
    info = detail_of(status_of(error), error_details_pb2.RetryInfo)
    assert info is not None
    return info.retry_delay.seconds + info.retry_delay.nanos / 1e9


@pytest.mark.parametrize("method", ["TranslateText", "StreamTranslateText"])
def test_a_client_that_leaves_frees_its_rows(server: RunningServer, method: str) -> None:
    model = server.add_model(max_rows=2)  # two texts are decoded, two wait
    gate_of(model).close()
    call: Any
    if method == "TranslateText":
        call = server.stub.TranslateText.future(REQUEST, timeout=PATIENCE_S)
    else:
        call = server.stub.StreamTranslateText(STREAM_REQUEST, timeout=PATIENCE_S)
    heard(model).wait_until(lambda: (heard(model).active, heard(model).queued) == (2, 2))
    call.cancel()
    server.run(server.app.calls_ended())
    gate_of(model).open()
    heard(model).wait_until(lambda: heard(model).given_up == 4)
    heard(model).wait_until(lambda: heard(model).active == heard(model).queued == 0)
    assert server.sample("dragoman_cancelled_total", model="copy", stage="decoding") == 2
    assert server.sample("dragoman_cancelled_total", model="copy", stage="queued") == 2
    assert server.sample("dragoman_active_sequences", model="copy") == 0
    labels = {"grpc_method": f"dragoman.v1.TranslationService/{method}", "grpc_status": "CANCELLED"}
    assert server.sample("grpc_server_call_duration_seconds_count", **labels) == 1
    assert len(server.stub.TranslateText(REQUEST, timeout=PATIENCE_S).translations) == len(TEXTS)


def test_a_deadline_gives_the_texts_up(server: RunningServer, model: ServedModel) -> None:
    gate_of(model).close()
    with pytest.raises(grpc.RpcError) as raised:
        server.stub.TranslateText(REQUEST, timeout=0.2)
    assert code_of(raised.value) is grpc.StatusCode.DEADLINE_EXCEEDED
    server.run(server.app.calls_ended())
    gate_of(model).open()
    heard(model).wait_until(lambda: heard(model).given_up == len(TEXTS) and heard(model).active == 0)
    labels = {"grpc_method": "dragoman.v1.TranslationService/TranslateText", "grpc_status": "DEADLINE_EXCEEDED"}
    assert server.sample("grpc_server_call_duration_seconds_count", **labels) == 1


def test_a_deadline_that_the_loop_sees_first_is_explained(
    server: RunningServer, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(sequences: list[Sequence]) -> None:
        for sequence in sequences:
            sequence.on_finished(Result(Outcome.DEADLINE_EXCEEDED))

    monkeypatch.setattr(model.decode_loop, "submit", submit)
    with pytest.raises(grpc.RpcError) as raised:
        server.stub.TranslateText(REQUEST, timeout=PATIENCE_S)
    assert (code_of(raised.value), reason_of(raised.value)) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
    )


def test_a_full_queue_says_when_to_come_back(tokenizer: Tokenizer) -> None:
    config = ServeConfig(listen=ANYWHERE, max_queue=6)
    with RunningServer(tokenizer, config=config) as server:
        model = server.add_model(max_rows=1)
        assert server.stub.GetModel(pb.GetModelRequest(), timeout=PATIENCE_S).model.limits.max_contents == 6
        first = begin(server, model, texts=4)  # one is decoded, three wait
        for error in refusals(server):
            assert (code_of(error), reason_of(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
            assert retry_after_s(error) > 0
        assert heard(model).queued == 3  # all or none
        gate_of(model).open()
        assert len(first.result().translations) == 4
        assert server.sample("dragoman_rejected_total", model="copy", reason="QUEUE_FULL") == 2


def test_a_deadline_that_cannot_be_met_is_refused(
    server: RunningServer, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise DeadlineUnmeetable("by recent throughput", retry_after_s=2.5)

    monkeypatch.setattr(model.decode_loop, "submit", refuse)
    with pytest.raises(grpc.RpcError) as raised:
        server.stub.TranslateText(REQUEST, timeout=PATIENCE_S)
    assert (code_of(raised.value), reason_of(raised.value)) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "DEADLINE_UNMEETABLE",
    )
    assert retry_after_s(raised.value) == 2.5


class TestShutdown:
    def test_every_accepted_call_is_answered(self, server: RunningServer) -> None:
        model = server.add_model(max_rows=2)
        server.run(server.app.refresh_health())
        gate_of(model).close()
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(server.stub.TranslateText, REQUEST, timeout=PATIENCE_S) for _ in range(8)]
            heard(model).wait_until(lambda: heard(model).active + heard(model).queued == 8 * len(TEXTS))
            leaving = server.begin_shut_down()
            server.run(_drained(server))
            assert (server.health(""), server.health("copy"), server.health("liveness")) == (
                "NOT_SERVING",
                "NOT_SERVING",
                "SERVING",
            )
            for error in refusals(server):
                assert (code_of(error), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
                assert retry_after_s(error) > 0
            listed = server.stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S).models
            assert [described.state for described in listed] == [pb.MODEL_STATE_DRAINING]
            gate_of(model).open()
            for answered in calls:
                assert [translation.text for translation in answered.result().translations] == list(TEXTS)
        assert leaving.result(PATIENCE_S)

    def test_a_lame_duck_still_serves(self, server: RunningServer, model: ServedModel) -> None:
        leaving = server.begin_shut_down(lame_duck_s=PATIENCE_S)
        server.run(_noop())
        assert server.health("readiness") == "NOT_SERVING"
        assert len(server.stub.TranslateText(REQUEST, timeout=PATIENCE_S).translations) == len(TEXTS)
        server.run(server.app.calls_ended())  # the client has its reply a moment before the server lets go of the call
        server.run(_set(server))
        assert leaving.result(PATIENCE_S)

    def test_what_exceeds_the_grace_is_cut_short_and_told_so(self, server: RunningServer, model: ServedModel) -> None:
        call = begin(server, model)
        leaving = server.begin_shut_down(grace_s=0.0)
        server.run(_drained(server))
        with pytest.raises(grpc.RpcError) as raised:
            call.result()
        gate_of(model).open()
        assert (code_of(raised.value), reason_of(raised.value)) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert not leaving.result(PATIENCE_S)

    def test_hurry_ends_the_waits(self, server: RunningServer, model: ServedModel) -> None:
        call = begin(server, model)
        leaving = server.begin_shut_down(lame_duck_s=PATIENCE_S, grace_s=PATIENCE_S)
        server.run(_set(server))
        with pytest.raises(grpc.RpcError):
            call.result()
        gate_of(model).open()
        assert not leaving.result(PATIENCE_S)

    def test_a_model_that_still_loads_keeps_its_runner(
        self, server: RunningServer, model: ServedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loading = server.add_model(name="loading")
        loading.state = ModelState.LOADING
        closed: list[str] = []
        for one in (model, loading):
            monkeypatch.setattr(one.runner, "close", lambda name=one.name: closed.append(name))
        assert server.begin_shut_down().result(PATIENCE_S)
        assert closed == [model.name]


async def _noop() -> None:
    """Runs after what was begun before it has come to its first wait."""


async def _set(server: RunningServer) -> None:
    server.hurry.set()


async def _drained(server: RunningServer) -> None:
    await server.app.drained.wait()


def test_reflection_is_an_option(tokenizer: Tokenizer) -> None:
    def services(server: RunningServer) -> set[str]:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(server.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (reply,) = stub.ServerReflectionInfo(iter([request]), timeout=PATIENCE_S)
        return {service.name for service in reply.list_services_response.service}

    with RunningServer(tokenizer, config=ServeConfig(listen=ANYWHERE, reflection=True)) as server:
        assert {"dragoman.v1.TranslationService", "grpc.health.v1.Health"} <= services(server)
    with RunningServer(tokenizer) as server, pytest.raises(grpc.RpcError) as raised:
        services(server)
    assert code_of(raised.value) is grpc.StatusCode.UNIMPLEMENTED


def test_a_port_in_use_is_refused(server: RunningServer) -> None:
    async def start_another() -> None:
        config = ServeConfig(listen=server.address)
        await App(config, registry=server.registry, metrics=server.metrics).start()

    with pytest.raises(BindError, match=str(server.address)):
        server.run(start_another())
