"""Training: batches, schedule, exact resume, averaging, the command itself."""

from __future__ import annotations

import argparse
import gzip
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from model.checkpoint import load_checkpoint
from model.cli import run_train
from model.config import ConfigError
from model.data import DataError, ParallelText, TokenisedCorpus, read_lines, read_parallel
from model.tokenizer import Tokenizer
from model.training.interrupt import held_interrupt
from model.training.log import read_log
from model.training.recipe import Recipe, read_recipe
from model.training.schedule import learning_rate
from model.training.trainer import Trainer, average_snapshots

RECIPE: dict[str, Any] = {
    "name": "tiny-en-de",
    "source_language": "en",
    "target_language": "de",
    "decoding": {"beam_size": 1},
    "tokenizer": {"vocab_size": 48},
    "transformer": {
        "d_model": 16,
        "heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "ffn_dim": 24,
        "dropout": 0.2,
        "max_positions": 64,
    },
    "optimisation": {
        "batch_tokens": 120,
        "warmup_updates": 10,
        "max_updates": 14,
        "validate_every": 5,
        "average_last": 2,
        "checkpoint_dtype": "float16",
    },
}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    return read_recipe(path)


class KilledError(Exception):
    """Stands for a kill: nothing in the trainer catches it."""


def kill_at(trainer: Trainer, update: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trainer._update

    def stopping(batch: Any) -> float:
        if trainer._progress.update == update:
            raise KilledError
        return whole(batch)

    monkeypatch.setattr(trainer, "_update", stopping)


def test_a_killed_training_resumes_to_the_same_weights(
    recipe: Recipe, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(recipe, data=corpus_folder, out=tmp_path / "whole").run()

    cut = tmp_path / "cut"
    first = Trainer(recipe, data=corpus_folder, out=cut)
    kill_at(first, 8, monkeypatch)  # the last state lies at update 5, in the middle of an epoch
    with pytest.raises(KilledError):
        first.run()
    assert not (cut / "model.safetensors").exists()
    second = Trainer(recipe, data=corpus_folder, out=cut)
    assert second._progress.update == 5
    second.run()

    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert read_log(tmp_path / "whole" / "training") == read_log(cut / "training")


@pytest.mark.parametrize("update", [7, 10])  # in the middle of an epoch, and where a validation follows
def test_an_interrupted_training_resumes_to_the_same_weights(
    update: int, recipe: Recipe, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(recipe, data=corpus_folder, out=tmp_path / "whole").run()

    cut = tmp_path / "cut"
    first = Trainer(recipe, data=corpus_folder, out=cut)
    step = first._optimizer.step

    def interrupting() -> None:
        step()
        if first._progress.update == update - 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(first._optimizer, "step", interrupting)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = Trainer(recipe, data=corpus_folder, out=cut)
    assert second._progress.update == update
    second.run()

    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_does_not_wait() -> None:
    with held_interrupt() as interrupted:
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_final_checkpoint_is_the_average_rounded_and_loads(
    recipe: Recipe, corpus_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    Trainer(recipe, data=corpus_folder, out=out).run()
    assert len(list((out / "training").glob("update-*.safetensors"))) == 2
    stored = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    checkpoint = load_checkpoint(out)
    assert checkpoint.card.name == "tiny-en-de"
    assert checkpoint.card.source_languages == ("en",)
    name = next(iter(stored))
    assert torch.equal(dict(checkpoint.model.named_parameters())[name], stored[name].float())
    assert (out / "training" / "training.png").stat().st_size > 1000


def test_another_shape_does_not_resume(recipe: Recipe, corpus_folder: Path, tmp_path: Path) -> None:
    Trainer(recipe, data=corpus_folder, out=tmp_path / "out").run()
    other = Recipe(
        card=recipe.card,
        vocab_size=recipe.vocab_size,
        transformer={**recipe.transformer, "d_model": 32},
        optimisation=recipe.optimisation,
    )
    with pytest.raises(ConfigError, match="was begun with another d_model"):
        Trainer(other, data=corpus_folder, out=tmp_path / "out")


def test_averaging_is_the_mean(tmp_path: Path) -> None:
    paths = []
    for place, value in enumerate((1.0, 2.0, 6.0)):
        paths.append(tmp_path / f"{place}.safetensors")
        save_file({"w": torch.full((3,), value)}, paths[-1])
    assert torch.equal(average_snapshots(paths)["w"], torch.full((3,), 3.0))


def test_the_schedule_warms_up_then_decays_with_the_inverse_square_root() -> None:
    rates = [learning_rate(update, peak=1e-3, warmup_updates=100) for update in (1, 50, 100, 400)]
    assert rates == pytest.approx([1e-5, 5e-4, 1e-3, 5e-4])


def test_batches_hold_every_sentence_once_within_the_token_limit(corpus_folder: Path, tokenizer: Tokenizer) -> None:
    text = read_parallel(corpus_folder, split="train", source_language="en", target_language="de")
    corpus = TokenisedCorpus(text, tokenizer, batch_tokens=100, max_length=50)
    batches = corpus.epoch(seed=3, epoch=0)
    assert sorted(index for batch in batches for index in batch) == list(range(len(corpus.pairs)))
    for batch in map(corpus.batch, batches):
        assert max(batch.source.numel(), batch.target_in.numel()) <= 100
        assert (batch.target_in[:, 1:] == batch.target_out[:, :-1].masked_fill(batch.target_out[:, :-1] == 3, 0)).all()
    assert batches == corpus.epoch(seed=3, epoch=0)
    assert batches != corpus.epoch(seed=3, epoch=1)


def test_bad_data_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"train\.en\.gz"):
        read_parallel(tmp_path, split="train", source_language="en", target_language="de")
    (tmp_path / "train.en").write_text("a\nb\n")
    (tmp_path / "train.de").write_text("a\n")
    with pytest.raises(DataError, match="got 2 and 1 lines"):
        read_parallel(tmp_path, split="train", source_language="en", target_language="de")
    with pytest.raises(DataError, match="at most 1 tokens"):
        TokenisedCorpus(ParallelText(["man"], ["Mann"]), tokenizer, batch_tokens=9, max_length=1)


def test_bad_recipes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "optimisation": {"momentum": 1}}))
    with pytest.raises(ConfigError, match="unknown field momentum"):
        read_recipe(path)
    path.write_text(yaml.safe_dump({key: value for key, value in RECIPE.items() if key != "name"}))
    with pytest.raises(ConfigError, match="missing field 'name'"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("section", "fields", "said"),
    [
        ("optimisation", {"peak_learning_rate": "1e-3"}, "wanted a number (YAML wants 1.0e-3 for 1e-3)"),
        ("optimisation", {"seed": "x"}, "seed: got 'x', wanted a whole number"),
        ("optimisation", {"batch_tokens": 1.5}, "batch_tokens: got 1.5"),
        ("optimisation", {"bf16": "no"}, "bf16: got 'no', wanted true or false"),
        ("optimisation", {"label_smoothing": 2}, "label_smoothing: got 2"),
        ("optimisation", {"clip_norm": 0}, "clip_norm: got 0"),
        ("optimisation", {"patience": -1}, "patience: got -1"),
        ("tokenizer", {"vocab_size": "many"}, "vocab_size: got 'many'"),
        ("name", "Bad Name", "name: got 'Bad Name'"),
        ("source_language", ["en"], "source_languages: got (['en'],)"),
        ("license_note", 5, "license_note: got 5"),
        ("decoding", [1], "decoding: got [1], wanted a mapping"),
    ],
)
def test_a_recipe_that_cannot_end_well_is_refused_at_once(section: str, fields: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, section: fields}))
    if isinstance(fields, dict):
        path.write_text(yaml.safe_dump({**RECIPE, section: {**RECIPE[section], **fields}}))
    with pytest.raises(ConfigError) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_broken_yaml_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: [\n b: {")
    with pytest.raises(ConfigError) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


def test_data_beyond_the_positions_and_folders_that_cannot_be_made_are_one_line(
    corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "transformer": {**RECIPE["transformer"], "max_positions": 3}}))
    for out, said in ((tmp_path / "out", "max_positions: got 3, wanted at least"), (path, "Not a directory")):
        arguments = argparse.Namespace(config=path, data=corpus_folder, out=out)
        assert run_train(arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("dragoman train: ")
        assert said in line


def test_a_damaged_gzip_file_is_named(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(b"a man rides a bicycle\n" * 50))
    packed[10] = 0xFF  # a kind of block that there is not
    path = tmp_path / "train.en.gz"
    path.write_bytes(packed)
    with pytest.raises(DataError, match=r"train\.en\.gz"):
        read_lines(path)


def test_the_bundled_recipe_is_valid() -> None:
    recipe = read_recipe(Path(__file__).parents[2] / "configs" / "multi30k-en-de.yaml")
    assert recipe.optimisation.checkpoint_dtype == "float16"
    assert json.dumps(recipe.card.decoding)
