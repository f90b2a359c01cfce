"""``golden.jsonl``: the exam a bundle carries, one sentence per line, with the reference decoder's answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.bundle.fields import BundleError, Fields, read_bytes, to_json
from export.bundle.manifest import LENGTH_PENALTIES

GOLDEN_FILE = "golden.jsonl"
FINISH_REASONS = ("END_TOKEN", "MAX_TOKENS")
_DECIMALS = 6


@dataclass(frozen=True, kw_only=True)
class GoldenHypothesis:
    """One output of the reference decoder; log-probs are rounded to 6 decimals.

    Attributes:
        ids: output token ids, forced ones included, end token not.
        score: log-probability, end token counted, forced tokens not; of a beam: divided by the length penalty.
        log_probs: of each token; the end token's last where the output ended with it.
        best: for each of ``log_probs``, the best (token id, log-prob) of that step, best first.
        finish_reason: ``END_TOKEN`` or ``MAX_TOKENS``.
    """

    ids: tuple[int, ...]
    score: float
    log_probs: tuple[float, ...]
    best: tuple[tuple[tuple[int, float], ...], ...]
    finish_reason: str

    @classmethod
    def read(cls, fields: Fields) -> GoldenHypothesis:
        """Read and check one ``greedy`` or ``beam`` record."""
        hypothesis = cls(
            ids=fields.integers("ids"),
            score=fields.number("score"),
            log_probs=fields.numbers("log_probs"),
            best=tuple(_read_step(step, fields) for step in fields.items("best")),
            finish_reason=fields.choice("finish_reason", FINISH_REASONS),
        )
        steps = len(hypothesis.ids) + (hypothesis.finish_reason == "END_TOKEN")
        for name in ("log_probs", "best"):
            if len(getattr(hypothesis, name)) != steps:
                raise fields.fault(name, f"a list of {steps}, one per chosen token")
        return hypothesis


@dataclass(frozen=True, kw_only=True)
class BeamOptions:
    """How the reference searched: the beam's options, and the limit of both searches; fields as DecodingDefaults."""

    beam_size: int
    length_penalty: float
    length_penalty_type: str
    max_output_tokens: int
    early_stopping: bool = False
    forced_end: bool = False

    @classmethod
    def read(cls, fields: Fields) -> BeamOptions:
        """Read and check the ``beam_options`` record."""
        return cls(
            beam_size=fields.integer("beam_size", minimum=2),
            length_penalty=fields.number("length_penalty"),
            length_penalty_type=fields.choice("length_penalty_type", LENGTH_PENALTIES),
            max_output_tokens=fields.integer("max_output_tokens", minimum=1),
            early_stopping=fields.flag("early_stopping"),
            forced_end=fields.flag("forced_end"),
        )


@dataclass(frozen=True, kw_only=True)
class GoldenSentence:
    """One question of the exam.

    Attributes:
        source: text, for people; the exam needs no tokenizer.
        source_ids: its token ids, end token included.
        forced_ids: output tokens that every output has to begin with.
        reference: a person's translation, where there is one.
        greedy: the reference decoder's greedy output.
        beam: the best of its beam search.
        beam_options: how it searched.
    """

    source: str
    source_ids: tuple[int, ...]
    forced_ids: tuple[int, ...] = ()
    reference: str | None
    greedy: GoldenHypothesis
    beam: GoldenHypothesis
    beam_options: BeamOptions

    @classmethod
    def read(cls, fields: Fields) -> GoldenSentence:
        """Read and check one line."""
        sentence = cls(
            source=fields.text("source"),
            source_ids=fields.integers("source_ids"),
            forced_ids=fields.integers("forced_ids"),
            reference=fields.text("reference") if fields.has("reference") else None,
            greedy=GoldenHypothesis.read(fields.record("greedy")),
            beam=GoldenHypothesis.read(fields.record("beam")),
            beam_options=BeamOptions.read(fields.record("beam_options")),
        )
        if not sentence.source_ids:
            raise fields.fault("source_ids", "at least the end token")
        for golden in (sentence.greedy, sentence.beam):
            if golden.ids[: len(sentence.forced_ids)] != sentence.forced_ids:
                raise fields.fault("forced_ids", "what both outputs begin with")
        return sentence


def read_golden(path: Path) -> list[GoldenSentence]:
    """Read ``golden.jsonl``.

    Raises:
        BundleError: the file is missing, empty or a line is no golden sentence.
    """
    sentences = []
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        sentences.append(GoldenSentence.read(Fields.parse(line, where=f"{path}:{number}")))
    if not sentences:
        raise BundleError(f"{path}: got no sentence, wanted at least one")
    return sentences


def write_golden(path: Path, sentences: Iterable[GoldenSentence]) -> None:
    """Write ``golden.jsonl``, numbers rounded to 6 decimals."""
    lines = (to_json(_rounded(dataclasses.asdict(sentence))) + "\n" for sentence in sentences)
    path.write_text("".join(lines), encoding="utf-8")


def _read_step(step: object, fields: Fields) -> tuple[tuple[int, float], ...]:
    pairs: list[Any] = step if isinstance(step, list) else [None]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise fields.fault("best", "for each step a list of [token id, log-prob]")
    checked = Fields({"ids": [pair[0] for pair in pairs], "log_probs": [pair[1] for pair in pairs]}, where=fields.where)
    return tuple(zip(checked.integers("ids"), checked.numbers("log_probs"), strict=True))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DECIMALS)
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return value
