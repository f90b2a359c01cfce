"""The reference decoder against exhaustive search and against the cached greedy decoder."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from model.reference import LengthPenaltyType, beam_search, greedy_search, length_penalty_divisor
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
    reference = greedy_search(model, source, max_output_tokens=14)
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
    best = max(
        outputs,
        key=lambda chosen: (
            sequence_log_prob(model, source, chosen) / length_penalty_divisor(len(chosen), exponent=0.7, kind=kind)
        ),
    )
    (got, *_) = beam_search(
        model,
        source,
        beam_size=80,
        length_penalty=0.7,
        length_penalty_type=kind,
        max_output_tokens=longest,
    )
    assert got.tokens == tuple(token for token in best if token != 3)


def test_beam_hypotheses_are_distinct_sorted_and_never_suppressed(make_model: Callable[..., Transformer]) -> None:
    model = make_model(seed=4)
    found = beam_search(
        model, SOURCES[0], beam_size=4, length_penalty=1.0, length_penalty_type="GNMT", max_output_tokens=9
    )
    assert len({hypothesis.tokens for hypothesis in found}) == 4
    assert [hypothesis.score for hypothesis in found] == sorted((h.score for h in found), reverse=True)
    assert not {0, 1, 2, 3} & {token for hypothesis in found for token in hypothesis.tokens}


def test_min_output_tokens_holds_the_end_token_back(make_model: Callable[..., Transformer]) -> None:
    model = make_model(seed=2)
    with torch.no_grad():
        model.output.weight[3] = model.output.weight.abs().sum(0) * torch.sign(model.decoder_norm(torch.ones(24)))
    for minimum in (0, 3, 5):
        found = greedy_search(model, SOURCES[0], max_output_tokens=6, min_output_tokens=minimum)
        assert len(found.tokens) >= minimum


def test_penalties_are_those_of_the_contract() -> None:
    assert length_penalty_divisor(7, exponent=1.0, kind="GNMT") == pytest.approx(2.0)
    assert length_penalty_divisor(7, exponent=2.0, kind="POWER") == pytest.approx(49.0)
    assert length_penalty_divisor(7, exponent=0.0, kind="GNMT") == 1.0
