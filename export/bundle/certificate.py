"""``certificate.json``: the exams a bundle has sat, one per runner, device and precision."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.bundle.fields import BundleError, Fields, parse_json, read_bytes, to_json

CERTIFICATE_FILE = "certificate.json"


@dataclass(frozen=True, kw_only=True)
class Exam:
    """One exam: a bundle's golden sentences on one runner, device and precision.

    Attributes:
        manifest_sha256: the bundle that sat; the exam is stale where the bundle's digest differs.
        runner: for example ``onnxruntime-cpu``.
        device: what it ran on, in words.
        precision: of the matrix products as they really ran.
        verify_time: RFC 3339, UTC.
        passed: whether every threshold held.
        sentences: golden sentences asked.
        token_exact_rate: sentences whose greedy and beam token ids all equal the reference's, 0 to 1.
        max_log_prob_difference: largest difference of a token's log-prob from the reference's, teacher-forced.
        max_score_difference: largest difference of a hypothesis' score.
        exceptions: differences that the reference's own gap allows, one record each.
        bleu: sacreBLEU of this runner against the references, 0 to 100.
        chrf: chrF of the same.
        reference_bleu: sacreBLEU of the reference decoder against the same references.
        reference_chrf: chrF of the same.
        bleu_losses: BLEU below the reference decoder's, by search; empty where there are no references.
        outside_files: figures measured on a file that is not in the bundle, with the file's sha256.
        tool_versions: what ran the exam.
        thresholds: what had to hold.
        missed: what did not hold, each with what was measured and what was wanted.
    """

    manifest_sha256: str
    runner: str
    device: str
    precision: str
    verify_time: str
    passed: bool
    sentences: int
    token_exact_rate: float
    max_log_prob_difference: float
    max_score_difference: float
    exceptions: list[dict[str, Any]] = field(default_factory=list)
    bleu: float | None = None
    chrf: float | None = None
    reference_bleu: float | None = None
    reference_chrf: float | None = None
    bleu_losses: dict[str, float] = field(default_factory=dict)
    outside_files: list[dict[str, Any]] = field(default_factory=list)
    tool_versions: dict[str, str] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    missed: tuple[str, ...] = ()

    @classmethod
    def read(cls, fields: Fields) -> Exam:
        """Read and check one record."""

        def optional(name: str) -> float | None:
            return fields.number(name) if fields.has(name) else None

        return cls(
            manifest_sha256=fields.text("manifest_sha256"),
            runner=fields.text("runner"),
            device=fields.text("device"),
            precision=fields.text("precision"),
            verify_time=fields.text("verify_time"),
            passed=fields.flag("passed"),
            sentences=fields.integer("sentences"),
            token_exact_rate=fields.number("token_exact_rate"),
            max_log_prob_difference=fields.number("max_log_prob_difference"),
            max_score_difference=fields.number("max_score_difference"),
            exceptions=_records(fields, "exceptions"),
            bleu=optional("bleu"),
            chrf=optional("chrf"),
            reference_bleu=optional("reference_bleu"),
            reference_chrf=optional("reference_chrf"),
            bleu_losses=fields.number_map("bleu_losses") if fields.has("bleu_losses") else {},
            outside_files=_records(fields, "outside_files"),
            tool_versions=fields.text_map("tool_versions"),
            thresholds=fields.number_map("thresholds"),
            missed=fields.texts("missed") if fields.has("missed") else (),
        )


def _records(fields: Fields, name: str) -> list[dict[str, Any]]:
    records = fields.items(name)
    if not all(isinstance(record, dict) for record in records):
        raise fields.fault(name, "a list of objects")
    return records


def read_certificate(path: Path) -> list[Exam]:
    """Read ``certificate.json``; a missing file is a bundle that never sat an exam.

    Raises:
        BundleError: the file is no list of exams.
    """
    if not path.exists():
        return []
    records = parse_json(read_bytes(path), where=str(path))
    if not isinstance(records, list):
        raise BundleError(f"{path}: got {type(records).__name__}, wanted a list of exams")
    return [Exam.read(Fields(record, where=f"{path}: exam {number}")) for number, record in enumerate(records, start=1)]


def write_certificate(path: Path, exams: Sequence[Exam]) -> None:
    """Write ``certificate.json`` in one move, so that no reader sees half of it."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(to_json([dataclasses.asdict(exam) for exam in exams], indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()  # a bundle holds no file that its manifest does not list
        raise
