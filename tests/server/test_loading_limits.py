"""Bundles whose own defaults a server's limits do not allow."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.bundle import Bundle, DecodingDefaults
from server.models import ModelState, ServedModel
from tests.server.bundles import copy_demo
from tests.server.loaded import Load


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, "at most 16: --max-beam-size 40 and --max-rows 40 raise that"),
        ({"max_beam_size": 64}, "at most 32: --max-rows 40 raises that"),
        ({"max_rows": 64}, "at most 16: --max-beam-size 40 raises that"),
    ],
)
def test_a_beam_of_the_models_own_is_not_cut(models: Path, load: Load, settings: dict[str, int], wanted: str) -> None:
    path = copy_demo(models, "wide", decoding=DecodingDefaults(beam_size=40))
    loaded = load(**{"max_rows": 32, **settings})
    assert loaded.states == {"good": "serving", "wide": "failed"}
    (refused,) = loaded.refused
    assert refused["reason"] == f"{path}: decoding.beam_size: got 40, wanted {wanted}"
    assert loaded.sample("dragoman_model_serving", model="wide") == 0
    assert loaded.sample("dragoman_bundles_refused") == 1


def test_a_beam_wider_than_the_vocabulary_allows_blames_no_flag(models: Path, load: Load) -> None:
    selectable = 4096 - len(set(Bundle.open(models / "good").manifest.suppressed_ids))
    path = copy_demo(models, "wide", decoding=DecodingDefaults(beam_size=2100))
    (refused,) = load(max_beam_size=2100, max_rows=2100).refused
    wanted = f"at most {selectable // 2}, half the tokens it may choose from"
    assert refused["reason"] == f"{path}: decoding.beam_size: got 2100, wanted {wanted}"


def test_a_beam_of_the_models_own_that_is_allowed_is_the_default(models: Path, load: Load) -> None:
    copy_demo(models, "wide", decoding=DecodingDefaults(beam_size=40))
    model = load(max_rows=40, max_beam_size=40).registry.get("wide")
    assert isinstance(model, ServedModel)
    assert model.state is ModelState.SERVING
    assert (model.defaults.beam_size, model.limits.max_beam_size) == (40, 40)
