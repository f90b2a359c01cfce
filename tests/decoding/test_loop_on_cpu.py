"""The decode loop on ONNX Runtime: joining a running batch changes nothing, and the reference agrees."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import contract
from export.bundle import Bundle
from export.runners.ort_cpu import OrtCpuRunner
from export.targets import Precision
from model.reference import ReferenceOptions, beam_search, greedy_search
from model.transformer import Transformer
from server.decoding.crew import Crew
from server.decoding.loop import DecodeLoop
from server.decoding.observer import SilentObserver
from server.decoding.sequence import Outcome, Result
from server.decoding.waiting import Order
from tests.decoding.desk import Job, decode_one_by_one, make_job
from tests.decoding.fake_runner import END, PAD, START
from tests.export.tiny import export_model, random_model, shortlist_of, sources_of

LENGTHS = (1, 3, 9, 14, 2, 25, 7, 18, 5, 11)
BEAM_SIZES = (1, 4, 1, 2, 3)
FORCED = ((), (17,), (), (40, 5), (9,), (), ())
MAX_OUTPUT_TOKENS = 20
# Of precision, and whether each row chooses from its source's own list.
KINDS = ["fp32", "int8", "fp32-shortlist", "int8-shortlist"]
LONG_S = 60.0
# Large enough that ONNX Runtime divides matrix products among its threads, and the long sums in them into parts.
WIDE = {"d_model": 128, "ffn_dim": 512, "source_vocab_size": 1001, "target_vocab_size": 1001, "max_positions": 300}
SEED = 5


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model()


def export_both(model: Transformer, folder: Path, **lists: int) -> dict[str, Bundle]:
    """A bundle of each precision, with a shortlist."""
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    shortlist = shortlist_of(model, **lists)
    return {
        precision: export_model(model, folder / precision, precision=precision, shortlist=shortlist)
        for precision in precisions
    }


def open_kind(bundles: Mapping[str, Bundle], kind: str, **settings: int) -> tuple[OrtCpuRunner, ...]:
    precision, _, shortlist = kind.partition("-")
    return OrtCpuRunner.open_workers(bundles[precision], shortlist=bool(shortlist), **settings)


@pytest.fixture(scope="module")
def runners(model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, OrtCpuRunner]]:
    """One of each kind."""
    bundles = export_both(model, tmp_path_factory.mktemp("loop"), of_each=9, always=12)
    opened = {kind: open_kind(bundles, kind, workers=1, threads=1, max_rows=12)[0] for kind in KINDS}
    yield opened
    for runner in opened.values():
        runner.close()


def make_jobs() -> list[Job]:
    sources = sources_of(LENGTHS, vocab=301)
    return [
        make_job(
            source[:-1].tolist(),
            beam_size=BEAM_SIZES[number % len(BEAM_SIZES)],
            max_output_tokens=MAX_OUTPUT_TOKENS,
            return_scores=True,
            early_stopping=number % 3 == 0,
            forced_end=number % 2 == 0,
            forced_tokens=FORCED[number % len(FORCED)],
        )
        for number, source in enumerate(sources)
    ]


decode = partial(decode_one_by_one, encode_tokens_per_round=32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounds_between", [0, 3])
def test_a_running_batch_equals_one_at_a_time(runners: dict[str, OrtCpuRunner], rounds_between: int, kind: str) -> None:
    runner = runners[kind]
    together, alone = make_jobs(), make_jobs()
    decode(runner, together, rounds_between=rounds_between)
    for job in alone:
        decode(runner, [job], rounds_between=0)
    # Scores too, and to the last bit.
    assert [job.result for job in together] == [job.result for job in alone]


def test_the_reference_finds_the_same(runners: dict[str, OrtCpuRunner], model: Transformer) -> None:
    jobs = make_jobs()
    decode(runners["fp32"], jobs, rounds_between=1)
    for job in jobs:
        options = job.sequence.options
        rules = ReferenceOptions(
            beam_size=options.beam_size,
            length_penalty=options.length_penalty,
            max_output_tokens=MAX_OUTPUT_TOKENS,
            early_stopping=options.early_stopping,
            forced_tokens=options.forced_tokens,
            forced_end=options.forced_end,
        )
        if options.beam_size == 1:
            wanted = greedy_search(model, job.sequence.source, rules)
        else:
            wanted, *_ = beam_search(model, job.sequence.source, rules)
        best = job.result.hypotheses[0]
        assert (best.tokens, best.finish_reason.name) == (wanted.tokens, wanted.finish_reason)
        assert best.score == pytest.approx(wanted.score, abs=1e-4)


# Several workers, on sessions of one thread and of two.


@pytest.fixture(scope="module", autouse=True)
def threads_for_small_models_too() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.runners.ort_loading._ONE_THREAD_PARAMETERS", 0)
        yield


@pytest.fixture(scope="module")
def wide_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """One of each precision."""
    return export_both(random_model(**WIDE), tmp_path_factory.mktemp("workers"), of_each=30, always=20)


@pytest.fixture(scope="module")
def alone(wide_bundles: Mapping[str, Bundle]) -> Callable[..., list[Result]]:
    """What each of the jobs gives on a fresh runner of its own."""
    known: dict[tuple[str, int], list[Result]] = {}

    def results(kind: str, *, threads: int) -> list[Result]:
        if (kind, threads) not in known:
            jobs = make_various_jobs()
            for job in jobs:
                (runner,) = open_kind(wide_bundles, kind, workers=1, threads=threads, max_rows=4)
                decode(runner, [job], rounds_between=0)
                runner.close()
            known[kind, threads] = [job.result for job in jobs]
        return known[kind, threads]

    return results


def make_various_jobs() -> list[Job]:
    draw = random.Random(SEED)
    lengths = [draw.randint(1, 30) for _ in range(36)]
    lengths[7], lengths[20], lengths[30] = 100, 290, 180
    return [
        make_job(
            source[:-1].tolist(),
            beam_size=draw.choice([1, 1, 1, 2, 3, 4]),
            max_output_tokens=draw.randint(4, MAX_OUTPUT_TOKENS),
            return_scores=draw.random() < 0.7,
            early_stopping=draw.random() < 0.3,
            forced_tokens=draw.choice([(), (), (17,), (40, 5)]),
        )
        for source in sources_of(lengths, vocab=WIDE["source_vocab_size"], seed=SEED)
    ]


def make_leavers(count: int) -> list[Job]:
    """Jobs that are given up on the way."""
    sources = sources_of([3 + number % 17 for number in range(count)], vocab=WIDE["source_vocab_size"], seed=SEED + 1)
    return [
        make_job(source[:-1].tolist(), beam_size=1 + number % 4, max_output_tokens=MAX_OUTPUT_TOKENS)
        for number, source in enumerate(sources)
    ]


def open_pair(bundles: Mapping[str, Bundle], kind: str) -> tuple[OrtCpuRunner, ...]:
    runners = open_kind(bundles, kind, workers=2, threads=2, max_rows=12)
    step = runners[0]._step
    step.of(alone=False)  # begins to load it
    for thread in threading.enumerate():
        if thread.name == "load-step":
            thread.join(LONG_S)
    assert step.of(alone=False) is not step.of(alone=True), "wanted a session for each number of threads"
    return runners


def pair_loop(runners: tuple[OrtCpuRunner, ...], **settings: Any) -> DecodeLoop:
    return DecodeLoop(
        *runners, start_id=START, eos_id=END, pad_id=PAD, max_queue=1000, encode_tokens_per_round=64, **settings
    )


class Moments(SilentObserver):
    """Counts the steps of two workers, so that something can happen after one; none ends its first before the other."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._steps = 0
        self._open = 0
        self._both_at_work = threading.Barrier(2)
        self._met: set[threading.Thread] = set()

    def stepped(self, rows: int, seconds: float, steps: int) -> None:
        if threading.current_thread() not in self._met:
            self._met.add(threading.current_thread())
            self._both_at_work.wait(LONG_S)
        with self._changed:
            self._steps += steps
            self._changed.notify_all()

    def watch(self, job: Job) -> None:
        """Before it is submitted."""
        with self._changed:
            self._open += 1

        def on_finished(result: Result) -> None:
            job.results.append(result)
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

        job.sequence.on_finished = on_finished

    def pass_by(self, steps: int) -> None:
        """Wait for so many steps, or until there is nothing left to step."""
        with self._changed:
            end = self._steps + steps
            assert self._changed.wait_for(lambda: self._steps >= end or not self._open, LONG_S)


def submit_at_random_moments(loop: DecodeLoop, moments: Moments, jobs: list[Job], leavers: list[Job]) -> None:
    """Jobs in parties of one to three with a few steps in between; between two parties a leaver comes or goes."""
    draw, jobs = random.Random(len(jobs[0].sequence.source)), list(jobs)
    staying: list[Job] = []
    while jobs:
        party, jobs = jobs[: (size := draw.randint(1, 3))], jobs[size:]
        if leavers and draw.random() < 0.5:
            staying.append(leavers.pop())
            party.append(staying[-1])
        for job in party:
            moments.watch(job)
        loop.submit([job.sequence for job in party])
        moments.pass_by(draw.randint(0, 6))
        if staying and draw.random() < 0.5:
            staying.pop(0).sequence.cancel()
    for job in staying:
        job.sequence.cancel()


@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_with_random_joins_and_leaves_equal_one_at_a_time(
    wide_bundles: Mapping[str, Bundle], alone: Callable[..., list[Result]], kind: str, order: Order
) -> None:
    runners, moments = open_pair(wide_bundles, kind), Moments()
    assert (contract.cache_dtype(runners[0].precision) == np.int8) == kind.startswith("int8")
    assert runners[0].shortlisted == kind.endswith("shortlist")
    loop = pair_loop(runners, order=order, observer=moments)
    jobs, leavers = make_various_jobs(), make_leavers(12)
    first, later = jobs[:13], jobs[13:]  # at least 13 rows: too many for one worker
    for job in first:
        moments.watch(job)
    loop.submit([job.sequence for job in first])
    loop.start()
    with ThreadPoolExecutor(3) as pool:
        submitters = [
            pool.submit(submit_at_random_moments, loop, moments, later[start::3], leavers[start::3])
            for start in range(3)
        ]
        for submitter in submitters:
            submitter.result(LONG_S)
    assert loop.close(timeout_s=LONG_S)
    for runner in runners:
        runner.close()
    # Scores too, and to the last bit.
    assert [job.result for job in jobs] == alone(kind, threads=1)


class FickleCrew(Crew):
    """Changes its mind all the time."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._draw = random.Random(seed)

    @property
    def alone(self) -> bool:
        return self._draw.random() < 0.5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_one_core_or_all_cores_from_step_to_step_changes_nothing(
    wide_bundles: Mapping[str, Bundle], alone: Callable[..., list[Result]], kind: str, seed: int
) -> None:
    draw = random.Random(seed)
    runners = open_pair(wide_bundles, kind)
    loop = pair_loop(runners, crew=FickleCrew(seed))
    jobs, leavers = make_various_jobs(), make_leavers(12)
    for place, job in enumerate(jobs):
        neighbour = leavers[place // 3 : place // 3 + (place % 3 == 0)]
        loop.submit([job.sequence, *(leaver.sequence for leaver in neighbour)])
        for _ in range(draw.randint(0, 3)):
            draw.choice(loop._shared.workers).run_round()
        if draw.random() < 0.3:
            draw.choice(leavers).sequence.cancel()
    while loop.queue_depth or loop.active_sequences:
        loop.run_round()
    for runner in runners:
        runner.close()
    assert [job.result for job in jobs] == alone(kind, threads=1)
    assert {leaver.outcome for leaver in leavers} <= {Outcome.CANCELLED, Outcome.FINISHED}


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_alone_is_the_same_on_one_core_and_on_two(alone: Callable[..., list[Result]], kind: str) -> None:
    assert alone(kind, threads=1) == alone(kind, threads=2)
    assert len({result.hypotheses[0].tokens for result in alone(kind, threads=1)}) > 20, "they are no two alike"
