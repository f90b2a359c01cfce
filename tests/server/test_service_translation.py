"""Translations over the wire: what comes back, in pieces or whole, and what one text's fault does to the others."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from dragoman.v1 import translation_pb2 as pb
from export.bundle import Exam
from export.runners.protocol import FloatArray
from server.models import ServedModel
from tests.decoding.fake_runner import END, UNK, Prefix, Source, random_rule
from tests.server.running import (
    DIGEST,
    PATIENCE_S,
    TEXTS,
    RunningServer,
    code_of,
    detail_of,
    gate_of,
    heard,
    reason_of,
)


def translate(server: RunningServer, *texts: str, **options: object) -> pb.TranslateTextResponse:
    request = pb.TranslateTextRequest(contents=texts, decoding_config=pb.DecodingConfig(**options))  # type: ignore[arg-type]
    return server.stub.TranslateText(request, timeout=PATIENCE_S)


def stream(server: RunningServer, *texts: str, **options: object) -> list[pb.StreamTranslateTextResponse]:
    request = pb.StreamTranslateTextRequest(contents=texts, decoding_config=pb.DecodingConfig(**options))  # type: ignore[arg-type]
    return list(server.stub.StreamTranslateText(request, timeout=PATIENCE_S))


def test_texts_come_back_in_order(server: RunningServer, model: ServedModel) -> None:
    reply = translate(server, *TEXTS, TEXTS[0])
    assert [translation.text for translation in reply.translations] == [*TEXTS, TEXTS[0]]
    assert reply.model == "copy"
    assert reply.bundle_digest == DIGEST
    first = reply.translations[0]
    tokens = len(model.tokenizer.encode(TEXTS[0]))
    assert first.finish_reason == pb.FINISH_REASON_END_TOKEN
    assert (first.source_token_count, first.output_token_count) == (tokens, tokens - 1)
    assert not first.HasField("score")
    assert not first.HasField("status")
    assert list(first.hypotheses) == []
    assert list(first.warnings) == []


@pytest.mark.parametrize("blank", ["", " ", "\t\n ", " " * 10_000, "\u200b\u200b", "\u3000"])
def test_blank_texts_are_not_asked_of_the_model(server: RunningServer, model: ServedModel, blank: str) -> None:
    whole, _ = translate(server, blank, "a man").translations
    assert whole == pb.Translation(finish_reason=pb.FINISH_REASON_EMPTY_SOURCE)
    alone = translate(server, blank).translations
    assert list(alone) == [whole]
    assert stream(server, blank) == [pb.StreamTranslateTextResponse(content_index=0, translation=whole)]
    assert server.sample("dragoman_queue_wait_seconds_count", model="copy") == 1


def test_scores_are_set_where_asked_for(server: RunningServer, model: ServedModel) -> None:
    (greedy,) = translate(server, "a man", return_scores=True).translations
    assert greedy.HasField("score")
    (beam,) = translate(server, "a man", beam_size=3, num_hypotheses=3).translations
    assert beam.score == beam.hypotheses[0].score
    assert beam.text == beam.hypotheses[0].text == "a man"
    assert beam.output_token_count == beam.hypotheses[0].output_token_count
    assert [hypothesis.score for hypothesis in beam.hypotheses] == sorted(
        (hypothesis.score for hypothesis in beam.hypotheses), reverse=True
    )
    (plain,) = translate(server, "a man", beam_size=3).translations
    assert plain.HasField("score")
    assert list(plain.hypotheses) == []


def test_warnings(server: RunningServer, model: ServedModel) -> None:
    (cut,) = translate(server, "two dogs play", max_output_tokens=2).translations
    assert cut.finish_reason == pb.FINISH_REASON_MAX_TOKENS
    assert list(cut.warnings) == [pb.TRANSLATION_WARNING_OUTPUT_TRUNCATED]
    assert cut.output_token_count == 2

    def end_at_once(source: Source, prefix: Prefix) -> FloatArray:
        logits = np.zeros(model.tokenizer.vocab_size, dtype=np.float32)
        logits[END] = 1.0
        return logits

    server.add_model(name="silent", rule=end_at_once, target_languages=("fr",))
    request = pb.TranslateTextRequest(model="silent", contents=["a 😀 שלום"])
    (unknown,) = server.stub.TranslateText(request, timeout=PATIENCE_S).translations
    assert UNK in model.tokenizer.encode("a 😀 שלום")
    assert list(unknown.warnings) == [pb.TRANSLATION_WARNING_UNKNOWN_CHARACTERS]
    assert unknown.text == ""
    assert unknown.finish_reason == pb.FINISH_REASON_END_TOKEN


@pytest.mark.parametrize("beam_size", [1, 4])
def test_pieces_of_a_stream_join_to_the_whole(server: RunningServer, beam_size: int) -> None:
    model = server.add_model(rule=random_rule(5, vocab=server.tokenizer.vocab_size))
    texts = [*TEXTS, "", TEXTS[1]]
    messages = stream(server, *texts, beam_size=beam_size)
    whole = translate(server, *texts, beam_size=beam_size).translations
    assert any(translation.text for translation in whole)
    for index, translation in enumerate(whole):
        mine = [message for message in messages if message.content_index == index]
        assert "".join(message.text for message in mine) == translation.text
        assert [message.HasField("translation") for message in mine] == [False] * (len(mine) - 1) + [True]
        assert mine[-1].translation == translation
    assert model.decode_loop.active_sequences == 0


def test_greedy_streams_come_token_by_token(server: RunningServer, model: ServedModel) -> None:
    gate = gate_of(model)
    passes = threading.Semaphore(0)
    assert gate is model.runner.before_step  # type: ignore[attr-defined]
    model.runner.before_step = passes.acquire  # type: ignore[attr-defined]
    try:
        call = server.stub.StreamTranslateText(
            pb.StreamTranslateTextRequest(contents=["two dogs play"]), timeout=PATIENCE_S
        )
        pieces = []
        while True:
            passes.release()
            message = next(call)
            pieces.append(message.text)
            if message.HasField("translation"):
                break
        assert "".join(pieces) == "two dogs play"
        assert len(pieces) > 3
    finally:
        model.runner.before_step = gate  # type: ignore[attr-defined]
        passes.release(100)


def test_many_at_once_give_the_same_as_one_at_a_time(server: RunningServer) -> None:
    model = server.add_model(rule=random_rule(9, vocab=server.tokenizer.vocab_size))
    texts = [" ".join(TEXTS[index % 4 :][: 1 + index % 2]) for index in range(40)]
    alone = {text: translate(server, text).translations[0].text for text in set(texts)}
    gate_of(model).close()
    with ThreadPoolExecutor(len(texts)) as pool:
        replies = [pool.submit(translate, server, text) for text in texts]
        heard(model).wait_until(lambda: heard(model).queued + heard(model).active >= len(texts))
        gate_of(model).open()
        assert [reply.result().translations[0].text for reply in replies] == [alone[text] for text in texts]
    rows = server.sample("dragoman_step_rows_sum", model="copy") or 0.0
    steps = server.sample("dragoman_step_rows_count", model="copy") or 1.0
    assert rows / steps > 2
    assert server.sample("dragoman_active_sequences", model="copy") == 0


def test_a_text_that_fails_alone_has_a_status_and_the_others_stand(server: RunningServer) -> None:
    # One row: each text has its steps for itself, and only the second one's fail.
    tokens = len(server.tokenizer.encode(TEXTS[0]))
    server.add_model(failing_steps=(tokens + 1,), max_rows=1)
    good, bad, also_good = translate(server, *TEXTS[:3]).translations
    assert (good.text, bad.text, also_good.text) == (TEXTS[0], "", TEXTS[2])
    assert not good.HasField("status")
    assert bad.status.code == grpc.StatusCode.INTERNAL.value[0]
    assert bad.status.message == "internal error"
    info = detail_of(bad.status, error_details_pb2.ErrorInfo)
    assert info is not None
    assert (info.domain, info.reason) == ("dragoman", "INTERNAL")
    assert bad.finish_reason == pb.FINISH_REASON_UNSPECIFIED


def test_where_every_text_fails_the_call_fails(server: RunningServer) -> None:
    server.add_model(failing_steps=(1, 2), max_rows=8)
    with pytest.raises(grpc.RpcError) as unary:
        translate(server, *TEXTS)
    with pytest.raises(grpc.RpcError) as streamed:
        stream(server, *TEXTS)
    for raised in (unary, streamed):
        assert (code_of(raised.value), reason_of(raised.value)) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert "scripted" not in str(raised.value)
    assert [translation.text for translation in translate(server, *TEXTS).translations] == list(TEXTS)


def test_a_model_is_described(server: RunningServer) -> None:
    exam = Exam(
        manifest_sha256=DIGEST,
        runner="fake",
        device="none",
        precision="fp32",
        verify_time="2026-01-02T03:04:05Z",
        passed=True,
        sentences=3,
        token_exact_rate=1.0,
        max_log_prob_difference=1e-6,
        max_score_difference=1e-6,
        bleu=30.5,
    )
    server.add_model(exam=exam)
    model = server.stub.GetModel(pb.GetModelRequest(name="copy"), timeout=PATIENCE_S).model
    assert server.stub.GetModel(pb.GetModelRequest(), timeout=PATIENCE_S).model == model
    assert list(server.stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S).models) == [model]
    assert (model.name, model.bundle_digest, model.state) == ("copy", DIGEST, pb.MODEL_STATE_SERVING)
    assert (model.runner, model.precision, model.architecture) == ("fake", pb.PRECISION_FP32, "fake-1x8")
    assert (list(model.source_language_codes), list(model.target_language_codes)) == (["en"], ["de"])
    assert model.limits == pb.ModelLimits(
        max_contents=1024, max_source_tokens=40, max_output_tokens=60, max_beam_size=16, max_source_bytes=32768
    )
    defaults = model.default_decoding_config
    assert (defaults.beam_size, defaults.num_hypotheses, defaults.max_output_tokens) == (1, 1, 50)
    assert defaults.length_penalty_type == pb.LENGTH_PENALTY_TYPE_GNMT
    assert defaults.HasField("length_penalty")
    assert model.certificate.passed
    assert model.certificate.verify_time.ToJsonString() == "2026-01-02T03:04:05Z"
    assert model.certificate.bleu == 30.5
    assert not model.certificate.HasField("chrf")
    assert (model.parameter_count, model.license_note) == (123, "for tests")
