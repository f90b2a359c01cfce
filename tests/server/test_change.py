"""A model that changes what executes it, as clients, load balancers and a server that leaves see it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from dragoman.v1 import translation_pb2 as pb
from server.config import Target
from server.decoding.loop import DecodeLoop, LoopClosed
from server.decoding.sequence import Outcome, Sequence
from server.gauges import EngineState
from server.metrics import ModelMetrics
from server.models import Backend, ServedModel
from server.service.health import LONGEST_ROUND_S
from tests.decoding.desk import make_job
from tests.decoding.fake_runner import END, PAD, START, FakeRunner, copying_rule
from tests.server.running import PATIENCE_S, TEXTS, Gate, RunningServer, code_of, gate_of, heard, reason_of

REQUEST = pb.TranslateTextRequest(contents=TEXTS)


def make_backend(server: RunningServer, model: ServedModel) -> Backend:
    """Another one for the same model, whose loop turns; its runner has another name."""
    runner = FakeRunner(copying_rule(vocab=model.tokenizer.vocab_size), max_rows=16)
    runner.name, runner.precision, runner.before_step = "other", "fp16", Gate()
    observer = ModelMetrics(server.metrics, model.name)
    decode_loop = DecodeLoop(runner, start_id=START, eos_id=END, pad_id=PAD, max_queue=4096, observer=observer)
    decode_loop.start()
    return Backend(target=Target.TENSORRT, runners=(runner,), decode_loop=decode_loop, limits=model.limits)


def texts_of(reply: pb.TranslateTextResponse) -> list[str]:
    return [translation.text for translation in reply.translations]


def begin(server: RunningServer, model: ServedModel) -> Any:
    """A call whose texts are being decoded and stand before a closed gate."""
    gate_of(model).close()
    call = server.stub.TranslateText.future(REQUEST, timeout=PATIENCE_S)
    heard(model).wait_until(lambda: heard(model).active == len(TEXTS))
    return call


def test_calls_of_before_and_after_are_answered(server: RunningServer, model: ServedModel) -> None:
    gate = gate_of(model)
    first = begin(server, model)
    before = model.change_to(make_backend(server, model))
    assert texts_of(server.stub.TranslateText(REQUEST, timeout=PATIENCE_S)) == [*TEXTS]
    assert not first.done()
    labels = {"model": model.name, "digest": model.digest}
    assert server.sample("dragoman_model_info", **labels, runner="other", precision="fp16") == 1
    assert server.sample("dragoman_model_info", **labels, runner="fake", precision="fp32") is None
    assert server.sample("dragoman_active_sequences", model=model.name) == len(TEXTS)
    gate.open()
    assert texts_of(first.result()) == [*TEXTS]
    assert before.decode_loop.close(timeout_s=None)
    assert server.sample("dragoman_active_sequences", model=model.name) == 0


def test_what_meets_a_loop_that_has_just_closed_goes_to_the_next(
    server: RunningServer, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, next_one = model.backend, make_backend(server, model)
    submit = old.decode_loop.submit

    def change_first(sequences: list[Sequence]) -> None:
        model.change_to(next_one)
        submit(sequences)

    monkeypatch.setattr(old.decode_loop, "submit", change_first)
    assert texts_of(server.stub.TranslateText(REQUEST, timeout=PATIENCE_S)) == [*TEXTS]
    assert server.sample("dragoman_rejected_total", model=model.name, reason="DRAINING") == 0


def test_a_loop_that_closes_for_good_refuses(server: RunningServer, model: ServedModel) -> None:
    model.decode_loop.drain()
    with pytest.raises(LoopClosed):
        model.submit([make_job([5]).sequence])


def test_who_waits_for_a_loop_hears_that_another_closes_it(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.decoding.loop._JOIN_TIMEOUT_S", 0.0)  # its thread stands before the gate to the end
    gate_of(model).close()
    job = make_job([5])
    model.submit([job.sequence])
    heard(model).wait_until(lambda: heard(model).active == 1)
    with ThreadPoolExecutor(2) as pool:
        waits = pool.submit(model.decode_loop.close, timeout_s=None)
        gives_up = pool.submit(model.decode_loop.close, timeout_s=0.0)
        assert gives_up.result(PATIENCE_S) is False
        assert waits.result(PATIENCE_S) is True
    assert job.outcome is Outcome.CANCELLED


def test_a_loop_that_has_yet_to_finish_counts_for_liveness(
    server: RunningServer, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = model.change_to(make_backend(server, model))
    silent = before.decode_loop

    def last_round_at(loop: DecodeLoop) -> float:
        return time.monotonic() - (LONGEST_ROUND_S + 1 if loop is silent else 0.0)

    monkeypatch.setattr(DecodeLoop, "last_round_at", property(last_round_at))
    server.run(server.app.refresh_health())
    assert [server.health(name) for name in ("", "copy", "liveness")] == ["SERVING", "SERVING", "NOT_SERVING"]
    assert silent.close(timeout_s=None)
    model.retiring = None
    server.run(server.app.refresh_health())
    assert [server.health(name) for name in ("", "copy", "liveness")] == ["SERVING"] * 3


def test_a_server_that_leaves_answers_both_sides(
    server: RunningServer, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = gate_of(model)
    call = begin(server, model)
    before = model.change_to(make_backend(server, model))
    closed: list[str] = []
    for backend in model.backends:
        name = backend.runner.name
        monkeypatch.setattr(backend.runner, "close", lambda name=name: closed.append(name))
    leaving = server.begin_shut_down()
    server.run(drained(server))
    gate.open()
    assert texts_of(call.result()) == [*TEXTS]
    assert leaving.result(PATIENCE_S)
    assert sorted(closed) == ["fake", "other"]
    with pytest.raises(LoopClosed):
        before.decode_loop.submit([make_job([5]).sequence])


def test_a_server_that_may_not_wait_gives_up_both_sides(
    server: RunningServer, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.decoding.loop._JOIN_TIMEOUT_S", 0.0)
    gate = gate_of(model)
    call = begin(server, model)
    model.change_to(make_backend(server, model))
    assert not server.begin_shut_down(grace_s=0.0).result(PATIENCE_S)
    with pytest.raises(grpc.RpcError) as raised:
        call.result()
    assert (code_of(raised.value), reason_of(raised.value)) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    gate.open()


async def drained(server: RunningServer) -> None:
    await server.app.drained.wait()


@pytest.mark.parametrize(
    ("state", "detail"),
    [
        (EngineState.NONE, ""),
        (EngineState.BUILDING, "its TensorRT engines are being built"),
        (EngineState.VERIFYING, "its TensorRT engines sit their exam"),
        (EngineState.SERVING, ""),
        (
            EngineState.FAILED,
            "its TensorRT engines could not be built or failed their exam; the server's log says why",
        ),
    ],
)
def test_clients_and_metrics_are_told_how_far_engines_are(
    server: RunningServer, model: ServedModel, state: EngineState, detail: str
) -> None:
    model.engines = state
    assert server.stub.GetModel(pb.GetModelRequest(), timeout=PATIENCE_S).model.detail == detail
    (listed,) = server.stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S).models
    assert listed.detail == detail
    values = {one: server.sample("dragoman_engines", model="copy", state=one.value) for one in EngineState}
    assert values == {one: float(one is state) for one in EngineState}
