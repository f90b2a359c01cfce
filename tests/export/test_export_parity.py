"""Parity ladder: cache-free PyTorch = cached PyTorch = ONNX Runtime."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from export.runners.ort_cpu import OrtCpuRunner
from model.transformer import Transformer
from tests.export.tiny import START, padded, random_model, sources_of

TOLERANCE = 1e-4
STEPS = 9
LENGTHS = (7, 1, 13, 2, 30)
Open = Callable[..., OrtCpuRunner]

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "gelu-pre": {"activation": "gelu", "norm": "pre"},
    "swish-learned": {"activation": "swish", "positions": "learned"},
    "pre-learned-untied": {"norm": "pre", "positions": "learned", "tied_embeddings": "none"},
    "tied-decoder": {"tied_embeddings": "decoder", "source_vocab_size": 97},
    "untied-small-target": {"tied_embeddings": "none", "target_vocab_size": 41},
    "whole-block-vocab": {"source_vocab_size": 256, "target_vocab_size": 256},
    "one-head": {"heads": 1},
    "two-heads-unscaled": {"heads": 2, "scale_embeddings": False},
    "eight-heads": {"heads": 8, "d_model": 64},
    "deep-encoder": {"encoder_layers": 4, "decoder_layers": 1},
    "deep-decoder-pre": {"encoder_layers": 1, "decoder_layers": 3, "norm": "pre", "activation": "swish"},
    "marian": {"positions": "sinusoidal_halves", "output_bias": True, "activation": "swish", "start_id": 0},
    "nllb": {"norm": "pre", "positions": "sinusoidal_fairseq", "position_offset": 2},
    "bart": {"positions": "learned", "embedding_norm": True, "output_bias": True, "activation": "gelu"},
    "mbart": {"norm": "pre", "positions": "learned", "embedding_norm": True, "output_bias": True},
    "torch": {"norm": "post", "final_norm": True, "tied_embeddings": "none", "output_bias": True},
    "pre-without-final-norm": {"norm": "pre", "final_norm": False},
    "heads-of-4": {"heads": 8},
    "heads-of-12": {"d_model": 48, "heads": 4, "norm": "pre", "output_bias": True},
    "heads-of-2": {"heads": 16},
    "wide-epsilon": {"layer_norm_epsilon": 1e-3, "d_model": 96, "heads": 2, "ffn_dim": 200},
}


def cached_logits(model: Transformer, sources: np.ndarray, mask: torch.Tensor, target: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        cross = model.cross_memory(model.encode(torch.from_numpy(sources), source_mask=mask))
        cache = model.new_cache(rows=len(sources), capacity=target.shape[1])
        steps = [
            model.step(
                torch.from_numpy(tokens),
                cache,
                cross,
                positions=torch.full((len(sources),), position),
                source_mask=mask,
            )
            for position, tokens in enumerate(target.T)
        ]
    return torch.stack(steps, dim=1).numpy()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_three_ways_give_the_same_logits(name: str, open_runner: Open) -> None:
    model = random_model(**CONFIGURATIONS[name])
    vocab = model.config.target_vocab_size
    sources, lengths = padded(sources_of(LENGTHS, vocab=model.config.source_vocab_size))
    target = np.random.default_rng(5).integers(4, vocab, (len(LENGTHS), STEPS))
    target[:, 0] = START
    mask = torch.arange(sources.shape[1]) < torch.from_numpy(lengths)[:, None]
    with torch.no_grad():
        wanted = model(torch.from_numpy(sources), torch.from_numpy(target), source_mask=mask).numpy()

    runner = open_runner(model)
    runner.encode(sources=sources, lengths=lengths, rows=np.arange(len(LENGTHS)))
    worst = 0.0
    for position in range(STEPS):
        runner.step(tokens=target[:, position].copy(), positions=np.full(len(LENGTHS), position))
        worst = max(worst, float(np.abs(runner.logits() - wanted[:, position]).max()))
    cached = float(np.abs(cached_logits(model, sources, mask, target) - wanted).max())
    print(f"{name}: worst difference {worst:.1e} (ONNX Runtime), {cached:.1e} (cached PyTorch)")
    assert runner.logits().shape == (len(LENGTHS), vocab)
    assert worst < TOLERANCE
    assert cached < TOLERANCE


def test_tokens_left_out_of_the_softmax_get_no_share_of_it(open_runner: Open) -> None:
    model = random_model(suppressed=(0, 7, 200), suppression="before_softmax", output_bias=True)
    source = sources_of([9], vocab=301)[0]
    with torch.no_grad():
        given = torch.from_numpy(source[None])
        logits = model(given, torch.tensor([[START]]), source_mask=torch.ones_like(given, dtype=torch.bool))[0, 0]
    logits[[0, 7, 200]] = -torch.inf
    wanted, ids = logits.log_softmax(-1).topk(5)

    runner = open_runner(model)
    runner.encode(sources=source[None], lengths=np.array([9]), rows=np.array([0]))
    runner.step(tokens=np.array([START]), positions=np.array([0]))
    found = runner.top_k(5)
    assert found.ids[0].tolist() == ids.tolist()
    assert np.abs(found.log_probs[0] - wanted.numpy()).max() < TOLERANCE
    assert runner.argmax().tolist() == ids[:1].tolist()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes", [{}, {"d_model": 256, "heads": 4, "ffn_dim": 512, "max_positions": 96}], ids=str)
def test_a_row_is_the_same_to_the_bit_whatever_its_neighbours(
    sizes: dict[str, int], threads: int, precision: str, open_runner: Open
) -> None:
    model = random_model(**sizes)
    runner = open_runner(model, threads=threads, precision=precision)
    longest = runner.limits.max_source_tokens
    source = sources_of([11], vocab=301, seed=8)[0]
    tokens = [START, 17, 200, 5]

    def run(neighbours: int, *, width: int, place: int) -> list[np.ndarray]:
        draw = np.random.default_rng(neighbours)
        batch = sources_of(draw.integers(1, width + 1, neighbours), vocab=301, seed=neighbours)
        batch.insert(place, source)
        sources, lengths = padded(batch, to=width)
        runner.encode(sources=sources, lengths=lengths, rows=np.arange(len(batch)))
        # the neighbours stand at other positions than the row in question
        offsets = draw.integers(0, 20, len(batch))
        offsets[place] = 0
        logits = []
        for position, token in enumerate(tokens):
            row_tokens = draw.integers(4, 301, len(batch))
            row_tokens[place] = token
            runner.step(tokens=row_tokens, positions=offsets + position)
            logits.append(runner.logits()[place].copy())
        return logits

    alone = run(0, width=11, place=0)
    for neighbours, width, place in (
        (0, longest, 0),
        (1, 12, 1),
        (4, 11, 2),
        (7, 40, 0),
        (16, 29, 9),
        (63, longest, 63),
    ):
        together = run(neighbours, width=width, place=place)
        assert np.array_equal(alone, together), (neighbours, width)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_source_is_the_same_to_the_bit_however_far_it_is_padded(
    threads: int, precision: str, open_runner: Open
) -> None:
    model = random_model(d_model=128, heads=2, ffn_dim=192, max_positions=512)
    runner = open_runner(model, threads=threads, precision=precision)

    def first_logits(source: np.ndarray, *, to: int, beside: int) -> np.ndarray:
        others = sources_of([to] * beside, vocab=301, seed=to)
        sources, lengths = padded([*others, source], to=to)
        rows = np.arange(len(lengths))
        runner.encode(sources=sources, lengths=lengths, rows=rows)
        runner.step(tokens=np.full(len(rows), START), positions=np.zeros(len(rows), np.int64))
        logits: np.ndarray = runner.logits()[-1].copy()
        return logits

    for length in (1, 2, 8, 15, 17, 33, 64, 65, 130, 300):
        (source,) = sources_of([length], vocab=301, seed=length)
        alone = first_logits(source, to=length, beside=0)
        for to in sorted({length + 1, 16, 48, 64, 100, 256, 512}):
            if to > length:
                assert np.array_equal(first_logits(source, to=to, beside=to % 3), alone), (length, to)
