"""Whatever is wrong with a directory: one line, exit code 1, nothing written, no code run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from server.cli import main
from tests.importers.hf_tokenizers import load_hf
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


FC1 = "model.encoder.layers.0.fc1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.to(torch.int8), "got int8, wanted plain float16, bfloat16, float32 or float64"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "got float8_e4m3fn, wanted plain float16"),
        (lambda tensor: tensor.to(torch.complex64), "got complex64, wanted plain float16"),
        (lambda tensor: tensor > 0, "got bool, wanted plain float16"),
        (lambda tensor: tensor.double() * 1e300, "got values that are not finite"),
        (lambda tensor: tensor.to_sparse(), "got sparse_coo, wanted plain float16"),
        (lambda tensor: tensor.to("meta"), "got on meta, wanted plain float16"),
    ],
    ids=["int8", "float8", "complex", "bool", "overflow", "sparse", "meta"],
)
def test_tensors_that_are_no_plain_numbers_are_not_taken_for_such(
    change: Callable[[torch.Tensor], torch.Tensor], message: str, directory: Path, refused: Callable[[], str]
) -> None:
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(weights | {FC1: change(weights[FC1])}, directory / "pytorch_model.bin")
    assert f"{FC1}: {message}" in refused()


def test_a_copy_that_is_no_plain_numbers_is_not_compared(directory: Path, refused: Callable[[], str]) -> None:
    weights = load_file(directory / "model.safetensors")
    weights["lm_head.weight"] = weights["model.shared.weight"].to(torch.float8_e4m3fn)
    save_file(weights, directory / "model.safetensors")
    assert "lm_head.weight: got float8_e4m3fn, wanted plain" in refused()


@pytest.mark.parametrize("change", [lambda tensor: tensor.to_sparse(), lambda tensor: tensor.to("meta")])
def test_a_bias_that_is_no_plain_numbers_is_not_looked_into(
    change: Callable[[torch.Tensor], torch.Tensor], directory: Path, refused: Callable[[], str]
) -> None:
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(weights | {"final_logits_bias": change(weights["final_logits_bias"])}, directory / "pytorch_model.bin")
    assert "final_logits_bias: got " in refused()


def test_a_name_in_a_file_does_not_write_to_the_terminal(directory: Path, refused: Callable[[], str]) -> None:
    weights = load_file(directory / "model.safetensors")
    save_file(weights | {"a\n\x1b[31mb": torch.zeros(1)}, directory / "model.safetensors")
    assert "unexpected a\\n\\x1b[31mb [1]" in refused()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 10**12}, "source_vocab_size * d_model: got 16000000000000, but "),
        ({"encoder_layers": 10**7}, "encoder_layers + decoder_layers: got 10000001, but "),
        ({"max_position_embeddings": 10**10}, "max_positions: got 10000000000, wanted at most 65536"),
        ({"decoder_ffn_dim": 10**12, "encoder_ffn_dim": 10**12}, "ffn_dim * d_model: got 16000000000000, but "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_sizes_beyond_the_file_are_refused_before_anything_is_built(
    fields: dict[str, Any], message: str, directory: Path, refused: Callable[[], str]
) -> None:
    edit(directory / "config.json", **fields)
    assert message in refused()


def test_a_pickle_cut_within_a_number(directory: Path, refused: Callable[[], str]) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x02\x4a\x00")
    assert "pytorch_model.bin: damaged" in refused()


def test_an_index_nested_beyond_measure(directory: Path, refused: Callable[[], str]) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text("[" * 100_000)
    assert "model.safetensors.index.json: got no weight_map" in refused()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "vocab.json", "source.spm"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(name: str, directory: Path, refused: Callable[[], str]) -> None:
    (directory / name).unlink()
    os.mkfifo(directory / name)
    assert f"{name}: got something that is no plain file" in refused()


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
        ("generation_config.json", {"forced_bos_token_id": 7}, "forced_bos_token_id: got 7, wanted none for a Marian"),
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


def test_old_m2m100_files_may_hold_the_position_tables_that_are_computed_today(tmp_path: Path) -> None:
    drawing = Drawing(toolkit="nllb", kind="M2M100", seed=3, config=sizes(16, 2, (1, 1), 24, 211))
    model = build(drawing, tmp_path / "m2m")
    weights = load_file(tmp_path / "m2m" / "model.safetensors")
    table = model.model.encoder.embed_positions.weights[: 512 + 2].clone()
    for stack in ("encoder", "decoder"):
        weights[f"model.{stack}.embed_positions.weights"] = table.clone()
    save_file(weights, tmp_path / "m2m" / "model.safetensors")
    assert main(["import", "nllb", str(tmp_path / "m2m"), "--out", str(tmp_path / "out")]) == 0
    weights["model.decoder.embed_positions.weights"][5, 5] += 0.1
    save_file(weights, tmp_path / "m2m" / "model.safetensors")
    assert main(["import", "nllb", str(tmp_path / "m2m"), "--out", str(tmp_path / "again")]) == 1


def test_an_nllb_directory_that_lost_its_languages_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    drawing = Drawing(toolkit="nllb", kind="M2M100", seed=3, config=sizes(16, 2, (1, 1), 24, 401))
    build(drawing, tmp_path / "nllb")
    # As transformers saves a tokenizer that it read from the SentencePiece model alone.
    load_hf("NllbTokenizer", tmp_path / "nllb").save_pretrained(tmp_path / "nllb")
    assert main(["import", "nllb", str(tmp_path / "nllb"), "--out", str(tmp_path / "out")]) == 1
    assert "got no language among the added tokens, wanted some like ace_Arab" in capfd.readouterr().err
