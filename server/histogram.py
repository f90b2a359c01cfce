"""A Prometheus histogram that takes one value many times at once, which prometheus_client's own does not."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString


class ManyHistogram:
    """A classic histogram by model: a decode loop advances a hundred texts in one round, all by the same time."""

    def __init__(self, name: str, text: str, *, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        """Register the family; ``buckets`` are upper bounds, ascending, without infinity."""
        self._name = name
        self._text = text
        self._bounds = tuple(buckets)
        self._lock = threading.Lock()
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        registry.register(self)

    def add(self, model: str) -> None:
        """Create the series of ``model``; does nothing where they are there."""
        with self._lock:
            self._counts.setdefault(model, [0] * (len(self._bounds) + 1))
            self._sums.setdefault(model, 0.0)

    def observe(self, model: str, value: float, *, times: int) -> None:
        """Count ``value`` as often as it came."""
        with self._lock:
            self._counts[model][bisect_left(self._bounds, value)] += times
            self._sums[model] += value * times

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """The family, as prometheus_client's registry asks for it."""
        family = HistogramMetricFamily(self._name, self._text, labels=("model",))
        bounds = (*map(floatToGoString, self._bounds), "+Inf")
        with self._lock:
            for model, counts in self._counts.items():
                total, buckets = 0, []
                for bound, count in zip(bounds, counts, strict=True):
                    total += count
                    buckets.append((bound, float(total)))
                family.add_metric((model,), buckets, self._sums[model])
        return (family,)
