"""Measures a bundle on a runner: the exam, and BLEU and chrF of the texts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from pathlib import Path

import sacrebleu

from export.bundle import Bundle, BundleError, GoldenSentence, read_golden
from export.runners.protocol import Runner
from model.tokenizer import Tokenizer
from server.exam.grading import SearchName
from server.exam.sitting import ExamResult, sit_exam
from server.exam.thresholds import Judged, Thresholds


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Texts against people's translations, 0 to 100."""

    bleu: float
    chrf: float
    reference_bleu: float
    reference_chrf: float

    @property
    def bleu_loss(self) -> float:
        """BLEU by which the runner is below the reference decoder."""
        return self.reference_bleu - self.bleu


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One set of golden sentences on one runner.

    Attributes:
        result: what the exam says.
        references: sentences that come with a person's translation.
        quality: per search; empty where there are no references.
        digests: sha256 of the outside files it was measured on; empty where it was the bundle's own set alone.
    """

    result: ExamResult
    references: int = 0
    quality: dict[SearchName, Quality] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What it was measured on, for people."""
        return "outside files" if self.digests else "the bundle's golden set"

    def judged(self, thresholds: Thresholds) -> tuple[Judged, ...]:
        """Every figure and what was asked of it."""
        losses = (
            Judged(f"BLEU loss of {search}", one.bleu_loss, most=thresholds.max_bleu_loss, option="--max-bleu-loss")
            for search, one in self.quality.items()
        )
        return (*self.result.judged(thresholds), *losses)


def measure(
    bundle: Bundle,
    runner: Runner,
    *,
    golden_file: Path | None = None,
    references_file: Path | None = None,
    on_answer: Callable[[], None] = lambda: None,
) -> Measured:
    """Sit the exam and score the texts.

    Args:
        bundle: whose model it is.
        runner: nobody else uses it meanwhile.
        golden_file: an outside golden set; None: the bundle's own.
        references_file: a person's translation of each sentence, line by line; None: those of the golden set.
        on_answer: as ``sit_exam`` takes it.

    Raises:
        BundleError: a file cannot be read, or has not one reference per sentence.
        ExamError: the exam could not be sat.
    """
    golden = bundle.golden() if golden_file is None else _read_outside_golden(golden_file)
    references = [sentence.reference for sentence in golden]
    digests: dict[str, str] = {}
    if golden_file is not None:
        digests["golden_sha256"] = _sha256(golden_file)
    if references_file is not None:
        references = [*_read_references(references_file, wanted=len(golden))]
        digests["references_sha256"] = _sha256(references_file)
    result = sit_exam(bundle, runner, golden=golden, on_answer=on_answer)
    quality = _quality(golden, references, result, Tokenizer.load(bundle.tokenizer_path))
    known = sum(reference is not None for reference in references)
    return Measured(result=result, references=known, quality=quality, digests=digests)


def _read_outside_golden(path: Path) -> list[GoldenSentence]:
    try:
        return read_golden(path)
    except BundleError as error:
        if isinstance(error.__cause__, OSError):
            raise
        wanted = "--golden takes a golden.jsonl with the reference's answers, as an exported bundle holds it"
        raise BundleError(f"{error}; {wanted}") from error


def _read_references(path: Path, *, wanted: int) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {error}") from error
    if len(lines) != wanted:
        raise BundleError(f"{path}: got {len(lines)} lines, wanted {wanted}, one per golden sentence")
    return lines


def _quality(
    golden: Items[GoldenSentence], references: Items[str | None], result: ExamResult, tokenizer: Tokenizer
) -> dict[SearchName, Quality]:
    known = [(index, reference) for index, reference in enumerate(references) if reference is not None]
    if not known:
        return {}
    people = [[reference for _, reference in known]]

    def scores(outputs: Items[Items[int]]) -> tuple[float, float]:
        texts = [tokenizer.decode(outputs[index]) for index, _ in known]
        return sacrebleu.corpus_bleu(texts, people).score, sacrebleu.corpus_chrf(texts, people).score

    quality: dict[SearchName, Quality] = {}
    sides: tuple[tuple[SearchName, Items[Items[int]], Items[Items[int]]], ...] = (
        ("greedy", result.greedy, [sentence.greedy.ids for sentence in golden]),
        ("beam", result.beam, [sentence.beam.ids for sentence in golden]),
    )
    for search, outputs, wanted in sides:
        (bleu, chrf), (reference_bleu, reference_chrf) = scores(outputs), scores(wanted)
        quality[search] = Quality(bleu=bleu, chrf=chrf, reference_bleu=reference_bleu, reference_chrf=reference_chrf)
    return quality


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
