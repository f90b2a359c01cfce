"""What was measured, as lines of a table and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.peers.measure import Measured, best_of
from benchmarks.peers.prepare import Prepared
from benchmarks.peers.works import Work

_MIB = 2**20
_COLUMNS = "{:<5} {:<5} {:<28} {:<13} {:>24} {:>8} {:>6} {:>6}  {}"
LEGEND = (
    "seconds: median (least-most); speed: CTranslate2's median over this one's; MiB: peak memory of the process.\n"
    "Of a system with several settings the one with the best median stands here."
)


def header() -> str:
    """Over the table's columns."""
    return _COLUMNS.format("model", "", "work", "system", "seconds", "tokens/s", "speed", "MiB", "setting")


def lines(model: Prepared, work: Work, measured: Sequence[Measured]) -> list[str]:
    """One line for each system."""
    best = best_of(measured)
    peer = best.get("ctranslate2")
    return [
        _COLUMNS.format(
            model.name,
            model.precision,
            work.name,
            system,
            f"{one.median:.3f} ({min(one.seconds):.3f}-{max(one.seconds):.3f})",
            f"{one.outputs.count / one.median:.0f}",
            f"{peer.median / one.median:.2f}" if peer else "-",
            f"{one.peak_bytes / _MIB:.0f}",
            one.setting.label,
        )
        for system, one in best.items()
    ]


def record(model: Prepared, work: Work, measured: Sequence[Measured]) -> dict[str, Any]:
    """Everything about one work."""
    best = best_of(measured)
    ours, peer = best.get("ours"), best.get("ctranslate2")
    return {
        "model": model.name,
        "precision": model.precision,
        "work": work.name,
        "sources": len(work.sources),
        "source_tokens": sum(map(len, work.sources)),
        "beam_size": work.beam_size,
        "systems": [
            {
                "system": one.setting.system,
                "setting": one.setting.label,
                "quoted": one is best[one.setting.system],
                "seconds": one.seconds,
                "median": one.median,
                "output_tokens": one.outputs.count,
                "tokens_per_second": one.outputs.count / one.median,
                "speed_over_ctranslate2": peer.median / one.median if peer else None,
                "outputs_equal_to_ours": one.outputs.equal_to(ours.outputs) if ours else None,
                "loaded_bytes": one.loaded_bytes,
                "peak_bytes": one.peak_bytes,
            }
            for one in measured
        ],
    }
