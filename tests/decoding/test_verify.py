"""``dragoman verify``: table, certificate, exit code."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.bundle import Bundle, read_certificate, write_golden
from server.exam import certify
from server.exam.report import aligned
from server.exam.verify import add_verify_command
from tests.decoding.conftest import TEXTS, VOCAB, GoldenMaker
from tests.decoding.fake_runner import FakeRunner, Rule, random_rule

UseRunner = Callable[..., None]
OTHER = {"runner": "other"}
STALE = {"runner": "older", "manifest_sha256": "0" * 64}


@pytest.fixture
def use_runner(monkeypatch: pytest.MonkeyPatch) -> UseRunner:
    """Makes fake runners of a rule the ones at hand."""

    def use(rule: Rule, *, precision: str = "fp32", **settings: Any) -> None:
        def open_runner(bundle: Bundle, request: certify.Request) -> FakeRunner:
            assert not request.shortlist
            runner = FakeRunner(rule, **settings)
            runner.precision = precision
            return runner

        monkeypatch.setattr(certify, "open_runner", open_runner)

    return use


@pytest.fixture
def good_runner(use_runner: UseRunner, rule: Rule) -> None:
    use_runner(rule)


def verify(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_verify_command(parser.add_subparsers())
    arguments = parser.parse_args(["verify", *map(str, words)])
    code: int = arguments.run(arguments)
    return code


def test_a_good_bundle_is_certified(bundle: Bundle, good_runner: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(bundle.path) == 0
    (exam,) = Bundle.open(bundle.path).certificate()
    assert exam.passed
    assert (exam.runner, exam.precision, exam.sentences) == ("fake", "fp32", len(TEXTS))
    assert exam.manifest_sha256 == bundle.digest
    assert exam.token_exact_rate == 1.0
    assert exam.bleu == exam.reference_bleu
    assert exam.chrf == exam.reference_chrf is not None
    assert exam.thresholds == {"min_exact_rate": 1.0, "max_log_prob_difference": 1e-3, "max_score_difference": 1e-2}
    out = capsys.readouterr().out
    assert "token-exact rate     1" in out
    assert f"certified: {bundle.path / 'certificate.json'}" in out
    assert "NOT" not in out


def test_a_wrong_runner_is_not_certified(
    bundle: Bundle, use_runner: UseRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    use_runner(random_rule(8, vocab=VOCAB))
    assert verify(bundle.path) == 1
    (exam,) = bundle.certificate()
    assert not exam.passed
    out = capsys.readouterr().out
    assert "NOT MET" in out
    assert "fault: sentence 1, greedy, token 1" in out
    *_, certificate, conclusion = out.splitlines()
    assert certificate == f"certificate: {bundle.path / 'certificate.json'}"
    assert conclusion == f"NOT certified: {'; '.join(exam.missed)}"
    exact, log_prob, *_ = exam.missed
    assert exact == f"token-exact rate {exam.token_exact_rate:.3g}, wanted at least 1 (--min-exact)"
    wanted = "wanted at most 0.001 (--max-log-prob-difference)"
    assert log_prob == f"log-prob difference {exam.max_log_prob_difference:.3g}, {wanted}"


def test_lower_demands_are_written_down(bundle: Bundle, use_runner: UseRunner) -> None:
    use_runner(random_rule(8, vocab=VOCAB), precision="int8")
    assert verify(bundle.path, "--min-exact", 0, "--max-bleu-loss", 100) == 0
    assert verify(bundle.path, "--min-exact", 0, "--max-bleu-loss", -100) == 1
    (exam,) = bundle.certificate()
    assert exam.thresholds == {"min_exact_rate": 0.0, "max_bleu_loss": -100.0}


def test_a_new_exam_replaces_its_predecessor_and_stale_ones(bundle: Bundle, good_runner: None) -> None:
    assert verify(bundle.path) == 0
    path = bundle.path / "certificate.json"
    records = json.loads(path.read_text())
    other, stale = ({**records[0], **change} for change in (OTHER, STALE))
    path.write_text(json.dumps([other, stale, *records]))
    assert verify(bundle.path) == 0
    assert [one.runner for one in bundle.certificate()] == ["other", "fake"]


def test_outside_files_enter_as_figures_and_digests(
    bundle: Bundle, good_runner: None, rule: Rule, make_golden: GoldenMaker, tmp_path: Path
) -> None:
    golden, references = tmp_path / "more.jsonl", tmp_path / "more.de"
    write_golden(golden, make_golden(rule)[:4])
    references.write_text("Das ist geheim\nein Mann\nzwei\ndrei\n", encoding="utf-8")
    assert verify(bundle.path, "--golden", golden, "--references", references) == 0
    (exam,) = bundle.certificate()
    (record,) = exam.outside_files
    assert record["golden_sha256"] == hashlib.sha256(golden.read_bytes()).hexdigest()
    assert record["references_sha256"] == hashlib.sha256(references.read_bytes()).hexdigest()
    assert record["sentences"] == 4
    assert record["token_exact_rate"] == 1.0
    assert record["beam"]["bleu"] == record["beam"]["reference_bleu"]
    assert "geheim" not in (bundle.path / "certificate.json").read_text(encoding="utf-8")
    assert exam.sentences == len(TEXTS)


def test_a_failed_outside_set_withholds_the_certificate(
    bundle: Bundle, good_runner: None, make_golden: GoldenMaker, tmp_path: Path
) -> None:
    golden = tmp_path / "foreign.jsonl"
    write_golden(golden, make_golden(random_rule(9, vocab=VOCAB)))
    assert verify(bundle.path, "--golden", golden) == 1
    assert not bundle.certificate()[0].passed


def test_out_leaves_the_bundle_alone(bundle: Bundle, good_runner: None, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere.json"
    assert verify(bundle.path, "--out", out) == 0
    assert bundle.certificate() == []
    assert read_certificate(out)[0].passed


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_bundle_that_cannot_be_written_to_is_one_line(
    bundle: Bundle, good_runner: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert verify(bundle.path) == 1
    assert (
        only_line(capsys)
        == f"dragoman verify: {bundle.path}: cannot be written to; name the certificate with --out FILE"
    )


def test_a_certificate_that_cannot_be_written_is_one_line(
    bundle: Bundle, good_runner: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken.json.partial").mkdir()
    assert verify(bundle.path, "--out", tmp_path / "taken.json") == 1
    assert only_line(capsys).endswith("taken.json: Is a directory; name another file with --out FILE")
    assert verify(bundle.path, "--out", tmp_path / "nowhere" / "c.json") == 1
    assert "nowhere, wanted one to write to" in only_line(capsys)
    os.mkfifo(tmp_path / "pipe")  # neither read from nor replaced
    for taken in (tmp_path, tmp_path / "pipe"):
        assert verify(bundle.path, "--out", taken) == 1
        assert only_line(capsys).endswith("wanted a plain file or none")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("lines", "message"),
    [(b"eins\nzwei\n", "got 2 lines, wanted 6, one per golden sentence"), (b"\xff\n" * 6, "utf-8")],
)
def test_references_that_do_not_fit_are_one_line(
    bundle: Bundle, good_runner: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: bytes, message: str
) -> None:
    references = tmp_path / "some.de"
    references.write_bytes(lines)
    assert verify(bundle.path, "--references", references) == 1
    assert message in only_line(capsys)


def test_a_damaged_bundle_is_one_line(bundle: Bundle, good_runner: None, capsys: pytest.CaptureFixture[str]) -> None:
    graph = bundle.graph_path("cpu", "step")
    graph.write_bytes(b"x")
    assert verify(bundle.path) == 1
    assert only_line(capsys).startswith(f"dragoman verify: {graph}: got sha256")


def test_a_runner_that_fails_is_one_line(
    bundle: Bundle, use_runner: UseRunner, rule: Rule, capsys: pytest.CaptureFixture[str]
) -> None:
    use_runner(rule, failing_steps={2})
    assert verify(bundle.path) == 1
    assert only_line(capsys) == "dragoman verify: the runner failed on the golden sentences; the log says why"
    assert bundle.certificate() == []


@pytest.mark.parametrize("text", [b"A man rides.\tEin Mann reitet.\n", b'{"source": "A man rides."}\n', b"", b"\xff\n"])
def test_questions_without_answers_are_no_golden_set(
    bundle: Bundle, good_runner: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes
) -> None:
    golden = tmp_path / "g.tsv"
    golden.write_bytes(text)
    assert verify(bundle.path, "--golden", golden) == 1
    line = only_line(capsys)
    assert line.startswith(f"dragoman verify: {golden}:")
    assert line.endswith("; --golden takes a golden.jsonl with the reference's answers, as an exported bundle holds it")


def test_a_golden_set_that_is_not_there_is_not_explained(
    bundle: Bundle, good_runner: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(bundle.path, "--golden", tmp_path / "none.jsonl") == 1
    assert only_line(capsys) == f"dragoman verify: {tmp_path / 'none.jsonl'}: No such file or directory"


@pytest.mark.parametrize(
    ("flag", "got", "wanted"),
    [
        ("--threads", "x", "a whole number of at least 1"),
        ("--threads", "0", "a whole number of at least 1"),
        ("--threads", "1.5", "a whole number of at least 1"),
        ("--threads", "", "a whole number of at least 1"),
        ("--min-exact", "1.5", "a number from 0 to 1"),
        ("--min-exact", "x", "a number from 0 to 1"),
        ("--min-exact", "nan", "a number from 0 to 1"),
        ("--max-bleu-loss", "nan", "a number"),
        ("--max-log-prob-difference", "tiny", "a number"),
    ],
)
def test_bad_usage_ends_with_2_and_what_was_wanted(
    capsys: pytest.CaptureFixture[str], flag: str, got: str, wanted: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        verify("anywhere", flag, got)
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: argument {flag}: got {got!r}, wanted {wanted}")


def test_columns_begin_at_the_same_place() -> None:
    assert list(aligned([("a", "1"), ("longer", "22")])) == ["  a       1", "  longer  22"]
