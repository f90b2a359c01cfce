"""Where a step's logits go, and what is chosen of them: the whole target vocabulary."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import numpy as np

from export.bundle import Manifest
from export.runners.ort_session import Arrays, BoundGraph
from export.runners.protocol import Candidates, FloatArray, IntArray


class Vocabulary(Protocol):
    """The tokens that a runner's rows choose from, with the buffer of their logits."""

    @property
    def max_candidates(self) -> int:
        """Largest ``k`` of ``top_k``."""

    def take_sources(self, sources: IntArray, *, lengths: IntArray, rows: IntArray, held: Sequence[int]) -> None:
        """Hear of sources that have been encoded.

        Args:
            sources: int64 [batch, src_len], padded on the right.
            lengths: int64 [batch], tokens of each.
            rows: int64 [batch], the row of each.
            held: the number of the source that each row of the runner holds.
        """

    def prepare(self, sources: Sequence[int]) -> Hashable:
        """Get ready for a step of rows whose sources have these numbers.

        Returns:
            What ``buffers`` depends on, beside the number of rows.
        """

    def buffers(self, rows: int) -> tuple[Arrays, Arrays]:
        """Inputs and outputs of the step, by name, beside those that have nothing to do with the vocabulary."""

    def argmax(self, best: IntArray) -> list[int]:
        """Write the best token of each row as ``Runner.argmax`` finds it to ``best``, int64 [rows], and return it."""

    def top_k(self, rows: int, k: int) -> Candidates:
        """As ``Runner.top_k``, of so many rows."""

    def logits(self, rows: int) -> FloatArray:
        """As ``Runner.logits``, of so many rows."""


class FullVocabulary:
    """All target tokens, chosen by the bundle's head graphs; implements ``Vocabulary``."""

    def __init__(self, manifest: Manifest, *, argmax: Any, top_k: Any, max_rows: int, max_candidates: int) -> None:
        """Allocate the buffers.

        Args:
            manifest: of the bundle.
            argmax: session of that head.
            top_k: session of that head.
            max_rows: most live rows of a step.
            max_candidates: largest ``k``; lowered to the number of selectable tokens.
        """
        dims = manifest.dims
        self._barred = frozenset((*manifest.suppressed_ids, *range(dims.target_vocab, dims.padded_target_vocab)))
        self.max_candidates = min(max_candidates, manifest.selectable_tokens)
        self._target_vocab = dims.target_vocab
        self._argmax, self._top_k = BoundGraph(argmax), BoundGraph(top_k)
        self._logits: FloatArray = np.zeros((max_rows, dims.padded_target_vocab), np.float32)
        self._ids = np.zeros(max_rows * self.max_candidates, np.int64)
        self._log_probs = np.zeros(max_rows * self.max_candidates, np.float32)

    def take_sources(self, sources: IntArray, *, lengths: IntArray, rows: IntArray, held: Sequence[int]) -> None:
        """Nothing: every source may become anything."""

    def prepare(self, sources: Sequence[int]) -> None:
        """Nothing, for every step alike."""

    def buffers(self, rows: int) -> tuple[Arrays, Arrays]:
        """Where the logits go."""
        return {}, {"logits": self._logits[:rows]}

    def argmax(self, best: IntArray) -> list[int]:
        """Best token of each row."""
        rows = len(best)
        # One pass of numpy takes half the time of the graph; what it finds stands, unless it must not be selected.
        self._logits[:rows].argmax(1, best)
        found: list[int] = best.tolist()
        if self._barred.isdisjoint(found):
            return found
        ids = self._ids[:rows]
        self._argmax.on(rows, lambda: ({"logits": self._logits[:rows]}, {"ids": ids})).run()
        best[:] = ids
        found = best.tolist()
        return found

    def top_k(self, rows: int, k: int) -> Candidates:
        """The ``k`` best tokens of each row, with log-probs over the whole vocabulary."""
        ids = self._ids[: rows * k].reshape(rows, k)
        log_probs = self._log_probs[: rows * k].reshape(rows, k)

        def buffers() -> tuple[Arrays, Arrays]:
            inputs: Arrays = {"logits": self._logits[:rows], "k": np.array([k], np.int64)}
            return inputs, {"ids": ids, "log_probs": log_probs}

        self._top_k.on((rows, k), buffers).run()
        return Candidates(ids.copy(), log_probs.copy())

    def logits(self, rows: int) -> FloatArray:
        """A view that the next step overwrites."""
        view = self._logits[:rows, : self._target_vocab]
        view.flags.writeable = False
        return view
