"""The reference decoder against exhaustive search and against the cached greedy decoder."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from model.reference import LengthPenaltyType, ReferenceOptions, beam_search, greedy_search
from model.training.validation import greedy_decode
from model.transformer import Transformer

SOURCES = [[5, 6, 7, 3], [9, 3], [4, 8, 9, 20, 33, 3]]


def sequence_log_prob(model: Transformer, source: list[int], chosen: tuple[int, ...]) -> float:
    """Teacher-forced log-probability of ``chosen``, by one plain call of the model."""
    tensor = torch.tensor([source])
    with torch.no_grad():
        logits = model(tensor, torch.tensor([[2, *chosen[:-1]]]), source_mask=tensor != 0)[0]
    return float(logits.log_softmax(-1)[torch.arange(len(chosen)), torch.tensor(chosen)].double().sum())


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_greedy_equals_the_cached_decoder(source: list[int], make_model: Callable[..., Transformer]) -> None:
    model = make_model()
    reference = greedy_search(model, source, ReferenceOptions(max_output_tokens=14))
    assert list(reference.tokens) == greedy_decode(model, [source], max_output_tokens=14)[0]
    chosen = (*reference.tokens, 3) if reference.finish_reason == "END_TOKEN" else reference.tokens
    assert reference.score == pytest.approx(sequence_log_prob(model, source, chosen), abs=1e-4)
    assert [step[0][0] for step in reference.best] == list(chosen)


@pytest.mark.parametrize("kind", ["GNMT", "POWER"])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_as_wide_as_the_space_finds_the_exhaustive_best(
    kind: LengthPenaltyType, seed: int, make_model: Callable[..., Transformer]
) -> None:
    model = make_model(seed=seed, source_vocab_size=8, target_vocab_size=8)
    source, longest = [5, 6, 3], 3
    words = [4, 5, 6, 7]
    outputs = [(*stem, 3) for n in range(longest) for stem in itertools.product(words, repeat=n)]
    outputs += list(itertools.product(words, repeat=longest))
    options = ReferenceOptions(beam_size=80, length_penalty=0.7, length_penalty_type=kind, max_output_tokens=longest)
    best = max(outputs, key=lambda chosen: sequence_log_prob(model, source, chosen) / options.divisor(len(chosen)))
    (got, *_) = beam_search(model, source, options)
    assert got.tokens == tuple(token for token in best if token != 3)


def test_beam_hypotheses_are_distinct_sorted_and_never_suppressed(make_model: Callable[..., Transformer]) -> None:
    model = make_model(seed=4)
    found = beam_search(model, SOURCES[0], ReferenceOptions(beam_size=4, max_output_tokens=9))
    assert len({hypothesis.tokens for hypothesis in found}) == 4
    assert [hypothesis.score for hypothesis in found] == sorted((h.score for h in found), reverse=True)
    assert not {0, 1, 2, 3} & {token for hypothesis in found for token in hypothesis.tokens}


def test_min_output_tokens_holds_the_end_token_back(make_model: Callable[..., Transformer]) -> None:
    model = make_model(seed=2)
    with torch.no_grad():
        model.output.weight[3] = model.output.weight.abs().sum(0) * torch.sign(model.decoder_norm(torch.ones(24)))
    for minimum in (0, 3, 5):
        found = greedy_search(model, SOURCES[0], ReferenceOptions(max_output_tokens=6, min_output_tokens=minimum))
        assert len(found.tokens) >= minimum


def test_penalties_are_those_of_the_contract() -> None:
    def divisor(kind: LengthPenaltyType, exponent: float) -> float:
        options = ReferenceOptions(max_output_tokens=9, length_penalty=exponent, length_penalty_type=kind)
        return options.divisor(7)

    assert divisor("GNMT", 1.0) == pytest.approx(2.0)
    assert divisor("POWER", 2.0) == pytest.approx(49.0)
    assert divisor("GNMT", 0.0) == 1.0


def test_forced_tokens_begin_every_output_and_add_only_length(make_model: Callable[..., Transformer]) -> None:
    model = make_model(seed=5)
    options = ReferenceOptions(beam_size=3, max_output_tokens=6, length_penalty_type="POWER", forced_tokens=(2, 7))
    for found in (*beam_search(model, SOURCES[0], options), greedy_search(model, SOURCES[0], options)):
        assert found.tokens[:2] == (2, 7)
        assert len(found.log_probs) == len(found.tokens) + (found.finish_reason == "END_TOKEN")
    best = beam_search(model, SOURCES[0], options)[0]
    assert best.score == pytest.approx(sum(best.log_probs[2:]) / len(best.log_probs), abs=1e-5)


def test_an_output_may_be_forced_from_end_to_end(make_model: Callable[..., Transformer]) -> None:
    options = ReferenceOptions(beam_size=2, max_output_tokens=3, forced_tokens=(2, 7), forced_end=True)
    (found,) = beam_search(make_model(seed=5), SOURCES[0], options)
    assert (found.tokens, found.finish_reason, found.score) == ((2, 7), "MAX_TOKENS", 0.0)


def test_a_forced_end_takes_the_last_place(make_model: Callable[..., Transformer]) -> None:
    model = make_model(seed=6)
    with torch.no_grad():
        model.output.weight[3] = -model.output.weight.abs().sum(0)  # seldom ends of itself
    plain = ReferenceOptions(beam_size=2, max_output_tokens=4, length_penalty_type="POWER")
    forced = replace(plain, max_output_tokens=5, forced_end=True)
    assert greedy_search(model, SOURCES[0], forced).tokens == greedy_search(model, SOURCES[0], plain).tokens
    cut = beam_search(model, SOURCES[0], forced)[0]
    assert (len(cut.tokens), cut.finish_reason) == (4, "MAX_TOKENS")
    assert cut.score == pytest.approx(sum(cut.log_probs) / 5, abs=1e-5)


def test_suppression_before_the_softmax_leaves_those_tokens_out_of_the_sum(
    make_model: Callable[..., Transformer],
) -> None:
    model = make_model(seed=7, suppressed=(0, 1, 2, 9), suppression="before_softmax")
    found = greedy_search(model, SOURCES[0], ReferenceOptions(max_output_tokens=1))
    source = torch.tensor([SOURCES[0]])
    with torch.no_grad():
        logits = model(source, torch.tensor([[2]]), source_mask=source != 0)[0, -1]
    selectable = [token for token in range(len(logits)) if token not in (0, 1, 2, 9)]
    assert found.log_probs[0] == pytest.approx(float(logits[selectable].log_softmax(-1).max()), abs=1e-6)
