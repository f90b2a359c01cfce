"""The PyTorch baseline gives the reference's tokens: on the CPU, in fp32, with nothing captured."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.gpu.models.graph_weights import read_description
from benchmarks.gpu.models.prepare import DEMO_BUNDLE
from benchmarks.gpu.models.random_model import random_model
from benchmarks.gpu.specs import END, MODELS, START
from benchmarks.gpu.systems.torch_baseline import TorchBaseline
from benchmarks.gpu.systems.torch_graphs import cut, decode_batch
from benchmarks.gpu.systems.torch_model import by_products, by_sdpa
from benchmarks.gpu.works import draw_sources
from export.bundle import Bundle
from export.graphs.description import ModelDescription, describe
from model.reference import ReferenceOptions, beam_search, greedy_search

LENGTHS = [9, 7, 7, 4, 3]


def baseline_of(description: ModelDescription, *, beam_size: int, max_rows: int) -> TorchBaseline:
    return TorchBaseline(
        description, device="cpu", max_rows=max_rows, capacity=64, source_capacity=64, beam_size=beam_size
    )


def test_greedy_tokens_of_the_bundled_model_are_the_golden_ones() -> None:
    bundle = Bundle.open(DEMO_BUNDLE)
    manifest = bundle.manifest
    description = read_description(
        bundle.path / "graphs" / "ort-fp32", manifest.dims, suppressed_ids=manifest.suppressed_ids
    )
    golden = sorted(bundle.golden(), key=lambda sentence: -len(sentence.greedy.ids))
    baseline = baseline_of(description, beam_size=1, max_rows=len(golden))
    decoded = decode_batch(
        baseline,
        [sentence.source_ids for sentence in golden],
        [len(sentence.greedy.ids) + 1 for sentence in golden],
        start_id=manifest.start_id,
    )
    assert [cut(tokens, end=manifest.eos_id) for tokens in decoded] == [sentence.greedy.ids for sentence in golden]


@pytest.mark.parametrize("beam_size", [1, 4])
def test_tokens_of_a_random_model_are_the_references(beam_size: int) -> None:
    model = random_model(dataclasses.replace(MODELS["tiny"], vocab=301))
    sources = draw_sources(LENGTHS, vocab=301)
    baseline = baseline_of(describe(model, positions=64), beam_size=beam_size, max_rows=8 * beam_size)
    decoded = decode_batch(baseline, list(sources), LENGTHS, start_id=START)
    wanted = []
    for source, length in zip(sources, LENGTHS, strict=True):
        options = ReferenceOptions(max_output_tokens=length, beam_size=beam_size)
        found = beam_search(model, source, options)[0] if beam_size > 1 else greedy_search(model, source, options)
        wanted.append(found.tokens)
    assert decoded == wanted
    assert END not in {token for tokens in decoded for token in tokens}, "the end token is barred"


def test_kernels_of_attention_agree_on_ragged_rows() -> None:
    torch.manual_seed(3)
    query, key, value = (torch.randn(5, 2, length, 16) for length in (1, 9, 9))
    mask = torch.zeros(5, 1, 1, 9).masked_fill(
        torch.arange(9) >= torch.tensor([[9], [1], [4], [6], [2]])[:, None, None], -torch.inf
    )
    worst = (by_products(query, key, value, mask) - by_sdpa(query, key, value, mask)).abs().max()
    assert worst < 1e-5


def test_a_kernel_that_refuses_is_passed_over_and_named() -> None:
    model = random_model(MODELS["tiny"])
    sources = list(draw_sources(LENGTHS, vocab=MODELS["tiny"].vocab))
    wanted = decode_batch(
        baseline_of(describe(model, positions=64), beam_size=1, max_rows=8), sources, LENGTHS, start_id=START
    )
    baseline = baseline_of(describe(model, positions=64), beam_size=1, max_rows=8)
    baseline.kernels = ("cudnn", "products")  # the first one has no kernel for a CPU
    decoded = decode_batch(baseline, sources, LENGTHS, start_id=START)
    assert decoded == wanted, "trials leave tokens, positions and caches as they were"
    assert baseline.kernel(8) == "products"
    assert list(baseline.failures) == ["cudnn"]


def test_batches_that_follow_each_other_do_not_meet() -> None:
    model = random_model(MODELS["tiny"])
    sources = list(draw_sources(LENGTHS, vocab=MODELS["tiny"].vocab))
    baseline = baseline_of(describe(model, positions=64), beam_size=1, max_rows=8)
    first = decode_batch(baseline, sources, LENGTHS, start_id=START)
    decode_batch(baseline, list(reversed(sources)), [12] * len(sources), start_id=START)
    assert decode_batch(baseline, sources, LENGTHS, start_id=START) == first
