"""The table that ``dragoman verify`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from server.exam.quality import Measured
from server.exam.thresholds import Judged, Thresholds

_MOST_LISTED = 20
# Below so many sentences, a few changed words move BLEU by more than a rounded model loses.
_FEW_SENTENCES = 500


def report(measured: Measured, thresholds: Thresholds) -> Iterator[str]:
    """Lines of an aligned table for people."""
    result = measured.result
    rows = [("", "measured", "wanted", "")]
    for search, quality in measured.quality.items():
        rows += [
            (f"BLEU of {search}", f"{quality.bleu:.2f}", f"reference {quality.reference_bleu:.2f}", ""),
            (f"chrF of {search}", f"{quality.chrf:.2f}", f"reference {quality.reference_chrf:.2f}", ""),
        ]
    figures = measured.judged(thresholds)
    yield from aligned([*rows, *map(_row, figures)])
    if measured.references < _FEW_SENTENCES and any(not one.holds for one in figures if one.name.startswith("BLEU")):
        yield f"  {measured.references} sentences tell little of BLEU: a larger set can be given with --golden FILE"
    if thresholds.min_exact_rate is None:
        return  # other tokens are no fault then
    listed = [("exception", one) for one in result.exceptions] + [("fault", one) for one in result.faults]
    for kind, one in listed[:_MOST_LISTED]:
        gap = "unknown" if one.gap is None else f"{one.gap:.1e}"
        yield (
            f"  {kind}: sentence {one.sentence}, {one.search}, token {one.step}: got {one.got}, wanted {one.wanted}; "
            f"the reference's own gap is {gap}, excused below {one.allowed:.1e}"
        )
    if len(listed) > _MOST_LISTED:
        yield f"  and {len(listed) - _MOST_LISTED} more"


def _row(figure: Judged) -> tuple[str, str, str, str]:
    limits = [f"{sign} {limit:.4g}" for sign, limit in ((">=", figure.least), ("<=", figure.most)) if limit is not None]
    verdict = ("ok" if figure.holds else "NOT MET") if figure.asked else ""
    return figure.name, f"{figure.got:.4g}", " ".join(limits) or "-", verdict


def aligned(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Rows as lines whose columns begin at the same place."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
