"""A model in int8 from checkpoint to server: refused by how much it loses, or served as it was certified."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from export.bundle import Bundle
from model.checkpoint import Checkpoint, ModelCard, save_checkpoint
from model.config import TransformerConfig
from model.tokenizer import Tokenizer, train_tokenizer
from model.transformer import Transformer
from tests.served import DEMO, Served
from tests.server.commands import ANYWHERE, run

VOCAB = 200
OUTLIER = 100.0


def heavy_model(tokenizer: Tokenizer) -> Transformer:
    """A random model that writes whole words, with one channel so large that 8 bits have no room beside it.

    Scaling a row of a ReLU layer's first matrix, and the column that reads it by the inverse, changes no output.
    """
    words = [token for token in range(4, VOCAB) if " " in tokenizer.decode([token, token])]
    suppressed = sorted(set(range(VOCAB)) - {*words, tokenizer.eos_id})
    torch.manual_seed(5)
    model = Transformer(
        TransformerConfig(
            source_vocab_size=VOCAB,
            target_vocab_size=VOCAB,
            d_model=32,
            heads=4,
            encoder_layers=1,
            decoder_layers=1,
            ffn_dim=48,
            max_positions=40,
            suppressed=tuple(suppressed),
        )
    )
    model.initialise()
    with torch.no_grad():
        for stack in ("encoder", "decoder"):
            model.get_parameter(f"{stack}.0.feed_forward.inner.weight")[7] *= OUTLIER
            model.get_parameter(f"{stack}.0.feed_forward.inner.bias")[7] = OUTLIER
            model.get_parameter(f"{stack}.0.feed_forward.outer.weight")[:, 7] /= OUTLIER
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in int8 with a file of translations that agree with the reference."""
    folder = tmp_path_factory.mktemp("int8")
    sentences = [sentence.source for sentence in Bundle.open(DEMO).golden()]
    tokenizer = train_tokenizer(sentences * 4, vocab_size=VOCAB)
    card = ModelCard(
        name="heavy",
        source_languages=("en",),
        target_languages=("de",),
        license_note="made for tests",
        decoding={"max_output_tokens": 12},
    )
    save_checkpoint(folder / "checkpoint", Checkpoint(heavy_model(tokenizer), tokenizer, card))
    (folder / "checkpoint" / "golden.tsv").write_text("\n".join(sentences[:6]), encoding="utf-8")
    done = run("export", str(folder / "checkpoint"), "--out", str(folder / "bundle"), "--precision", "int8")
    assert done.returncode == 0, done.stderr
    texts = [tokenizer.decode(sentence.beam.ids) for sentence in Bundle.open(folder / "bundle").golden()]
    (folder / "people.de").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """The bundle, not yet examined."""
    return Path(shutil.copytree(exported / "bundle", tmp_path / "bundle"))


def verify(bundle: Path, exported: Path, *flags: str) -> tuple[int, str]:
    done = run("verify", str(bundle), "--references", str(exported / "people.de"), "--threads", "1", *flags)
    assert done.stderr.strip("\r\n ") == ""
    return done.returncode, done.stdout.splitlines()[-1]


def refusal(bundle: Path) -> str:
    done = run("serve", *ANYWHERE, "--models", str(bundle), "--threads", "1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def record(bundle: Path) -> Any:
    (exam,) = json.loads((bundle / "certificate.json").read_text(encoding="utf-8"))
    return exam


def test_a_model_that_loses_too_much_is_refused_by_verify_and_by_serve(bundle: Path, exported: Path) -> None:
    code, conclusion = verify(bundle, exported)
    exam = record(bundle)
    loss = exam["outside_files"][0]["beam"]["bleu_loss"]
    assert loss > 5.0
    missed = f"outside files: BLEU loss of beam {loss:.3g}, wanted at most 0.2 (--max-bleu-loss)"
    assert (code, exam["passed"]) == (1, False)
    assert conclusion.startswith("NOT certified: ")
    assert missed in conclusion
    said = refusal(bundle)
    assert said.startswith(f"dragoman serve: {bundle}: not certified for onnxruntime-cpu int8: the exam was failed: ")
    assert missed in said


def test_a_model_that_may_lose_as_much_is_served_as_it_was_certified(bundle: Path, exported: Path) -> None:
    assert verify(bundle, exported, "--max-bleu-loss", "100") == (0, f"certified: {bundle / 'certificate.json'}")
    exam = record(bundle)
    assert (exam["passed"], exam["precision"], exam["thresholds"]) == (True, "int8", {"max_bleu_loss": 100.0})
    assert exam["manifest_sha256"] == Bundle.open(bundle).digest
    assert len(exam["outside_files"][0]["references_sha256"]) == 64
    assert {"onnxruntime", "sacrebleu", "python"} <= set(exam["tool_versions"])
    assert exam["token_exact_rate"] < 1.0

    served = Served("--models", str(bundle), "--threads", "1", "--lame-duck", "0")
    try:
        (described,) = served.events[-1]["models"]
        assert (described["model"], described["precision"], described["certified"]) == ("heavy", "int8", True)
        assert served.translate("Two dogs run.")[0].text
    finally:
        assert served.stop() == 0


def test_a_model_that_is_worse_here_than_its_certificate_says_is_refused(bundle: Path, exported: Path) -> None:
    assert verify(bundle, exported, "--max-bleu-loss", "100")[0] == 0
    exam = record(bundle)
    exam["max_log_prob_difference"] /= 100.0
    (bundle / "certificate.json").write_text(json.dumps([exam]), encoding="utf-8")
    most = 1.25 * exam["max_log_prob_difference"]
    said = refusal(bundle)
    assert f"{bundle}: warm-up exam failed: log-prob difference " in said
    assert said.endswith(f", wanted at most {most:g}")
