"""A bundle in all but its graphs: a real tokenizer and golden sentences that the oracle answered from a rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.bundle import (
    GOLDEN_FILE,
    TOKENIZER_FOLDER,
    BeamOptions,
    Bundle,
    DecodingDefaults,
    GoldenHypothesis,
    GoldenSentence,
    write_bundle,
    write_golden,
)
from export.contract import GRAPH_NAMES
from model.tokenizer import Tokenizer, train_tokenizer
from server.decoding.sequence import FinishReason, Hypothesis, LengthPenalty, SearchOptions
from tests.decoding import oracle
from tests.decoding.fake_runner import END, SUPPRESSED, Rule, fake_manifest, log_softmax, random_rule

MAX_TOKENS = 10
VOCAB = 24
TEXTS = ["ein Mann", "eine Frau rennt", "der Hund", "das Kind sitzt", "ein Hund rennt", "die Frau"]
GoldenMaker = Callable[..., list[GoldenSentence]]
BEAM = BeamOptions(beam_size=3, length_penalty=1.0, length_penalty_type="GNMT", max_output_tokens=MAX_TOKENS)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS * 5, vocab_size=VOCAB)


@pytest.fixture(scope="session")
def rule() -> Rule:
    """What the bundle's model does."""
    return random_rule(7, vocab=VOCAB)


def golden_hypothesis(rule: Rule, source: tuple[int, ...], found: Hypothesis) -> GoldenHypothesis:
    """An oracle's hypothesis with the log-probs that led to it."""
    ended = found.finish_reason is FinishReason.END_TOKEN
    chosen = (*found.tokens, END) if ended else found.tokens
    steps = [log_softmax(rule(source, chosen[:position])) for position in range(len(chosen))]
    assert found.score is not None
    return GoldenHypothesis(
        ids=found.tokens,
        score=found.score,
        log_probs=tuple(float(step[token]) for step, token in zip(steps, chosen, strict=True)),
        best=tuple(
            tuple(
                (token, float(step[token]))
                for token in sorted(set(range(len(step))) - set(SUPPRESSED), key=lambda token: -step[token])[:8]
            )
            for step in steps
        ),
        finish_reason=found.finish_reason.name,
    )


@pytest.fixture(scope="session")
def make_golden(tokenizer: Tokenizer) -> GoldenMaker:
    """Golden sentences as a model that follows the rule would answer them."""

    def make(rule: Rule, *, beam: BeamOptions = BEAM, forced_ids: tuple[int, ...] = ()) -> list[GoldenSentence]:
        limits: dict[str, Any] = {
            "max_output_tokens": beam.max_output_tokens,
            "forced_end": beam.forced_end,
            "forced_tokens": forced_ids,
        }
        sentences = []
        for text in TEXTS:
            source = tuple(tokenizer.encode(text))
            (greedy,) = oracle.search(rule, source, SearchOptions(return_scores=True, **limits))
            beam_options = SearchOptions(
                beam_size=beam.beam_size,
                length_penalty=beam.length_penalty,
                length_penalty_type=LengthPenalty[beam.length_penalty_type],
                early_stopping=beam.early_stopping,
                **limits,
            )
            best, *_ = oracle.search(rule, source, beam_options)
            sentences.append(
                GoldenSentence(
                    source=text,
                    source_ids=source,
                    forced_ids=forced_ids,
                    reference=text,
                    greedy=golden_hypothesis(rule, source, greedy),
                    beam=golden_hypothesis(rule, source, best),
                    beam_options=beam,
                )
            )
        return sentences

    return make


@pytest.fixture
def bundle(tmp_path: Path, tokenizer: Tokenizer, rule: Rule, make_golden: GoldenMaker) -> Bundle:
    """A sound bundle whose graphs are empty files."""

    def fill(folder: Path) -> None:
        tokenizer.save(folder / TOKENIZER_FOLDER)
        write_golden(folder / GOLDEN_FILE, make_golden(rule))
        for name in GRAPH_NAMES["ort"]:
            path = folder / "graphs" / "ort-fp32" / f"{name}.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    manifest = fake_manifest(
        vocab=VOCAB,
        decoding=DecodingDefaults(max_output_tokens=MAX_TOKENS),
        max_source_tokens=64,
        max_output_tokens=64,
        graphs={"cpu": "ort-fp32"},
    )
    return write_bundle(tmp_path / "bundle", manifest=manifest, fill=fill)
