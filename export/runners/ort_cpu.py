"""The runner of ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import contract
from export.bundle import Bundle
from export.contract import cache_names
from export.runners.checks import check_size, check_sources, check_step, check_steps
from export.runners.ort_loading import TARGET, Sessions
from export.runners.ort_session import Arrays, Binding, BoundGraph, run_graph
from export.runners.processor import describe_processor
from export.runners.protocol import Candidates, FloatArray, IntArray, RunnerError, RunnerLimits, ShapeError
from export.runners.row_cache import RowCaches

_ENCODE_TOKENS = 320  # about as long as a step of a full batch


class OrtCpuRunner:
    """Executes a bundle's ``cpu`` graphs; implements ``export.runners.protocol.Runner``.

    All buffers are allocated once. A step runs on views of their first rows, so that nothing is copied between the
    caches, the step and the heads.
    """

    def __init__(self, bundle: Bundle, sessions: Sessions, *, max_rows: int, max_candidates: int) -> None:
        """Allocate the buffers; see ``open``."""
        manifest = bundle.manifest
        dims = manifest.dims
        self.shortlisted = sessions.shortlisted
        self.name = "onnxruntime-cpu-shortlist" if self.shortlisted else "onnxruntime-cpu"
        self.precision = manifest.precision(TARGET)
        self.device_description = describe_processor()
        self._dims = dims
        self._encoder = sessions.encoder
        self._step = sessions.step
        self._bound_step: dict[Any, BoundGraph] = {}  # by session, to buffers of one layout
        self._bound_layout = (0, 0)
        self._caches = RowCaches(
            dims,
            rows=max_rows,
            source_capacity=manifest.max_source_tokens,
            target_capacity=manifest.max_output_tokens,
            dtype=contract.cache_dtype(self.precision),
        )
        self._vocabulary = sessions.vocabulary(max_rows=max_rows, max_candidates=max_candidates)
        self.limits = RunnerLimits(
            max_rows=max_rows,
            max_source_tokens=manifest.max_source_tokens,
            max_output_tokens=manifest.max_output_tokens,
            max_candidates=self._vocabulary.max_candidates,
            cache_bytes=self._caches.cache_bytes,
            encode_tokens=_ENCODE_TOKENS,
        )
        self._tokens = np.zeros(max_rows, np.int64)
        self._positions = np.zeros(max_rows, np.int64)
        self._longest_target = np.zeros(1, np.int32)
        self._longest_source = np.zeros(1, np.int32)
        self._rows = 0
        self._closed = False

    @classmethod
    def open(
        cls, bundle: Bundle, *, threads: int, max_rows: int = 64, max_candidates: int = 32, shortlist: bool = False
    ) -> OrtCpuRunner:
        """Load a bundle's graphs for one runner; arguments as of ``open_workers``."""
        sizes = {"max_rows": max_rows, "max_candidates": max_candidates}
        return cls.open_workers(bundle, workers=1, threads=threads, **sizes, shortlist=shortlist)[0]

    @classmethod
    def open_workers(
        cls,
        bundle: Bundle,
        *,
        workers: int,
        threads: int,
        max_rows: int = 64,
        max_candidates: int = 32,
        shortlist: bool = False,
    ) -> tuple[OrtCpuRunner, ...]:
        """Load a bundle's graphs once, for several runners.

        Args:
            bundle: exported for the target ``cpu``.
            workers: runners that may be at work at once.
            threads: that a step of a large model uses while its runner is alone; all else uses one.
            max_rows: most live rows of a step, for each runner.
            max_candidates: largest ``k`` of ``top_k``; lowered to the number of tokens that every row may choose.
            shortlist: whether each row chooses from the list of its own source only.

        Raises:
            BundleError: the bundle has no graphs for ``cpu``, or they do not follow the contract; or it has no
                shortlist, and one was asked for.
        """
        numbers = {"workers": workers, "threads": threads, "max_rows": max_rows, "max_candidates": max_candidates}
        for argument, value in numbers.items():
            if value < 1:
                raise ValueError(f"{argument}: got {value}, wanted at least 1")
        sessions = Sessions.load(bundle, threads=threads, workers=workers, shortlist=shortlist)
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
        check_sources(self._dims, self.limits, sources=sources, lengths=lengths, rows=rows)
        (memory,) = run_graph(self._encoder, {"tokens": sources, "lengths": lengths})
        self._caches.write_sources(memory, lengths=lengths, rows=rows)
        self._vocabulary.take_sources(sources, lengths=lengths, rows=rows, held=self._caches.sources)

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
        places, graph = self._prepare(1, tokens=tokens, positions=positions, parents=parents, alone=alone)
        self._run(graph, places)

    def greedy_steps(
        self,
        steps: int,
        *,
        tokens: IntArray,
        positions: IntArray,
        parents: IntArray | None = None,
        end_id: int,
        alone: bool = True,
    ) -> list[list[int]]:
        """Run a step, and further ones in each of which every row goes on with its best token, as ``argmax`` gives it.

        They end early, after one in which ``end_id`` was best for some row.

        Args:
            steps: at most so many, at least 1.
            tokens: as of ``step``, for the first one; so are the next two.
            positions: see there.
            parents: see there.
            end_id: the end token.
            alone: as of ``step``.

        Returns:
            Best token of each row after each step: [steps][rows].

        Raises:
            ShapeError: as ``step``, or ``steps`` is not from 1 to the places that the longest row has left.
            RunnerError: the runtime failed.
        """
        places, graph = self._prepare(steps, tokens=tokens, positions=positions, parents=parents, alone=alone)
        rows, best = len(places), []
        # A step's weights drive everything else out of the CPU's caches. So what little is done between two steps is
        # done on plain numbers: a sum of two arrays, half a microsecond elsewhere, takes five here.
        while True:
            self._run(graph, places)
            best.append(self._vocabulary.argmax(self._tokens[:rows]))
            if len(best) == steps or end_id in best[-1]:
                return best
            places = [place + 1 for place in places]

    def argmax(self) -> IntArray:
        """Best token of each row of the last step: int64 [rows]; the lowest id where several are equal."""
        best = np.empty(self._stepped_rows(), np.int64)
        self._vocabulary.argmax(best)
        return best

    def top_k(self, k: int) -> Candidates:
        """The ``k`` best tokens of each row of the last step, with log-probs.

        Raises:
            ShapeError: ``k`` exceeds ``limits.max_candidates``.
        """
        rows = self._stepped_rows()
        check_size("k", k, self.limits.max_candidates)
        return self._vocabulary.top_k(rows, k)

    def logits(self) -> FloatArray:
        """Raw logits of the last step: float32 [rows, target_vocab_size], which the next step may overwrite.

        With a shortlist, -inf for all tokens that are not in the row's list.
        """
        rows = self._stepped_rows()
        return self._vocabulary.logits(rows)

    def close(self) -> None:
        """Free graphs and buffers; calling it again does nothing."""
        if not self._closed:
            self._closed = True
            del self._encoder, self._step, self._bound_step, self._vocabulary, self._caches

    def _prepare(
        self, steps: int, *, tokens: IntArray, positions: IntArray, parents: IntArray | None, alone: bool
    ) -> tuple[list[int], Binding]:
        """Check a step and those that follow it, and put all that it reads in its place but for the positions.

        Returns:
            places: ``positions``.
            graph: for ``_run``.
        """
        self._check_open()
        _, places, origins = check_step(self._dims, self.limits, tokens=tokens, positions=positions, parents=parents)
        check_steps(self.limits, steps, positions=places)
        rows = len(places)
        if origins is not None:
            self._caches.move(origins, positions=places)
        self._longest_source[0] = self._caches.longest_source(rows)
        self._caches.keep(rows, tokens=max(places) + steps)
        self._tokens[:rows] = tokens
        if self._bound_layout != self._caches.layout:
            self._bound_step.clear()
            self._bound_layout = self._caches.layout
        session = self._step.of(alone=alone)
        if session not in self._bound_step:
            self._bound_step[session] = BoundGraph(session)
        vocabulary = self._vocabulary.prepare(self._caches.sources[:rows])
        return places, self._bound_step[session].on((rows, vocabulary), lambda: self._step_buffers(rows))

    def _run(self, graph: Binding, places: list[int]) -> None:
        """Run the step of rows at these places."""
        rows, self._rows = len(places), 0
        self._positions[:rows] = places
        self._longest_target[0] = max(places) + 1
        self._caches.write_step(places)
        graph.run()
        self._rows = rows

    def _step_buffers(self, rows: int) -> tuple[Arrays, Arrays]:
        layers = self._dims.decoder_layers
        own = [cache[:rows] for cache in self._caches.own]
        cross = [cache[:rows] for cache in self._caches.cross]
        chosen, logits = self._vocabulary.buffers(rows)
        inputs: dict[str, NDArray[Any]] = {
            "tokens": self._tokens[:rows],
            "positions": self._positions[:rows],
            "source_lengths": self._caches.source_lengths[:rows],
            "longest_target": self._longest_target,
            "longest_source": self._longest_source,
            **dict(zip(cache_names("past", layers), own, strict=True)),
            **dict(zip(cache_names("cross", layers), cross, strict=True)),
            **chosen,
        }
        outputs: dict[str, NDArray[Any]] = {
            **logits,
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
