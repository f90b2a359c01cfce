"""``dragoman verify`` for a precision that rounds: its loss is measured, named and refused, or accepted knowingly."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from export.bundle import GOLDEN_FILE, Bundle, write_bundle, write_golden
from export.runners.protocol import FloatArray
from model.tokenizer import Tokenizer
from server.exam.quality import Measured, Quality
from server.exam.sitting import ExamResult
from server.exam.thresholds import Thresholds
from server.exam.verdict import judge
from tests.decoding.conftest import TEXTS, VOCAB, GoldenMaker
from tests.decoding.fake_runner import END, Prefix, Rule, Source, random_rule
from tests.decoding.test_verify import UseRunner, use_runner, verify

__all__ = ["use_runner"]  # a fixture


Wordy = Callable[[int], Rule]


@pytest.fixture
def wordy(tokenizer: Tokenizer) -> Wordy:
    """Models whose outputs are six words, for which BLEU is more than 0."""
    begins_word = [" " in tokenizer.decode([token, token]) for token in range(4, VOCAB)]

    def make(seed: int) -> Rule:
        chatty = random_rule(seed, vocab=VOCAB)

        def rule(source: Source, prefix: Prefix) -> FloatArray:
            logits = chatty(source, prefix)
            logits[4:][begins_word] += 50.0
            logits[END] += 100.0 if len(prefix) >= 6 else -100.0
            return logits

        return rule

    return make


@pytest.fixture
def rounded(use_runner: UseRunner, wordy: Wordy) -> None:
    """A runner in int8 that is nothing like the reference."""
    use_runner(wordy(8), precision="int8")


@pytest.fixture
def exact(use_runner: UseRunner, wordy: Wordy) -> None:
    """A runner in int8 that rounds nothing away."""
    use_runner(wordy(7), precision="int8")


@pytest.fixture
def unreferenced(bundle: Bundle, tmp_path: Path, wordy: Wordy, make_golden: GoldenMaker) -> Bundle:
    """A bundle with no person's translation in its golden set."""

    def fill(folder: Path) -> None:
        for name in ("graphs", "tokenizer"):
            shutil.copytree(bundle.path / name, folder / name)
        golden = [dataclasses.replace(sentence, reference=None) for sentence in make_golden(wordy(7))]
        write_golden(folder / GOLDEN_FILE, golden)

    return write_bundle(tmp_path / "unreferenced", manifest=bundle.manifest, fill=fill)


@pytest.fixture
def references(tmp_path: Path, tokenizer: Tokenizer, unreferenced: Bundle) -> Path:
    """People who translate as the reference's beam search does."""
    path = tmp_path / "people.de"
    lines = [tokenizer.decode(sentence.beam.ids) for sentence in unreferenced.golden()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def conclusion(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_a_loss_of_bleu_is_refused_by_name(
    unreferenced: Bundle, rounded: None, references: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(unreferenced.path, "--references", references) == 1
    (exam,) = unreferenced.certificate()
    assert (exam.passed, exam.precision, exam.thresholds) == (False, "int8", {"max_bleu_loss": 0.2})
    (outside,) = exam.outside_files
    assert outside["references_sha256"] == hashlib.sha256(references.read_bytes()).hexdigest()
    loss = outside["beam"]["bleu_loss"]
    assert loss == outside["beam"]["reference_bleu"] - outside["beam"]["bleu"] > 50
    assert f"outside files: BLEU loss of beam {loss:.3g}, wanted at most 0.2 (--max-bleu-loss)" in exam.missed
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"NOT certified: {'; '.join(exam.missed)}"
    assert "token-exact" not in out.splitlines()[-1], "int8 is not held to the tokens unless asked"
    assert "fault" not in out


def test_a_larger_loss_may_be_allowed(unreferenced: Bundle, rounded: None, references: Path) -> None:
    assert verify(unreferenced.path, "--references", references, "--max-bleu-loss", 100) == 0
    (exam,) = unreferenced.certificate()
    assert (exam.passed, exam.missed, exam.thresholds) == (True, (), {"max_bleu_loss": 100.0})
    assert exam.token_exact_rate < 0.5
    assert exam.max_log_prob_difference > 0.1


def test_what_loses_nothing_is_certified(unreferenced: Bundle, exact: None, references: Path) -> None:
    assert verify(unreferenced.path, "--references", references) == 0
    (exam,) = unreferenced.certificate()
    assert exam.outside_files[0]["beam"]["bleu_loss"] == 0.0
    assert exam.bleu_losses == {}, "the bundle's own set has no references"


def test_without_references_nothing_is_certified_by_accident(
    unreferenced: Bundle, exact: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(unreferenced.path) == 1
    assert conclusion(capsys) == (
        "NOT certified: BLEU loss unknown, wanted at most 0.2 (--max-bleu-loss): got no person's translation "
        "to measure it on, give --references FILE or --min-exact R"
    )
    assert verify(unreferenced.path, "--max-bleu-loss", 5, "--min-exact", 0.5) == 1
    assert conclusion(capsys).endswith(
        "wanted at most 5 (--max-bleu-loss): got no person's translation to measure it on, give --references FILE"
    )


def test_without_references_the_tokens_may_be_asked_for(
    unreferenced: Bundle, use_runner: UseRunner, wordy: Wordy, capsys: pytest.CaptureFixture[str]
) -> None:
    use_runner(wordy(7), precision="int8")
    assert verify(unreferenced.path, "--min-exact", 0.5) == 0
    assert unreferenced.certificate()[0].thresholds == {"min_exact_rate": 0.5}
    use_runner(wordy(8), precision="int8")
    assert verify(unreferenced.path, "--min-exact", 0.5) == 1
    assert conclusion(capsys) == "NOT certified: token-exact rate 0, wanted at least 0.5 (--min-exact)"


def test_the_bundles_own_references_are_judged_where_there_are_no_others(
    bundle: Bundle, rounded: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(bundle.path, "--max-bleu-loss", -100) == 1
    (exam,) = bundle.certificate()
    assert exam.bleu_losses.keys() == {"greedy", "beam"}
    assert [line.split(" -")[0] for line in exam.missed] == ["BLEU loss of greedy", "BLEU loss of beam"]
    assert f"{len(TEXTS)} sentences tell little of BLEU" in capsys.readouterr().out


def measured(*, references: int, loss: float, outside: bool = False) -> Measured:
    result = ExamResult(
        sentences=9,
        token_exact_rate=0.5,
        max_log_prob_difference=0.1,
        max_score_difference=0.1,
        exceptions=(),
        faults=(),
        greedy=(),
        beam=(),
    )
    quality = Quality(bleu=40.0 - loss, chrf=60.0, reference_bleu=40.0, reference_chrf=60.0)
    return Measured(
        result=result,
        references=references,
        quality={"beam": quality} if references else {},
        digests={"golden_sha256": "0"} if outside else {},
    )


@pytest.mark.parametrize(
    ("own", "outside", "missed"),
    [
        ((64, 1.7), (1000, 0.1), []),
        ((64, 0.0), (1000, 0.3), ["outside files: BLEU loss of beam 0.3, wanted at most 0.2 (--max-bleu-loss)"]),
        ((64, 0.3), (0, 0.0), ["the bundle's golden set: BLEU loss of beam 0.3, wanted at most 0.2 (--max-bleu-loss)"]),
        ((64, 1.7), (64, 0.1), []),
    ],
)
def test_bleu_is_judged_on_the_set_with_the_most_references(
    own: tuple[int, float], outside: tuple[int, float], missed: list[str]
) -> None:
    sets = [
        measured(references=own[0], loss=own[1]),
        measured(references=outside[0], loss=outside[1], outside=True),
    ]
    verdict = judge(sets, Thresholds.of_precision("int8"), bleu_is_wanted=False)
    assert list(verdict.missed) == missed
    exact = judge(sets, Thresholds.of_precision("int8", min_exact_rate=0.6), bleu_is_wanted=False)
    assert len([line for line in exact.missed if "token-exact" in line]) == 2, "tokens are judged on both"
