"""The runner of ONNX Runtime on the CPU."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import contract
from export.bundle import Bundle, BundleError
from export.contract import cache_names
from export.runners.ort_session import Arrays, BoundGraph, open_session, run_graph
from export.runners.protocol import Candidates, FloatArray, IntArray, RunnerError, RunnerLimits, ShapeError
from export.runners.row_cache import RowCaches

_log = logging.getLogger(__name__)
TARGET = "cpu"
_ONE_THREAD_PARAMETERS = 20_000_000
"""Measured, one row, one thread against two: 0.20 and 0.23 ms with 5 million parameters, 3.3 and 2.4 with 60."""


class _StepSessions:
    """The step on all threads, and, where that makes a difference, on one: two runs on all would fight for the cores.

    The second one holds its own packed weights. So it is loaded when a runner first has company, in the background;
    until it is there, all run the first one.
    """

    def __init__(self, alone: Any, load_beside: Callable[[], Any] | None) -> None:
        self._alone = alone
        self._load_beside = load_beside
        self._beside: Any = None
        self._lock = threading.Lock()

    def of(self, *, alone: bool) -> Any:
        """The session for a runner's next step."""
        if alone:
            return self._alone
        if self._load_beside is not None:
            with self._lock:
                load, self._load_beside = self._load_beside, None
            if load is not None:
                threading.Thread(target=self._load, args=(load,), name="load-step").start()
        return self._beside or self._alone

    def _load(self, load: Callable[[], Any]) -> None:
        try:
            self._beside = load()
        except BundleError:
            _log.exception("the step cannot be loaded for several workers; they share one for all threads")


@dataclass(frozen=True)
class _Sessions:
    """A bundle's graphs, loaded; any number of runners may run them at once.

    The encoder, which is a small part of a single request, is there once, and on one thread where several runners may
    be at work.
    """

    encoder: Any
    step: _StepSessions
    argmax: Any
    top_k: Any

    @classmethod
    def load(cls, bundle: Bundle, *, threads: int, workers: int) -> _Sessions:
        manifest = bundle.manifest
        contracts = contract.graph_contracts(manifest.dims, precision=manifest.precision(TARGET))

        def load(name: str, *, threads: int = 1) -> Any:
            path = bundle.graph_path(TARGET, name)
            return open_session(path, contract=contracts[name], threads=threads, arena=name != "step")

        # Waking another thread for a step or a head of a fraction of a millisecond costs more than it brings.
        of_step = 1 if manifest.parameter_count < _ONE_THREAD_PARAMETERS else threads
        step = _StepSessions(
            load("step", threads=of_step), None if of_step == 1 or workers == 1 else lambda: load("step")
        )
        # The smaller one last: while a session packs its weights, what it has read of them is in memory too.
        encoder = load("encoder", threads=threads if workers == 1 else 1)
        return cls(encoder, step, argmax=load("argmax"), top_k=load("top_k"))


class OrtCpuRunner:
    """Executes a bundle's ``cpu`` graphs; implements ``export.runners.protocol.Runner``.

    All buffers are allocated once. A step runs on views of their first rows, so that nothing is copied between the
    caches, the step and the heads.
    """

    name = "onnxruntime-cpu"

    def __init__(self, bundle: Bundle, sessions: _Sessions, *, max_rows: int, max_candidates: int) -> None:
        """Allocate the buffers; see ``open``."""
        manifest = bundle.manifest
        dims = manifest.dims
        self.precision = manifest.precision(TARGET)
        self._dims = dims
        self._encoder = sessions.encoder
        self._step = sessions.step
        self._bound_step: dict[Any, BoundGraph] = {}  # by session
        self._argmax, self._top_k = BoundGraph(sessions.argmax), BoundGraph(sessions.top_k)
        self._caches = RowCaches(
            dims,
            rows=max_rows,
            source_capacity=manifest.max_source_tokens,
            target_capacity=manifest.max_output_tokens,
            dtype=contract.cache_dtype(self.precision),
        )
        self._barred = frozenset((*manifest.suppressed_ids, *range(dims.target_vocab, dims.padded_target_vocab)))
        self.limits = RunnerLimits(
            max_rows=max_rows,
            max_source_tokens=manifest.max_source_tokens,
            max_output_tokens=manifest.max_output_tokens,
            max_candidates=min(max_candidates, dims.padded_target_vocab - len(self._barred)),
            cache_bytes=self._caches.cache_bytes,
        )
        self._tokens = np.zeros(max_rows, np.int64)
        self._positions = np.zeros(max_rows, np.int64)
        self._longest_target = np.zeros(1, np.int32)
        self._longest_source = np.zeros(1, np.int32)
        self._logits: FloatArray = np.zeros((max_rows, dims.padded_target_vocab), np.float32)
        self._ids = np.zeros(max_rows * self.limits.max_candidates, np.int64)
        self._log_probs = np.zeros(max_rows * self.limits.max_candidates, np.float32)
        self._rows = 0
        self._closed = False

    @classmethod
    def open(cls, bundle: Bundle, *, threads: int, max_rows: int = 64, max_candidates: int = 32) -> OrtCpuRunner:
        """Load a bundle's graphs for one runner; arguments as of ``open_workers``."""
        return cls.open_workers(bundle, workers=1, threads=threads, max_rows=max_rows, max_candidates=max_candidates)[0]

    @classmethod
    def open_workers(
        cls, bundle: Bundle, *, workers: int, threads: int, max_rows: int = 64, max_candidates: int = 32
    ) -> tuple[OrtCpuRunner, ...]:
        """Load a bundle's graphs once, for several runners.

        Args:
            bundle: exported for the target ``cpu``.
            workers: runners that may be at work at once.
            threads: that a step of a large model uses while its runner is alone; all else uses one.
            max_rows: most live rows of a step, for each runner.
            max_candidates: largest ``k`` of ``top_k``; lowered to the number of selectable tokens.

        Raises:
            BundleError: the bundle has no graphs for ``cpu``, or they do not follow the contract.
        """
        numbers = {"workers": workers, "threads": threads, "max_rows": max_rows, "max_candidates": max_candidates}
        for argument, value in numbers.items():
            if value < 1:
                raise ValueError(f"{argument}: got {value}, wanted at least 1")
        sessions = _Sessions.load(bundle, threads=threads, workers=workers)
        return tuple(cls(bundle, sessions, max_rows=max_rows, max_candidates=max_candidates) for _ in range(workers))

    def encode(self, *, sources: IntArray, lengths: IntArray, rows: IntArray) -> None:
        """Encode a batch of sources and write their cross-attention keys and values into ``rows``.

        Args:
            sources: int64 [batch, src_len], end token included, padded on the right with pad_id.
            lengths: int64 [batch], tokens of each source, 1 to src_len.
            rows: int64 [batch], the row of each source.

        Raises:
            ShapeError: a shape does not fit, or exceeds ``limits``.
            RunnerError: the runtime failed.
        """
        self._check_open()
        contract.SOURCES.check(sources)
        batch, src_len = sources.shape
        contract.LENGTHS.check(lengths, {"batch": batch})
        contract.ROWS.check(rows, {"batch": batch})
        _check_size("batch", batch, self.limits.max_rows)
        _check_size("src_len", src_len, self.limits.max_source_tokens)
        _check_range("sources", sources.ravel().tolist(), 0, self._dims.source_vocab)
        _check_range("lengths", lengths.tolist(), 1, src_len + 1)
        _check_range("rows", rows.tolist(), 0, self.limits.max_rows)
        memory = run_graph(self._encoder, {"tokens": sources, "lengths": lengths.astype(np.int32)})
        self._caches.write_sources(memory, lengths=lengths, rows=rows)

    def step(
        self, *, tokens: IntArray, positions: IntArray, parents: IntArray | None = None, alone: bool = True
    ) -> None:
        """Run one decoder step for the live rows 0..rows-1; the logits stay in the runner's buffer.

        Args:
            tokens: int64 [rows], last token of each row; the start token in a row's first step.
            positions: int64 [rows], tokens already in the row's cache; 0 in its first step.
            parents: int64 [rows], row whose caches each row continues; None: its own.
            alone: no other runner is at work.

        Raises:
            ShapeError: a shape does not fit, exceeds ``limits``, or a row has no source.
            RunnerError: the runtime failed.
        """
        self._check_open()
        contract.TOKENS.check(tokens)
        rows = len(tokens)
        contract.POSITIONS.check(positions, {"rows": rows})
        _check_size("rows", rows, self.limits.max_rows)
        places = positions.tolist()
        _check_range("tokens", tokens.tolist(), 0, self._dims.target_vocab)
        _check_range("positions", places, 0, self.limits.max_output_tokens)
        if parents is not None:
            contract.PARENTS.check(parents, {"rows": rows})
            origins = parents.tolist()
            _check_range("parents", origins, 0, self.limits.max_rows)
            self._caches.move(origins, positions=places)
        self._longest_source[0] = self._caches.longest_source(rows)
        self._caches.write_step(places)
        self._tokens[:rows] = tokens
        self._positions[:rows] = positions
        self._longest_target[0] = max(places) + 1
        self._rows = 0
        session = self._step.of(alone=alone)
        if session not in self._bound_step:
            self._bound_step[session] = BoundGraph(session)
        self._bound_step[session].run(rows, lambda: self._step_buffers(rows))
        self._rows = rows

    def argmax(self) -> IntArray:
        """Best token of each row of the last step: int64 [rows]; the lowest id where several are equal."""
        rows = self._stepped_rows()
        # One pass of numpy takes half the time of the graph; what it finds stands, unless it must not be selected.
        best: IntArray = self._logits[:rows].argmax(axis=1)
        if self._barred.isdisjoint(best.tolist()):
            return best
        ids = self._ids[:rows]
        self._argmax.run(rows, lambda: ({"logits": self._logits[:rows]}, {"ids": ids}))
        return ids.copy()

    def top_k(self, k: int) -> Candidates:
        """The ``k`` best tokens of each row of the last step, with log-probs.

        Raises:
            ShapeError: ``k`` exceeds ``limits.max_candidates``.
        """
        rows = self._stepped_rows()
        _check_size("k", k, self.limits.max_candidates)
        ids = self._ids[: rows * k].reshape(rows, k)
        log_probs = self._log_probs[: rows * k].reshape(rows, k)

        def buffers() -> tuple[Arrays, Arrays]:
            inputs: Arrays = {"logits": self._logits[:rows], "k": np.array([k], np.int64)}
            return inputs, {"ids": ids, "log_probs": log_probs}

        self._top_k.run((rows, k), buffers)
        return Candidates(ids.copy(), log_probs.copy())

    def logits(self) -> FloatArray:
        """Raw logits of the last step: float32 [rows, target_vocab_size], a view that the next step overwrites."""
        rows = self._stepped_rows()
        view = self._logits[:rows, : self._dims.target_vocab]
        view.flags.writeable = False
        return view

    def close(self) -> None:
        """Free graphs and buffers; calling it again does nothing."""
        if not self._closed:
            self._closed = True
            del self._encoder, self._step, self._bound_step, self._argmax, self._top_k, self._caches, self._logits

    def _step_buffers(self, rows: int) -> tuple[Arrays, Arrays]:
        layers = self._dims.decoder_layers
        own = [cache[:rows] for cache in self._caches.own]
        cross = [cache[:rows] for cache in self._caches.cross]
        last = [cache[:rows] for cache in self._caches.cross_last]
        inputs: dict[str, NDArray[Any]] = {
            "tokens": self._tokens[:rows],
            "positions": self._positions[:rows],
            "source_lengths": self._caches.source_lengths[:rows],
            "longest_target": self._longest_target,
            "longest_source": self._longest_source,
            **dict(zip(cache_names("past", layers), own, strict=True)),
            **dict(zip(cache_names("cross", layers), cross, strict=True)),
            **dict(zip(cache_names("cross_last", layers), last, strict=True)),
        }
        outputs: dict[str, NDArray[Any]] = {
            "logits": self._logits[:rows],
            **dict(zip(cache_names("present", layers), own, strict=True)),
            **dict(zip(cache_names("cross_present", layers), cross, strict=True)),
        }
        return inputs, outputs

    def _stepped_rows(self) -> int:
        self._check_open()
        if not self._rows:
            raise ShapeError("rows: got a head before any step, wanted a step first")
        return self._rows

    def _check_open(self) -> None:
        if self._closed:
            raise RunnerError("the runner is closed")


def _check_size(name: str, got: int, largest: int) -> None:
    if not 1 <= got <= largest:
        raise ShapeError(f"{name}: got {got}, wanted 1 to {largest}")


def _check_range(name: str, values: Sequence[int], first: int, end: int) -> None:
    smallest, largest = min(values), max(values)
    if smallest < first or largest >= end:
        raise ShapeError(f"{name}: got {smallest if smallest < first else largest}, wanted {first} to {end - 1}")
