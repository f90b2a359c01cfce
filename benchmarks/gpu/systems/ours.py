"""This project's runners and its decode loop, the one that serves: all use of them by these benchmarks is here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu.models.bundles import bundle_at
from benchmarks.gpu.specs import MAX_CANDIDATES
from benchmarks.gpu.stepping import FIRST_TIMED, LAST_TIMED
from benchmarks.gpu.systems.protocol import Setting, Tokens
from benchmarks.gpu.works import Work, step_sources
from export.runners.ort_cpu import OrtCpuRunner
from export.runners.protocol import IntArray, Runner
from server.decoding.loop import DecodeLoop
from server.decoding.sequence import Outcome, Result, SearchOptions
from server.decoding.sequence import Sequence as Job

_MOST_SOURCES_OF_A_BATCH = 64
_MAX_QUEUE = 4096
_CLOSE_TIMEOUT_S = 10.0
_DECODE_TIMEOUT_S = 120.0


def open_runner(setting: Setting) -> Runner:
    """One runner of a bundle.

    Raises:
        DeviceUnavailableError: no GPU, or a library is missing; one line says which.
        BundleError: the engines do not fit.
        RunnerError: the device failed.
    """
    bundle = bundle_at(setting.bundle)
    if setting.system == "cpu":
        return OrtCpuRunner.open(bundle, threads=1, max_rows=setting.max_rows)
    from export.runners.gpu.opening import open_gpu_runners  # noqa: PLC0415 - needs the libraries of a GPU

    (runner,) = open_gpu_runners(
        bundle,
        target="tensorrt" if setting.system == "tensorrt" else "cuda",
        engines=setting.engines if setting.system == "tensorrt" else None,
        workers=1,
        max_rows=setting.max_rows,
        max_candidates=MAX_CANDIDATES,
    )
    return runner


class Ours:
    """A runner, timed step by step, and the loop on top of it."""

    def __init__(self, setting: Setting) -> None:
        """Open the runner; raises what ``open_runner`` does."""
        self._manifest = bundle_at(setting.bundle).manifest
        self.runner = open_runner(setting)

    @property
    def facts(self) -> dict[str, Any]:
        """The runner's name and limits."""
        limits = self.runner.limits
        return {
            "runner": self.runner.name,
            "precision": self.runner.precision,
            "max_rows": limits.max_rows,
            "cache_bytes": limits.cache_bytes,
            "encode_tokens_per_round": limits.encode_tokens,
        }

    def step_seconds(self, *, rows: int, beam_size: int, enough: Callable[[int], bool]) -> list[float]:
        """As ``System`` says: greedy is ``step`` and ``argmax``; a beam ``step`` with parents and ``top_k``.

        Of a beam's rows the second continues the first's in every step, and so on: caches move as in a search.
        """
        seconds: list[float] = []
        while not enough(len(seconds)):
            decode = self._greedy_steps(rows) if beam_size == 1 else self._beam_steps(rows, beam_size)
            seconds += decode[FIRST_TIMED:LAST_TIMED]
        return seconds

    def _greedy_steps(self, rows: int) -> list[float]:
        self._encode(rows)
        tokens, seconds = np.full(rows, self._manifest.start_id, np.int64), []
        for position in range(LAST_TIMED):
            began = time.perf_counter()
            self.runner.step(tokens=tokens, positions=np.full(rows, position, np.int64))
            tokens = self.runner.argmax()
            seconds.append(time.perf_counter() - began)
        return seconds

    def _beam_steps(self, rows: int, beam_size: int) -> list[float]:
        sources = rows // beam_size
        self._encode(sources)
        tokens, seconds = np.full(sources, self._manifest.start_id, np.int64), []
        for position in range(LAST_TIMED):
            began = time.perf_counter()
            parents = beam_parents(rows, beam_size, position)
            self.runner.step(tokens=tokens, positions=np.full(len(tokens), position, np.int64), parents=parents)
            ids = self.runner.top_k(beam_size + 1).ids
            seconds.append(time.perf_counter() - began)
            tokens = np.ascontiguousarray(ids[:, :beam_size].reshape(-1) if position == 0 else ids[:, 0])
        return seconds

    def _encode(self, count: int) -> None:
        sources = np.array(step_sources(count, vocab=self._manifest.dims.source_vocab), np.int64)
        for first in range(0, count, _MOST_SOURCES_OF_A_BATCH):
            batch = sources[first : first + _MOST_SOURCES_OF_A_BATCH]
            lengths = np.full(len(batch), batch.shape[1], np.int64)
            self.runner.encode(sources=batch, lengths=lengths, rows=np.arange(first, first + len(batch)))

    def decode(self, work: Work) -> Tokens:
        """Submit all sources at once to a loop on its thread, and wait for the last output."""
        manifest, results, all_ended = self._manifest, dict[int, Result](), threading.Event()

        def finish(place: int, result: Result) -> None:
            results[place] = result
            if len(results) == len(work.sources):
                all_ended.set()

        loop = DecodeLoop(
            self.runner,
            start_id=manifest.start_id,
            eos_id=manifest.eos_id,
            pad_id=manifest.pad_id,
            max_queue=_MAX_QUEUE,
        )
        loop.start()
        try:
            loop.submit(
                [
                    Job(
                        source,
                        SearchOptions(beam_size=work.beam_size, max_output_tokens=output),
                        on_finished=partial(finish, place),
                    )
                    for place, (source, output) in enumerate(zip(work.sources, work.outputs, strict=True))
                ]
            )
            if not all_ended.wait(_DECODE_TIMEOUT_S):
                raise RuntimeError(f"decode loop: got {len(results)} outputs, wanted {len(work.sources)}")
        finally:
            loop.close(timeout_s=_CLOSE_TIMEOUT_S)
        return [_best(results[place]) for place in range(len(work.sources))]

    def close(self) -> None:
        """Free the runner."""
        self.runner.close()


def beam_parents(rows: int, beam_size: int, position: int) -> IntArray | None:
    """Which row each row of a beam step continues; the first step has one row for each source."""
    if position == 0:
        return None
    places = np.arange(rows, dtype=np.int64)
    first = places // beam_size
    if position == 1:
        return first
    return first * beam_size + np.maximum(places % beam_size - 1, 0)


def _best(result: Result) -> tuple[int, ...]:
    if result.outcome is not Outcome.FINISHED:
        raise RuntimeError(
            f"decode loop: got an output that is {result.outcome.value}, wanted finished; the log says why"
        )
    return result.hypotheses[0].tokens
