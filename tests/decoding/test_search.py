"""Greedy and beam search, driven by the real loop, against the oracle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.runners.protocol import FloatArray
from server.decoding.beam import BeamSearch
from server.decoding.greedy import GreedySearch
from server.decoding.scheduler import begin_search
from server.decoding.search import SearchError, length_penalty
from server.decoding.sequence import FinishReason, Hypothesis, LengthPenalty, Outcome, SearchOptions
from tests.decoding import oracle
from tests.decoding.desk import Desk, make_job
from tests.decoding.fake_runner import END, FakeRunner, Rule, copying_rule, log_softmax, random_rule

repeatable = settings(derandomize=True, deadline=None, max_examples=300)


@st.composite
def search_options(draw: st.DrawFn) -> SearchOptions:
    beam_size = draw(st.integers(1, 5))
    forced_tokens = tuple(draw(st.lists(st.integers(4, 7), max_size=2)))
    forced_end = draw(st.booleans())
    max_output_tokens = draw(st.integers(len(forced_tokens) + 1, 9))
    return SearchOptions(
        beam_size=beam_size,
        num_hypotheses=draw(st.integers(1, beam_size)),
        length_penalty=draw(st.sampled_from([0.0, 0.6, 1.0, 2.5])),
        length_penalty_type=draw(st.sampled_from(LengthPenalty)),
        max_output_tokens=max_output_tokens,
        min_output_tokens=draw(st.integers(0, max_output_tokens - forced_end)),
        return_scores=draw(st.booleans()),
        early_stopping=draw(st.booleans()),
        forced_end=forced_end,
        forced_tokens=forced_tokens,
    )


rules = st.builds(random_rule, st.integers(0, 10_000), vocab=st.integers(8, 14), levels=st.sampled_from([0, 0, 1, 2]))


def decode(rule: Rule, *source: int, **options: Any) -> tuple[Hypothesis, ...]:
    desk = Desk(FakeRunner(rule))
    job = make_job(source, **options)
    desk.submit(job)
    desk.turn_until_idle()
    assert job.outcome is Outcome.FINISHED
    return job.result.hypotheses


def assert_same(got: tuple[Hypothesis, ...], wanted: tuple[Hypothesis, ...]) -> None:
    assert [(one.tokens, one.finish_reason) for one in got] == [(one.tokens, one.finish_reason) for one in wanted]
    for one, other in zip(got, wanted, strict=True):
        assert one.score == (None if other.score is None else pytest.approx(other.score, rel=1e-12))


@repeatable
@given(rules, search_options())
def test_search_finds_what_the_oracle_finds(rule: Rule, options: SearchOptions) -> None:
    desk = Desk(FakeRunner(rule))
    job = make_job((5, 6, 7), **vars(options))
    desk.submit(job)
    desk.turn_until_idle()
    assert_same(job.result.hypotheses, oracle.search(rule, tuple(job.sequence.source), options))


@repeatable
@given(rules, st.lists(search_options(), min_size=2, max_size=6))
def test_searches_of_every_kind_share_steps(rule: Rule, kinds: list[SearchOptions]) -> None:
    desk = Desk(FakeRunner(rule))
    jobs = [make_job((5, 6, number % 8), **vars(options)) for number, options in enumerate(kinds)]
    desk.submit(*jobs)
    desk.turn_until_idle()
    for job, options in zip(jobs, kinds, strict=True):
        assert_same(job.result.hypotheses, oracle.search(rule, tuple(job.sequence.source), options))


def probabilities_rule(*steps: dict[int, float]) -> Rule:
    """The same for every source: probabilities by output length; the last ones hold for all that is longer."""

    def rule(source: tuple[int, ...], prefix: tuple[int, ...]) -> FloatArray:
        weights = np.full(12, 1e-9, dtype=np.float32)
        for token, probability in steps[min(len(prefix), len(steps) - 1)].items():
            weights[token] = probability
        logits: FloatArray = np.log(weights)
        return logits

    return rule


@pytest.mark.parametrize("kind", list(LengthPenalty))
def test_length_penalty_decides_between_short_and_long(kind: LengthPenalty) -> None:
    # End at once (0.4), or four sure tokens (0.3).
    rule = probabilities_rule({END: 0.4, 5: 0.3, 6: 0.3}, {5: 1.0}, {5: 1.0}, {5: 1.0}, {END: 1.0})
    short = decode(rule, 5, beam_size=2, length_penalty=0.0, length_penalty_type=kind)
    long = decode(rule, 5, beam_size=2, length_penalty=1.0, length_penalty_type=kind)
    assert (short[0].tokens, long[0].tokens) == ((), (5, 5, 5, 5))


def test_search_ends_where_the_best_running_hypothesis_only_ties_with_the_pool() -> None:
    rule = probabilities_rule({END: 0.5, 5: 0.25, 6: 0.25}, {END: 0.5, 7: 0.5}, {END: 1.0})
    desk = Desk(FakeRunner(rule))
    job = make_job([5], beam_size=2, num_hypotheses=2)
    desk.submit(job)
    desk.turn_until_idle()
    assert [hypothesis.tokens for hypothesis in job.result.hypotheses] == [(), (5,)]
    assert desk.runner.calls.stepped_rows == [1, 2]


def test_penalties_are_those_of_the_wire_contract() -> None:
    gnmt = SearchOptions(length_penalty=0.6, length_penalty_type=LengthPenalty.GNMT)
    power = SearchOptions(length_penalty=2.0, length_penalty_type=LengthPenalty.POWER)
    assert length_penalty(gnmt, 7) == 2.0**0.6
    assert length_penalty(power, 7) == 49.0


@pytest.mark.parametrize("beam_size", [1, 3])
def test_end_token_first_gives_an_empty_output(beam_size: int) -> None:
    (best,) = decode(copying_rule(), beam_size=beam_size)
    assert best.tokens == ()
    assert best.finish_reason is FinishReason.END_TOKEN


@pytest.mark.parametrize("beam_size", [1, 3])
def test_output_is_cut_at_max_output_tokens(beam_size: int) -> None:
    (best,) = decode(copying_rule(), 5, 6, 7, 8, beam_size=beam_size, max_output_tokens=3)
    assert best.tokens == (5, 6, 7)
    assert best.finish_reason is FinishReason.MAX_TOKENS


@pytest.mark.parametrize("beam_size", [1, 3])
def test_end_token_is_barred_before_min_output_tokens(beam_size: int) -> None:
    (best,) = decode(copying_rule(), 5, beam_size=beam_size, min_output_tokens=4, max_output_tokens=6)
    assert len(best.tokens) == 4
    assert best.finish_reason is FinishReason.END_TOKEN


@pytest.mark.parametrize("beam_size", [1, 3])
def test_forced_tokens_come_first_and_cost_nothing(beam_size: int) -> None:
    options: dict[str, Any] = {"beam_size": beam_size, "return_scores": True, "length_penalty": 0.0}
    (free,) = decode(copying_rule(), 5, 6, 7, **options)
    (forced,) = decode(copying_rule(), 5, 6, 7, forced_tokens=(9,), **options)
    assert (free.tokens, forced.tokens) == ((5, 6, 7), (9, 6, 7))
    assert free.score is not None
    assert forced.score == pytest.approx(free.score * 3 / 4)  # one of four equally sure steps is not counted


@pytest.mark.parametrize("beam_size", [1, 3])
def test_forced_tokens_count_as_output_tokens(beam_size: int) -> None:
    (best,) = decode(copying_rule(), 5, 6, 7, 8, beam_size=beam_size, forced_tokens=(9, 10), max_output_tokens=3)
    assert (best.tokens, best.finish_reason) == ((9, 10, 7), FinishReason.MAX_TOKENS)
    (best,) = decode(copying_rule(), 5, beam_size=beam_size, forced_tokens=(9, 10), min_output_tokens=3)
    assert len(best.tokens) == 3


def test_forced_tokens_count_in_the_length_penalty() -> None:
    rule = probabilities_rule({END: 1.0}, {5: 0.5, 6: 0.5}, {END: 1.0})
    (best,) = decode(rule, 5, beam_size=2, forced_tokens=(9,), length_penalty_type=LengthPenalty.POWER)
    assert best.tokens == (9, 5)
    assert best.score == pytest.approx(np.log(0.5) / 3, rel=1e-4)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_forced_end_takes_the_last_place_and_costs_nothing(beam_size: int) -> None:
    penalty: dict[str, Any] = {"length_penalty_type": LengthPenalty.POWER, "return_scores": True}
    (best,) = decode(copying_rule(), 5, 6, 7, 8, beam_size=beam_size, max_output_tokens=3, forced_end=True, **penalty)
    assert (best.tokens, best.finish_reason) == ((5, 6), FinishReason.MAX_TOKENS)
    step = float(log_softmax(copying_rule()((5,), ()))[5])
    assert best.score == pytest.approx(2 * step / (1 if beam_size == 1 else 3))
    (whole,) = decode(copying_rule(), 5, 6, beam_size=beam_size, max_output_tokens=4, forced_end=True)
    assert (whole.tokens, whole.finish_reason) == ((5, 6), FinishReason.END_TOKEN)
    (nothing,) = decode(copying_rule(), 5, 6, beam_size=beam_size, max_output_tokens=1, forced_end=True)
    assert (nothing.tokens, nothing.finish_reason) == ((), FinishReason.MAX_TOKENS)


def test_a_search_that_is_over_is_not_forced_to_its_end() -> None:
    # Two end at once, and what runs on, at 0.1, cannot become better: the step of the forced end never comes.
    rule = probabilities_rule({END: 0.6, 5: 0.4}, {END: 0.75, 5: 0.25}, {5: 1.0})
    desk = Desk(FakeRunner(rule))
    job = make_job([5], beam_size=2, num_hypotheses=2, length_penalty=0.0, max_output_tokens=3, forced_end=True)
    desk.submit(job)
    desk.turn_until_idle()
    assert [hypothesis.tokens for hypothesis in job.result.hypotheses] == [(), (5,)]
    assert len(desk.runner.calls.stepped_rows) == 2


def test_early_stopping_ends_with_a_full_pool_although_better_may_come() -> None:
    # Two short outputs, then a long one that its length would put ahead.
    rule = probabilities_rule({END: 0.3, 5: 0.5, 6: 0.2}, {END: 0.45, 5: 0.55}, {5: 1.0}, {5: 1.0}, {END: 1.0})
    patient = decode(rule, 5, beam_size=2)
    hasty = decode(rule, 5, beam_size=2, early_stopping=True)
    assert (patient[0].tokens, hasty[0].tokens) == ((5, 5, 5, 5), ())


def test_hypotheses_come_best_first() -> None:
    found = decode(random_rule(1), 5, 6, beam_size=5, num_hypotheses=4)
    scores = [hypothesis.score for hypothesis in found]
    assert len(found) == 4
    assert scores == sorted(scores, key=lambda score: -(score or 0.0))


def test_greedy_score_only_where_asked_for() -> None:
    rule = random_rule(2)
    (without,) = decode(rule, 5, 6)
    (with_score,) = decode(rule, 5, 6, return_scores=True)
    assert without.score is None
    assert with_score.score is not None
    assert without.tokens == with_score.tokens


def test_greedy_asks_for_no_more_than_it_needs() -> None:
    assert GreedySearch(SearchOptions(), end_id=END).candidates_needed == 0
    assert GreedySearch(SearchOptions(return_scores=True), end_id=END).candidates_needed == 1
    assert GreedySearch(SearchOptions(min_output_tokens=1), end_id=END).candidates_needed == 2
    assert BeamSearch(SearchOptions(beam_size=4), end_id=END).candidates_needed == 5


@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_forced_step_asks_for_no_candidates(beam_size: int) -> None:
    desk = Desk(FakeRunner(copying_rule()))
    desk.submit(
        make_job(
            [5, 6, 7], beam_size=beam_size, return_scores=True, forced_tokens=(9,), max_output_tokens=3, forced_end=True
        )
    )
    desk.turn_until_idle()
    assert desk.runner.calls.heads == [0, max(1, beam_size + (beam_size > 1)), 0]


@pytest.mark.parametrize("beam_size", [1, 2])
def test_log_probs_that_are_no_numbers_end_the_search(beam_size: int) -> None:
    search = begin_search(SearchOptions(beam_size=beam_size, return_scores=True), end_id=END)
    with pytest.raises(SearchError):
        search.advance([[5, 6, 7]], [[math.nan] * 3])
