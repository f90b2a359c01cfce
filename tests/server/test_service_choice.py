"""Which of several models a request gets."""

from __future__ import annotations

import grpc
import pytest

from dragoman.v1 import translation_pb2 as pb
from tests.server.running import (
    DIGEST,
    PATIENCE_S,
    RunningServer,
    broken_model,
    code_of,
    failure,
    fields_of,
    reason_of,
    status_of,
)


@pytest.fixture
def models(server: RunningServer) -> RunningServer:
    server.add_model(name="en-de")
    server.add_model(name="en-fr", target_languages=("fr",))
    server.add_model(name="multi", source_languages=("en", "cs"), target_languages=("fr", "cs"))
    return server


@pytest.mark.parametrize(
    ("source", "target", "name"),
    [("en", "de", "en-de"), ("", "de", "en-de"), ("EN-us", "De_at", "en-de"), ("cs", "fr", "multi")],
)
def test_languages_name_the_model(models: RunningServer, source: str, target: str, name: str) -> None:
    request = pb.TranslateTextRequest(contents=[""], source_language_code=source, target_language_code=target)
    assert models.stub.TranslateText(request, timeout=PATIENCE_S).model == name


@pytest.mark.parametrize(
    ("source", "target", "fields"),
    [
        ("en", "fr", ["model"]),  # two serve it
        ("", "", ["target_language_code"]),  # two have one language on each side
        ("en", "", ["target_language_code"]),
        ("cs", "de", ["target_language_code"]),
        ("es", "de", ["source_language_code"]),
    ],
)
def test_none_or_several(models: RunningServer, source: str, target: str, fields: list[str]) -> None:
    request = pb.TranslateTextRequest(contents=[""], source_language_code=source, target_language_code=target)
    error = failure(models.stub.TranslateText, request)
    assert code_of(error) is grpc.StatusCode.INVALID_ARGUMENT
    assert fields_of(error) == fields


def test_what_an_unset_language_may_be_is_told(models: RunningServer) -> None:
    error = failure(models.stub.TranslateText, pb.TranslateTextRequest(contents=["a"]))
    said = "got none, wanted one of de, fr, or as model one of en-de, en-fr"
    assert said in status_of(error).message


def test_a_model_out_of_order_is_not_chosen_where_another_serves(models: RunningServer) -> None:
    models.registry.add(broken_model("broken"))
    models.registry.add(broken_model("lost", target_language="ja"))
    german = pb.TranslateTextRequest(contents=[""], target_language_code="de")
    assert models.stub.TranslateText(german, timeout=PATIENCE_S).model == "en-de"
    named = pb.TranslateTextRequest(contents=[""], model="broken")
    only_one = pb.TranslateTextRequest(contents=[""], target_language_code="ja")
    for request in (named, only_one):
        error = failure(models.stub.TranslateText, request)
        assert (code_of(error), reason_of(error)) == (grpc.StatusCode.INTERNAL, "INTERNAL")


def test_a_model_that_could_not_be_loaded_is_described(models: RunningServer) -> None:
    models.registry.add(broken_model("broken", target_language="ja"))
    described = models.stub.GetModel(pb.GetModelRequest(name="broken"), timeout=PATIENCE_S).model
    assert described == pb.Model(
        name="broken",
        bundle_digest=DIGEST,
        state=pb.MODEL_STATE_FAILED,
        source_language_codes=["en"],
        target_language_codes=["ja"],
        architecture="fake-1x8",
        parameter_count=123,
    )
    assert described in models.stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S).models


def test_a_model_with_several_languages_wants_to_know_which(models: RunningServer) -> None:
    error = failure(models.stub.TranslateText, pb.TranslateTextRequest(model="multi", contents=["a"]))
    assert fields_of(error) == ["source_language_code", "target_language_code"]


def test_get_model_without_a_name(models: RunningServer) -> None:
    error = failure(models.stub.GetModel, pb.GetModelRequest())
    assert fields_of(error) == ["name"]


def test_pages(models: RunningServer) -> None:
    names, token, replies = [], "", 0
    while replies == 0 or token:
        reply = models.stub.ListModels(pb.ListModelsRequest(page_size=2, page_token=token), timeout=PATIENCE_S)
        names += [model.name for model in reply.models]
        token = reply.next_page_token
        replies += 1
    assert names == ["en-de", "en-fr", "multi"]
    assert replies == 2
    assert len(models.stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S).models) == 3
