"""The step's two sessions: one for a runner that is alone, one for several, loaded when it is first of use."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.bundle import Bundle, BundleError
from export.runners import ort_loading
from export.runners.ort_cpu import OrtCpuRunner
from export.runners.ort_session import open_session
from tests.export.tiny import START, sources_of

LONG_S = 30.0


class Desk:
    """Stands in for ``open_session``: counts the steps that are loaded, and keeps all but the first waiting."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.go_on = threading.Event()
        self.fails = False

    def open(self, path: Path, *, threads: int, **settings: Any) -> Any:
        if path.name == "step.onnx":
            self.threads.append(threads)
            if len(self.threads) > 1:
                assert self.go_on.wait(LONG_S)
                if self.fails:
                    raise BundleError("no memory left")
        return open_session(path, threads=threads, **settings)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    desk = Desk()
    monkeypatch.setattr(ort_loading, "open_session", desk.open)
    monkeypatch.setattr(ort_loading, "_ONE_THREAD_PARAMETERS", 0)
    yield desk
    desk.go_on.set()
    finish_loading()


def finish_loading() -> None:
    for thread in threading.enumerate():
        if thread.name == "load-step":
            thread.join(LONG_S)


def first_logits(runner: OrtCpuRunner, *, alone: bool) -> np.ndarray:
    source = sources_of([7], vocab=300)[0]
    runner.encode(sources=source[None], lengths=np.array([7]), rows=np.array([0]))
    runner.step(tokens=np.array([START]), positions=np.array([0]), alone=alone)
    return runner.logits().copy()


def test_the_session_for_several_is_loaded_once_and_only_when_there_are_several(
    tiny_bundle: Bundle, desk: Desk
) -> None:
    runners = OrtCpuRunner.open_workers(tiny_bundle, workers=2, threads=2, max_rows=2)
    wanted = first_logits(runners[0], alone=True)
    assert desk.threads == [2]
    for runner in runners:
        assert np.array_equal(first_logits(runner, alone=False), wanted), "must not wait for the other session"
    desk.go_on.set()
    finish_loading()
    assert desk.threads == [2, 1]
    step = runners[0]._step
    assert step.of(alone=False) is not step.of(alone=True)
    for runner in runners:
        for alone in (False, True, False):
            assert np.array_equal(first_logits(runner, alone=alone), wanted)
    assert desk.threads == [2, 1]


def test_where_it_cannot_be_loaded_all_go_on_with_the_one_there_is(
    tiny_bundle: Bundle, desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.fails = True
    desk.go_on.set()
    runner, _ = OrtCpuRunner.open_workers(tiny_bundle, workers=2, threads=2, max_rows=2)
    with caplog.at_level(logging.ERROR):
        wanted = first_logits(runner, alone=False)
        finish_loading()
    assert "no memory left" in caplog.text
    assert np.array_equal(first_logits(runner, alone=False), wanted)
    assert desk.threads == [2, 1], "tried once"


@pytest.mark.parametrize(("workers", "threads"), [(1, 2), (2, 1)])
def test_where_it_makes_no_difference_there_is_one(workers: int, threads: int, tiny_bundle: Bundle, desk: Desk) -> None:
    runner = OrtCpuRunner.open_workers(tiny_bundle, workers=workers, threads=threads, max_rows=2)[0]
    first_logits(runner, alone=False)
    assert desk.threads == [threads]
