"""Gauges that tell what every model is at this moment, asked for when they are read: no two of them can disagree."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily


class EngineState(enum.Enum):
    """How far a model has come on its way to TensorRT engines."""

    NONE = "none"
    """It is to have none."""
    BUILDING = "building"
    VERIFYING = "verifying"
    SERVING = "serving"
    FAILED = "failed"


class ServedBy(NamedTuple):
    """What serves a model.

    Attributes:
        runner: its name.
        precision: of its matrix products.
        digest: of the bundle.
    """

    runner: str
    precision: str
    digest: str


class ModelNow(NamedTuple):
    """What there is to tell of a model.

    Attributes:
        serving: whether it serves.
        served_by: what serves it; None: it has not come to that.
        engines: how far its TensorRT engines are.
    """

    serving: bool
    served_by: ServedBy | None
    engines: EngineState


class ModelGauges:
    """The families ``dragoman_model_serving``, ``dragoman_model_info`` and ``dragoman_engines``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the families; there is no model yet."""
        self._models: dict[str, Callable[[], ModelNow]] = {}
        registry.register(self)

    def add(self, model: str, now: Callable[[], ModelNow]) -> None:
        """There is a model of that name; ``now`` tells what it is, at any time and from any thread."""
        self._models = {**self._models, model: now}

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The families, as prometheus_client's registry asks for them."""
        serving = _family("model_serving", "1 while a model serves; 0: the log says why not.")
        info = _family("model_info", "What serves a model; always 1.", *ServedBy._fields)
        engines = _family("engines", "1 for how far the TensorRT engines of a model are.", "state")
        for model, ask in self._models.items():
            now = ask()
            serving.add_metric((model,), float(now.serving))
            if now.served_by is not None:
                info.add_metric((model, *now.served_by), 1.0)
            for state in EngineState:
                engines.add_metric((model, state.value), float(state is now.engines))
        return serving, info, engines


def _family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"dragoman_{name}", text, labels=("model", *labels))
