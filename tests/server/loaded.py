"""What the loading of a directory of bundles came to."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.config import ServeConfig
from server.loading import LoadError, load_models
from server.metrics import Metrics
from server.models import Registry


class Loaded:
    """What became of a directory of bundles."""

    def __init__(self, models: Path, caplog: pytest.LogCaptureFixture, **settings: Any) -> None:
        self.registry = Registry(loading=True)
        self.metrics = Metrics()
        self.error = ""
        config = ServeConfig(models=models, **{"threads": 1, "max_rows": 8, **settings})
        with caplog.at_level(logging.INFO):
            try:
                load_models(config, self.metrics, on_found=self.registry.add)
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

    def close(self) -> None:
        for model in self.registry.loaded():
            model.decode_loop.close(timeout_s=0.0)
            model.close_runners()


Load = Callable[..., Loaded]
