"""Checkpoints: a round trip, and every fault named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import Checkpoint, CheckpointError, ModelCard, load_checkpoint, save_checkpoint
from model.tokenizer import Tokenizer
from model.transformer import Transformer

CARD = ModelCard(name="tiny", source_languages=("en",), target_languages=("de",), decoding={"beam_size": 2})


@pytest.fixture
def saved(tmp_path: Path, tokenizer: Tokenizer, make_model: Callable[..., Transformer]) -> tuple[Path, Transformer]:
    model = make_model(source_vocab_size=48, target_vocab_size=48, tied_embeddings="all")
    save_checkpoint(tmp_path / "checkpoint", Checkpoint(model, tokenizer, CARD))
    return tmp_path / "checkpoint", model


def test_round_trip_keeps_weights_card_and_tokenizer(saved: tuple[Path, Transformer], tokenizer: Tokenizer) -> None:
    path, model = saved
    loaded = load_checkpoint(path)
    assert loaded.card == CARD
    assert loaded.tokenizer.encode("man runs") == tokenizer.encode("man runs")
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(model.state_dict().values(), loaded.model.state_dict().values(), strict=True)
    )
    assert (
        sum("token" in name for name in load_file(path / "model.safetensors"))
        + sum(name == "output.weight" for name in load_file(path / "model.safetensors"))
        == 1
    )


def test_every_wrong_tensor_is_listed(saved: tuple[Path, Transformer]) -> None:
    path, _ = saved
    weights = load_file(path / "model.safetensors")
    del weights["decoder.0.cross_attention.key.bias"]
    weights["surprise"] = torch.zeros(2, 3)
    weights["encoder.0.feed_forward.inner.bias"] = torch.zeros(7)
    weights["encoder.1.feed_forward.inner.bias"][3] = float("nan")
    save_file(weights, path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "missing decoder.0.cross_attention.key.bias, wanted [24]" in message
    assert "unexpected surprise [2, 3]" in message
    assert "encoder.0.feed_forward.inner.bias: got [7], wanted [40]" in message
    assert "encoder.1.feed_forward.inner.bias: got values that are not finite" in message


def test_broken_files_are_named(saved: tuple[Path, Transformer]) -> None:
    path, _ = saved
    (path / "model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_checkpoint(path)
    config = json.loads((path / "config.json").read_text())
    del config["name"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="missing field 'name'"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"nowhere.*No such file"):
        load_checkpoint(path / "nowhere")


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", 5), ("source_languages", "en"), ("target_languages", []), ("decoding", None), ("license_note", None)],
)
def test_a_wrong_field_of_the_card_is_named(field: str, value: object, saved: tuple[Path, Transformer]) -> None:
    path, _ = saved
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(CheckpointError, match=rf"config\.json: {field}: got"):
        load_checkpoint(path)


def test_a_tokenizer_of_another_size_is_refused(saved: tuple[Path, Transformer]) -> None:
    path, _ = saved
    config = json.loads((path / "config.json").read_text())
    config["transformer"]["source_vocab_size"] = config["transformer"]["target_vocab_size"] = 47
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="tokenizer has 48 tokens, wanted at most source_vocab_size = 47"):
        load_checkpoint(path)
