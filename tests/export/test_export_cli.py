"""``dragoman export`` from a checkpoint on disk to a bundle whose golden answers its own runner gives again."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from export.bundle import Bundle
from export.cli import add_commands
from export.errors import ExportError
from export.golden import Question, read_questions
from export.runners import tensorrt_library
from export.runners.gpu.engine_files import find_engines
from export.runners.gpu.engine_keys import EngineKey
from export.runners.ort_cpu import OrtCpuRunner
from export.shortlist.parallel import encode_pairs
from model.checkpoint import Checkpoint, ModelCard, load_checkpoint, save_checkpoint
from model.tokenizer import Tokenizer, train_tokenizer
from tests.export.tiny import random_model

SENTENCES = ["A man rides a red bicycle.", "Two small dogs run on the street.", "The woman sits on a bench and sleeps."]


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    parsed = parser.parse_args(["export", *map(str, arguments)])
    assert parsed.extra == "export"
    code: int = parsed.run(parsed)
    return code


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tokenizer = train_tokenizer(SENTENCES * 10, vocab_size=36)
    model = random_model(source_vocab_size=36, target_vocab_size=36)
    card = ModelCard(
        name="tiny-en-de",
        source_languages=("en",),
        target_languages=("de",),
        license_note="made for tests",
        decoding={"beam_size": 4, "length_penalty": 0.6, "max_output_tokens": 12},
    )
    save_checkpoint(folder, Checkpoint(model, tokenizer, card))
    (folder / "golden.tsv").write_text(f"{SENTENCES[0]}\tEin Mann.\n\n{SENTENCES[1]}\n")
    return folder


def test_export_gives_a_bundle_that_answers_its_own_exam(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkpoint, "--out", tmp_path / "bundle") == 0
    shown = capsys.readouterr()
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.digest in shown.out
    assert "2/2" in shown.err, "the progress bar counts golden sentences"
    assert bundle.manifest.decoding.length_penalty == 0.6
    assert bundle.manifest.license_note == "made for tests"
    golden = bundle.golden()
    assert [sentence.reference for sentence in golden] == ["Ein Mann.", None]
    runner = OrtCpuRunner.open(bundle, threads=1)
    for sentence in golden:
        assert sentence.beam_options.length_penalty == 0.6
        assert sentence.beam_options.max_output_tokens == 12
        source = np.array([sentence.source_ids])
        runner.encode(sources=source, lengths=np.array([source.shape[1]]), rows=np.array([0]))
        token = bundle.manifest.start_id
        for position, (log_prob, best) in enumerate(zip(sentence.greedy.log_probs, sentence.greedy.best, strict=True)):
            runner.step(tokens=np.array([token]), positions=np.array([position]))
            token = int(runner.argmax()[0])
            ids, scores = runner.top_k(8)
            assert token == (*sentence.greedy.ids, bundle.manifest.eos_id)[position]
            assert [token_id for token_id, _ in best] == ids[0].tolist()
            assert abs(scores[0, 0] - log_prob) < 1e-4


def test_exporting_twice_gives_the_same_digest_and_replaces_the_bundle(checkpoint: Path, tmp_path: Path) -> None:
    digests = set()
    for _ in range(2):
        assert run(checkpoint, "--out", tmp_path / "bundle") == 0
        digests.add(Bundle.open(tmp_path / "bundle").digest)
    assert len(digests) == 1


def test_int8_is_calibrated_on_the_exam_or_on_a_file(checkpoint: Path, tmp_path: Path) -> None:
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("\n".join(SENTENCES), encoding="utf-8")
    digests = set()
    for name, flags in (("own", ()), ("again", ()), ("other", ("--calibration", sentences))):
        assert run(checkpoint, "--out", tmp_path / name, "--precision", "int8", *flags) == 0
        bundle = Bundle.open(tmp_path / name)
        assert bundle.manifest.precision("cpu") == "int8"
        assert OrtCpuRunner.open(bundle, threads=1).precision == "int8"
        digests.add(bundle.digest)
    assert len(digests) == 2, "the same ranges twice, others from another file"
    assert run(checkpoint, "--out", tmp_path / "fp32") == 0
    goldens = {Bundle.open(tmp_path / name).manifest.files["golden.jsonl"] for name in ("own", "other", "fp32")}
    assert len(goldens) == 1, "the exam is the reference's, whatever is examined"


def test_what_is_exported_for_cuda_also_runs_on_the_cpu(checkpoint: Path, tmp_path: Path) -> None:
    for target in ("cpu", "cuda"):
        assert run(checkpoint, "--out", tmp_path / target, "--target", target, "--precision", "fp32") == 0
    cpu, cuda = (Bundle.open(tmp_path / target) for target in ("cpu", "cuda"))
    assert cuda.manifest.graphs == {"cpu": "ort-fp32", "cuda": "standard-fp32"}
    assert cpu.manifest.files.items() <= cuda.manifest.files.items()
    assert {name for name in set(cuda.manifest.files) - set(cpu.manifest.files) if not name.endswith(".onnx")} == {
        "graphs/standard-fp32/weights.bin"
    }
    assert cuda.graph_path("cuda", "step").is_file()
    OrtCpuRunner.open(cuda, threads=1).close()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_shortlist_is_learned_from_parallel_text(precision: str, checkpoint: Path, tmp_path: Path) -> None:
    parallel = tmp_path / "parallel.tsv"
    parallel.write_text("\n".join(f"{sentence}\t{sentence}" for sentence in SENTENCES), encoding="utf-8")
    flags = ("--precision", precision, "--shortlist", parallel)
    digests = set()
    for name in ("a", "b"):
        assert run(checkpoint, "--out", tmp_path / name, *flags) == 0
        digests.add(Bundle.open(tmp_path / name).digest)
    assert len(digests) == 1
    bundle = Bundle.open(tmp_path / "a")
    assert run(checkpoint, "--out", tmp_path / "none", "--precision", precision) == 0
    assert Bundle.open(tmp_path / "none").manifest.files["golden.jsonl"] == bundle.manifest.files["golden.jsonl"]
    shortlist, manifest = bundle.shortlist(), bundle.manifest
    assert shortlist is not None
    assert manifest.eos_id in shortlist.always
    tokenizer = Tokenizer.load(bundle.tokenizer_path)
    for sentence in SENTENCES:
        source = np.array(tokenizer.encode(sentence))
        assert set(source.tolist()) - set(manifest.suppressed_ids) <= set(shortlist.of_source(source).tolist())
    runner = OrtCpuRunner.open(bundle, threads=1, shortlist=True)
    runner.encode(sources=source[None], lengths=np.array([len(source)]), rows=np.array([0]))
    runner.step(tokens=np.array([manifest.start_id]), positions=np.array([0]))
    assert runner.argmax()[0] in shortlist.of_source(source)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one\tein\ntwo\n", "parallel.tsv:2: got no translation, wanted source and translation"),
        ("one\tein\n\n\tzwei\n", "parallel.tsv:3: got no source, wanted source and translation"),
        ("one\tein\ntwo\t \n", "parallel.tsv:2: got no translation, wanted source and translation"),
        ("one\tein\tuno\n", "parallel.tsv:1: got 3 columns, wanted source, or source and reference"),
        ("\n", "parallel.tsv: got no sentence, wanted at least one"),
        ("\udcff\tein\n", "parallel.tsv: got bytes that are not UTF-8 at 0"),
    ],
)
def test_a_fault_of_parallel_text_is_one_line(
    text: str, said: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parallel = tmp_path / "parallel.tsv"
    parallel.write_bytes(text.encode(errors="surrogateescape"))
    assert run(checkpoint, "--out", tmp_path / "bundle", "--shortlist", parallel) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"dragoman export: {tmp_path}/{said}"
    assert not (tmp_path / "bundle").exists()


def test_languages_choose_the_tokens_of_parallel_text(tmp_path: Path, checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    card = dataclasses.replace(loaded.card, source_languages=("en", "fr"), target_languages=("de", "cs"))
    asked: list[tuple[str, str]] = []

    class Languages:
        eos_id, language_aliases = 3, {"deu": "de"}

        def encode(self, text: str, *, source_language: str, target_language: str) -> list[int]:
            asked.append((source_language, target_language))
            return [len(text), 3]

        def encode_target(self, text: str) -> list[int]:
            return [len(text)]

        def forced_tokens(self, target_language: str) -> tuple[int, ...]:
            return (30 if target_language == "de" else 31,)

    several = Checkpoint(loaded.model, cast(Tokenizer, Languages()), card)
    questions = [Question("one", "ein", "en", "deu"), Question("deux", "dva", "fr", "cs")]
    pairs = encode_pairs(several, questions)
    assert [(source.tolist(), target.tolist()) for source, target in pairs] == [
        ([3, 3], [30, 3, 3]),
        ([4, 3], [31, 3, 3]),
    ]
    assert asked == [("en", "de"), ("fr", "cs")]
    wanted = "source_language: got none, wanted one of en, fr, given in a .jsonl file as source_language"
    with pytest.raises(ExportError, match=wanted):
        encode_pairs(several, [Question("one", "ein", "", "de")])


def test_limits_may_be_lowered(checkpoint: Path, tmp_path: Path) -> None:
    limits = ("--max-source-tokens", "30", "--max-output-tokens", "7")
    assert run(checkpoint, "--out", tmp_path / "bundle", *limits) == 0
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert (manifest.max_source_tokens, manifest.max_output_tokens, manifest.decoding.max_output_tokens) == (30, 7, 7)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("--target", "tensorrt", "--precision", "int8"),
            2,
            "got int8 with --target tensorrt, wanted fp32 or fp16 or bf16",
        ),
        (("--target", "cuda", "--precision", "int8"), 2, "got int8 with --target cuda, wanted fp32 or fp16 or bf16"),
        (("--precision", "fp16"), 2, "--precision: got fp16 with --target cpu, wanted fp32 or int8"),
        (("--precision", "bf16"), 2, "--precision: got bf16 with --target cpu, wanted fp32 or int8"),
        (("--calibration", "some.txt"), 2, "--calibration: got it with --precision fp32, wanted --precision int8"),
        (("--precision", "int8", "--calibration", "nowhere.txt"), 1, "nowhere.txt: No such file"),
        (
            ("--target", "cuda", "--shortlist", "some.tsv"),
            2,
            "--shortlist: got it with --target cuda, wanted --target cpu",
        ),
        (("--target", "cuda", "--engines"), 2, "--engines: got it with --target cuda, wanted --target tensorrt"),
        (("--shortlist", "nowhere.tsv"), 1, "nowhere.tsv: No such file"),
        (("--golden", "nowhere.tsv"), 1, "nowhere.tsv: No such file"),
        (("--max-source-tokens", "41"), 1, "max_source_tokens: got 41, wanted 1 to max_positions = 40"),
        (("--max-source-tokens", "3"), 1, "wanted at most 3"),
    ],
)
def test_a_fault_is_one_line(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(checkpoint, "--out", tmp_path / "bundle", *arguments) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("dragoman export: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_engines_are_built_into_the_bundle(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_library, "_MODULES", {"tensorrt-rtx": "tensorrt_rtx_bindings"})
    limits = ("--max-source-tokens", "30", "--max-output-tokens", "7")
    arguments = (checkpoint, "--out", tmp_path / "bundle", "--target", "tensorrt", "--precision", "fp16", *limits)
    assert run(*arguments) == 0
    without = Bundle.open(tmp_path / "bundle")
    capsys.readouterr()
    assert run(*arguments, "--engines") == 0
    said = capsys.readouterr()
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.digest == without.digest, "engines are beside what the manifest vouches for"
    wanted = EngineKey.of(bundle, tensorrt_library.find_library(), max_rows=96, max_candidates=32)
    found = find_engines(bundle, wanted, cache=None)
    assert found is not None
    assert found.path.parent == bundle.path / "engines"
    assert "[1/5] encoder: " in said.err
    assert "KV_CACHE_UPDATE" in said.out


def test_engines_without_tensorrt_are_one_line_before_the_exam_is_answered(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_library, "_MODULES", {"tensorrt": "no_such_module"})
    assert run(checkpoint, "--out", tmp_path / "bundle", "--target", "tensorrt", "--engines") == 1
    wanted = "TensorRT: not installed; `pip install 'dragoman[tensorrt]'`, or 'dragoman[tensorrt-rtx]' for GeForce"
    assert capsys.readouterr().err == f"dragoman export: {wanted} and RTX cards\n"
    assert not (tmp_path / "bundle").exists()


def test_a_model_without_an_exam_of_its_own_gets_the_built_in_one(checkpoint: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare)
    (bare / "golden.tsv").unlink()
    assert run(bare, "--out", tmp_path / "bundle") == 0
    golden = Bundle.open(tmp_path / "bundle").golden()
    limit = Bundle.open(tmp_path / "bundle").manifest.max_source_tokens
    assert "Snow." in [sentence.source for sentence in golden]
    assert all(len(sentence.source_ids) <= limit for sentence in golden)


def test_a_missing_checkpoint_or_occupied_folder_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "nowhere", "--out", tmp_path / "bundle") == 1
    assert "nowhere" in capsys.readouterr().err
    assert run(checkpoint, "--out", checkpoint) == 1
    assert "other files" in capsys.readouterr().err


def test_questions_are_read_from_columns_or_records(tmp_path: Path) -> None:
    columns, records = tmp_path / "a.tsv", tmp_path / "b.jsonl"
    columns.write_text("one\r\n\ntwo\tzwei\n", encoding="utf-8")
    records.write_text('{"source": "one"}\n{"source": "two", "reference": "zwei"}\n', encoding="utf-8")
    assert read_questions(columns) == read_questions(records) == [Question("one"), Question("two", "zwei")]
    for path, text in ((columns, "a\tb\tc"), (columns, "\n"), (records, "{}"), (records, "one")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ExportError, match=path.name):
            read_questions(path)
    columns.write_bytes(b"\xff")
    with pytest.raises(ExportError, match="not UTF-8"):
        read_questions(columns)


def test_serving_needs_neither_torch_nor_onnx() -> None:
    program = (
        "import sys, export.bundle, export.cli, export.runners.ort_cpu;"
        "print([name for name in ('torch', 'onnx', 'safetensors', 'model.transformer') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
