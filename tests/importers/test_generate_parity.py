"""Imported models against transformers' own generate(), token for token, through the runner and searches that serve.

A small draw runs always; `pytest -m full` runs 200 sources of every model.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.bundle import Bundle, Manifest
from export.exporter import export_bundle, plan_manifest
from export.runners.ort_cpu import OrtCpuRunner
from model.checkpoint import Checkpoint, load_checkpoint
from model.importers import Naming, import_checkpoint
from server.decoding.loop import DecodeLoop
from server.decoding.sequence import Hypothesis, LengthPenalty, Outcome, SearchOptions, Sequence
from tests.importers.hugging import Drawing, build, sizes

GAP_PER_TOKEN = 1e-5
MAX_NEW_TOKENS = 24
LONGEST_SOURCE = 512
FEW, MANY = 14, 200
NAMING = Naming(name="drawn", source_languages=("en",), target_languages=("fr",))


def marian(vocab: int, **fields: Any) -> dict[str, Any]:
    """Special tokens of a Marian model: padding last, the end token first."""
    pad = fields.get("decoder_vocab_size", vocab) - 1
    return {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": 0, "forced_eos_token_id": 0, **fields}


def never(token: int) -> dict[str, Any]:
    """Generation settings of the opus-mt models: the padding token is barred."""
    return {"bad_words_ids": [[token]]}


DRAWINGS = {
    "marian-swish": Drawing(
        toolkit="marian",
        kind="Marian",
        seed=1,
        config={
            **sizes(64, 8, (2, 2), 128, 509),
            **marian(509, activation_function="swish", scale_embedding=True),
        },
        generation={**never(508), "num_beams": 4, "max_length": 512},
    ),
    "marian-untied-gelu": Drawing(
        toolkit="marian",
        kind="Marian",
        seed=2,
        config={
            **sizes(48, 3, (1, 3), 100, 257),
            **marian(257, activation_function="gelu", tie_word_embeddings=False),
        },
        generation=never(256),
    ),
    "marian-two-vocabularies-relu-1-head": Drawing(
        toolkit="marian",
        kind="Marian",
        seed=3,
        config={
            **sizes(32, 1, (2, 1), 64, 301),
            **marian(301, activation_function="relu", decoder_vocab_size=203, share_encoder_decoder_embeddings=False),
        },
        generation=never(202),
    ),
    "marian-16-heads-renormalized": Drawing(
        toolkit="marian",
        kind="Marian",
        seed=24,
        config={**sizes(128, 16, (2, 2), 96, 641), **marian(641, activation_function="swish", scale_embedding=True)},
        generation={**never(640), "renormalize_logits": True, "length_penalty": 0.6, "num_beams": 6},
    ),
    "marian-deep": Drawing(
        toolkit="marian",
        kind="Marian",
        seed=45,
        config={**sizes(80, 5, (5, 4), 64, 131), **marian(131, activation_function="gelu")},
        generation={**never(130), "length_penalty": 0.0, "num_beams": 2},
    ),
    "m2m100-relu": Drawing(
        toolkit="nllb",
        kind="M2M100",
        seed=6,
        config={**sizes(64, 4, (2, 2), 128, 211), "activation_function": "relu"},
        generation=never(1),
        languages=("en", "fr"),
    ),
    "m2m100-untied-gelu-12-heads": Drawing(
        toolkit="nllb",
        kind="M2M100",
        seed=7,
        config={**sizes(96, 12, (1, 2), 80, 233), "activation_function": "gelu", "tie_word_embeddings": False},
        generation={**never(1), "length_penalty": 2.0, "num_beams": 4},
        languages=("en", "fr"),
    ),
    "nllb-16-heads": Drawing(
        toolkit="nllb",
        kind="M2M100",
        seed=8,
        config={**sizes(128, 16, (3, 2), 160, 401), "activation_function": "relu"},
        generation={**never(1), "max_length": 200},
        languages=("eng_Latn", "fra_Latn"),
    ),
    "nllb-swish-deep-encoder": Drawing(
        toolkit="nllb",
        kind="M2M100",
        seed=9,
        config={**sizes(32, 2, (5, 1), 48, 337), "activation_function": "swish", "scale_embedding": False},
        generation={**never(1), "renormalize_logits": True},
        languages=("eng_Latn", "fra_Latn"),
    ),
    "bart-gelu": Drawing(
        toolkit="bart",
        kind="Bart",
        seed=10,
        config={**sizes(64, 4, (2, 2), 128, 277), "activation_function": "gelu"},
        generation={"early_stopping": True, "length_penalty": 2.0, "num_beams": 4},
    ),
    "bart-untied-relu-forced-begin": Drawing(
        toolkit="bart",
        kind="Bart",
        seed=11,
        config={
            **sizes(32, 2, (1, 2), 56, 311),
            "activation_function": "relu",
            "tie_word_embeddings": False,
            "scale_embedding": True,
        },
        generation={**never(1), "forced_bos_token_id": 0},
    ),
    "mbart-gelu": Drawing(
        toolkit="bart",
        kind="MBart",
        seed=12,
        config={
            **sizes(64, 8, (2, 2), 128, 163),
            "activation_function": "gelu",
            "scale_embedding": True,
            "decoder_start_token_id": 2,
        },
        generation={**never(1), "early_stopping": True, "num_beams": 5, "max_length": 200},
        languages=("en_XX", "fr_XX"),
    ),
    "mbart-untied-swish-heads-of-6": Drawing(
        toolkit="bart",
        kind="MBart",
        seed=13,
        config={
            **sizes(48, 8, (2, 1), 72, 199),
            "activation_function": "swish",
            "tie_word_embeddings": False,
            "decoder_start_token_id": 2,
        },
        generation=never(1),
        languages=("en_XX", "fr_XX"),
    ),
    "marian-wide": Drawing(
        toolkit="marian",
        kind="Marian",
        seed=14,
        config={**sizes(256, 4, (3, 3), 512, 1021), **marian(1021, activation_function="swish")},
        generation=never(1020),
    ),
}


def draw_sources(drawing: Drawing, checkpoint: Checkpoint, *, count: int) -> list[list[int]]:
    """Random sources as the tokenizer would frame them; most short, some long, one as long as any may be."""
    draw = np.random.default_rng(drawing.seed)
    config = checkpoint.model.config
    lengths = np.concatenate([[LONGEST_SOURCE], draw.integers(2, 40, count)])[:count]
    lengths[1 :: max(2, count // 8)] = draw.integers(64, LONGEST_SOURCE, len(lengths[1 :: max(2, count // 8)]))
    frame = checkpoint.tokenizer.encode("", source_language="en", target_language="fr")
    where = frame.index(config.eos_id)
    usable = [token for token in range(4, config.source_vocab_size) if token not in (config.pad_id, config.eos_id)]
    return [
        [*frame[:where], *draw.choice(usable, int(length) - len(frame)).tolist(), *frame[where:]]
        if length > len(frame)
        else list(frame)
        for length in lengths
    ]


def ours(
    runner: OrtCpuRunner, manifest: Manifest, sources: Items[Items[int]], options: SearchOptions
) -> list[tuple[int, ...]]:
    """Every source's best output, all decoded together."""
    found: dict[int, Hypothesis] = {}

    def ask(index: int) -> Sequence:
        def keep(result: Any) -> None:
            assert result.outcome is Outcome.FINISHED
            found[index] = result.hypotheses[0]

        return Sequence(sources[index], options, on_finished=keep)

    loop = DecodeLoop(
        runner,
        start_id=manifest.start_id,
        eos_id=manifest.eos_id,
        pad_id=manifest.pad_id,
        max_queue=len(sources),
    )
    loop.submit([ask(index) for index in range(len(sources))])
    while len(found) < len(sources):
        loop.run_round()
    return [found[index].tokens for index in range(len(sources))]


def theirs(
    model: Any, sources: Items[Items[int]], *, beams: int, forced: tuple[int, ...], batch: int = 20
) -> list[tuple[int, ...]]:
    """The same by generate(), in ragged batches; start and end token cut off."""
    pad, eos = model.config.pad_token_id, model.config.eos_token_id
    outputs = []
    for start in range(0, len(sources), batch):
        lines = sources[start : start + batch]
        longest = max(map(len, lines))
        ids = torch.tensor([[*line, *[pad] * (longest - len(line))] for line in lines])
        mask = torch.tensor([[1] * len(line) + [0] * (longest - len(line)) for line in lines])
        with torch.no_grad():
            found = model.generate(
                input_ids=ids,
                attention_mask=mask,
                num_beams=beams,
                max_new_tokens=MAX_NEW_TOKENS,
                **({"forced_bos_token_id": forced[0]} if forced else {}),
            )
        for line in found.tolist():
            tokens = line[1:]
            # A forced end stands at the last place, an own one anywhere; padding comes only behind it.
            ends = [place for place, token in enumerate(tokens) if token == eos and place >= len(forced)]
            outputs.append(tuple(tokens[: ends[0]] if ends else tokens))
    return outputs


def log_probs(model: Any, source: Items[int], tokens: tuple[int, ...]) -> torch.Tensor:
    """transformers' own log-probs after every prefix of an output: float64 [len(tokens) + 1, vocab]."""
    config, generation = model.config, model.generation_config
    prefix = torch.tensor([[config.decoder_start_token_id, *tokens]])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(source)]), decoder_input_ids=prefix).logits[0].double()
    barred = [ids[0] for ids in generation.bad_words_ids or []]
    if generation.renormalize_logits:
        logits[:, barred] = -torch.inf
    scores: torch.Tensor = logits.log_softmax(-1)
    return scores


def excused(model: Any, source: Items[int], wanted: tuple[int, ...], got: tuple[int, ...], *, beams: int) -> bool:
    """Whether the model itself was all but undecided at the first difference, or between the two whole outputs."""
    eos = model.config.eos_token_id
    chosen, other = ((*wanted, eos), (*got, eos))
    step = next(place for place, pair in enumerate(zip(chosen, other, strict=False)) if pair[0] != pair[1])
    given = log_probs(model, source, wanted)
    gap = abs(float(given[step, chosen[step]] - given[step, other[step]]))
    if beams > 1:
        penalty = model.generation_config.length_penalty
        sums = [
            sum(float(steps[place, token]) for place, token in enumerate(line[:MAX_NEW_TOKENS]))
            / min(len(line), MAX_NEW_TOKENS) ** penalty
            for steps, line in ((given, chosen), (log_probs(model, source, got), other))
        ]
        gap = min(gap, abs(sums[0] - sums[1]))
    return gap < GAP_PER_TOKEN * (step + 1)


def median_gap(model: Any, sources: Items[Items[int]], outputs: Items[tuple[int, ...]]) -> float:
    """Median difference between the first and the second token over every step of the greedy outputs."""
    gaps = []
    for source, output in zip(sources, outputs, strict=True):
        best = log_probs(model, source, output).topk(2).values
        gaps += (best[:, 0] - best[:, 1]).tolist()
    return float(np.median(gaps))


def open_imported(drawing: Drawing, tmp_path: Path) -> tuple[Any, Checkpoint, Bundle]:
    """Build a model, import it, export it."""
    model = build(drawing, tmp_path / "model")
    import_checkpoint(drawing.toolkit, tmp_path / "model", out=tmp_path / "checkpoint", naming=NAMING)
    checkpoint = load_checkpoint(tmp_path / "checkpoint")
    bundle = export_bundle(checkpoint, tmp_path / "bundle", manifest=plan_manifest(checkpoint), golden=())
    return model, checkpoint, bundle


@pytest.mark.parametrize("count", [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.full)])
@pytest.mark.parametrize("name", DRAWINGS)
def test_outputs_are_those_of_generate(name: str, count: int, tmp_path: Path) -> None:
    drawing = DRAWINGS[name]
    model, checkpoint, bundle = open_imported(drawing, tmp_path)
    manifest = bundle.manifest
    forced = checkpoint.tokenizer.forced_tokens("fr")
    sources = draw_sources(drawing, checkpoint, count=count)
    runner = OrtCpuRunner.open(bundle, threads=1, max_rows=64, max_candidates=16)
    exceptions = []
    for beams in (1, 4):
        options = SearchOptions(
            beam_size=beams,
            length_penalty=manifest.decoding.length_penalty,
            length_penalty_type=LengthPenalty.POWER,
            max_output_tokens=MAX_NEW_TOKENS,
            early_stopping=manifest.decoding.early_stopping,
            forced_end=manifest.decoding.forced_end,
            forced_tokens=forced,
        )
        wanted = theirs(model, sources, beams=beams, forced=forced)
        got = ours(runner, manifest, sources, options)
        for index, (one, other) in enumerate(zip(wanted, got, strict=True)):
            if one != other:
                assert excused(model, sources[index], one, other, beams=beams), (beams, index, one, other)
                exceptions.append((beams, index, one, other))
        if beams == 1:
            gap = median_gap(model, sources, wanted)
            ended = sum(len(output) < MAX_NEW_TOKENS - 1 for output in wanted)
            distinct = len(set(wanted))
    runner.close()
    print(f"{name}: {2 * count} outputs, median gap {gap:.3f}, {ended} ended early, {distinct} distinct, {exceptions=}")
    assert gap > 0.01
    assert distinct > count // 5, "outputs that do not depend on their sources prove little"
    assert len(exceptions) <= count // 50
