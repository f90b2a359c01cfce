"""Several bundles of one name: the first that can be served is, and every other is told of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from export.bundle import Bundle
from server.config import ServeConfig
from server.loading import LoadError, load_models
from server.metrics import Metrics
from server.models import ModelState, Registry, ServedModel
from server.opening import Opener
from tests.server.bundles import (
    answer_otherwise,
    spoil_graph,
    spoil_the_certificate,
    spoil_tokenizer,
    withdraw_the_certificate,
)
from tests.server.loaded import Load


def test_of_two_with_one_name_the_first_serves(models: Path, load: Load) -> None:
    shutil.copytree(models / "good", models / "twin")
    loaded = load()
    assert loaded.states == {"good": "serving"}
    (refused,) = loaded.refused
    twin = models / "twin"
    assert refused["reason"] == f"{twin}: name: got a second model 'good', wanted another than {models / 'good'} has"
    assert loaded.sample("dragoman_model_serving", model="good") == 1
    assert loaded.sample("dragoman_bundles_refused") == 1


def test_a_broken_bundle_does_not_keep_its_name_from_a_sound_one(models: Path, load: Load) -> None:
    shutil.copytree(models / "good", models / "also-good")
    spoil_graph(models / "also-good")
    loaded = load()
    assert loaded.states == {"good": "serving"}
    assert [refused["bundle"] for refused in loaded.refused] == [str(models / "also-good")]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (withdraw_the_certificate, "not certified"),
        (spoil_the_certificate, "certificate.json cannot be read"),
        (answer_otherwise, "warm-up exam failed: token-exact rate"),
    ],
)
def test_of_several_with_one_name_the_first_that_may_serve_does(
    models: Path, load: Load, spoil: Callable[[Path], None], reason: str
) -> None:
    for folder in ("a", "b", "twin"):
        shutil.copytree(models / "good", models / folder)
    for folder in ("a", "b"):
        spoil(models / folder)
    loaded = load()
    assert loaded.error == ""
    assert loaded.states == {"good": "serving"}
    assert loaded.registry.ready
    assert [refused["bundle"] for refused in loaded.refused] == [str(models / name) for name in ("a", "b", "twin")]
    assert all(reason in refused["reason"] for refused in loaded.refused[:2])
    assert loaded.refused[2]["reason"].endswith(f"got a second model 'good', wanted another than {models / 'good'} has")
    assert loaded.sample("dragoman_model_serving", model="good") == 1
    assert loaded.sample("dragoman_bundles_refused") == 3
    model = loaded.registry.get("good")
    assert isinstance(model, ServedModel)
    assert model.digest == Bundle.open(models / "good").digest


def test_while_another_of_its_name_may_yet_serve_a_model_is_loading(
    models: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdraw_the_certificate(models / "good")
    for folder in ("other", "third"):
        spoil_tokenizer(Path(shutil.copytree(models / "good", models / folder)))
    seen: list[str] = []

    def watch(opener: Opener, bundle: Bundle) -> ServedModel:
        seen.extend(model.state.value for model in registry.all())
        return real_open(opener, bundle)

    registry = Registry(loading=True)
    real_open = Opener.open
    monkeypatch.setattr(Opener, "open", watch)
    with pytest.raises(LoadError, match=r"good: not certified.*other/tokenizer.*third/tokenizer"):
        load_models(ServeConfig(models=models, threads=1, max_rows=8), Metrics(), on_found=registry.add)
    assert seen == ["loading", "loading"]
    (failed,) = registry.all()
    assert (failed.state, failed.certified) == (ModelState.FAILED, False)
