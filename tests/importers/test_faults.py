"""Whatever is wrong with a directory: one line, exit code 1, nothing written, no code run."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from server.cli import main
from tests.importers.hugging import Drawing, build, sizes

MARIAN = Drawing(
    toolkit="marian",
    kind="Marian",
    seed=1,
    config={
        **sizes(16, 2, (1, 1), 24, 131),
        "pad_token_id": 130,
        "decoder_start_token_id": 130,
        "activation_function": "swish",
    },
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("faults") / "opus"
    build(MARIAN, directory)
    return directory


@pytest.fixture
def directory(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "opus"))


@pytest.fixture
def refused(directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    def run() -> str:
        """Import, and give back the one line that says why not."""
        out = tmp_path / "out"
        capfd.readouterr()
        assert main(["import", "marian", str(directory), "--out", str(out)]) == 1
        captured = capfd.readouterr()
        assert captured.out == ""
        assert not out.exists()
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]
        (line,) = captured.err.splitlines()
        assert line.startswith("dragoman import: ")
        return line

    return run


def edit(path: Path, **fields: Any) -> None:
    values = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def test_a_sound_directory_is_imported(directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "marian", str(directory), "--out", str(tmp_path / "out"), "--name", "opus-en-fr"]) == 0
    assert "opus-en-fr, marian-1x16, en to fr" in capfd.readouterr().out
    assert main(["import", "marian", str(directory), "--out", str(tmp_path / "out")]) == 1
    assert "got something that is there already, wanted a new or empty directory" in capfd.readouterr().err


def test_truncated_safetensors(directory: Path, refused: Callable[[], str]) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in refused()


def test_every_tensor_that_does_not_fit_is_listed(directory: Path, refused: Callable[[], str]) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights["model.encoder.layers.0.fc1.bias"]
    weights["model.decoder.layers.0.fc2.weight"] = torch.zeros(16, 25)
    weights["model.decoder.layers.1.fc2.bias"] = torch.zeros(16)
    weights["model.encoder.layers.0.fc2.bias"][0] = float("inf")
    weights["lm_head.weight"] = weights["model.shared.weight"] + 1.0
    weights["final_logits_bias"] = torch.zeros(1, 130)
    weights["model.encoder.embed_positions.weight"] = torch.zeros(512, 16)
    save_file(weights, directory / "model.safetensors")
    line = refused()
    for fault in (
        "missing model.encoder.layers.0.fc1.bias, wanted [24]",
        "model.decoder.layers.0.fc2.weight: got [16, 25], wanted [16, 24]",
        "unexpected model.decoder.layers.1.fc2.bias [16]",
        "model.encoder.layers.0.fc2.bias: got values that are not finite",
        "lm_head.weight: got values of its own, wanted those of model.shared.weight",
        "final_logits_bias: got [1, 130], wanted [1, 131]",
        "model.encoder.embed_positions.weight: got other values than the fixed ones of this family",
    ):
        assert fault in line


class Hostile:
    """Runs code where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_that_would_run_code_does_not(
    write: Callable[[Any, Path], None], directory: Path, tmp_path: Path, refused: Callable[[], str]
) -> None:
    (directory / "model.safetensors").unlink()
    marker = tmp_path / "ran"
    write({"model.shared.weight": Hostile(marker)}, directory / "pytorch_model.bin")
    assert "wanted tensors only" in refused()
    assert not marker.exists()


def test_bin_files_are_read_and_cut_ones_refused(
    directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    path = directory / "pytorch_model.bin"
    torch.save(weights, path)
    assert main(["import", "marian", str(directory), "--out", str(tmp_path / "out")]) == 0
    path.write_bytes(path.read_bytes()[:-300])
    capfd.readouterr()
    assert main(["import", "marian", str(directory), "--out", str(tmp_path / "again")]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "pytorch_model.bin: damaged" in line


def test_shards_are_put_together_and_stay_in_the_directory(
    directory: Path, tmp_path: Path, refused: Callable[[], str]
) -> None:
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    halves = dict(list(weights.items())[::2]), dict(list(weights.items())[1::2])
    index: dict[str, str] = {}
    for number, half in enumerate(halves):
        save_file(half, directory / f"model-{number}.safetensors")
        index |= dict.fromkeys(half, f"model-{number}.safetensors")
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    assert main(["import", "marian", str(directory), "--out", str(tmp_path / "whole")]) == 0

    save_file(halves[0], tmp_path / "outside.safetensors")
    path.write_text(json.dumps({"weight_map": dict.fromkeys(halves[0], "../outside.safetensors")}))
    assert "wanted names of files beside it" in refused()


@pytest.mark.parametrize("name", ["source.spm", "target.spm"])
def test_a_garbage_spm(name: str, directory: Path, refused: Callable[[], str]) -> None:
    (directory / name).write_bytes(b"\x00garbage" * 9)
    assert name in refused()


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "model.safetensors", "source.spm"])
def test_a_missing_file_is_named(name: str, directory: Path, refused: Callable[[], str]) -> None:
    (directory / name).unlink()
    assert name in refused()


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("config.json", {"model_type": "t5"}, "model_type: got 't5', wanted marian"),
        ("config.json", {"activation_function": "gelu_new"}, "activation_function: got 'gelu_new', wanted one of relu"),
        ("config.json", {"decoder_ffn_dim": 25}, "decoder_ffn_dim: got 25, wanted encoder_ffn_dim = 24"),
        ("config.json", {"d_model": "16"}, "d_model: got '16', wanted an integer"),
        ("config.json", {"encoder_attention_heads": 3, "decoder_attention_heads": 3}, "wanted a multiple of heads = 3"),
        ("config.json", {"vocab_size": 140}, "model.shared.weight: got [131, 16], wanted [140, 16]"),
        ("generation_config.json", {"no_repeat_ngram_size": 3}, "no_repeat_ngram_size: got 3, wanted 0"),
        ("generation_config.json", {"do_sample": True}, "do_sample: got True, wanted False"),
        ("generation_config.json", {"min_length": 5}, "min_length: got 5, wanted 0"),
        ("generation_config.json", {"forced_eos_token_id": 7}, "forced_eos_token_id: got 7, wanted the end token 0"),
        ("generation_config.json", {"bad_words_ids": [[130], [4, 5]]}, "bad_words_ids: got [[130], [4, 5]]"),
        ("generation_config.json", {"early_stopping": "never"}, "early_stopping: got 'never', wanted true or false"),
        ("generation_config.json", {"eos_token_id": [0, 4]}, "eos_token_id: got [0, 4], wanted one token id"),
        ("generation_config.json", {"length_penalty": "long"}, "length_penalty: got 'long', wanted a number"),
        ("tokenizer_config.json", {"source_lang": None}, "source languages: got none in the model's files"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(
    name: str, fields: dict[str, Any], message: str, directory: Path, refused: Callable[[], str]
) -> None:
    edit(directory / name, **fields)
    assert message in refused()


def test_json_that_is_none(directory: Path, refused: Callable[[], str]) -> None:
    (directory / "config.json").write_bytes(b"\xff{")
    assert "config.json: not JSON" in refused()
