"""The runner's rows: moves under any mapping of parents, reuse, and the checks at its edge."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from export.bundle import Bundle
from export.runners import row_cache
from export.runners.ort_cpu import OrtCpuRunner
from export.runners.protocol import IntArray, RunnerError, ShapeError
from export.runners.row_cache import RowCaches
from model.transformer import Transformer
from tests.export.tiny import START, padded, random_model, sources_of

Open = Callable[..., OrtCpuRunner]
VOCAB = 301


@dataclass(frozen=True)
class Row:
    """What a row should hold: its source and the tokens that its cache has seen."""

    source: tuple[int, ...]
    tokens: tuple[int, ...] = ()


def recomputed(model: Transformer, row: Row) -> np.ndarray:
    source, target = torch.tensor([row.source]), torch.tensor([row.tokens])
    with torch.no_grad():
        logits: np.ndarray = model(source, target, source_mask=torch.ones_like(source, dtype=torch.bool))[0, -1].numpy()
    return logits


@pytest.mark.parametrize("seed", range(3))
def test_rows_hold_what_their_parents_held_under_any_mapping(seed: int, open_runner: Open) -> None:
    model = random_model()
    runner = open_runner(model, max_rows=7)
    draw = np.random.default_rng(seed)
    rows: list[Row | None] = [None] * 7
    worst = 0.0
    live = 0
    for turn in range(25):
        # Those that were not live in the last step have lost what they held.
        joining = sorted({*draw.permutation(7)[: draw.integers(0, 4)].tolist(), *range(live, 7)})
        if joining:
            sources = sources_of(draw.integers(1, 20, len(joining)), vocab=VOCAB, seed=100 * seed + turn)
            array, lengths = padded(sources)
            runner.encode(sources=array, lengths=lengths, rows=np.array(joining))
            for place, source in zip(joining, sources, strict=True):
                rows[place] = Row(tuple(source.tolist()))
        live = int(draw.integers(1, 8))
        kind = draw.integers(4)
        parents = {0: draw.integers(0, 7, live), 1: draw.permutation(7)[:live], 2: np.arange(live)}.get(int(kind))
        before = [rows[parent] for parent in (range(live) if parents is None else parents)]
        after = [Row(row.source, (*row.tokens, int(draw.integers(4, VOCAB)))) for row in before if row is not None]
        runner.step(
            tokens=np.array([row.tokens[-1] for row in after]),
            positions=np.array([len(row.tokens) - 1 for row in after]),
            parents=parents,
        )
        rows[:live] = after
        for row, got in zip(after, runner.logits(), strict=True):
            worst = max(worst, float(np.abs(got - recomputed(model, row)).max()))
    print(f"worst difference from recomputation: {worst:.1e}")
    assert worst < 1e-4


def test_a_reorder_within_one_source_leaves_cross_attention_where_it_is(tiny_bundle: Bundle) -> None:
    caches = RowCaches(
        tiny_bundle.manifest.dims, rows=3, source_capacity=4, target_capacity=4, dtype=np.dtype(np.float32)
    )
    of_buffer = np.arange(1.0, len(caches.cross) + 1, dtype=np.float32)[:, None, None, None]
    memory = of_buffer[..., None] * np.ones((1, 1, 4, 2, 8), np.float32)
    caches.write_sources(memory, lengths=np.array([2]), rows=np.array([0]))
    caches.move([0, 0], positions=[0, 0])
    assert caches.source_lengths.tolist() == [2, 2, 0]
    assert np.array_equal(caches.cross[:, 1, :, :2], caches.cross[:, 0, :, :2])

    for position in range(3):
        caches.write_step([position, position])
    caches.own[:, 0], caches.own[:, 1] = 10.0, 20.0
    caches.cross[:, 1] = -1.0  # would be overwritten if the rows of one source were moved
    caches.move([1, 0], positions=[3, 2])
    assert (caches.cross[:, 1] == -1.0).all()
    assert (caches.own[:, 0, :, :3] == 20.0).all()
    assert (caches.own[:, 0, :, 3:] == 10.0).all(), "only the used length is moved"
    assert (caches.own[:, 1, :, :2] == 10.0).all()


def test_caches_begin_small_and_keep_what_they_hold_as_they_grow(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_cache, "_SMALLEST_CAPACITY", 4)
    dims = tiny_bundle.manifest.dims
    caches = RowCaches(dims, rows=3, source_capacity=6, target_capacity=30, dtype=np.dtype(np.float32))
    largest, draw = caches.cache_bytes, np.random.default_rng(4)
    assert caches.layout == (4, 4)

    def source(length: int) -> np.ndarray:
        return draw.normal(size=(4, 1, 4, length, 8)).astype(np.float32)

    short, long = source(3), source(5)
    caches.write_sources(short, lengths=np.array([3]), rows=np.array([1]))
    assert caches.layout == (4, 4)
    caches.write_sources(long, lengths=np.array([5]), rows=np.array([0]))
    assert caches.layout == (4, 6), "as many as it will ever be asked for, where that is less than twice as many"
    assert np.array_equal(caches.cross[:, 1, :, :3], short[:, 0])
    assert np.array_equal(caches.cross[:, 0, :, :5], long[:, 0])

    written = draw.normal(size=(20, *caches.own[:, :2, :, 0].shape)).astype(np.float32)
    for position, values in enumerate(written):
        caches.keep(2, tokens=position + 1)
        caches.own[:, :2, :, position] = values
        assert caches.layout[0] == {0: 4, 4: 8, 8: 16, 16: 30}[max(at for at in (0, 4, 8, 16) if at <= position)]
    assert np.array_equal(np.moveaxis(caches.own[:, :2, :, :20], 3, 0), written)
    assert caches.own.nbytes + caches.cross.nbytes == largest


@pytest.mark.parametrize("put_off", [1, 3, 256])
def test_hypotheses_of_one_search_move_from_the_place_where_they_part(
    put_off: int, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_cache, "_STEPS_PUT_OFF", put_off)
    dims = tiny_bundle.manifest.dims
    caches = RowCaches(dims, rows=3, source_capacity=4, target_capacity=8, dtype=np.dtype(np.float32))
    memory = np.ones((4, 1, 4, 2, 8), np.float32)
    caches.write_sources(memory, lengths=np.array([2]), rows=np.array([0]))

    def write(*values: float) -> None:
        place = next(places)
        for row, value in enumerate(values):
            caches.own[:, row, :, place] = value
        caches.write_step([place] * len(values))

    places = itertools.count()
    write(1.0)
    write(2.0)
    caches.move([0, 0], positions=[2, 2])
    write(3.0, 4.0)  # here they part
    write(5.0, 6.0)
    caches.own[:, :, :, 0] = -1.0  # common to both: would be overwritten if it were moved
    caches.own[:, 0, :, 0] = -2.0
    caches.move([1, 0], positions=[4, 4])
    assert caches.own[0, 0, 0, :4, 0].tolist() == [-2.0, 2.0, 4.0, 6.0]
    assert caches.own[0, 1, 0, :4, 0].tolist() == [-1.0, 2.0, 3.0, 5.0]
    caches.move([1, 1, 0], positions=[4, 4, 4])
    assert caches.own[0, :, 0, 1:4, 0].tolist() == [[2.0, 3.0, 5.0], [2.0, 3.0, 5.0], [2.0, 4.0, 6.0]]


def test_a_search_that_narrows_to_one_hypothesis_and_widens_again_moves_all_that_is_new(tiny_bundle: Bundle) -> None:
    dims = tiny_bundle.manifest.dims
    caches = RowCaches(dims, rows=2, source_capacity=4, target_capacity=8, dtype=np.dtype(np.float32))
    memory = np.ones((4, 1, 4, 2, 8), np.float32)
    caches.write_sources(memory, lengths=np.array([2]), rows=np.array([0]))
    caches.write_step([0])
    caches.move([0, 0], positions=[1, 1])
    caches.write_step([1, 1])
    caches.move([1], positions=[2])
    caches.keep(1, tokens=3)
    caches.own[:, 0, :, 2] = 7.0
    caches.write_step([2])
    caches.move([0, 0], positions=[3, 3])
    assert (caches.own[:, 1, :, 2] == 7.0).all()


def test_a_row_that_is_encoded_anew_forgets_its_former_source(open_runner: Open) -> None:
    model = random_model()
    runner = open_runner(model)
    long, short = sources_of([25, 3], vocab=VOCAB)
    for source in (long, short):
        runner.encode(sources=source[None], lengths=np.array([len(source)]), rows=np.array([0]))
        for position, token in enumerate((START, 9, 30)):
            runner.step(tokens=np.array([token]), positions=np.array([position]))
        difference = np.abs(runner.logits()[0] - recomputed(model, Row(tuple(source.tolist()), (START, 9, 30)))).max()
        assert difference < 1e-4


def test_heads_and_logits_agree_and_may_be_called_again(open_runner: Open) -> None:
    model = random_model()
    runner = open_runner(model, max_rows=5)
    array, lengths = padded(sources_of([4, 9, 6], vocab=VOCAB))
    for rows in (3, 2, 3):
        runner.encode(sources=array, lengths=lengths, rows=np.arange(3))
        runner.step(tokens=np.full(rows, START), positions=np.zeros(rows, np.int64))
        logits = torch.from_numpy(runner.logits().copy())
        selectable = logits.clone()
        selectable[:, [0, 1, 2]] = -torch.inf
        assert runner.argmax().tolist() == selectable.argmax(1).tolist()
        for k in (1, 8, 32, 8):
            ids, log_probs = runner.top_k(k)
            assert ids.tolist() == selectable.topk(k).indices.tolist()
            assert np.abs(log_probs - logits.log_softmax(1).gather(1, torch.from_numpy(ids)).numpy()).max() < 1e-5


def test_the_last_position_and_the_longest_source_fit(open_runner: Open) -> None:
    model = random_model(max_positions=6)
    runner = open_runner(model)
    assert (runner.limits.max_source_tokens, runner.limits.max_output_tokens) == (6, 6)
    source = sources_of([6], vocab=VOCAB)[0]
    runner.encode(sources=source[None], lengths=np.array([6]), rows=np.array([0]))
    tokens = (START, 9, 30, 31, 32, 33)
    for position, token in enumerate(tokens):
        runner.step(tokens=np.array([token]), positions=np.array([position]))
    assert np.abs(runner.logits()[0] - recomputed(model, Row(tuple(source.tolist()), tokens))).max() < 1e-4


def ints(*values: int) -> IntArray:
    return np.array(values, dtype=np.int64)


ENCODE_FAULTS: dict[str, dict[str, Any]] = {
    "sources: got int32 [1, 2], wanted int64 [batch, src_len]": {"sources": np.array([[5, 3]], np.int32)},
    "lengths: got int64 [2], wanted int64 [1]": {"lengths": ints(2, 2)},
    "rows: got list, wanted array int64 [1]": {"rows": [0]},
    "src_len: got 41, wanted 1 to 40": {"sources": np.full((1, 41), 5)},
    "sources: got 301, wanted 0 to 300": {"sources": ints(301, 3)[None]},
    "sources: got -1, wanted 0 to 300": {"sources": ints(-1, 3)[None]},
    "lengths: got 3, wanted 1 to 2": {"lengths": ints(3)},
    "lengths: got 0, wanted 1 to 2": {"lengths": ints(0)},
    "rows: got 4, wanted 0 to 3": {"rows": ints(4)},
}
STEP_FAULTS: dict[str, dict[str, Any]] = {
    "tokens: got float64 [1], wanted int64 [rows]": {"tokens": np.array([2.0])},
    "positions: got int64 [2], wanted int64 [1]": {"positions": ints(0, 0)},
    "rows: got 5, wanted 1 to 4": {"tokens": ints(*[2] * 5), "positions": ints(*[0] * 5)},
    "rows: got 0, wanted 1 to 4": {"tokens": ints(), "positions": ints()},
    "tokens: got 301, wanted 0 to 300": {"tokens": ints(301)},
    "positions: got 40, wanted 0 to 39": {"positions": ints(40)},
    "parents: got int64 [2], wanted int64 [1]": {"parents": ints(0, 1)},
    "parents: got 4, wanted 0 to 3": {"parents": ints(4)},
    "rows: got row 1 without a source": {"tokens": ints(2, 2), "positions": ints(0, 0)},
}


@pytest.fixture(scope="module")
def small_runner(tiny_bundle: Bundle) -> OrtCpuRunner:
    runner = OrtCpuRunner.open(tiny_bundle, threads=1, max_rows=4)
    runner.encode(sources=ints(5, 3)[None], lengths=ints(2), rows=ints(0))
    return runner


@pytest.mark.parametrize("message", ENCODE_FAULTS)
def test_encode_names_what_does_not_fit(message: str, small_runner: OrtCpuRunner) -> None:
    arguments = {"sources": ints(5, 3)[None], "lengths": ints(2), "rows": ints(0)} | ENCODE_FAULTS[message]
    with pytest.raises(ShapeError) as caught:
        small_runner.encode(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("message", STEP_FAULTS)
def test_step_names_what_does_not_fit(message: str, small_runner: OrtCpuRunner) -> None:
    arguments = {"tokens": ints(2), "positions": ints(0)} | STEP_FAULTS[message]
    with pytest.raises(ShapeError) as caught:
        small_runner.step(**arguments)
    assert message in str(caught.value)


def test_heads_want_a_step_and_an_open_runner(tiny_bundle: Bundle) -> None:
    runner = OrtCpuRunner.open(tiny_bundle, threads=1, max_rows=2, max_candidates=5)
    assert runner.precision == "fp32"
    assert runner.limits.max_candidates == 5
    with pytest.raises(ShapeError, match="before any step"):
        runner.argmax()
    runner.encode(sources=ints(5, 3)[None], lengths=ints(2), rows=ints(0))
    runner.step(tokens=ints(2), positions=ints(0))
    with pytest.raises(ShapeError, match="k: got 6, wanted 1 to 5"):
        runner.top_k(6)
    runner.close()
    runner.close()
    with pytest.raises(RunnerError, match="closed"):
        runner.step(tokens=ints(2), positions=ints(0))
    with pytest.raises(RunnerError, match="closed"):
        runner.logits()
    with pytest.raises(RunnerError, match="closed"):
        runner.argmax()
    with pytest.raises(RunnerError, match="closed"):
        runner.greedy_steps(1, tokens=ints(2), positions=ints(0), end_id=3)


def greedily(runner: OrtCpuRunner, steps: int) -> IntArray:
    """Tokens of five rows, step by step, as ``step`` and ``argmax`` give them: [steps, 5]."""
    array, lengths = padded(sources_of([7, 3, 12, 5, 9], vocab=VOCAB))
    runner.encode(sources=array, lengths=lengths, rows=np.arange(5))
    tokens, taken = np.full(5, START), []
    for position in range(steps):
        runner.step(tokens=tokens, positions=np.full(5, position))
        tokens = runner.argmax()
        taken.append(tokens)
    return np.array(taken)


def test_greedy_steps_go_on_with_the_best_tokens(open_runner: Open) -> None:
    runner = open_runner(random_model(), max_rows=5)
    wanted = greedily(runner, 40)
    assert np.array_equal(greedily(runner, 4), wanted[:4])
    got = runner.greedy_steps(10, tokens=wanted[3], positions=np.full(5, 4), end_id=VOCAB)
    assert got == wanted[4:14].tolist()
    assert runner.argmax().tolist() == got[-1]
    # The last row takes the place of the second one, and two are lost.
    kept = np.array([0, 4, 2])
    got = runner.greedy_steps(18, tokens=wanted[13, kept], positions=np.full(3, 14), parents=kept, end_id=VOCAB)
    assert got == wanted[14:32, kept].tolist()
    end_id = int(wanted[34, 4])
    first = 1 + int(np.argmax((wanted[32:, kept] == end_id).any(axis=1)))
    got = runner.greedy_steps(5, tokens=wanted[31, kept], positions=np.full(3, 32), end_id=end_id)
    assert got == wanted[32 : 32 + first, kept].tolist(), "they end with the first end token"


def test_greedy_steps_of_rows_of_one_source(open_runner: Open) -> None:
    runner = open_runner(random_model(), max_rows=5)
    wanted = greedily(runner, 12)
    greedily(runner, 3)
    runner.step(tokens=wanted[2, [0, 4, 4, 4]], positions=np.full(4, 3), parents=np.array([0, 4, 4, 4]))
    got = runner.greedy_steps(
        5, tokens=wanted[3, [4, 4]], positions=np.full(2, 4), parents=np.array([3, 1]), end_id=VOCAB
    )
    assert got == wanted[4:9, [4, 4]].tolist()


def test_no_more_greedy_steps_than_there_are_places(open_runner: Open) -> None:
    runner = open_runner(random_model(), max_rows=5)
    tokens, positions = greedily(runner, 2)[-1], np.array([2, 1, 2, 0, 1])
    most = runner.limits.max_output_tokens - 2
    for steps in (0, most + 1):
        with pytest.raises(ShapeError, match=f"steps: got {steps}, wanted 1 to {most}"):
            runner.greedy_steps(steps, tokens=tokens, positions=positions, end_id=VOCAB)
    assert len(runner.greedy_steps(most, tokens=tokens, positions=positions, end_id=VOCAB)) == most


def test_a_row_that_has_lost_its_source_is_nobodys_parent(open_runner: Open) -> None:
    runner = open_runner(random_model(), max_rows=5)
    tokens = greedily(runner, 2)[-1]
    runner.step(tokens=tokens[:3], positions=np.full(3, 2))
    with pytest.raises(ShapeError, match="parents: got row 4, which holds nothing"):
        runner.step(tokens=np.full(2, 5), positions=np.full(2, 3), parents=np.array([0, 4]))
    for parents in (None, np.arange(5)):
        with pytest.raises(ShapeError, match="rows: got row 3 without a source, wanted every live row encoded"):
            runner.step(tokens=tokens, positions=np.full(5, 3), parents=parents)
    runner.step(tokens=tokens[:3], positions=np.full(3, 3))
