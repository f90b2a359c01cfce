"""Every way a request can be wrong: code, ErrorInfo, field."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from dragoman.v1 import translation_pb2 as pb
from model.tokenizer import Tokenizer
from server.config import Address, ServeConfig
from server.models import ModelState, ServedModel
from tests.server.running import (
    PATIENCE_S,
    RunningServer,
    code_of,
    detail_of,
    failure,
    fields_of,
    reason_of,
    status_of,
)

CONFIG = "decoding_config."


def decoding(**fields: Any) -> pb.TranslateTextRequest:
    return pb.TranslateTextRequest(contents=["a man"], decoding_config=pb.DecodingConfig(**fields))


def test_a_request_at_all_its_limits_is_read(server: RunningServer, model: ServedModel) -> None:
    limits = model.limits
    request = pb.TranslateTextRequest(contents=[" " * limits.max_source_bytes] * limits.max_contents)
    reply = server.stub.TranslateText(request, timeout=PATIENCE_S)
    assert len(reply.translations) == limits.max_contents


def test_one_text_far_over_its_limit_is_named(server: RunningServer, model: ServedModel) -> None:
    error = failure(server.stub.TranslateText, pb.TranslateTextRequest(contents=["a" * 5_000_000]))
    assert (code_of(error), fields_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, ["contents[0]"])


def test_thousands_of_calls_of_one_connection_at_once_are_answered(server: RunningServer, model: ServedModel) -> None:
    calls = [server.stub.TranslateText.future(pb.TranslateTextRequest(contents=[""])) for _ in range(3000)]
    assert [call.code() for call in calls if call.code() is not grpc.StatusCode.OK] == []


@pytest.mark.parametrize(
    ("request_", "fields", "said"),
    [
        (pb.TranslateTextRequest(), ["contents"], "got 0 texts, wanted 1 to 1024"),
        (pb.TranslateTextRequest(contents=["a"] * 1025), ["contents"], "got 1025 texts"),
        (
            pb.TranslateTextRequest(contents=["a", "b" * 32769, "c"]),
            ["contents[1]"],
            "got 32769 bytes of UTF-8, wanted at most 32768",
        ),
        (pb.TranslateTextRequest(contents=["ä" * 16385]), ["contents[0]"], "got 32770 bytes"),
        (pb.TranslateTextRequest(contents=["a", "dog " * 60]), ["contents[1]"], "wanted at most 40"),
        (decoding(beam_size=17), [CONFIG + "beam_size"], "got 17, wanted 1 to 16"),
        (decoding(beam_size=-1), [CONFIG + "beam_size"], "got -1"),
        (decoding(num_hypotheses=2), [CONFIG + "num_hypotheses"], "got 2, wanted 1 to 1, which is beam_size"),
        (decoding(beam_size=3, num_hypotheses=4), [CONFIG + "num_hypotheses"], "got 4, wanted 1 to 3"),
        (decoding(num_hypotheses=-5), [CONFIG + "num_hypotheses"], "got -5"),
        (decoding(length_penalty=-0.5), [CONFIG + "length_penalty"], "got -0.5, wanted 0 to 10"),
        (decoding(length_penalty=10.5), [CONFIG + "length_penalty"], "got 10.5"),
        (decoding(length_penalty=float("nan")), [CONFIG + "length_penalty"], "got nan"),
        (decoding(length_penalty=float("inf")), [CONFIG + "length_penalty"], "got inf"),
        (decoding(max_output_tokens=61), [CONFIG + "max_output_tokens"], "got 61, wanted 1 to 60"),
        (decoding(max_output_tokens=-1), [CONFIG + "max_output_tokens"], "got -1"),
        (
            decoding(max_output_tokens=5, min_output_tokens=6),
            [CONFIG + "min_output_tokens"],
            "got 6, wanted 0 to 5, which is max_output_tokens",
        ),
        (decoding(min_output_tokens=-1), [CONFIG + "min_output_tokens"], "got -1"),
        (decoding(length_penalty_type=7), [CONFIG + "length_penalty_type"], "got 7, wanted one of 1 (GNMT), 2 (POWER)"),
        (decoding(length_penalty_type=-7), [CONFIG + "length_penalty_type"], "got -7"),
        (
            pb.TranslateTextRequest(contents=["a"], source_language_code="fr"),
            ["source_language_code"],
            "got 'fr', wanted one of en",
        ),
        (
            pb.TranslateTextRequest(contents=["a"], model="copy", target_language_code="x" * 5000),
            ["target_language_code"],
            "wanted one of de",
        ),
        (
            pb.TranslateTextRequest(
                contents=["a", "b" * 40000],
                source_language_code="no-such",
                model="copy",
                decoding_config=pb.DecodingConfig(beam_size=99, max_output_tokens=99),
            ),
            ["source_language_code", CONFIG + "beam_size", CONFIG + "max_output_tokens", "contents[1]"],
            "and 1 more",
        ),
    ],
)
def test_wrong_fields_are_named(
    server: RunningServer, model: ServedModel, request_: pb.TranslateTextRequest, fields: list[str], said: str
) -> None:
    streamed = pb.StreamTranslateTextRequest()
    streamed.ParseFromString(request_.SerializeToString())
    for error in (
        failure(server.stub.TranslateText, request_),
        failure(lambda request, timeout: list(server.stub.StreamTranslateText(request, timeout=timeout)), streamed),
    ):
        assert code_of(error) is grpc.StatusCode.INVALID_ARGUMENT
        assert reason_of(error) == "INVALID_FIELD"
        assert fields_of(error) == fields
        assert said in status_of(error).message
        assert len(status_of(error).message) < 1000


def test_very_many_wrong_fields_still_fit_into_the_metadata(server: RunningServer, tokenizer: Tokenizer) -> None:
    server.add_model()
    with RunningServer(tokenizer, config=ServeConfig(listen=Address("127.0.0.1", 0), max_source_bytes=4)) as strict:
        strict.add_model()
        error = failure(strict.stub.TranslateText, pb.TranslateTextRequest(contents=["12345"] * 1024))
    assert fields_of(error) == [f"contents[{index}]" for index in range(16)]
    assert "and 1021 more" in status_of(error).message


def test_unknown_model(server: RunningServer, model: ServedModel) -> None:
    for call, request in (
        (server.stub.TranslateText, pb.TranslateTextRequest(model="nope\n" + "x" * 10_000, contents=["a"])),
        (server.stub.GetModel, pb.GetModelRequest(name="nope\n" + "x" * 10_000)),
    ):
        error = failure(call, request)
        assert code_of(error) is grpc.StatusCode.NOT_FOUND
        assert reason_of(error) == "MODEL_NOT_FOUND"
        assert "wanted one of copy" in status_of(error).message
        assert len(status_of(error).message) < 200


def test_undecodable_bytes(server: RunningServer, model: ServedModel) -> None:
    invalid_utf8 = b"\x12\x01\xff"  # contents: one byte that is no UTF-8
    for method in ("TranslateText", "StreamTranslateText", "ListModels", "GetModel"):
        for data in (b"\xff\xff\xff\xff", b"\x0a\xff"):
            kind: Any = server.channel.unary_stream if method.startswith("Stream") else server.channel.unary_unary
            call = kind(f"/dragoman.v1.TranslationService/{method}")
            error = failure(lambda request, timeout, call=call: drain(call(request, timeout=timeout)), data)
            assert code_of(error) is grpc.StatusCode.INVALID_ARGUMENT
            assert reason_of(error) == "UNDECODABLE"
            assert fields_of(error) == [""]
    error = failure(server.channel.unary_unary("/dragoman.v1.TranslationService/TranslateText"), invalid_utf8)
    assert reason_of(error) == "UNDECODABLE"
    error = failure(server.channel.unary_unary("/grpc.health.v1.Health/Check"), b"\xff\xff")
    assert reason_of(error) == "UNDECODABLE"
    assert server.sample("dragoman_rejected_total", model="", reason="UNDECODABLE") == 10


def drain(reply: Any) -> None:
    """Read a stream to its end; a unary reply is there already."""
    if not isinstance(reply, bytes):
        list(reply)


def test_unknown_method_is_unimplemented(server: RunningServer, model: ServedModel) -> None:
    error = failure(server.channel.unary_unary("/dragoman.v1.TranslationService/Nope"), b"")
    assert code_of(error) is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("page_size", "page_token", "field"), [(-1, "", "page_size"), (1001, "", "page_size"), (0, "x", "page_token")]
)
def test_wrong_pages(server: RunningServer, model: ServedModel, page_size: int, page_token: str, field: str) -> None:
    error = failure(server.stub.ListModels, pb.ListModelsRequest(page_size=page_size, page_token=page_token))
    assert code_of(error) is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(error) == "INVALID_FIELD"
    assert fields_of(error) == [field]


def test_loading_and_uncertified_and_broken_models(server: RunningServer, model: ServedModel) -> None:
    request = pb.TranslateTextRequest(contents=["a man"])
    model.state = ModelState.LOADING
    error = failure(server.stub.TranslateText, request)
    assert (code_of(error), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "LOADING")
    assert detail_of(status_of(error), error_details_pb2.RetryInfo) is not None
    model.state, model.certified = ModelState.FAILED, False
    error = failure(server.stub.TranslateText, request)
    assert (code_of(error), reason_of(error)) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_CERTIFIED")
    model.certified = True
    error = failure(server.stub.TranslateText, request)
    assert (code_of(error), reason_of(error)) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert status_of(error).message == "internal error"


def test_while_models_load_nothing_is_not_found(server: RunningServer) -> None:
    server.registry.loading = True
    for call, request in (
        (server.stub.TranslateText, pb.TranslateTextRequest(contents=["a"])),
        (server.stub.TranslateText, pb.TranslateTextRequest(contents=["a"], model="later")),
        (server.stub.GetModel, pb.GetModelRequest()),
        (server.stub.GetModel, pb.GetModelRequest(name="later")),
    ):
        error = failure(call, request)
        assert (code_of(error), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "LOADING")
    assert list(server.stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S).models) == []


def test_our_own_fault_tells_the_client_nothing(
    server: RunningServer, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: str) -> list[int]:
        raise OSError("/secret/path")

    monkeypatch.setattr(model.tokenizer, "encode", broken)
    error = failure(server.stub.TranslateText, pb.TranslateTextRequest(contents=["a man"]))
    assert (code_of(error), reason_of(error)) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in str(error)
    assert "OSError" not in str(error)
