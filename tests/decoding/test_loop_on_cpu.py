"""The decode loop on ONNX Runtime: joining a running batch changes nothing, and the reference agrees."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from export.runners.ort_cpu import OrtCpuRunner
from model.reference import ReferenceOptions, beam_search, greedy_search
from model.transformer import Transformer
from server.decoding.loop import DecodeLoop
from tests.decoding.desk import Job, make_job
from tests.decoding.fake_runner import END, PAD, START
from tests.export.tiny import export_model, random_model, sources_of

LENGTHS = (1, 3, 9, 14, 2, 25, 7, 18, 5, 11)
BEAM_SIZES = (1, 4, 1, 2, 3)
FORCED = ((), (17,), (), (40, 5), (9,), (), ())
MAX_OUTPUT_TOKENS = 20


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model()


@pytest.fixture(scope="module")
def runners(model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, OrtCpuRunner]]:
    """One of each precision."""
    folder = tmp_path_factory.mktemp("loop")
    opened = {
        bundle.manifest.precision("cpu"): OrtCpuRunner.open(bundle, threads=1, max_rows=12)
        for bundle in (
            export_model(model, folder / "fp32"),
            export_model(model, folder / "int8", precision="int8"),
        )
    }
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


def decode(runner: OrtCpuRunner, jobs: list[Job], *, rounds_between: int) -> None:
    """Submit the jobs one by one with a few rounds in between, then finish them all."""
    loop = DecodeLoop(runner, start_id=START, eos_id=END, pad_id=PAD, max_queue=len(jobs), encode_tokens_per_round=32)
    for job in jobs:
        loop.submit([job.sequence])
        for _ in range(rounds_between):
            loop.run_round()
    while loop.queue_depth or loop.active_sequences:
        loop.run_round()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("rounds_between", [0, 3])
def test_a_running_batch_equals_one_at_a_time(
    runners: dict[str, OrtCpuRunner], rounds_between: int, precision: str
) -> None:
    runner = runners[precision]
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
