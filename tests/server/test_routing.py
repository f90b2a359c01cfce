"""Two models of one server over the wire: requests find theirs by language, and one's trouble is not the other's.

English-German is the bundled demo; English-French is drawn at random in the shape of its recipe, exported and verified.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dragoman.v1 import translation_pb2 as pb
from model.checkpoint import Checkpoint, save_checkpoint
from model.config import TransformerConfig
from model.tokenizer import train_tokenizer
from model.training.recipe import read_recipe
from model.transformer import Transformer
from server.cli import main
from tests.served import DEMO, ROOT, Served
from tests.server.bundles import WEIGHTS, truncate
from tests.server.commands import run
from tests.server.running import PATIENCE_S, code_of, failure, fields_of, reason_of, status_of

RECIPE = ROOT / "configs" / "multi30k-en-fr.yaml"
GOLDEN = RECIPE.with_suffix(".golden.tsv")
GERMAN, FRENCH = "multi30k-en-de", "multi30k-en-fr"
VOCAB = 400
FLAGS = ("--threads", "1", "--lame-duck", "0")
TEXT, GERMAN_TEXT = "A man is riding a bicycle.", "Ein Mann fährt auf einem Fahrrad."


def draw_model(checkpoint: Path, *, golden: list[tuple[str, str]]) -> None:
    """A checkpoint as the recipe would begin it, but with a vocabulary that the golden sentences can fill."""
    recipe = read_recipe(RECIPE)
    tokenizer = train_tokenizer((text for pair in golden for text in pair), vocab_size=VOCAB)
    config = TransformerConfig(
        source_vocab_size=tokenizer.vocab_size, target_vocab_size=tokenizer.target_vocab_size, **recipe.transformer
    )
    torch.manual_seed(recipe.optimisation.seed)
    model = Transformer(config)
    model.initialise()
    save_checkpoint(checkpoint, Checkpoint(model.eval(), tokenizer, recipe.card))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of both bundles, certified."""
    folder = tmp_path_factory.mktemp("routing")
    lines = GOLDEN.read_text(encoding="utf-8").splitlines()
    english, french = zip(*(line.split("\t") for line in lines), strict=True)
    draw_model(folder / "checkpoint", golden=list(zip(english, french, strict=True)))
    short = folder / "short.tsv"
    short.write_text("\n".join(sorted(lines, key=len)[:3]) + "\n", encoding="utf-8")
    bundle = folder / "models" / "en-fr"
    assert main(["export", str(folder / "checkpoint"), "--out", str(bundle), "--golden", str(short)]) == 0
    assert main(["verify", str(bundle), "--threads", "1"]) == 0
    shutil.copytree(DEMO, folder / "models" / "en-de")
    return folder / "models"


@pytest.fixture(scope="module")
def served(models: Path) -> Iterator[Served]:
    serving = Served("--models", str(models), *FLAGS)
    yield serving
    assert serving.stop() == 0


def ask(served: Served, *, source: str = "", target: str = "", model: str = "") -> pb.TranslateTextResponse:
    request = pb.TranslateTextRequest(
        model=model, contents=[TEXT], source_language_code=source, target_language_code=target
    )
    return served.stub.TranslateText(request, timeout=PATIENCE_S)


def healthy(served: Served, service: str) -> bool:
    stub: Any = health_pb2_grpc.HealthStub(served.channel)
    status: int = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S).status
    return status == health_pb2.HealthCheckResponse.SERVING


def test_the_golden_sentences_are_those_of_the_bundled_model() -> None:
    german = GOLDEN.with_name("multi30k-en-de.golden.tsv").read_text(encoding="utf-8").splitlines()
    french = GOLDEN.read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in french] == [line.split("\t")[0] for line in german]


def test_the_recipe_is_of_the_bundled_models_shape() -> None:
    german, french = read_recipe(RECIPE.with_name("multi30k-en-de.yaml")), read_recipe(RECIPE)
    assert (french.card.source_languages, french.card.target_languages) == (("en",), ("fr",))
    assert (french.transformer, french.vocab_size) == (german.transformer, german.vocab_size)
    assert (french.optimisation, french.card.decoding) == (german.optimisation, german.card.decoding)


@pytest.mark.parametrize(
    ("source", "target", "model"),
    [
        ("en", "de", GERMAN),
        ("en", "fr", FRENCH),
        ("", "fr", FRENCH),
        ("en-US", "fr-CA", FRENCH),
        ("EN", "de_AT", GERMAN),
    ],
)
def test_languages_find_the_model(served: Served, source: str, target: str, model: str) -> None:
    reply = ask(served, source=source, target=target)
    assert reply.model == model
    assert reply == ask(served, model=model)
    assert (reply.translations[0].text == GERMAN_TEXT) is (model == GERMAN)


def test_a_target_that_is_left_open_is_refused_with_both(served: Served) -> None:
    for source in ("", "en"):
        error = failure(
            served.stub.TranslateText, pb.TranslateTextRequest(contents=[TEXT], source_language_code=source)
        )
        assert (code_of(error), reason_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert fields_of(error) == ["target_language_code"]
        assert f"wanted one of de, fr, or as model one of {GERMAN}, {FRENCH}" in status_of(error).message


def test_a_target_that_nobody_serves_is_refused_with_both(served: Served) -> None:
    request = pb.TranslateTextRequest(contents=[TEXT], source_language_code="en", target_language_code="cs")
    error = failure(served.stub.TranslateText, request)
    assert code_of(error) is grpc.StatusCode.INVALID_ARGUMENT
    assert "got 'cs', wanted one of de, fr" in status_of(error).message


def test_a_pair_that_the_named_model_does_not_serve_is_refused(served: Served) -> None:
    request = pb.TranslateTextRequest(contents=[TEXT], model=GERMAN, target_language_code="fr")
    error = failure(served.stub.TranslateText, request)
    assert "got 'fr', wanted one of de" in status_of(error).message


def test_both_are_listed_and_counted(served: Served) -> None:
    listed = served.stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S).models
    assert [(model.name, model.state) for model in listed] == [
        (GERMAN, pb.MODEL_STATE_SERVING),
        (FRENCH, pb.MODEL_STATE_SERVING),
    ]
    assert all(model.certificate.passed for model in listed)
    assert served.metric("dragoman_model_serving") == 2
    assert served.metric("dragoman_model_info") == 2
    assert served.metric("dragoman_bundles_refused") == 0


def test_the_command_line_names_languages(served: Served) -> None:
    done = run("translate", "--server", served.address, "--source-language", "en", "--target-language", "de", TEXT)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{GERMAN_TEXT}\n", "")
    french = ask(served, target="fr").translations[0].text
    done = run("translate", "--server", served.address, "--target-language", "fr", TEXT)
    assert (done.returncode, done.stdout) == (0, " ".join(french.split("\n")) + "\n")
    done = run("translate", "--server", served.address, TEXT)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "target_language_code: got none, wanted one of de, fr" in done.stderr


def test_one_broken_bundle_leaves_the_other_answering(models: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(models, tmp_path / "models"))
    truncate(broken / "en-fr" / WEIGHTS)
    served = Served("--models", str(broken), *FLAGS)
    try:
        assert ask(served, target="de").translations[0].text == GERMAN_TEXT
        assert ask(served).model == GERMAN, "whoever leaves the target open gets the one that serves"
        error = failure(served.stub.TranslateText, pb.TranslateTextRequest(contents=[TEXT], target_language_code="fr"))
        assert (code_of(error), reason_of(error)) == (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert {name: healthy(served, name) for name in ("", "readiness", GERMAN, FRENCH)} == {
            "": True,
            "readiness": True,
            GERMAN: True,
            FRENCH: False,
        }
        refused = [event for event in served.events if event["event"] == "bundle is not served"]
        assert [(event["level"], event["model"]) for event in refused] == [("error", FRENCH)]
        assert "weights.bin: got sha256" in refused[0]["reason"]
        assert served.metric("dragoman_bundles_refused") == 1
        assert served.metric("dragoman_model_serving") == 1
    finally:
        assert served.stop() == 0
