"""Latency against the rate of arrivals, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")  # before pyplot: there may be no display

from matplotlib import pyplot, ticker

SERIES = {
    "ours": ("Dragoman, over gRPC", "tab:blue", "o"),
    "ctranslate2_last_token": ("CTranslate2 in process, last token", "tab:orange", "^"),
    "ctranslate2": ("CTranslate2 in process, batch returned", "tab:red", "s"),
}


def draw(rates: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Write a picture of the median and of the 99th percentile of latency.

    Args:
        rates: for each rate its ``requests_per_second`` and, for each series, ``p50_s`` and ``p99_s``.
        path: a .png.
        title: over the picture.
    """
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
    for panel, percentile, words in zip(panels, ("p50_s", "p99_s"), ("median", "99th percentile"), strict=True):
        for series, (label, colour, marker) in SERIES.items():
            x = [rate["requests_per_second"] for rate in rates]
            y = [rate[series][percentile] for rate in rates]
            panel.plot(x, y, color=colour, marker=marker, label=label)
        panel.set_title(words)
        panel.set_xlabel("requests per second (Poisson arrivals)")
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        panel.yaxis.set_minor_formatter(ticker.NullFormatter())
        panel.grid(visible=True, which="both", alpha=0.3)
    panels[0].set_ylabel("latency from the scheduled arrival, s")
    panels[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
