"""What the loading of a directory of bundles came to."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.config import ServeConfig
from server.engines import EngineWork
from server.gauges import EngineState
from server.loading import LoadError, load_models
from server.metrics import Metrics
from server.models import Registry, ServedModel
from server.opening import Opener
from server.runners import GpuAccess, RunnerSource


class Loaded:
    """What became of a directory of bundles."""

    def __init__(
        self, models: Path, caplog: pytest.LogCaptureFixture, *, gpu: GpuAccess | None = None, **settings: Any
    ) -> None:
        self.registry = Registry(loading=True)
        self.metrics = Metrics()
        self.error = ""
        config = ServeConfig(models=models, **{"threads": 1, "max_rows": 8, **settings})
        opener = Opener(config, self.metrics, source=RunnerSource(config, gpu=gpu))
        self.engine_work = EngineWork(opener)
        with caplog.at_level(logging.INFO):
            try:
                load_models(
                    config,
                    self.metrics,
                    opener=opener,
                    on_found=self.registry.add,
                    on_waiting=self.engine_work.add,
                )
            except LoadError as error:
                self.error = str(error)
        self.registry.loading = False
        events = [getattr(record, "dragoman_fields", {}) for record in caplog.records if record.levelname == "ERROR"]
        self.refused = [event for event in events if event]

    @property
    def states(self) -> dict[str, str]:
        return {model.name: model.state.value for model in self.registry.all()}

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    @property
    def model(self) -> ServedModel:
        """The only one."""
        (model,) = self.registry.loaded()
        return model

    @property
    def engine_states(self) -> dict[str, float | None]:
        """The gauge of the only model, as far as it is not 0."""
        values = {
            one.value: self.sample("dragoman_engines", model=self.model.name, state=one.value) for one in EngineState
        }
        return {state: value for state, value in values.items() if value != 0}

    @property
    def served_by(self) -> list[str]:
        """Runners in the gauge of what serves."""
        samples = [sample for family in self.metrics.registry.collect() for sample in family.samples]
        return [sample.labels["runner"] for sample in samples if sample.name == "dragoman_model_info"]

    def close(self) -> None:
        self.engine_work.stop()
        for model in self.registry.loaded():
            for backend in model.backends:
                backend.decode_loop.close(timeout_s=0.0)
            model.close_runners()
        self.engine_work.join()


Load = Callable[..., Loaded]
