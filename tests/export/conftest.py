"""Fixtures of the export floor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from export.bundle import Bundle, Shortlist
from export.runners.ort_cpu import OrtCpuRunner
from export.targets import Precision
from model.transformer import Transformer
from tests.export.tiny import export_model, random_model


@pytest.fixture
def open_runner(tmp_path: Path) -> Iterator[Callable[..., OrtCpuRunner]]:
    """Export a model and open its runner; all are closed at the end."""
    numbers = itertools.count()
    opened: list[OrtCpuRunner] = []

    def open_one(
        model: Transformer,
        *,
        threads: int = 1,
        precision: Precision = "fp32",
        shortlist: Shortlist | None = None,
        **limits: int,
    ) -> OrtCpuRunner:
        bundle = export_model(model, tmp_path / f"bundle-{next(numbers)}", precision=precision, shortlist=shortlist)
        opened.extend(
            OrtCpuRunner.open_workers(bundle, workers=1, threads=threads, shortlist=shortlist is not None, **limits)
        )
        return opened[-1]

    yield open_one
    for runner in opened:
        runner.close()


@pytest.fixture(scope="module")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One small bundle without golden sentences."""
    return export_model(random_model(), tmp_path_factory.mktemp("tiny") / "bundle")
