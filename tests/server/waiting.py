"""A model that serves while its engines are being built, and whoever asks it meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.config import Target
from server.decoding.sequence import Outcome, Result, SearchOptions, Sequence
from server.models import Backend, ServedModel
from tests.server.loaded import Load, Loaded
from tests.server.running import PATIENCE_S
from tests.server.stand_in_gpu import StandInGpu, assert_closed

TEXT = "A man is riding a bicycle."


class Answers:
    """Asks a model, and keeps what it answers."""

    def __init__(self, model: ServedModel) -> None:
        self.results: dict[Sequence, Result] = {}
        self.submitted = 0
        self._model = model
        self._ended = threading.Condition()

    def submit(self, *texts: str, beam_size: int = 1) -> list[Sequence]:
        sequences = [self._sequence(text, beam_size) for text in texts]
        self._model.submit(sequences)
        with self._ended:
            self.submitted += len(sequences)
        return sequences

    def _sequence(self, text: str, beam_size: int) -> Sequence:
        def on_finished(result: Result) -> None:
            with self._ended:
                assert sequence not in self.results
                self.results[sequence] = result
                self._ended.notify_all()

        source = tuple(self._model.tokenizer.encode(text))
        sequence = Sequence(source, SearchOptions(beam_size=beam_size, max_output_tokens=30), on_finished=on_finished)
        return sequence

    def wait(self, sequences: list[Sequence]) -> list[Result]:
        with self._ended:
            assert self._ended.wait_for(lambda: all(one in self.results for one in sequences), PATIENCE_S)
        return [self.results[one] for one in sequences]

    def ask(self, *texts: str) -> list[Outcome]:
        return [result.outcome for result in self.wait(self.submit(*texts))]


class Waiting:
    """A model that serves while its engines are being built."""

    def __init__(self, load: Load, gpu: StandInGpu, cache: Path, **settings: Any) -> None:
        self.gpu = gpu
        self.loaded: Loaded = load(gpu=gpu, engine_cache=cache, target=Target.TENSORRT, **settings)
        self.model = self.loaded.model
        self.before = self.model.backend
        self.answers = Answers(self.model)

    def finish(self, order: str = "build") -> None:
        self.loaded.engine_work.start()
        self.gpu.order(order)
        self.loaded.engine_work.join()

    def check_serves_as_before(self) -> None:
        assert self.model.backend is self.before
        assert self.model.healthy
        assert self.loaded.engine_states == {"failed": 1}
        assert self.loaded.served_by == [self.before.runner.name]
        assert self.model.detail.endswith("the server's log says why")
        assert self.answers.ask(TEXT, TEXT) == [Outcome.FINISHED] * 2
        for runner in self.gpu.opened:
            assert_closed(runner)


class Change:
    """The moment at which a model changes what executes it."""

    def __init__(self, model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.over = threading.Event()
        self.before: list[Callable[[Backend], object]] = []
        self._real = model.change_to
        monkeypatch.setattr(model, "change_to", self._change_to)

    def _change_to(self, backend: Backend) -> Backend:
        for call in self.before:
            call(backend)
        old = self._real(backend)
        self.over.set()
        return old

    def wait(self) -> None:
        assert self.over.wait(PATIENCE_S), "it never changed"
