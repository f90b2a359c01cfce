"""The exam that a bundle carries: its golden sentences through the loop and the searches that really serve.

It needs neither tokenizer nor torch. Greedy search sits it twice: alone (argmax head) and among the beams (top-k head).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial

from export.bundle import Bundle, GoldenHypothesis, GoldenSentence, Manifest
from export.runners.protocol import Runner, RunnerError, ShapeError
from server.decoding.loop import DecodeLoop
from server.decoding.sequence import Hypothesis, LengthPenalty, Outcome, Result, SearchOptions, Sequence
from server.exam.grading import Difference, SearchName, golden_tokens, grade
from server.exam.teacher_forcing import GivenOutput, teacher_forced
from server.exam.thresholds import Judged, Thresholds

ANSWERS_PER_SENTENCE = 3


class ExamError(RuntimeError):
    """The exam could not be sat: the runner failed, or what it said is not a number."""


@dataclass(frozen=True, kw_only=True)
class ExamResult:
    """What an exam measured.

    Attributes:
        sentences: golden sentences asked.
        token_exact_rate: share of sentences whose greedy and beam token ids all equal the reference's; exceptions
            count as equal.
        max_log_prob_difference: largest difference of a log-prob that the golden set holds, teacher-forced; of those
            that are in the runner's shortlist, where it has one.
        max_score_difference: largest difference of a score, over outputs that equal the reference's.
        exceptions: differences that the reference's own gap excuses.
        faults: all other differences.
        greedy: the runner's greedy outputs, end tokens excluded.
        beam: its best beam outputs.
    """

    sentences: int
    token_exact_rate: float
    max_log_prob_difference: float
    max_score_difference: float
    exceptions: tuple[Difference, ...]
    faults: tuple[Difference, ...]
    greedy: tuple[tuple[int, ...], ...]
    beam: tuple[tuple[int, ...], ...]

    def judged(self, thresholds: Thresholds) -> tuple[Judged, ...]:
        """Every figure and what was asked of it."""
        return (
            Judged("token-exact rate", self.token_exact_rate, least=thresholds.min_exact_rate, option="--min-exact"),
            Judged(
                "log-prob difference",
                self.max_log_prob_difference,
                most=thresholds.max_log_prob_difference,
                option="--max-log-prob-difference",
            ),
            Judged("score difference", self.max_score_difference, most=thresholds.max_score_difference),
        )

    def passes(self, thresholds: Thresholds) -> bool:
        """Whether every threshold holds."""
        return all(figure.holds for figure in self.judged(thresholds))


def sit_exam(
    bundle: Bundle,
    runner: Runner,
    *,
    golden: Items[GoldenSentence] | None = None,
    sentences: int | None = None,
    on_answer: Callable[[], None] = lambda: None,
) -> ExamResult:
    """Let ``runner`` answer golden sentences and compare its answers with the reference's.

    Args:
        bundle: gives the special tokens, and the golden sentences where none are given.
        runner: nobody else uses it meanwhile.
        golden: other sentences to ask; None: the bundle's.
        sentences: ask only so many, from the first; None: all.
        on_answer: called as each answer comes, ``ANSWERS_PER_SENTENCE`` times per sentence.

    Raises:
        ExamError: the sentences do not fit the model, the runner failed, or gave log-probs that are not numbers.
        BundleError: the bundle's golden sentences cannot be read.
    """
    asked = (bundle.golden() if golden is None else golden)[:sentences]
    manifest = bundle.manifest
    _check_ids(asked, manifest)
    plain = [_greedy(sentence) for sentence in asked]
    mixed = [_greedy(sentence, return_scores=True) for sentence in asked] + [_beam(sentence) for sentence in asked]
    try:
        alone = _decode(manifest, runner, plain, on_answer)
        together = _decode(manifest, runner, mixed, on_answer)
        errors = _log_prob_errors(manifest, runner, asked)
    except (ShapeError, RunnerError) as error:
        raise ExamError(f"the runner failed: {error}") from error
    greedy, beam = together[: len(asked)], together[len(asked) :]
    return _compare(asked, alone=alone, greedy=greedy, beam=beam, errors=errors, eos_id=manifest.eos_id)


def _check_ids(asked: Items[GoldenSentence], manifest: Manifest) -> None:
    dims = manifest.dims
    for number, sentence in enumerate(asked, start=1):
        targets = [token for golden in (sentence.greedy, sentence.beam) for step in golden.best for token, _ in step]
        targets += [*sentence.greedy.ids, *sentence.beam.ids]
        for tokens, vocab in ((sentence.source_ids, dims.source_vocab), (targets, dims.target_vocab)):
            if max(tokens) >= vocab:
                raise ExamError(f"golden sentence {number}: got token {max(tokens)}, wanted ids below {vocab}")


def _greedy(sentence: GoldenSentence, *, return_scores: bool = False) -> tuple[Items[int], SearchOptions]:
    options = sentence.beam_options
    return sentence.source_ids, SearchOptions(
        max_output_tokens=options.max_output_tokens,
        return_scores=return_scores,
        forced_end=options.forced_end,
        forced_tokens=sentence.forced_ids,
    )


def _beam(sentence: GoldenSentence) -> tuple[Items[int], SearchOptions]:
    options = sentence.beam_options
    return sentence.source_ids, SearchOptions(
        beam_size=options.beam_size,
        length_penalty=options.length_penalty,
        length_penalty_type=LengthPenalty[options.length_penalty_type],
        max_output_tokens=options.max_output_tokens,
        early_stopping=options.early_stopping,
        forced_end=options.forced_end,
        forced_tokens=sentence.forced_ids,
    )


def _decode(
    manifest: Manifest,
    runner: Runner,
    questions: list[tuple[Items[int], SearchOptions]],
    on_answer: Callable[[], None],
) -> list[Hypothesis]:
    """Decode all questions together, so that they share steps; the best hypothesis of each."""
    results: dict[int, Result] = {}

    def ask(index: int) -> Sequence:
        def on_finished(result: Result) -> None:
            results[index] = result
            on_answer()

        source, options = questions[index]
        return Sequence(source, options, on_finished=on_finished)

    loop = DecodeLoop(
        runner,
        start_id=manifest.start_id,
        eos_id=manifest.eos_id,
        pad_id=manifest.pad_id,
        max_queue=len(questions),
    )
    try:
        loop.submit([ask(index) for index in range(len(questions))])
    except ValueError as error:
        raise ExamError(f"a golden sentence does not fit the runner: {error}") from error
    while len(results) < len(questions):
        loop.run_round()
    if any(result.outcome is not Outcome.FINISHED for result in results.values()):
        raise ExamError("the runner failed on the golden sentences; the log says why")
    return [results[index].hypotheses[0] for index in range(len(questions))]


@dataclass
class _LogProbError:
    """Largest difference of log-probs on one golden output, teacher-forced."""

    of_any: float = 0.0
    of_chosen: float = 0.0


def _log_prob_errors(
    manifest: Manifest, runner: Runner, asked: Items[GoldenSentence]
) -> list[tuple[_LogProbError, _LogProbError]]:
    """Per sentence, for (greedy, beam): over the chosen tokens, and over all that the golden set holds."""
    pairs = [(sentence.source_ids, golden) for sentence in asked for golden in (sentence.greedy, sentence.beam)]
    outputs = [GivenOutput(source, golden_tokens(golden, eos_id=manifest.eos_id)) for source, golden in pairs]
    worst = [_LogProbError() for _ in outputs]
    for step in teacher_forced(runner, outputs, start_id=manifest.start_id, pad_id=manifest.pad_id):
        golden, error = pairs[step.output][1], worst[step.output]
        chosen = outputs[step.output].chosen[step.position]
        difference = partial(_difference, shortlisted=runner.shortlisted)
        of_chosen = difference(step.log_probs[chosen], golden.log_probs[step.position])
        error.of_chosen = max(error.of_chosen, of_chosen)
        best = (difference(step.log_probs[token], wanted) for token, wanted in golden.best[step.position])
        error.of_any = max(error.of_any, of_chosen, *best)
    return list(zip(worst[::2], worst[1::2], strict=True))


def _difference(got: float, wanted: float, *, shortlisted: bool) -> float:
    """By how much a log-prob differs; 0.0 for a token that is not in the runner's shortlist."""
    if shortlisted and got == -math.inf:
        return 0.0
    if not math.isfinite(got):
        raise ExamError(f"log-prob of a golden token: got {got}, wanted a finite number")
    return abs(float(got) - wanted)


def _compare(
    asked: Items[GoldenSentence],
    *,
    alone: list[Hypothesis],
    greedy: list[Hypothesis],
    beam: list[Hypothesis],
    errors: list[tuple[_LogProbError, _LogProbError]],
    eos_id: int,
) -> ExamResult:
    differences: dict[Difference, None] = {}  # a set that keeps the order
    score_differences = [0.0]
    for number, sentence in enumerate(asked, start=1):
        greedy_error, beam_error = errors[number - 1]
        answers: tuple[tuple[Hypothesis, GoldenHypothesis, SearchName, _LogProbError], ...] = (
            (alone[number - 1], sentence.greedy, "greedy", greedy_error),
            (greedy[number - 1], sentence.greedy, "greedy", greedy_error),
            (beam[number - 1], sentence.beam, "beam", beam_error),
        )
        for got, golden, search, error in answers:
            difference = grade(
                got, golden, sentence=number, search=search, eos_id=eos_id, log_prob_error=error.of_chosen
            )
            if difference is not None:
                differences[difference] = None
            elif got.score is not None:
                score_differences.append(abs(got.score - golden.score))
    faults = tuple(difference for difference in differences if not difference.excused)
    return ExamResult(
        sentences=len(asked),
        token_exact_rate=1.0 - len({fault.sentence for fault in faults}) / len(asked),
        max_log_prob_difference=max(error.of_any for pair in errors for error in pair),
        max_score_difference=max(score_differences),
        exceptions=tuple(difference for difference in differences if difference.excused),
        faults=faults,
        greedy=tuple(hypothesis.tokens for hypothesis in alone),
        beam=tuple(hypothesis.tokens for hypothesis in beam),
    )
