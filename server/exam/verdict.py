"""Whether a bundle is certified, and if not, by how much it missed what was asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from server.exam.quality import Measured
from server.exam.thresholds import Thresholds


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was asked of what was measured.

    Attributes:
        thresholds: what had to hold.
        asked: of each measured set, in order.
        missed: what did not hold, each with what was measured and what was wanted; empty: the bundle is certified.
    """

    thresholds: Thresholds
    asked: tuple[Thresholds, ...]
    missed: tuple[str, ...]


def judge(measured: Sequence[Measured], thresholds: Thresholds, *, bleu_is_wanted: bool) -> Verdict:
    """Hold every measured set against the thresholds.

    BLEU is judged where the most people's translations are, on outside files first: a few dozen sentences tell little
    of it. Where there are none, nothing may take its place but a token-exact rate.

    Args:
        measured: at least one set.
        thresholds: what has to hold.
        bleu_is_wanted: its loss has to be known whatever else holds.
    """
    largest = max(reversed(measured), key=lambda one: one.references)
    missed: list[str] = []
    if not largest.references and thresholds.max_bleu_loss is not None:
        if bleu_is_wanted or thresholds.min_exact_rate is None:
            give = "--references FILE" if bleu_is_wanted else "--references FILE or --min-exact R"
            missed.append(
                f"BLEU loss unknown, wanted at most {thresholds.max_bleu_loss:g} (--max-bleu-loss): "
                f"got no person's translation to measure it on, give {give}"
            )
        else:
            thresholds = dataclasses.replace(thresholds, max_bleu_loss=None)
    without_bleu = dataclasses.replace(thresholds, max_bleu_loss=None)
    asked = tuple(thresholds if one is largest else without_bleu for one in measured)
    for one, wanted in zip(measured, asked, strict=True):
        where = f"{one.title}: " if len(measured) > 1 else ""
        missed += [f"{where}{figure.complaint()}" for figure in one.judged(wanted) if not figure.holds]
    return Verdict(thresholds=thresholds, asked=asked, missed=tuple(missed))
