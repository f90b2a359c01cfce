"""The client against a server that fails by script: it retries UNAVAILABLE and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from dragoman.v1 import translation_pb2 as pb
from dragoman.v1.translation_pb2_grpc import (
    TranslationServiceServicer,
    add_TranslationServiceServicer_to_server,
)
from server.client import BadRequestError, CallFailed, ClientError, TranslationClient, Unavailable
from server.models import ServedModel
from tests.server.running import PATIENCE_S, TEXTS, RunningServer, gate_of


class Scripted(TranslationServiceServicer):
    """Fails with one code per call until the script is over."""

    def __init__(self, *codes: grpc.StatusCode) -> None:
        self.calls = 0
        self._codes = list(codes)

    def TranslateText(self, request: pb.TranslateTextRequest, context: Any) -> pb.TranslateTextResponse:  # noqa: N802
        self.calls += 1
        if self._codes:
            context.abort(self._codes.pop(0), "as scripted")
        return pb.TranslateTextResponse(translations=[pb.Translation(text=text) for text in request.contents])


@pytest.fixture
def scripted(request: pytest.FixtureRequest) -> Iterator[tuple[Scripted, str]]:
    servicer = Scripted(*request.param)  # type: ignore[abstract]  # the other methods stay unimplemented
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    add_TranslationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("scripted", [(UNAVAILABLE, UNAVAILABLE)], indirect=True)
def test_unavailable_is_retried(scripted: tuple[Scripted, str]) -> None:
    servicer, address = scripted
    with TranslationClient(address, timeout_s=PATIENCE_S) as client:
        assert [translation.text for translation in client.translate(["a", "b"])] == ["a", "b"]
    assert servicer.calls == 3


@pytest.mark.parametrize("scripted", [(UNAVAILABLE,) * 50], indirect=True)
def test_retries_end(scripted: tuple[Scripted, str]) -> None:
    servicer, address = scripted
    with TranslationClient(address, timeout_s=PATIENCE_S) as client, pytest.raises(Unavailable):
        client.translate(["a"])
    assert servicer.calls == 5


@pytest.mark.parametrize(
    "scripted",
    [(code,) for code in grpc.StatusCode if code not in (UNAVAILABLE, grpc.StatusCode.OK)],
    indirect=True,
    ids=lambda codes: codes[0].name,
)
def test_nothing_else_is_retried(scripted: tuple[Scripted, str]) -> None:
    servicer, address = scripted
    with TranslationClient(address, timeout_s=PATIENCE_S) as client, pytest.raises(CallFailed, match="as scripted"):
        client.translate(["a"])
    assert servicer.calls == 1


def test_a_deadline_ends_the_call(server: RunningServer, model: ServedModel) -> None:
    gate_of(model).close()
    with TranslationClient(str(server.address), timeout_s=0.1) as client, pytest.raises(ClientError) as raised:
        client.translate(TEXTS)
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_reason_and_the_fields_are_told(server: RunningServer, model: ServedModel) -> None:
    decoding = pb.DecodingConfig(beam_size=99)
    with TranslationClient(str(server.address), decoding=decoding) as client, pytest.raises(BadRequestError) as raised:
        client.translate(["a"])
    assert raised.value.reason == "INVALID_FIELD"
    assert raised.value.violations == (("decoding_config.beam_size", "got 99, wanted 1 to 16"),)


def test_streams(server: RunningServer, model: ServedModel) -> None:
    with TranslationClient(str(server.address), model="copy", source_language="en", target_language="de") as client:
        pieces = [message.text for message in client.stream([TEXTS[1]])]
    assert "".join(pieces) == TEXTS[1]
    with TranslationClient(str(server.address), model="nope") as client, pytest.raises(ClientError) as raised:
        next(client.stream(["a"]))
    assert raised.value.code is grpc.StatusCode.NOT_FOUND


def test_a_stream_that_is_left_is_cancelled(server: RunningServer, model: ServedModel) -> None:
    with TranslationClient(str(server.address)) as client:
        pieces = client.stream(TEXTS)
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
    server.run(server.app.calls_ended())
    assert model.decode_loop.queue_depth == 0
