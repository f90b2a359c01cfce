"""The decode loop, turned by hand: batching, order, cancellation, deadlines, failures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.decoding.greedy import GreedySearch
from server.decoding.loop import LoopClosed, QueueFull
from server.decoding.running import Running
from server.decoding.scheduler import encoder_batches
from server.decoding.sequence import FinishReason, Outcome, Result
from tests.decoding.desk import Desk, Job, make_job
from tests.decoding.fake_runner import FakeRunner, copying_rule, random_rule

repeatable = settings(derandomize=True, deadline=None, max_examples=60)
job_kinds: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "source": st.lists(st.integers(4, 11), min_size=0, max_size=20),
        "beam_size": st.sampled_from([1, 1, 1, 2, 4]),
        "min_output_tokens": st.sampled_from([0, 0, 3]),
        "return_scores": st.booleans(),
        "forced_tokens": st.sampled_from([(), (), (7,), (8, 9)]),
        "forced_end": st.booleans(),
    }
)


def copying_desk(**settings: Any) -> Desk:
    return Desk(FakeRunner(copying_rule()), **settings)


def test_greedy_alone_uses_the_argmax_head() -> None:
    desk = copying_desk()
    desk.submit(make_job([5, 6]), make_job([7]))
    desk.turn_until_idle()
    assert set(desk.runner.calls.heads) == {0}


def test_a_mixed_step_uses_one_top_k_with_the_largest_k() -> None:
    desk = copying_desk()
    desk.submit(make_job([5, 6]), make_job([7, 8, 9], beam_size=3), make_job([7], beam_size=2))
    desk.turn()
    assert desk.runner.calls.heads == [4]


@repeatable
@given(st.lists(st.tuples(job_kinds, st.integers(0, 3)), min_size=2, max_size=12), st.integers(0, 1000))
def test_a_running_batch_equals_one_at_a_time(kinds: list[tuple[dict[str, Any], int]], seed: int) -> None:
    rule = random_rule(seed, levels=2)
    together = Desk(FakeRunner(rule), encode_tokens_per_round=32)
    jobs = []
    for kind, pause in kinds:
        jobs.append(make_job(**kind))
        together.submit(jobs[-1])
        together.turn(pause)
    together.turn_until_idle()
    for job, (kind, _) in zip(jobs, kinds, strict=True):
        alone, desk = make_job(**kind), Desk(FakeRunner(rule))
        desk.submit(alone)
        desk.turn_until_idle()
        assert job.result == alone.result
        assert job.streamed == alone.streamed


@repeatable
@given(st.data())
def test_rows_are_conserved_under_random_admit_cancel_and_finish(data: st.DataObject) -> None:
    desk = Desk(FakeRunner(random_rule(data.draw(st.integers(0, 1000)))))
    jobs: list[Job] = []
    for _ in range(data.draw(st.integers(1, 12))):
        for kind in data.draw(st.lists(job_kinds, max_size=4)):
            deadline = data.draw(st.none() | st.floats(desk.clock.now, desk.clock.now + 20))
            jobs.append(make_job(**kind, deadline=deadline))
            desk.submit(jobs[-1])
        for number in data.draw(st.sets(st.integers(0, len(jobs)), max_size=2)):
            for job in jobs[number : number + 1]:
                job.sequence.cancel()
        desk.turn(data.draw(st.integers(0, 4)), seconds=1.0)
    desk.turn_until_idle()
    assert all(len(job.results) == 1 for job in jobs)
    assert all(rows <= desk.runner.limits.max_rows for rows in desk.runner.calls.stepped_rows)
    # Every row is free again: as many sequences as there are rows join at once.
    late = [make_job([5]) for _ in range(desk.runner.limits.max_rows)]
    desk.submit(*late)
    desk.turn()
    assert desk.loop.queue_depth == 0


def test_streamed_tokens_are_the_greedy_result_and_beams_stream_nothing() -> None:
    desk = Desk(FakeRunner(random_rule(3)))
    greedy, cut, beam = make_job([5, 6]), make_job([6, 7], max_output_tokens=2), make_job([5, 6], beam_size=3)
    forced = make_job([5, 6], forced_tokens=(9, 10), forced_end=True, max_output_tokens=4)
    desk.submit(greedy, cut, beam, forced)
    desk.turn_until_idle()
    assert tuple(greedy.streamed) == greedy.tokens
    assert tuple(cut.streamed) == cut.tokens
    assert tuple(forced.streamed) == forced.tokens
    assert forced.tokens[:2] == (9, 10)
    assert cut.result.hypotheses[0].finish_reason is FinishReason.MAX_TOKENS
    assert beam.streamed == []


def test_rows_are_reused_in_the_round_after_they_became_free() -> None:
    desk = Desk(FakeRunner(copying_rule(), max_rows=2))
    short, long, waiting = make_job([5]), make_job([5, 6, 7, 8]), make_job([9])
    desk.submit(short, long, waiting)
    desk.turn(2)
    assert short.tokens == (5,)
    assert desk.loop.queue_depth == 1
    desk.turn()
    assert desk.loop.queue_depth == 0
    desk.turn_until_idle()
    assert desk.runner.calls.stepped_rows == [2, 2, 2, 2, 1]
    assert waiting.tokens == (9,)


def test_first_come_first_served_even_for_a_wide_beam() -> None:
    desk = Desk(FakeRunner(copying_rule(), max_rows=4))
    first, wide, late = make_job([5, 6, 7]), make_job([5], beam_size=4), make_job([5])
    desk.submit(first, wide, late)
    desk.turn_until_idle()
    assert first.tokens == (5, 6, 7)
    assert desk.runner.calls.encoded == [(1, 4), (1, 2), (1, 2)]
    assert wide.tokens == late.tokens == (5,)


def test_encoder_work_of_a_round_is_bounded_and_a_long_source_joins_alone() -> None:
    desk = Desk(FakeRunner(copying_rule(vocab=12), max_rows=32), encode_tokens_per_round=64)
    jobs = [make_job([5] * 200, max_output_tokens=4), *(make_job([5] * 10) for _ in range(9))]
    desk.submit(*jobs)
    sizes = []
    for _ in range(4):
        before = len(desk.runner.calls.encoded)
        desk.turn()
        sizes.append([batch * length for batch, length in desk.runner.calls.encoded[before:]])
    assert sizes == [[201], [55], [44], []]
    assert [job.sequence.submitted_at for job in jobs] == [100.0] * 10


def test_sources_of_one_length_share_an_encoder_batch() -> None:
    desk = Desk(FakeRunner(copying_rule(), max_rows=8))
    desk.submit(*(make_job([5] * length) for length in (3, 30, 5, 29, 7, 31)))
    desk.turn()
    assert sorted(desk.runner.calls.encoded) == [(3, 8), (3, 32)]
    assert all(ratio < 0.3 for ratio in desk.observer.padding)


def splits(lengths: list[int]) -> Iterator[list[list[int]]]:
    """Every way to cut a list into pieces."""
    for cuts in itertools.product([False, True], repeat=max(0, len(lengths) - 1)):
        pieces = [[lengths[0]]]
        for cut, length in zip(cuts, lengths[1:], strict=True):
            if cut:
                pieces.append([])
            pieces[-1].append(length)
        yield pieces


@given(st.lists(st.integers(1, 90), min_size=1, max_size=8))
@repeatable
def test_no_split_into_encoder_batches_costs_less(lengths: list[int]) -> None:
    def cost(batches: list[list[int]]) -> int:
        return sum(12 + max(batch) * len(batch) for batch in batches)

    options = make_job([]).sequence.options
    newcomers = [
        Running(make_job([5] * (length - 1)).sequence, GreedySearch(options, end_id=3), [2]) for length in lengths
    ]
    batches = encoder_batches(newcomers)
    got = [[len(running.sequence.source) for running in batch] for batch in batches]
    assert sorted(itertools.chain.from_iterable(got)) == sorted(lengths)
    assert cost(got) == min(map(cost, splits(sorted(lengths))))


def test_cancelled_while_queued() -> None:
    desk = Desk(FakeRunner(copying_rule(), max_rows=1))
    running, queued = make_job([5, 6]), make_job([7])
    desk.submit(running, queued)
    desk.turn()
    queued.sequence.cancel()
    desk.turn_until_idle()
    assert (running.outcome, queued.outcome) == (Outcome.FINISHED, Outcome.CANCELLED)
    assert desk.observer.stages == ["queued"]
    assert len(desk.runner.calls.encoded) == 1


def test_cancelled_while_decoding_frees_its_row_at_once() -> None:
    desk = Desk(FakeRunner(copying_rule(), max_rows=1))
    running, queued = make_job([5, 6, 7, 8]), make_job([9])
    desk.submit(running, queued)
    desk.turn()
    running.sequence.cancel()
    desk.turn()
    assert running.result == Result(Outcome.CANCELLED)
    assert running.streamed == [5]
    assert queued.streamed == [9]
    assert desk.observer.stages == ["decoding"]


def test_cancel_after_the_end_does_nothing() -> None:
    desk = copying_desk()
    job = make_job([5])
    desk.submit(job)
    desk.turn_until_idle()
    job.sequence.cancel()
    desk.turn()
    assert job.outcome is Outcome.FINISHED


def test_deadline_passes_while_queued_and_while_decoding() -> None:
    desk = Desk(FakeRunner(copying_rule(), max_rows=1))
    running = make_job([5, 6, 7, 8, 9], deadline=desk.clock.now + 2.5)
    queued = make_job([7], deadline=desk.clock.now + 0.5)
    late = make_job([8], deadline=desk.clock.now + 9)
    desk.submit(running, queued, late)
    desk.turn(2, seconds=1.0)
    assert queued.outcome is Outcome.DEADLINE_EXCEEDED
    assert not running.results
    desk.turn(8, seconds=1.0)
    assert running.result == Result(Outcome.DEADLINE_EXCEEDED)
    assert running.streamed == [5, 6, 7]
    assert late.outcome is Outcome.FINISHED
    assert desk.observer.stages == ["queued", "decoding"]


def test_queue_full_refuses_all_or_none() -> None:
    desk = copying_desk(max_queue=2)
    first, more = make_job([5]), [make_job([6]), make_job([7])]
    desk.submit(first)
    with pytest.raises(QueueFull, match="got 2 sequences beside 1, wanted at most 2") as refusal:
        desk.submit(*more)
    assert refusal.value.retry_after_s > 0
    assert desk.loop.queue_depth == 1
    desk.turn_until_idle()
    assert first.tokens == (5,)
    assert not any(job.results for job in more)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ([5] * 600, {}, "source tokens: got 601, wanted 1 to 600"),
        ([5], {"beam_size": 9}, "beam_size: got 9, wanted 1 to 8"),
        ([5], {"beam_size": 0}, "beam_size: got 0"),
        ([5], {"num_hypotheses": 2}, "num_hypotheses: got 2, wanted 1 to 1"),
        ([5], {"max_output_tokens": 65}, "max_output_tokens: got 65, wanted 1 to 64"),
        ([5], {"max_output_tokens": 3, "min_output_tokens": 4}, "min_output_tokens: got 4, wanted 0 to 3"),
        ([5], {"max_output_tokens": 3, "min_output_tokens": 3, "forced_end": True}, "got 3, wanted 0 to 2"),
        ([5], {"max_output_tokens": 2, "forced_tokens": (4, 5)}, "max_output_tokens: got 2, wanted 3 to 64"),
    ],
)
def test_what_can_never_be_decoded_is_refused(source: list[int], options: dict[str, Any], message: str) -> None:
    desk = copying_desk()
    with pytest.raises(ValueError, match=message):
        desk.submit(make_job([5]), make_job(source, **options))
    assert desk.loop.queue_depth == 0


def test_a_callback_may_submit_the_next_sequence() -> None:
    desk = copying_desk()
    following = make_job([8])
    job = make_job([5])
    job.sequence.on_finished = lambda _: desk.submit(following)
    desk.submit(job)
    desk.turn_until_idle()
    assert following.tokens == (8,)


def test_draining_refuses_new_work_and_finishes_what_was_accepted() -> None:
    desk = Desk(FakeRunner(copying_rule(), max_rows=1))
    jobs = [make_job([5]), make_job([6])]
    desk.submit(*jobs)
    desk.turn()
    desk.loop.drain()
    with pytest.raises(LoopClosed) as refusal:
        desk.submit(make_job([7]))
    assert refusal.value.retry_after_s > 0
    desk.turn_until_idle()
    assert [job.tokens for job in jobs] == [(5,), (6,)]
    assert desk.loop.close(timeout_s=0)


def test_observer_hears_waits_tokens_and_gauges() -> None:
    desk = Desk(FakeRunner(copying_rule(), max_rows=1))
    desk.submit(make_job([5, 6]), make_job([7]))
    desk.turn(5, seconds=2.0)
    assert desk.observer.waits == [0.0, 6.0]
    assert desk.observer.first == [0.0, 6.0]
    assert desk.observer.between == [(2.0, 1), (2.0, 1), (2.0, 1)]
    assert desk.observer.depths == [2, 1, 0]
    assert desk.observer.active == [1, 0, 1, 0]


def test_signs_of_life() -> None:
    desk = copying_desk()
    desk.clock.now += 50
    assert desk.loop.last_round_at == desk.clock.now, "idle is alive"
    submitted_at = desk.clock.now
    desk.submit(make_job([5, 6]))
    desk.clock.now += 7
    assert desk.loop.last_round_at == submitted_at, "work, but no round: the last sign was the submission"
    desk.turn()
    assert desk.loop.last_round_at == submitted_at + 7
