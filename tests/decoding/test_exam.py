"""The exam: exact where the runner is, and every way of being wrong is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from export.bundle import Bundle, GoldenHypothesis, GoldenSentence
from export.runners.protocol import Candidates, FloatArray, IntArray
from server.decoding.sequence import FinishReason, Hypothesis
from server.exam.grading import Difference, grade
from server.exam.sitting import ANSWERS_PER_SENTENCE, ExamError, ExamResult, sit_exam
from server.exam.thresholds import Thresholds
from tests.decoding.conftest import BEAM, VOCAB, GoldenMaker
from tests.decoding.fake_runner import END, FakeRunner, Prefix, Rule, Source, random_rule

FP32 = Thresholds.of_precision("fp32")


def shifted(rule: Rule, change: Callable[[FloatArray, Prefix], None]) -> Rule:
    """``rule`` with its logits changed."""

    def changed(source: Source, prefix: Prefix) -> FloatArray:
        logits = rule(source, prefix).copy()
        change(logits, prefix)
        return logits

    return changed


def test_a_runner_that_follows_the_reference_passes(bundle: Bundle, rule: Rule) -> None:
    runner = FakeRunner(rule)
    answers: list[None] = []
    result = sit_exam(bundle, runner, on_answer=lambda: answers.append(None))
    golden = bundle.golden()
    assert result.passes(FP32)
    assert result.token_exact_rate == 1.0
    assert result.max_log_prob_difference < 2e-6
    assert result.max_score_difference < 2e-6
    assert result.greedy == tuple(sentence.greedy.ids for sentence in golden)
    assert result.beam == tuple(sentence.beam.ids for sentence in golden)
    assert not result.exceptions
    assert not result.faults
    assert len(answers) == ANSWERS_PER_SENTENCE * len(golden)
    assert {0, 4} <= set(runner.calls.heads), "both heads sit the exam"
    assert max(runner.calls.stepped_rows) == runner.limits.max_rows, "sentences share steps"


def test_a_short_exam_asks_fewer_sentences(bundle: Bundle, rule: Rule) -> None:
    assert sit_exam(bundle, FakeRunner(rule), sentences=2).sentences == 2


RULES: dict[str, Any] = {"early_stopping": True, "forced_end": True, "max_output_tokens": 8}


def test_what_the_reference_had_to_say_is_forced_on_the_runner_too(
    bundle: Bundle, rule: Rule, make_golden: GoldenMaker
) -> None:
    golden = make_golden(rule, beam=dataclasses.replace(BEAM, **RULES), forced_ids=(9, 5))
    assert {sentence.greedy.finish_reason for sentence in golden} == {"END_TOKEN", "MAX_TOKENS"}
    result = sit_exam(bundle, FakeRunner(rule), golden=golden)
    assert result.passes(FP32)
    assert not result.exceptions
    assert all(output[:2] == (9, 5) and len(output) <= 7 for output in (*result.greedy, *result.beam))


@pytest.mark.parametrize("change", [{"early_stopping": False}, {"forced_end": False}])
def test_other_rules_of_search_are_found_out(
    bundle: Bundle, rule: Rule, make_golden: GoldenMaker, change: dict[str, Any]
) -> None:
    golden = make_golden(rule, beam=dataclasses.replace(BEAM, **RULES, length_penalty=4.0))
    asked = [
        dataclasses.replace(sentence, beam_options=dataclasses.replace(sentence.beam_options, **change))
        for sentence in golden
    ]
    assert sit_exam(bundle, FakeRunner(rule), golden=golden).passes(FP32)
    assert sit_exam(bundle, FakeRunner(rule), golden=asked).faults


def test_log_probs_of_forced_steps_are_examined(bundle: Bundle, rule: Rule, make_golden: GoldenMaker) -> None:
    def colder(logits: FloatArray, prefix: Prefix) -> None:
        if not prefix:
            logits *= np.float32(0.5)

    golden = make_golden(rule, forced_ids=(9,))
    result = sit_exam(bundle, FakeRunner(shifted(rule, colder)), golden=golden)
    assert result.token_exact_rate == 1.0
    assert result.max_score_difference < 2e-6, "a score leaves them out"
    assert result.max_log_prob_difference > 0.1


def test_a_limit_that_leaves_no_room_after_forced_tokens_is_refused(
    bundle: Bundle, rule: Rule, make_golden: GoldenMaker
) -> None:
    golden = make_golden(rule, forced_ids=(9, 5))
    options = dataclasses.replace(BEAM, max_output_tokens=2)
    cramped = [dataclasses.replace(sentence, beam_options=options) for sentence in golden]
    with pytest.raises(ExamError, match="max_output_tokens: got 2, wanted 3 to 64"):
        sit_exam(bundle, FakeRunner(rule), golden=cramped)


def test_another_model_fails(bundle: Bundle, rule: Rule) -> None:
    result = sit_exam(bundle, FakeRunner(random_rule(8, vocab=VOCAB)))
    assert result.token_exact_rate < 0.5
    assert result.max_log_prob_difference > 0.1
    assert not result.passes(FP32)
    assert {fault.search for fault in result.faults} == {"greedy", "beam"}


def test_a_log_prob_that_changes_no_token_is_found(bundle: Bundle, rule: Rule) -> None:
    def warmer(logits: FloatArray, prefix: Prefix) -> None:
        logits *= np.float32(1.001)

    result = sit_exam(bundle, FakeRunner(shifted(rule, warmer)))
    assert result.token_exact_rate == 1.0
    assert 1e-4 < result.max_log_prob_difference < 1e-1
    assert not result.passes(FP32)
    assert result.passes(Thresholds())


class WrongScores(FakeRunner):
    """Its top-k head gives wrong log-probs in the right order."""

    def top_k(self, k: int) -> Candidates:
        ids, log_probs = super().top_k(k)
        return Candidates(ids, log_probs - np.float32(0.01))


class WrongArgmax(FakeRunner):
    """Its argmax head picks the second best, once."""

    def argmax(self) -> IntArray:
        best = super().argmax()
        if len(self.calls.heads) == 3:
            best[0] = self.top_k(2).ids[0, 1]
        return best


def test_each_head_is_examined(bundle: Bundle, rule: Rule) -> None:
    scores = sit_exam(bundle, WrongScores(rule))
    assert scores.max_score_difference > 0.005
    assert not scores.passes(FP32)
    tokens = sit_exam(bundle, WrongArgmax(rule))
    assert [fault.search for fault in tokens.faults] == ["greedy"]
    assert tokens.token_exact_rate == 1 - 1 / tokens.sentences


class WrongTopK(FakeRunner):
    """Its top-k head confuses the two best."""

    def top_k(self, k: int) -> Candidates:
        ids, log_probs = super().top_k(k)
        if k > 1:
            ids[:, :2] = ids[:, 1::-1]
        return Candidates(ids, log_probs)


def test_greedy_search_is_examined_on_the_top_k_head_too(bundle: Bundle, rule: Rule) -> None:
    result = sit_exam(bundle, WrongTopK(rule))
    assert {fault.search for fault in result.faults} == {"greedy", "beam"}


def test_log_probs_of_the_runners_up_are_examined(bundle: Bundle, rule: Rule) -> None:
    unlikely = {
        (sentence.source_ids, sentence.greedy.ids[:position]): step[7][0]
        for sentence in bundle.golden()
        for position, step in enumerate(sentence.greedy.best)
    }

    def altered(source: Source, prefix: Prefix) -> FloatArray:
        logits = rule(source, prefix).copy()
        if (source, prefix) in unlikely:
            logits[unlikely[source, prefix]] -= np.float32(0.5)
        return logits

    result = sit_exam(bundle, FakeRunner(altered))
    assert result.max_log_prob_difference > 0.4


def test_a_runner_that_fails_ends_the_exam(bundle: Bundle, rule: Rule) -> None:
    with pytest.raises(ExamError, match="the runner failed on the golden sentences"):
        sit_exam(bundle, FakeRunner(rule, failing_steps={2}))
    steps = FakeRunner(rule)
    sit_exam(bundle, steps)
    with pytest.raises(ExamError, match="scripted failure of step"):
        sit_exam(bundle, FakeRunner(rule, failing_steps={len(steps.calls.stepped_rows)}))


class NotANumber(FakeRunner):
    """Its logits are no numbers."""

    def logits(self) -> FloatArray:
        return np.full_like(super().logits(), np.nan)

    def argmax(self) -> IntArray:
        return np.full(len(super().logits()), END)

    def top_k(self, k: int) -> Candidates:
        rows = len(super().logits())
        return Candidates(np.full((rows, k), END), np.zeros((rows, k), np.float32))


def test_log_probs_that_are_no_numbers_end_the_exam(bundle: Bundle, rule: Rule) -> None:
    with pytest.raises(ExamError, match="got nan, wanted a finite number"):
        sit_exam(bundle, NotANumber(rule))


def test_golden_sentences_of_another_model_are_refused(bundle: Bundle, rule: Rule) -> None:
    first, *rest = bundle.golden()
    foreign = dataclasses.replace(first, source_ids=(5, VOCAB, END))
    with pytest.raises(ExamError, match=f"golden sentence 1: got token {VOCAB}, wanted ids below {VOCAB}"):
        sit_exam(bundle, FakeRunner(rule), golden=[foreign, *rest])
    long = dataclasses.replace(first, source_ids=(*[5] * 64, END))
    with pytest.raises(ExamError, match="source tokens: got 65, wanted 1 to 64"):
        sit_exam(bundle, FakeRunner(rule, max_source_tokens=64), golden=[long])


def near_tie(rule: Rule, bundle: Bundle, *, gap: float) -> tuple[list[GoldenSentence], Rule, int]:
    """Golden sentences whose first greedy decision had this gap, and a runner that decided it the other way."""
    first = bundle.golden()[0]
    (best, best_log_prob), (second, _), *others = first.greedy.best[0]
    steps = (((best, best_log_prob), (second, best_log_prob - gap), *others), *first.greedy.best[1:])
    golden = [dataclasses.replace(first, greedy=dataclasses.replace(first.greedy, best=steps))]

    def swap(logits: FloatArray, prefix: Prefix) -> None:
        if not prefix:
            logits[second] = logits[best] + np.float32(1e-6)

    return golden, shifted(rule, swap), second


@pytest.mark.parametrize(("gap", "excused"), [(0.9e-5, True), (1.1e-5, False)])
def test_only_the_references_own_gap_excuses(bundle: Bundle, rule: Rule, gap: float, excused: bool) -> None:
    golden, undecided, second = near_tie(rule, bundle, gap=gap)
    result: ExamResult = sit_exam(bundle, FakeRunner(undecided), golden=golden)
    listed = [one for one in (*result.exceptions, *result.faults) if one.search == "greedy"]
    assert [(one.sentence, one.step, one.got, one.excused) for one in listed] == [(1, 1, second, excused)]


def golden_beam(score: float) -> GoldenHypothesis:
    best = (((5, -0.1), (6, -2.4)), ((END, -0.1), (7, -2.5)))
    return GoldenHypothesis(ids=(5,), score=score, log_probs=(-0.1, -0.1), best=best, finish_reason="END_TOKEN")


def graded(score: float, *, log_prob_error: float = 1e-6) -> Difference:
    got = Hypothesis((6,), score, FinishReason.END_TOKEN)
    difference = grade(got, golden_beam(-0.2), sentence=1, search="beam", eos_id=END, log_prob_error=log_prob_error)
    assert difference is not None
    return difference


def test_two_whole_beam_hypotheses_may_tie() -> None:
    assert graded(-0.2 - 1.9e-5).excused
    assert not graded(-0.2 - 2.1e-5).excused
    assert graded(-0.2 - 2.1e-5).gap == pytest.approx(2.3)


def test_scores_of_an_inexact_runner_excuse_nothing() -> None:
    assert not graded(-0.2, log_prob_error=1e-3).excused


def test_a_token_that_the_references_beam_passed_over_is_not_excused() -> None:
    golden = dataclasses.replace(golden_beam(-0.2), ids=(6,), log_probs=(-2.4, -0.1))
    got = Hypothesis((5,), -0.9, FinishReason.END_TOKEN)
    difference = grade(got, golden, sentence=1, search="beam", eos_id=END, log_prob_error=1e-6)
    assert difference is not None
    assert difference.gap == pytest.approx(-2.3)
    assert not difference.excused


def test_a_token_that_the_reference_did_not_rank_is_not_excused() -> None:
    got = Hypothesis((9,), -0.9, FinishReason.END_TOKEN)
    difference = grade(got, golden_beam(-0.2), sentence=1, search="greedy", eos_id=END, log_prob_error=0.0)
    assert difference is not None
    assert difference.gap is None
    assert not difference.excused


def test_an_output_that_goes_on_differs_from_one_that_ended() -> None:
    got = Hypothesis((5, 7), -0.2, FinishReason.MAX_TOKENS)
    difference = grade(got, golden_beam(-0.2), sentence=1, search="greedy", eos_id=END, log_prob_error=0.0)
    assert difference is not None
    assert (difference.step, difference.wanted, difference.got) == (2, END, 7)


class Listed(FakeRunner):
    """Lets some tokens alone."""

    left_out: tuple[int, ...] = ()

    def logits(self) -> FloatArray:
        logits = super().logits().copy()
        logits[:, self.left_out] = -np.inf
        return logits


def test_tokens_that_are_in_no_shortlist_have_no_log_prob_to_compare(bundle: Bundle, rule: Rule) -> None:
    golden = bundle.golden()
    chosen = {token for sentence in golden for token in sentence.greedy.ids}
    runner = Listed(rule)
    runner.left_out = (min(chosen),)
    with pytest.raises(ExamError, match="got -inf, wanted a finite number"):
        sit_exam(bundle, runner)
    runner.shortlisted = True
    result = sit_exam(bundle, runner)
    assert 0.0 < result.max_log_prob_difference < 20.0, "the others share what it leaves"
    assert result.token_exact_rate < 1.0
