"""The golden exam: questions from a file, answers from the cache-free reference decoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from export.bundle import BeamOptions, BundleError, DecodingDefaults, GoldenHypothesis, GoldenSentence
from export.bundle.fields import Fields
from export.errors import ExportError
from model.checkpoint import Checkpoint
from model.reference import LengthPenaltyType, ReferenceHypothesis, beam_search, greedy_search

BEAM_SIZE = 4
_DEFAULT_FILE = Path(__file__).with_name("golden.txt")


@dataclass(frozen=True)
class Question:
    """A source text and, where there is one, a person's translation."""

    source: str
    reference: str | None = None


def read_questions(path: Path) -> list[Question]:
    """Read golden sentences, one per line.

    Args:
        path: ``.jsonl`` with ``source`` and, if there is one, ``reference``; any other file: the source, or source,
            tab, reference. Blank lines are passed over.

    Raises:
        ExportError: the file cannot be read, a line is malformed, or there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"{path}: got bytes that are not UTF-8 at {error.start}") from error
    read = _read_record if path.suffix == ".jsonl" else _read_columns
    questions = [
        read(line.removesuffix("\r"), f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()
    ]
    if not questions:
        raise ExportError(f"{path}: got no sentence, wanted at least one")
    return questions


def default_questions(checkpoint: Checkpoint, *, max_source_tokens: int) -> list[Question]:
    """Built-in sentences in a dozen languages, those that fit the model; for one that comes with none of its own.

    Raises:
        ExportError: none fits.
    """
    encode = checkpoint.tokenizer.encode
    fitting = [
        question for question in read_questions(_DEFAULT_FILE) if len(encode(question.source)) <= max_source_tokens
    ]
    if not fitting:
        raise ExportError(f"got no built-in golden sentence of at most {max_source_tokens} tokens; give --golden FILE")
    return fitting


def answer(
    checkpoint: Checkpoint, questions: Iterable[Question], *, max_source_tokens: int, decoding: DecodingDefaults
) -> Iterator[GoldenSentence]:
    """Translate each question by the reference decoder, greedily and with a beam of 4.

    Args:
        checkpoint: model in eval mode, with its tokenizer.
        questions: what to translate.
        max_source_tokens: most tokens of one source, end token counted.
        decoding: length penalty and output limit of the searches.

    Raises:
        ExportError: a source is too long.
    """
    assert decoding.length_penalty_type in ("GNMT", "POWER")
    kind: LengthPenaltyType = "GNMT" if decoding.length_penalty_type == "GNMT" else "POWER"
    default_options = BeamOptions(
        beam_size=BEAM_SIZE,
        length_penalty=decoding.length_penalty,
        length_penalty_type=kind,
        max_output_tokens=decoding.max_output_tokens,
    )
    for question in questions:
        source_ids = checkpoint.tokenizer.encode(question.source)
        if len(source_ids) > max_source_tokens:
            raise ExportError(
                f"golden sentence {question.source[:40]!r}: got {len(source_ids)} tokens, "
                f"wanted at most {max_source_tokens}"
            )
        # A model that does not know the language may never end: the exam needs no more of that than this.
        most = min(default_options.max_output_tokens, 3 * len(source_ids) + 16)
        options = replace(default_options, max_output_tokens=most)
        with _one_thread():
            greedy = greedy_search(checkpoint.model, source_ids, max_output_tokens=options.max_output_tokens)
            beam = beam_search(
                checkpoint.model,
                source_ids,
                beam_size=options.beam_size,
                length_penalty=options.length_penalty,
                length_penalty_type=kind,
                max_output_tokens=options.max_output_tokens,
            )[0]
        yield GoldenSentence(
            source=question.source,
            source_ids=tuple(source_ids),
            reference=question.reference,
            greedy=_golden(greedy),
            beam=_golden(beam),
            beam_options=options,
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run PyTorch on one thread: the same sums on every machine, and no waiting over matrices of a few rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _golden(hypothesis: ReferenceHypothesis) -> GoldenHypothesis:
    return GoldenHypothesis(
        ids=hypothesis.tokens,
        score=hypothesis.score,
        log_probs=hypothesis.log_probs,
        best=hypothesis.best,
        finish_reason=hypothesis.finish_reason,
    )


def _read_columns(line: str, where: str) -> Question:
    source, *references = line.split("\t")
    if len(references) > 1:
        raise ExportError(f"{where}: got {len(references) + 1} columns, wanted source, or source and reference")
    return Question(source, references[0] if references else None)


def _read_record(line: str, where: str) -> Question:
    try:
        fields = Fields.parse(line, where=where)
        return Question(fields.text("source"), fields.text("reference") if fields.has("reference") else None)
    except BundleError as error:
        raise ExportError(str(error)) from error
