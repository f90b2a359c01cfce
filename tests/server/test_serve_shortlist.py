"""A shortlist from parallel text to server: an exam of its own, and translations of listed tokens alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.bundle import Bundle
from model.checkpoint import Checkpoint, ModelCard, save_checkpoint
from model.tokenizer import train_tokenizer
from tests.export.tiny import random_model
from tests.served import DEMO, Served
from tests.server.commands import ANYWHERE, run

VOCAB = 200
TEXTS = ("Two dogs run.", "A woman sits on a bench and sleeps.", "A man rides a red bicycle.")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a shortlist, certified without it."""
    folder = tmp_path_factory.mktemp("shortlist")
    sentences = [sentence.source for sentence in Bundle.open(DEMO).golden()]
    tokenizer = train_tokenizer(sentences * 4, vocab_size=VOCAB)
    model = random_model(source_vocab_size=VOCAB, target_vocab_size=VOCAB)
    card = ModelCard(
        name="listed", source_languages=("en",), target_languages=("de",), decoding={"max_output_tokens": 12}
    )
    save_checkpoint(folder / "checkpoint", Checkpoint(model, tokenizer, card))
    (folder / "golden.txt").write_text("\n".join(sentences[:6]), encoding="utf-8")
    (folder / "parallel.tsv").write_text("\n".join(f"{text}\t{text}" for text in sentences[:20]), encoding="utf-8")
    flags = ("--golden", str(folder / "golden.txt"), "--shortlist", str(folder / "parallel.tsv"))
    exported = run("export", str(folder / "checkpoint"), "--out", str(folder / "bundle"), *flags)
    assert exported.returncode == 0, exported.stderr
    verified = run("verify", str(folder / "bundle"), "--threads", "1")
    assert verified.returncode == 0, verified.stdout
    return folder / "bundle"


def served_texts(bundle: Path, *flags: str) -> tuple[list[str], dict[str, object]]:
    """Translations, and what the server says of itself."""
    served = Served("--models", str(bundle), "--threads", "1", "--lame-duck", "0", *flags)
    try:
        texts = [served.translate(text, return_scores=True)[0].text for text in TEXTS]
        together = [translation.text for translation in served.translate(*TEXTS, return_scores=True)]
        assert texts == together
        return texts, served.events[-1]
    finally:
        assert served.stop() == 0


def test_a_shortlist_serves_once_it_has_passed_an_exam_of_its_own(bundle: Path) -> None:
    refused = run("serve", *ANYWHERE, "--models", str(bundle), "--threads", "1", "--shortlist")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] == (
        f"dragoman serve: {bundle}: not certified for onnxruntime-cpu-shortlist fp32: no such exam; "
        "run `dragoman verify --shortlist` or pass --allow-uncertified"
    )
    served = Served("--models", str(bundle), "--threads", "1", "--lame-duck", "0", "--shortlist", "--allow-uncertified")
    assert served.stop() == 0
    unknown = run("verify", str(bundle), "--threads", "1", "--shortlist")
    assert unknown.returncode == 1
    assert "NOT certified: BLEU loss unknown, wanted at most 0.2" in unknown.stdout.splitlines()[-1]
    verified = run("verify", str(bundle), "--threads", "1", "--shortlist", "--min-exact", "0")
    assert verified.returncode == 0, verified.stdout
    exams = json.loads((bundle / "certificate.json").read_text(encoding="utf-8"))
    assert [exam["runner"] for exam in exams] == ["onnxruntime-cpu", "onnxruntime-cpu-shortlist"]
    assert exams[0]["token_exact_rate"] == 1.0 > exams[1]["token_exact_rate"]

    listed, started = served_texts(bundle, "--shortlist")
    assert started["shortlist"] is True
    full, started_full = served_texts(bundle)
    assert started_full["shortlist"] is False
    assert all(listed)
    assert listed != full


def test_a_bundle_without_a_shortlist_is_refused_in_one_line(tmp_path: Path) -> None:
    wanted = (
        f"{DEMO}: got a bundle without a shortlist, wanted one for --shortlist: `dragoman export --shortlist PARALLEL`"
    )
    commands = (
        ("serve", *ANYWHERE, "--models", str(DEMO)),
        ("verify", str(DEMO), "--out", str(tmp_path / "exam.json")),
    )
    for command in commands:
        done = run(*command, "--shortlist")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"dragoman {command[0]}: {wanted}")
        assert "Traceback" not in done.stderr
