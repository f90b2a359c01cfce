"""The golden exam of one runner, as figures and a verdict that need no tokenizer."""

from __future__ import annotations

from typing import Any

from export.bundle import Bundle
from export.runners.protocol import Runner
from server.exam.sitting import ExamResult, sit_exam
from server.exam.thresholds import Thresholds

_MIN_EXACT_RATE = 0.9
_MAX_LOG_PROB_DIFFERENCE = 0.05
_MOST_FAULTS = 8


def thresholds_of(precision: str, *, trained: bool) -> Thresholds:
    """What an exam asks: of fp32 what a certificate does, of a precision that rounds a bound on log-probs.

    BLEU, which a certificate asks of rounding precisions, needs a tokenizer; instead nine of ten sentences of a trained
    model have to come out token for token. A random model is undecided far too often to be asked that.
    """
    if precision == "fp32":
        return Thresholds.of_precision(precision)
    return Thresholds(
        min_exact_rate=_MIN_EXACT_RATE if trained else None, max_log_prob_difference=_MAX_LOG_PROB_DIFFERENCE
    )


def sit(bundle: Bundle, runner: Runner, *, trained: bool) -> dict[str, Any]:
    """Ask all golden sentences of the bundle.

    Returns:
        The record of the exam: figures, thresholds, ``passed``, what was missed, and every output's tokens, so that
        texts can be judged elsewhere.

    Raises:
        ExamError: the runner failed.
    """
    result = sit_exam(bundle, runner)
    thresholds = thresholds_of(runner.precision, trained=trained)
    return _record(result, thresholds) | {"runner": runner.name, "precision": runner.precision}


def _record(result: ExamResult, thresholds: Thresholds) -> dict[str, Any]:
    missed = [figure.complaint(name_option=False) for figure in result.judged(thresholds) if not figure.holds]
    return {
        "sentences": result.sentences,
        "token_exact_rate": result.token_exact_rate,
        "max_log_prob_difference": result.max_log_prob_difference,
        "max_score_difference": result.max_score_difference,
        "exceptions": len(result.exceptions),
        "faults": [fault.record() for fault in result.faults[:_MOST_FAULTS]],
        "thresholds": thresholds.record(),
        "passed": not missed,
        "missed": missed,
        "greedy": [list(tokens) for tokens in result.greedy],
        "beam": [list(tokens) for tokens in result.beam],
    }
