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
from model.reference import LengthPenaltyType, ReferenceHypothesis, ReferenceOptions, beam_search, greedy_search

BEAM_SIZE = 4
UNENDING_OUTPUT_TOKENS = 32
"""How much an exam asks for where a greedy output has not ended at twice its source's length.

Such a model does not know the language, and to decode its babble without a cache takes minutes a sentence.
"""
_DEFAULT_FILE = Path(__file__).with_name("golden.txt")


@dataclass(frozen=True)
class Question:
    """A source text and, where there is one, a person's translation.

    Attributes:
        source: text.
        reference: a person's translation; None: there is none.
        source_language: served code; empty: the model's only one.
        target_language: served code; empty: the model's only one.
    """

    source: str
    reference: str | None = None
    source_language: str = ""
    target_language: str = ""


def read_questions(path: Path, *, with_references: bool = False) -> list[Question]:
    """Read golden sentences, one per line.

    Args:
        path: ``.jsonl`` with ``source`` and, where there are such, ``reference``, ``source_language`` and
            ``target_language``; any other file: the source, or source, tab, reference. Blank lines are passed over.
        with_references: whether every sentence has to come with its reference, neither of them blank.

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
    questions = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            questions.append(read(line.removesuffix("\r"), f"{path}:{number}"))
            if with_references:
                _check_pair(questions[-1], f"{path}:{number}")
    if not questions:
        raise ExportError(f"{path}: got no sentence, wanted at least one")
    return questions


def default_questions(checkpoint: Checkpoint, *, max_source_tokens: int) -> list[Question]:
    """Built-in sentences in a dozen languages, those that fit the model; for one that comes with none of its own.

    A model of many languages is asked for each in turn.

    Raises:
        ExportError: none fits.
    """
    card = checkpoint.card
    fitting = []
    for number, question in enumerate(read_questions(_DEFAULT_FILE)):
        asked = replace(
            question,
            source_language=card.source_languages[number % len(card.source_languages)],
            target_language=card.target_languages[number % len(card.target_languages)],
        )
        if len(encode_source(checkpoint, asked)) <= max_source_tokens:
            fitting.append(asked)
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
        decoding: length penalty, output limit and rules of the searches.

    Raises:
        ExportError: a source is too long, or its languages are not the model's.
    """
    for question in questions:
        source_ids, options, forced_ids = _ask(checkpoint, question, max_source_tokens, decoding)
        with one_thread():
            greedy = greedy_search(checkpoint.model, source_ids, _rules(options, forced_ids))
            if greedy.finish_reason == "MAX_TOKENS" and options.max_output_tokens > UNENDING_OUTPUT_TOKENS:
                options = replace(options, max_output_tokens=UNENDING_OUTPUT_TOKENS)
                greedy = greedy_search(checkpoint.model, source_ids, _rules(options, forced_ids))
            beam = beam_search(checkpoint.model, source_ids, _rules(options, forced_ids))[0]
        yield GoldenSentence(
            source=question.source,
            source_ids=source_ids,
            forced_ids=forced_ids,
            reference=question.reference,
            greedy=_golden(greedy),
            beam=_golden(beam),
            beam_options=options,
        )


def greedy_outputs(
    checkpoint: Checkpoint, questions: Iterable[Question], *, max_source_tokens: int, decoding: DecodingDefaults
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Translate each question by the reference decoder, greedily; arguments and errors as of ``answer``.

    Yields:
        Token ids of the source, end token included, and of the output, end token excluded.
    """
    for question in questions:
        source_ids, options, forced_ids = _ask(checkpoint, question, max_source_tokens, decoding)
        with one_thread():
            found = greedy_search(checkpoint.model, source_ids, _rules(options, forced_ids))
        yield source_ids, found.tokens


def _ask(
    checkpoint: Checkpoint, question: Question, max_source_tokens: int, decoding: DecodingDefaults
) -> tuple[tuple[int, ...], BeamOptions, tuple[int, ...]]:
    """Source ids of a question, how to search, and the tokens that every output begins with."""
    source_ids = encode_source(checkpoint, question)
    if len(source_ids) > max_source_tokens:
        raise _fault(question, f"got {len(source_ids)} tokens, wanted at most {max_source_tokens}")
    target_language = language_of("target", question, checkpoint)
    options = BeamOptions(
        beam_size=BEAM_SIZE,
        length_penalty=decoding.length_penalty,
        length_penalty_type=decoding.length_penalty_type,
        max_output_tokens=min(decoding.max_output_tokens, 2 * len(source_ids) + 16),
        early_stopping=decoding.early_stopping,
        forced_end=decoding.forced_end,
    )
    return tuple(source_ids), options, checkpoint.tokenizer.forced_tokens(target_language)


def _rules(options: BeamOptions, forced_ids: tuple[int, ...]) -> ReferenceOptions:
    kind: LengthPenaltyType = "GNMT" if options.length_penalty_type == "GNMT" else "POWER"
    return ReferenceOptions(
        max_output_tokens=options.max_output_tokens,
        beam_size=options.beam_size,
        length_penalty=options.length_penalty,
        length_penalty_type=kind,
        early_stopping=options.early_stopping,
        forced_tokens=forced_ids,
        forced_end=options.forced_end,
    )


def encode_source(checkpoint: Checkpoint, question: Question) -> list[int]:
    """Token ids of a question's source, end token included.

    Raises:
        ExportError: its languages are not the model's.
    """
    return checkpoint.tokenizer.encode(
        question.source,
        source_language=language_of("source", question, checkpoint),
        target_language=language_of("target", question, checkpoint),
    )


def language_of(side: str, question: Question, checkpoint: Checkpoint) -> str:
    """The served code of a question's ``source`` or ``target`` language, which may be given as the model's own.

    Raises:
        ExportError: it is none of the model's, or not given where there are several.
    """
    field = f"{side}_language"
    code: str = getattr(question, field)
    served: tuple[str, ...] = getattr(checkpoint.card, f"{field}s")
    asked = checkpoint.tokenizer.language_aliases.get(code, code) or (served[0] if len(served) == 1 else "")
    if asked in served:
        return asked
    got = repr(code) if code else "none"
    raise _fault(question, f"{field}: got {got}, wanted one of {', '.join(served)}, given in a .jsonl file as {field}")


def _fault(question: Question, what: str) -> ExportError:
    return ExportError(f"sentence {question.source[:40]!r}: {what}")


@contextmanager
def one_thread() -> Iterator[None]:
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


def _check_pair(question: Question, where: str) -> None:
    for side, text in (("source", question.source), ("translation", question.reference)):
        if not (text or "").strip():
            raise ExportError(f"{where}: got no {side}, wanted source and translation")


def _read_columns(line: str, where: str) -> Question:
    source, *references = line.split("\t")
    if len(references) > 1:
        raise ExportError(f"{where}: got {len(references) + 1} columns, wanted source, or source and reference")
    return Question(source, references[0] if references else None)


def _read_record(line: str, where: str) -> Question:
    try:
        fields = Fields.parse(line, where=where)

        def optional(name: str) -> str | None:
            return fields.text(name) if fields.has(name) else None

        return Question(
            fields.text("source"),
            optional("reference"),
            source_language=optional("source_language") or "",
            target_language=optional("target_language") or "",
        )
    except BundleError as error:
        raise ExportError(str(error)) from error
