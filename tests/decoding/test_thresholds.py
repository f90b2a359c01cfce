"""What has to hold, for which precision, and the words for what does not."""

from __future__ import annotations

import pytest

from export.bundle import Exam
from server.exam.thresholds import Judged, Thresholds


@pytest.mark.parametrize(
    ("figure", "complaint"),
    [
        (
            Judged("BLEU loss of greedy", 1.4312, most=0.2, option="--max-bleu-loss"),
            "BLEU loss of greedy 1.43, wanted at most 0.2 (--max-bleu-loss)",
        ),
        (
            Judged("token-exact rate", 0.41234, least=1.0, option="--min-exact"),
            "token-exact rate 0.412, wanted at least 1 (--min-exact)",
        ),
        (Judged("log-prob difference", 2.3456e-3, most=1e-4), "log-prob difference 0.00235, wanted at most 0.0001"),
        (Judged("rate", 0.999998, least=1.0), "rate 0.999998, wanted at least 1"),
        (Judged("loss", 0.20004, most=0.2), "loss 0.20004, wanted at most 0.2"),
    ],
)
def test_a_complaint_names_got_and_wanted_and_they_never_look_equal(figure: Judged, complaint: str) -> None:
    assert figure.asked
    assert not figure.holds
    assert figure.complaint() == complaint


def test_what_is_reached_or_not_asked_holds() -> None:
    assert Judged("rate", 1.0, least=1.0).holds
    assert Judged("loss", 0.2, most=0.2).holds
    unasked = Judged("loss", 99.0)
    assert unasked.holds
    assert not unasked.asked


def test_float32_is_exact_and_what_rounds_is_held_to_its_texts() -> None:
    exact = {"min_exact_rate": 1.0, "max_log_prob_difference": 1e-3, "max_score_difference": 1e-2}
    assert Thresholds.of_precision("fp32").record() == exact
    assert Thresholds.of_precision("fp32", max_bleu_loss=0.5).record() == {**exact, "max_bleu_loss": 0.5}
    loud = Thresholds.of_precision("fp32", max_log_prob_difference=0.5).record()
    assert loud == {"min_exact_rate": 1.0, "max_log_prob_difference": 0.5, "max_score_difference": 5.0}
    for precision in ("int8", "fp16", "bf16"):
        assert Thresholds.of_precision(precision).record() == {"max_bleu_loss": 0.2}
    assert Thresholds.of_precision("fp32", shortlisted=True).record() == {"max_bleu_loss": 0.2}
    given = Thresholds.of_precision("int8", min_exact_rate=0.9, max_bleu_loss=0.0)
    assert given.record() == {"min_exact_rate": 0.9, "max_bleu_loss": 0.0}


def passed_exam(**thresholds: float) -> Exam:
    return Exam(
        manifest_sha256="0" * 64,
        runner="onnxruntime-cpu",
        device="cpu",
        precision="int8",
        verify_time="2026-01-02T03:04:05Z",
        passed=True,
        sentences=64,
        token_exact_rate=0.9,
        max_log_prob_difference=0.4,
        max_score_difference=0.3,
        thresholds=thresholds,
    )


def test_a_warm_up_holds_a_model_to_what_its_certificate_says() -> None:
    rounded = Thresholds.for_warm_up("int8", passed_exam(max_bleu_loss=0.2))
    assert rounded.record() == {"max_log_prob_difference": pytest.approx(0.5)}
    assert Thresholds.for_warm_up("int8", passed_exam(min_exact_rate=0.8)) == rounded
    exact = passed_exam(min_exact_rate=1.0, max_log_prob_difference=1e-3, max_score_difference=1e-2)
    assert Thresholds.for_warm_up("fp32", exact) == Thresholds.of_precision("fp32")
    assert Thresholds.for_warm_up("int8", passed_exam(min_exact_rate=1.0)).min_exact_rate == 1.0


def test_without_a_certificate_float32_is_still_exact_and_what_rounds_has_promised_nothing() -> None:
    assert Thresholds.for_warm_up("fp32", None) == Thresholds.of_precision("fp32")
    assert Thresholds.for_warm_up("int8", None).record() == {}
    assert Thresholds.for_warm_up("fp32", None, shortlisted=True).record() == {}
