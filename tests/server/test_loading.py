"""Bundles to models: whatever is wrong with one, the others serve, and the log and the metrics tell which."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import server.exam.entrance
from export.bundle import MANIFEST_FILE, Bundle
from export.runners.ort_cpu import OrtCpuRunner
from server.loading import find_bundles
from server.models import ModelState, ServedModel
from tests.server.bundles import (
    answer_otherwise,
    copy_demo,
    sign,
    spoil_graph,
    spoil_tokenizer,
    truncate,
    withdraw_the_certificate,
)
from tests.server.loaded import Load


def spoil_graph_and_sign(path: Path) -> None:
    truncate(path / "graphs" / "ort-fp32" / "step.onnx")
    sign(path)


def spoil_tokenizer_config(path: Path) -> None:
    (path / "tokenizer" / "config.json").write_text("[]")
    sign(path)


def forget_a_language(path: Path) -> None:
    file = path / "tokenizer" / "config.json"
    config = json.loads(file.read_text()) | {"forced_template": ["target_language"], "language_ids": {"fr": 7}}
    file.write_text(json.dumps(config))
    sign(path)


def force_the_end_token(path: Path) -> None:
    file = path / "tokenizer" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"forced_template": ["target_language"], "language_ids": {"de": 3}}))
    sign(path)


def mistake_the_end_token(path: Path) -> None:
    file = path / "tokenizer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_id": 5}))
    sign(path)


def outgrow_the_model(path: Path) -> None:
    file = path / "tokenizer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"language_ids": {"de": 70_000}}))
    sign(path)


BROKEN = [
    (spoil_graph, "weights.bin: got sha256"),
    (spoil_graph_and_sign, "step.onnx: "),
    (spoil_tokenizer, "source.model: "),
    (spoil_tokenizer_config, "tokenizer/config.json: "),
    (forget_a_language, "target language: got 'de', wanted one of fr"),
    (force_the_end_token, "forced tokens of de: got the end token"),
    (mistake_the_end_token, "eos_id: got 5, wanted the manifest's 3"),
    (outgrow_the_model, "got 70001 source tokens, wanted at most 4096"),
]
FORBIDDEN = [(withdraw_the_certificate, "not certified"), (answer_otherwise, "warm-up exam failed: token-exact rate")]


@pytest.mark.parametrize(("spoil", "reason"), [*BROKEN, *FORBIDDEN])
def test_one_bundle_that_cannot_be_served_leaves_the_other_serving(
    models: Path, load: Load, spoil: Callable[[Path], None], reason: str
) -> None:
    path = copy_demo(models, "bad")
    spoil(path)
    loaded = load()
    assert loaded.error == ""
    assert loaded.states == {"bad": "failed", "good": "serving"}
    assert loaded.registry.ready
    (refused,) = loaded.refused
    assert (refused["model"], refused["bundle"]) == ("bad", str(path))
    assert reason in refused["reason"]
    assert str(path) in refused["reason"]
    assert "\n" not in refused["reason"]
    assert loaded.sample("dragoman_bundles_refused") == 1
    assert [loaded.sample("dragoman_model_serving", model=name) for name in ("good", "bad")] == [1, 0]
    samples = [sample for family in loaded.metrics.registry.collect() for sample in family.samples]
    assert [one.labels["model"] for one in samples if one.name == "dragoman_model_info"] == ["good"]
    certified = loaded.registry.get("bad")
    assert certified is not None
    assert certified.certified is ((spoil, reason) in BROKEN)


def test_a_manifest_that_cannot_be_read_has_no_name(models: Path, load: Load) -> None:
    truncate(copy_demo(models, "bad") / MANIFEST_FILE)
    loaded = load()
    assert loaded.states == {"good": "serving"}
    (refused,) = loaded.refused
    assert refused["model"] == ""
    assert "manifest.json: not JSON" in refused["reason"]
    assert loaded.sample("dragoman_bundles_refused") == 1
    assert loaded.sample("dragoman_model_serving", model="bad") is None


def test_all_kinds_at_once(models: Path, load: Load) -> None:
    spoil_graph(copy_demo(models, "a-truncated"))
    spoil_tokenizer(copy_demo(models, "b-garbage"))
    withdraw_the_certificate(copy_demo(models, "c-uncertified"))
    shutil.copytree(models / "good", models / "twin")
    copy_demo(models, "z-good", target_languages=("fr",))
    loaded = load()
    assert loaded.states == {
        "a-truncated": "failed",
        "b-garbage": "failed",
        "c-uncertified": "failed",
        "good": "serving",
        "z-good": "serving",
    }
    assert len(loaded.refused) == loaded.sample("dragoman_bundles_refused") == 4
    assert [model.name for model in loaded.registry.all() if model.healthy] == ["good", "z-good"]


def test_where_none_can_serve_every_reason_is_told_in_one_line(models: Path, load: Load) -> None:
    spoil_graph(models / "good")
    withdraw_the_certificate(copy_demo(models, "other"))
    loaded = load()
    assert "weights.bin: got sha256" in loaded.error
    assert f"; {models / 'other'}: not certified" in loaded.error
    assert "\n" not in loaded.error
    assert loaded.states == {"good": "failed", "other": "failed"}
    assert not loaded.registry.ready


@pytest.mark.parametrize(("owner", "name"), [(OrtCpuRunner, "open_workers"), (server.exam.entrance, "sit_exam")])
def test_what_nobody_foresaw_of_one_leaves_the_other_serving(
    models: Path, load: Load, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, owner: Any, name: str
) -> None:
    copy_demo(models, "bad")
    real = getattr(owner, name)

    def fail(bundle: Bundle, *arguments: Any, **options: Any) -> Any:
        if bundle.manifest.name == "bad":
            raise MemoryError("so many rows")
        return real(bundle, *arguments, **options)

    monkeypatch.setattr(owner, name, fail)
    loaded = load()
    assert loaded.states == {"bad": "failed", "good": "serving"}
    (refused,) = loaded.refused
    assert refused["reason"] == f"{models / 'bad'}: unforeseen MemoryError, see the log"
    assert "so many rows" in caplog.text


def test_a_model_that_may_not_serve_gives_its_memory_back(models: Path, load: Load) -> None:
    withdraw_the_certificate(copy_demo(models, "bad"))
    model = load().registry.get("bad")
    assert isinstance(model, ServedModel)
    assert model.state is ModelState.FAILED
    with pytest.raises(Exception, match="closed"):
        model.runner.argmax()


def test_uncertified_is_served_where_that_is_allowed(models: Path, load: Load) -> None:
    withdraw_the_certificate(copy_demo(models, "bad"))
    loaded = load(allow_uncertified=True)
    assert loaded.states == {"bad": "serving", "good": "serving"}
    assert loaded.refused == []


@pytest.mark.parametrize("name", ["readiness", "liveness"])
def test_a_broken_model_takes_no_health_services_name_either(models: Path, load: Load, name: str) -> None:
    spoil_graph(copy_demo(models, name))
    assert load().states == {"good": "serving"}


@pytest.mark.parametrize("mark", ["graphs", "golden.jsonl", "tokenizer"])
def test_a_bundle_without_a_manifest_is_refused(models: Path, load: Load, mark: str) -> None:
    path = models / "half"
    path.mkdir()
    source = models / "good" / mark
    (shutil.copytree if source.is_dir() else shutil.copy)(source, path / mark)
    loaded = load()
    assert loaded.states == {"good": "serving"}
    (refused,) = loaded.refused
    assert (refused["model"], refused["bundle"]) == ("", str(path))
    assert refused["reason"].startswith(f"{path / MANIFEST_FILE}: ")
    assert loaded.sample("dragoman_bundles_refused") == 1


def test_folders_that_look_like_no_bundle_are_passed_over(models: Path) -> None:
    (models / "notes" / "drafts").mkdir(parents=True)
    (models / "notes" / "graphs").write_text("two, three")
    (models / "golden.jsonl").write_text("{}")
    assert find_bundles(models) == [models / "good"]


def test_hidden_directories_are_no_bundles(models: Path) -> None:
    copy_demo(models, ".good.0123.old")
    assert find_bundles(models) == [models / "good"]


def test_a_directory_that_cannot_be_looked_at_hides_no_other(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = copy_demo(models, "locked")
    is_file = Path.is_file

    def guarded(path: Path) -> bool:
        if locked in path.parents:
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", guarded)
    assert find_bundles(models) == [models / "good", locked]
