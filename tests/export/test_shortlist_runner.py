"""The runner with a shortlist: each row chooses from its own source's list, whoever its neighbours are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from export.bundle import Bundle, BundleError, Shortlist
from export.runners.ort_cpu import OrtCpuRunner
from export.runners.protocol import IntArray, ShapeError
from export.runners.shortlist import ShortlistedVocabulary
from export.targets import Precision
from model.config import Suppression
from server.decoding.loop import DecodeLoop
from server.decoding.sequence import Result
from tests.decoding.desk import make_job
from tests.export.tiny import PAD, START, export_model, padded, random_model, shortlist_of, sources_of, whole_shortlist

Open = Callable[..., OrtCpuRunner]
VOCAB, END = 301, 3
WIDE = {"source_vocab_size": 3000, "target_vocab_size": 3000}
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
FEW = {"of_each": 6, "always": 9}


def decode(runner: OrtCpuRunner, sources: list[IntArray], *, beam_size: int) -> list[Result]:
    jobs = [
        make_job(source[:-1].tolist(), beam_size=beam_size, return_scores=True, max_output_tokens=15)
        for source in sources
    ]
    loop = DecodeLoop(runner, start_id=START, eos_id=END, pad_id=PAD, max_queue=len(jobs))
    loop.submit([job.sequence for job in jobs])
    while loop.queue_depth or loop.active_sequences:
        loop.run_round()
    return [job.result for job in jobs]


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_list_of_all_tokens_changes_nothing(precision: Precision, beam_size: int, open_runner: Open) -> None:
    # Tokens that are never selected do not count in the softmax, as they are in no list.
    model = random_model(suppression=Suppression.BEFORE_SOFTMAX, output_bias=True)
    full = open_runner(model, precision=precision)
    listed = open_runner(model, precision=precision, shortlist=whole_shortlist(model))
    assert listed.limits == full.limits
    sources = sources_of([3, 12, 1, 25, 8, 17], vocab=VOCAB)
    wanted, got = (decode(runner, sources, beam_size=beam_size) for runner in (full, listed))
    for one, other in zip(wanted, got, strict=True):
        for ours, theirs in zip(one.hypotheses, other.hypotheses, strict=True):
            assert ours.tokens == theirs.tokens
            assert ours.score == pytest.approx(theirs.score, abs=1e-4)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_every_token_is_in_the_list_of_its_own_source(beam_size: int, open_runner: Open) -> None:
    model = random_model()
    shortlist = shortlist_of(model, **FEW)
    runner = open_runner(model, shortlist=shortlist)
    sources = sources_of([3, 12, 1, 25, 8, 17], vocab=VOCAB)
    results = decode(runner, sources, beam_size=beam_size)
    for source, result in zip(sources, results, strict=True):
        assert set(result.hypotheses[0].tokens) <= set(shortlist.of_source(source).tolist())
    chosen = {token for result in results for token in result.hypotheses[0].tokens}
    assert chosen - set(shortlist.always.tolist()), "wanted tokens that not every source has"


class Rows:
    """Two runners side by side, the whole vocabulary and the shortlist, and which source each row holds."""

    def __init__(self, full: OrtCpuRunner, listed: OrtCpuRunner, shortlist: Shortlist) -> None:
        self.runners = (full, listed)
        self.shortlist = shortlist
        self.lists: list[IntArray] = [np.zeros(0, np.int64)] * full.limits.max_rows
        self.positions: IntArray = np.zeros(full.limits.max_rows, np.int64)

    def encode(self, sources: list[IntArray], rows: IntArray) -> None:
        array, lengths = padded(sources)
        for runner in self.runners:
            runner.encode(sources=array, lengths=lengths, rows=rows)
        for source, row in zip(sources, rows.tolist(), strict=True):
            self.lists[row], self.positions[row] = self.shortlist.of_source(source), 0

    def step(self, tokens: IntArray, parents: IntArray | None) -> None:
        live = len(tokens)
        before = np.arange(live) if parents is None else parents
        self.lists[:live] = [self.lists[row] for row in before.tolist()]
        self.positions[:live] = self.positions[before]
        for runner in self.runners:
            runner.step(tokens=tokens, positions=self.positions[:live], parents=parents)
        self.positions[:live] += 1


@pytest.mark.parametrize("seed", range(3))
def test_lists_follow_their_rows_under_any_mapping(seed: int, open_runner: Open) -> None:
    model = random_model()
    shortlist = shortlist_of(model, **FEW)
    full, listed = open_runner(model, max_rows=7), open_runner(model, max_rows=7, shortlist=shortlist)
    rows, draw = Rows(full, listed, shortlist), np.random.default_rng(seed)
    live = 0
    for turn in range(25):
        # Those that were not live in the last step have lost what they held.
        joining = np.array(sorted({*draw.permutation(7)[: draw.integers(0, 4)].tolist(), *range(live, 7)}), np.int64)
        if len(joining):
            lengths = draw.integers(1, 20, len(joining))
            rows.encode(sources_of(lengths, vocab=VOCAB, seed=100 * seed + turn), joining)
        live = int(draw.integers(1, 8))
        parents = [draw.integers(0, 7, live), draw.permutation(7)[:live], None][draw.integers(3)]
        rows.step(draw.integers(4, VOCAB, live), parents)
        wanted, got = full.logits(), listed.logits()
        best, (ids, log_probs) = listed.argmax(), listed.top_k(8)
        for row, own in enumerate(rows.lists[:live]):
            assert np.flatnonzero(np.isfinite(got[row])).tolist() == own.tolist()
            assert np.abs(got[row, own] - wanted[row, own]).max() < 1e-4
            order = own[np.argsort(-got[row, own], kind="stable")]
            assert best[row] == order[0]
            assert ids[row].tolist() == order[:8].tolist()
            exact = got[row, own].astype(np.float64)
            log_total = np.log(np.exp(exact - exact.max()).sum()) + exact.max()
            assert np.abs(log_probs[row] - (got[row, order[:8]] - log_total)).max() < 1e-6
    assert isinstance(listed._vocabulary, ShortlistedVocabulary)
    assert len(listed._vocabulary._lists) <= 7, "no list is kept of a source that no row holds"
    assert len(listed._vocabulary._places) <= 7


def alone_and_among(listed: OrtCpuRunner, sources: list[IntArray], tokens: IntArray) -> tuple[np.ndarray, ...]:
    """Logits of a source alone, and with others beside it."""
    results = []
    for count in (1, len(sources)):
        array, lengths = padded(sources[:count])
        listed.encode(sources=array, lengths=lengths, rows=np.arange(count))
        listed.step(tokens=tokens[:count], positions=np.zeros(count, np.int64))
        results.append((listed.logits()[0], *(values[0] for values in listed.top_k(9))))
    return tuple(np.concatenate(result) for result in results)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_wide_products_are_the_same_to_the_bit_alone_and_among_many(
    precision: Precision, threads: int, open_runner: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sums of 400 products, which the runtime's kernels may cut into parts, and candidates for many threads.
    monkeypatch.setattr("export.runners.ort_loading._ONE_THREAD_PARAMETERS", 0)
    model = random_model(d_model=400, heads=5, **WIDE)
    runner = open_runner(
        model, precision=precision, threads=threads, shortlist=shortlist_of(model, of_each=60, always=40)
    )
    draw = np.random.default_rng(1)
    parties = [sources_of(draw.integers(1, 12, count), vocab=3000, seed=count) for count in (2, 3, 17, 40)]
    # Many rows and few candidates: so much work for each of them that threads would share it.
    for sources in (*parties, sources_of([2], vocab=3000) * 60):
        count = len(sources)
        alone, among = alone_and_among(runner, sources, draw.integers(4, 3000, count))
        assert np.array_equal(alone, among)


def test_columns_are_added_while_there_is_room_and_laid_out_anew_where_there_are_too_many(
    open_runner: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(**WIDE)
    runner = open_runner(model, shortlist=shortlist_of(model, of_each=60, always=40))
    vocabulary = runner._vocabulary
    assert isinstance(vocabulary, ShortlistedVocabulary)
    columns = vocabulary._columns
    counts: list[int] = []
    moved: list[bool] = []
    hold = columns.hold

    def watched(lists: Iterable[IntArray]) -> bool:
        moved.append(hold(lists))
        return moved[-1]

    monkeypatch.setattr(columns, "hold", watched)

    def live(*lengths: int, seed: int) -> None:
        array, of_each = padded(sources_of(lengths, vocab=VOCAB, seed=seed))
        runner.encode(sources=array, lengths=of_each, rows=np.arange(len(lengths)))
        for position in range(2):
            runner.step(tokens=np.full(len(lengths), 5), positions=np.full(len(lengths), position))
        counts.append(columns.count)

    live(3, seed=1)
    live(2, seed=2)
    live(*[12] * 10, seed=3)
    live(3, seed=4)
    assert moved == [True, False, True, True], "one look for each set of sources, not for each step"
    assert counts == [384, 384, 3008, 384]
    assert columns.most == 3008


def test_the_lowest_of_equal_logits_is_chosen(open_runner: Open) -> None:
    model = random_model()
    weight = model.output.weight.data
    weight[:] = weight[50]
    shortlist = shortlist_of(model, **FEW)
    runner = open_runner(model, shortlist=shortlist)
    sources = sources_of([4, 9, 2], vocab=VOCAB)
    for order in (sources, sources[::-1]):
        array, lengths = padded(order)
        runner.encode(sources=array, lengths=lengths, rows=np.arange(3))
        runner.step(tokens=np.full(3, START), positions=np.zeros(3, np.int64))
        lists = [shortlist.of_source(source) for source in order]
        assert runner.argmax().tolist() == [own[0] for own in lists]
        ids, log_probs = runner.top_k(5)
        assert ids.tolist() == [own[:5].tolist() for own in lists]
        for row, own in enumerate(lists):
            assert log_probs[row] == pytest.approx([-np.log(len(own))] * 5, abs=1e-6)


def test_no_more_candidates_are_promised_than_the_shortest_list_has(open_runner: Open) -> None:
    model = random_model()
    runner = open_runner(model, shortlist=shortlist_of(model, of_each=0, always=9))
    assert runner.limits.max_candidates == 9
    runner.encode(sources=np.array([[5, END]]), lengths=np.array([2]), rows=np.array([0]))
    runner.step(tokens=np.array([START]), positions=np.array([0]))
    assert np.isfinite(runner.top_k(9).log_probs).all()
    with pytest.raises(ShapeError, match="k: got 10, wanted 1 to 9"):
        runner.top_k(10)


def test_a_runner_says_what_it_is(open_runner: Open) -> None:
    model = random_model()
    full, listed = open_runner(model), open_runner(model, shortlist=shortlist_of(model, **FEW))
    assert (full.name, full.shortlisted) == ("onnxruntime-cpu", False)
    assert (listed.name, listed.shortlisted) == ("onnxruntime-cpu-shortlist", True)


def test_a_bundle_with_a_shortlist_runs_without_it_too(tmp_path: Path, tiny_bundle: Bundle) -> None:
    model = random_model()
    bundle = export_model(model, tmp_path / "bundle", shortlist=shortlist_of(model, **FEW))
    folder = "graphs/ort-fp32"
    assert tiny_bundle.manifest.files.items() <= bundle.manifest.files.items() | tiny_weights(tiny_bundle)
    assert {*bundle.manifest.files} - {*tiny_bundle.manifest.files} == {
        "shortlist.npz",
        f"{folder}/step_shortlist.onnx",
        f"{folder}/output.npz",
    }
    again = export_model(model, tmp_path / "again", shortlist=shortlist_of(model, **FEW))
    assert again.digest == bundle.digest
    assert OrtCpuRunner.open(bundle, threads=1).name == "onnxruntime-cpu"


def tiny_weights(bundle: Bundle) -> set[tuple[str, str]]:
    """The one file that the shortlisted step may add constants to."""
    return {(name, digest) for name, digest in bundle.manifest.files.items() if name.endswith("weights.bin")}


def test_a_bundle_without_a_shortlist_is_one_line(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.shortlist() is None
    with pytest.raises(BundleError) as caught:
        OrtCpuRunner.open(tiny_bundle, threads=1, shortlist=True)
    wanted = "wanted one for --shortlist: `dragoman export --shortlist PARALLEL` learns it"
    assert str(caught.value) == f"{tiny_bundle.path}: got a bundle without a shortlist, {wanted}"
