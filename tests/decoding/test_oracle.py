"""The oracle itself, held against Hugging Face generate() on a tiny random model."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from export.runners.protocol import FloatArray
from server.decoding.sequence import LengthPenalty, SearchOptions
from tests.decoding import oracle
from tests.decoding.fake_runner import END, PAD, START, SUPPRESSED, Prefix, Rule, Source

VOCAB = 14
SOURCES = ((5, 6, 7, END), (9, 4, END))


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(5)
    config = BartConfig(
        vocab_size=VOCAB,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=32,
        init_std=0.8,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
        decoder_start_token_id=START,
        forced_eos_token_id=None,
    )
    model: Any = BartForConditionalGeneration(config)
    return model.eval()


def rule_of(model: Any) -> Rule:
    """The model's distribution after any prefix."""

    @torch.no_grad()
    def rule(source: Source, prefix: Prefix) -> FloatArray:
        outputs = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[START, *prefix]]))
        logits: FloatArray = outputs.logits[0, -1].numpy()
        return logits

    return rule


def generate(model: Any, source: Source, options: SearchOptions) -> list[tuple[tuple[int, ...], float | None]]:
    """Output tokens, end token and padding left out, and the scores of a beam search."""
    (forced,) = options.forced_tokens or (None,)
    beam = options.beam_size > 1
    outputs = model.generate(
        input_ids=torch.tensor([source]),
        num_beams=options.beam_size,
        num_return_sequences=options.num_hypotheses,
        do_sample=False,
        min_new_tokens=options.min_output_tokens,
        max_new_tokens=options.max_output_tokens,
        suppress_tokens=list(SUPPRESSED),
        forced_bos_token_id=forced,
        forced_eos_token_id=END if options.forced_end else None,
        return_dict_in_generate=True,
        output_scores=True,
        **({"length_penalty": options.length_penalty, "early_stopping": options.early_stopping} if beam else {}),
    )
    lines = [tuple(token for token in line if token not in (PAD, END)) for line in outputs.sequences[:, 1:].tolist()]
    scores = outputs.sequences_scores.tolist() if beam else [None] * len(lines)
    return list(zip(lines, scores, strict=True))


@pytest.mark.parametrize("seed", range(60))
def test_the_oracle_finds_what_generate_finds(model: Any, seed: int) -> None:
    draw = random.Random(seed)
    beam_size = draw.choice((1, 2, 3, 4))
    # With less room than this there are fewer outputs than asked for, and generate() repeats one, at a score of -1e9.
    most = draw.randrange(3, 9)
    options = SearchOptions(
        beam_size=beam_size,
        num_hypotheses=1 if beam_size == 1 else draw.randrange(1, 3),
        length_penalty=draw.choice((0.0, 1.0, 2.5)),
        length_penalty_type=LengthPenalty.POWER,
        max_output_tokens=most,
        min_output_tokens=draw.choice((0, 0, most // 2)),
        early_stopping=draw.choice((False, True)),
        forced_end=draw.choice((False, True)),
        forced_tokens=draw.choice(((), (6,))),
    )
    for source in SOURCES:
        found = oracle.search(rule_of(model), source, options)
        wanted = generate(model, source, options)
        assert [one.tokens for one in found] == [tokens for tokens, _ in wanted]
        for one, (_, score) in zip(found, wanted, strict=True):
            assert one.score == (None if score is None else pytest.approx(score, abs=1e-4))
