"""The runner for GPUs on a fake device: whatever the streams' timing, it answers as the runner on the CPU does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.bundle import Bundle
from export.runners.ort_cpu import OrtCpuRunner
from export.runners.protocol import IntArray, Runner, RunnerError, ShapeError
from model.transformer import Transformer
from server.decoding.sequence import Outcome
from tests.decoding.desk import Job, decode_one_by_one, make_job
from tests.decoding.fake_runner import START
from tests.export.tiny import export_model, padded, random_model, sources_of
from tests.gpu.fake_device import SCHEDULES, FakeDevice, Schedule, open_fake

VOCAB = 301
LIMIT = 20


pytestmark = pytest.mark.usefixtures("small_buckets")


@pytest.fixture(scope="module")
def model() -> Transformer:
    # talks long, but not for ever
    return random_model(seed=2, tied_embeddings="none", norm="pre", activation="swish")


@pytest.fixture(scope="module")
def bundle(model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_model(model, tmp_path_factory.mktemp("gpu") / "bundle", target="tensorrt")


@pytest.fixture
def cpu(bundle: Bundle) -> Iterator[OrtCpuRunner]:
    runner = OrtCpuRunner.open(bundle, threads=1, max_rows=8)
    yield runner
    runner.close()


def make_jobs(seed: int = 5) -> list[Job]:
    draw = random.Random(seed)
    sources = sources_of([draw.choice([1, 2, 4, 5, 9, 17, 33]) for _ in range(24)], vocab=VOCAB, seed=seed)
    return [
        make_job(
            source[:-1].tolist(),
            beam_size=draw.choice([1, 1, 1, 2, 4]),
            max_output_tokens=draw.randint(3, 38),
            return_scores=draw.random() < 0.4,
            forced_tokens=draw.choice([(), (), (17,), (40, 5)]),
        )
        for source in sources
    ]


decode = partial(decode_one_by_one, encode_tokens_per_round=64)


def answers(jobs: list[Job]) -> list[tuple[Any, ...]]:
    assert {job.outcome for job in jobs} == {Outcome.FINISHED}
    return [tuple(hypothesis.tokens for hypothesis in job.result.hypotheses) for job in jobs]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("rounds_between", [0, 2])
def test_what_it_decodes_is_what_the_cpu_decodes(
    bundle: Bundle, cpu: OrtCpuRunner, schedule: Schedule, rounds_between: int
) -> None:
    runner, graphs = open_fake(bundle, schedule=schedule)
    jobs, wanted = make_jobs(), make_jobs()
    decode(runner, jobs, rounds_between=rounds_between)
    decode(cpu, wanted, rounds_between=rounds_between)
    assert answers(jobs) == answers(wanted)
    for job, other in zip(jobs, wanted, strict=True):
        for hypothesis, same in zip(job.result.hypotheses, other.result.hypotheses, strict=True):
            assert hypothesis.score == pytest.approx(same.score, abs=1e-4)
    steps = [shapes for graph, shapes in graphs.bound if graph == "step"]
    assert {shapes["tokens"] for shapes in steps} == {(1,), (3,), (8,)}
    assert {shapes["past_key_0"][2] for shapes in steps} == {5, 12, 40}
    assert {16, 40} <= {shapes["cross_key_0"][2] for shapes in steps} <= {4, 16, 40}
    assert graphs.runs.count("reorder") > 0, "beams part and cross"
    runner.close()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seed", range(4))
def test_logits_are_the_cpus_under_any_mapping_of_parents(
    bundle: Bundle, cpu: OrtCpuRunner, seed: int, schedule: Schedule
) -> None:
    runner, _ = open_fake(bundle, schedule=schedule, seed=seed)
    draw = np.random.default_rng(seed)
    lengths = [0] * 8
    for turn in range(30):
        joining = draw.permutation(8)[: draw.integers(0, 4)] if turn else np.arange(8)
        if len(joining):
            array, counts = padded(sources_of(draw.integers(1, 40, len(joining)), vocab=VOCAB, seed=50 * seed + turn))
            for one in (runner, cpu):
                one.encode(sources=array, lengths=counts, rows=joining)
            for row in joining.tolist():
                lengths[row] = 0
        live = int(draw.integers(1, 9))
        mappings = [None, draw.integers(0, 8, live), draw.permutation(8)[:live], np.arange(live)]
        parents: IntArray | None = mappings[draw.integers(4)]
        origins = range(live) if parents is None else parents.tolist()
        positions = np.array([lengths[origin] for origin in origins])
        if positions.max() >= 39:
            break
        tokens = draw.integers(4, VOCAB, live)
        for one in (runner, cpu):
            one.step(tokens=tokens, positions=positions, parents=parents)
        if draw.random() < 0.3:
            assert np.array_equal(runner.argmax(), cpu.argmax())
        if draw.random() < 0.3:
            got, wanted = runner.top_k(5), cpu.top_k(5)
            assert np.array_equal(got.ids, wanted.ids)
            assert np.abs(got.log_probs - wanted.log_probs).max() < 1e-4
        if draw.random() < 0.8:
            assert np.abs(runner.logits() - cpu.logits()).max() < 1e-3
        known = lengths.copy()
        for row, origin in enumerate(origins):
            lengths[row] = known[origin] + 1
        # rows beyond the live ones hold nothing any more
        if live < 8:
            array, counts = padded(sources_of([3] * (8 - live), vocab=VOCAB))
            for one in (runner, cpu):
                one.encode(sources=array, lengths=counts, rows=np.arange(live, 8))
            lengths[live:] = [0] * (8 - live)
    runner.close()


def begin(runner: Runner, rows: int, *, seed: int = 1) -> np.ndarray:
    """Encode sources and run the first step; its best tokens."""
    array, lengths = padded(sources_of([5 + row for row in range(rows)], vocab=VOCAB, seed=seed))
    runner.encode(sources=array, lengths=lengths, rows=np.arange(rows))
    runner.step(tokens=np.full(rows, START), positions=np.zeros(rows, np.int64))
    return runner.argmax()


def go_on(runner: Runner, tokens: np.ndarray, position: int) -> np.ndarray:
    runner.step(tokens=tokens, positions=np.full(len(tokens), position))
    return runner.argmax()


def test_while_rows_go_on_each_step_is_begun_before_it_is_asked_for(bundle: Bundle, cpu: OrtCpuRunner) -> None:
    runner, graphs = open_fake(bundle, schedule="early")
    tokens, wanted = begin(runner, 3), begin(cpu, 3)
    for position in range(1, 12):
        steps_before = graphs.runs.count("step")
        tokens, wanted = go_on(runner, tokens, position), go_on(cpu, wanted, position)
        assert np.array_equal(tokens, wanted)
        grown = position in {4, 5}  # the caches are full, and nothing is begun that would not fit
        if position > 2 and not grown:
            assert graphs.runs.count("step") == steps_before + (position < 11), "one step, which is the next one"
    runner.close()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_greedy_steps_are_those_of_the_cpu(bundle: Bundle, cpu: OrtCpuRunner, schedule: Schedule) -> None:
    runner, _ = open_fake(bundle, schedule=schedule)
    tokens, wanted = begin(runner, 5), begin(cpu, 5)
    assert np.array_equal(tokens, wanted)
    position = 1
    calls: list[tuple[int, list[int] | None]] = [(4, None), (3, [0, 4, 2, 3]), (6, None), (5, [3, 1]), (1, [0])]
    for steps, origins in calls:
        parents = None if origins is None else np.array(origins)
        tokens = tokens if origins is None else tokens[origins]
        positions = np.full(len(tokens), position)
        got, found = (
            one.greedy_steps(steps, tokens=tokens, positions=positions, parents=parents, end_id=VOCAB)
            for one in (runner, cpu)
        )
        assert got == found
        assert len(got) == steps
        tokens, position = np.array(got[-1]), position + steps
    arguments: dict[str, Any] = {"tokens": tokens, "positions": np.array([position])}
    ((end_id,),) = cpu.greedy_steps(1, **arguments, end_id=VOCAB)
    assert runner.greedy_steps(4, **arguments, end_id=end_id) == [[end_id]], "an end token ends them"
    with pytest.raises(ShapeError, match="steps: got 0, wanted 1 to"):
        runner.greedy_steps(0, **arguments, end_id=VOCAB)
    runner.close()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_that_was_begun_for_nothing_harms_nothing(bundle: Bundle, cpu: OrtCpuRunner, schedule: Schedule) -> None:
    runner, _ = open_fake(bundle, schedule=schedule)
    tokens, wanted = begin(runner, 4), begin(cpu, 4)
    for position in (1, 2, 3):
        tokens, wanted = go_on(runner, tokens, position), go_on(cpu, wanted, position)
    # row 1 leaves, the last one takes its place; then a newcomer, then another token than the best
    for one in (runner, cpu):
        one.step(tokens=wanted[[0, 3, 2]], positions=np.full(3, 4), parents=np.array([0, 3, 2]))
    assert np.array_equal(runner.argmax(), cpu.argmax())
    array, lengths = padded(sources_of([7], vocab=VOCAB, seed=8))
    last = cpu.argmax()
    for one in (runner, cpu):
        one.encode(sources=array, lengths=lengths, rows=np.array([3]))
        one.step(tokens=np.append(last, START), positions=np.array([5, 5, 5, 0]))
    assert np.array_equal(runner.argmax(), cpu.argmax())
    for one in (runner, cpu):
        one.step(tokens=np.array([9, 8, 7, 6]), positions=np.array([6, 6, 6, 1]))
    assert np.abs(runner.logits() - cpu.logits()).max() < 1e-3
    assert np.array_equal(runner.argmax(), cpu.argmax())
    runner.close()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_heads_read_the_step_that_was_asked_for(bundle: Bundle, cpu: OrtCpuRunner, schedule: Schedule) -> None:
    runner, _ = open_fake(bundle, schedule=schedule)
    tokens, wanted = begin(runner, 3), begin(cpu, 3)
    for position in range(1, 10):
        tokens, wanted = go_on(runner, tokens, position), go_on(cpu, wanted, position)
        assert np.array_equal(tokens, wanted)
        if position % 3 == 0:  # the next step is under way and has overwritten the logits
            assert np.abs(runner.logits() - cpu.logits()).max() < 1e-3
            assert np.array_equal(runner.top_k(4).ids, cpu.top_k(4).ids)
            assert np.array_equal(runner.argmax(), wanted)
    runner.close()


def test_a_step_is_captured_once_for_each_size_and_layout(bundle: Bundle) -> None:
    device = FakeDevice("early")
    runner, graphs = open_fake(bundle, device=device)
    tokens = begin(runner, 2)
    for position in range(1, 5):
        tokens = go_on(runner, tokens, position)
    # the first run warms up, the second is captured, all others are launched
    assert [graph for graph, _ in graphs.bound].count("step") == 1
    assert runner._steps.captured == 1
    before = device.launches
    begin(runner, 2)
    go_on(runner, tokens, 1)
    assert device.launches > before
    assert [graph for graph, _ in graphs.bound].count("step") == 1
    begin(runner, 7)
    assert [graph for graph, _ in graphs.bound].count("step") == 2
    runner.close()


def test_a_runtime_that_cannot_be_captured_is_enqueued_each_time(bundle: Bundle, cpu: OrtCpuRunner) -> None:
    device = FakeDevice("uneven", seed=3)
    runner, _ = open_fake(bundle, device=device, capturable=False)
    jobs, wanted = make_jobs(9), make_jobs(9)
    decode(runner, jobs, rounds_between=1)
    decode(cpu, wanted, rounds_between=1)
    assert answers(jobs) == answers(wanted)
    assert device.captured == []
    runner.close()


def test_what_cannot_be_captured_is_enqueued_and_not_tried_again(
    bundle: Bundle, cpu: OrtCpuRunner, caplog: pytest.LogCaptureFixture
) -> None:
    device = FakeDevice("uneven", seed=4)
    device.refuses_capture = True
    runner, graphs = open_fake(bundle, device=device)
    jobs, wanted = make_jobs(9), make_jobs(9)
    decode(runner, jobs, rounds_between=1)
    decode(cpu, wanted, rounds_between=1)
    assert answers(jobs) == answers(wanted)
    assert device.captured == []
    assert 0 < device.captures_tried < graphs.runs.count("step"), "once for each size and layout"
    assert "cannot be captured: scripted refusal" in caplog.text
    runner.close()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_closing_waits_for_the_step_that_was_begun_ahead(bundle: Bundle, schedule: Schedule) -> None:
    runner, graphs = open_fake(bundle, schedule=schedule)
    tokens = begin(runner, 3)
    for position in (1, 2, 3):
        tokens = go_on(runner, tokens, position)
    runner.close()  # what is freed while it runs fails the stand-in's own check
    assert graphs.runs.count("step") == 5, "the first, three more, and one that nobody asked for"


def test_half_precision_gives_nearly_the_same(model: Transformer, cpu: OrtCpuRunner, tmp_path: Path) -> None:
    bundle = export_model(model, tmp_path / "half", target="tensorrt", precision="fp16")
    assert bundle.manifest.graphs == {"cpu": "ort-fp32", "cuda": "standard-fp16", "tensorrt": "standard-fp16"}
    runner, _ = open_fake(bundle)
    assert runner.precision == "fp16"
    tokens = begin(cpu, 3)
    assert np.array_equal(begin(runner, 3), tokens)
    for position in range(1, 20):
        for one in (runner, cpu):
            one.step(tokens=tokens, positions=np.full(3, position))
        assert np.abs(runner.logits() - cpu.logits()).max() < 0.1
        tokens = cpu.argmax()
    runner.close()


def test_memory_is_summed_up_before_anything_is_allocated(bundle: Bundle) -> None:
    whole = FakeDevice()
    runner, _ = open_fake(bundle, device=whole)
    used = whole.total_bytes - whole.free_bytes()
    assert used >= runner.limits.cache_bytes > 0
    runner.close()
    fewer = FakeDevice()
    runner, _ = open_fake(bundle, device=fewer, max_rows=3)
    small = FakeDevice(total_bytes=fewer.total_bytes - fewer.free_bytes())
    with pytest.raises(
        RunnerError, match=r"MiB free, wanted .* MiB for 8 rows \(own caches .*: --max-rows 3 would fit$"
    ):
        open_fake(bundle, device=small)
    assert not small.allocated
    tiny = FakeDevice(total_bytes=1000)
    with pytest.raises(RunnerError, match=r"not even 1 would fit$"):
        open_fake(bundle, device=tiny)
    exact = FakeDevice(total_bytes=used)
    runner, _ = open_fake(bundle, device=exact)
    assert exact.free_bytes() == 0
    runner.close()


def test_what_it_held_is_free_once_it_is_closed(bundle: Bundle) -> None:
    device = FakeDevice()
    runner, graphs = open_fake(bundle, device=device)
    begin(runner, 2)
    runner.close()
    runner.close()
    assert device.closed
    assert graphs.closed
    assert not device.allocated
    with pytest.raises(RunnerError, match="the runner is closed"):
        runner.argmax()


def test_a_failing_graph_is_told_and_the_next_step_may_succeed(bundle: Bundle, cpu: OrtCpuRunner) -> None:
    runner, graphs = open_fake(bundle)
    tokens, wanted = begin(runner, 2), begin(cpu, 2)
    graphs.failing.add("step")
    with pytest.raises(RunnerError, match="scripted failure"):
        runner.step(tokens=np.array([5, 6]), positions=np.array([1, 1]))
    with pytest.raises(ShapeError, match="before any step"):
        runner.argmax()
    graphs.failing.clear()
    assert np.array_equal(go_on(runner, tokens, 1), go_on(cpu, wanted, 1))
    runner.close()


def test_faults_at_its_edge_name_got_and_wanted(bundle: Bundle) -> None:
    runner, _ = open_fake(bundle)
    with pytest.raises(ShapeError, match="wanted a step first"):
        runner.argmax()
    one = np.array([5])
    with pytest.raises(ShapeError, match="rows: got row 0 without a source, wanted every live row encoded"):
        runner.step(tokens=one, positions=np.array([0]))
    begin(runner, 1)
    with pytest.raises(ShapeError, match=r"positions: got 40, wanted 0 to 39"):
        runner.step(tokens=one, positions=np.array([40]))
    begin(runner, 1)
    with pytest.raises(ShapeError, match="k: got 33, wanted 1 to 32"):
        runner.top_k(33)
    runner.close()
