"""The table that ``dragoman verify`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from server.exam.quality import Measured
from server.exam.sitting import Thresholds

_MOST_LISTED = 20


def report(measured: Measured, thresholds: Thresholds, *, max_bleu_loss: float | None) -> Iterator[str]:
    """Lines of an aligned table for people."""
    result = measured.result
    rows = [
        ("", "measured", "wanted", ""),
        _judged("token-exact rate", result.token_exact_rate, least=thresholds.min_exact_rate),
        _judged("log-prob difference", result.max_log_prob_difference, most=thresholds.max_log_prob_difference),
        _judged("score difference", result.max_score_difference, most=thresholds.max_score_difference),
    ]
    for search, quality in measured.quality.items():
        rows += [
            (f"BLEU, {search}", f"{quality.bleu:.2f}", f"reference {quality.reference_bleu:.2f}", ""),
            (f"chrF, {search}", f"{quality.chrf:.2f}", f"reference {quality.reference_chrf:.2f}", ""),
        ]
        if max_bleu_loss is not None:
            rows.append(_judged(f"BLEU loss, {search}", quality.bleu_loss, most=max_bleu_loss))
    yield from aligned(rows)
    listed = [("exception", one) for one in result.exceptions] + [("fault", one) for one in result.faults]
    for kind, one in listed[:_MOST_LISTED]:
        gap = "unknown" if one.gap is None else f"{one.gap:.1e}"
        yield (
            f"  {kind}: sentence {one.sentence}, {one.search}, token {one.step}: got {one.got}, wanted {one.wanted}; "
            f"the reference's own gap is {gap}, excused below {one.allowed:.1e}"
        )
    if len(listed) > _MOST_LISTED:
        yield f"  and {len(listed) - _MOST_LISTED} more"


def _judged(
    name: str, measured: float, *, least: float | None = None, most: float | None = None
) -> tuple[str, str, str, str]:
    holds = (least is None or measured >= least) and (most is None or measured <= most)
    wanted = f">= {least:.4g}" if least is not None else f"<= {most:.4g}" if most is not None else "-"
    return name, f"{measured:.4g}", wanted, "ok" if holds else "NOT MET"


def aligned(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Rows as lines whose columns begin at the same place."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
