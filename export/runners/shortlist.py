"""Logits of few tokens: those that the sources of a step's rows may become.

A step multiplies with the candidates' part of the last projection, the candidates being the tokens of all live rows'
lists together. Each row then chooses from its own source's list, in the order of that list: who else is live decides
where a token's logit lies, and nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export import contract
from export.bundle import Shortlist
from export.bundle.arrays import read_arrays
from export.contract import ModelDimensions
from export.runners.ort_session import Arrays
from export.runners.protocol import Candidates, FloatArray, IntArray

_FEWEST_COLUMNS, _COLUMNS_MULTIPLE = 128, 64  # few different numbers, of which the runtime's kernels are fond
_SPARE = 1.25  # room for the tokens of rows that join, so that few of them ask for all columns anew
_TOO_MANY = 2  # times as many columns as are needed: then those of rows that have left go
_UNITS = np.float32(1 << 32)


class ShortlistedVocabulary:
    """Every row's list, the candidates, and what is chosen; implements ``export.runners.vocabulary.Vocabulary``."""

    def __init__(
        self, shortlist: Shortlist, projection: Arrays, dims: ModelDimensions, *, max_rows: int, max_candidates: int
    ) -> None:
        """Allocate the buffers.

        Args:
            shortlist: of the bundle.
            projection: what ``read_projection`` read.
            dims: sizes of the model.
            max_rows: most live rows of a step.
            max_candidates: largest ``k``; lowered to the length of the shortest list that a source may have.
        """
        self.max_candidates = min(max_candidates, len(shortlist.always))
        self._shortlist = shortlist
        self._target_vocab = dims.target_vocab
        self._columns = _Columns(projection, dims)
        self._logits: FloatArray = np.zeros(max_rows * self._columns.most, np.float32)
        # Of every source that a row holds, by its number: its list, and the columns of that where it has been live.
        self._lists: dict[int, IntArray] = {}
        self._places: dict[int, IntArray] = {}
        # Of the live rows: their sources, and each row's list and where in the logits it lies, [rows, longest list].
        self._live: list[int] = []
        self._own_tokens: IntArray = np.zeros((0, 0), np.int64)
        self._own_places: IntArray = np.zeros((0, 0), np.int64)

    def take_sources(self, sources: IntArray, *, lengths: IntArray, rows: IntArray, held: Sequence[int]) -> None:
        """Look up the list of each source, and forget those that no row holds any more."""
        kept = set(held)
        for row, source, length in zip(rows.tolist(), sources, lengths.tolist(), strict=True):
            self._lists[held[row]] = self._shortlist.of_source(source[:length])
        self._lists = {name: own for name, own in self._lists.items() if name in kept}
        self._places = {name: own for name, own in self._places.items() if name in kept}

    def prepare(self, sources: Sequence[int]) -> int:
        """See to it that each row's tokens are candidates; returns the number of columns."""
        live = list(sources)
        if live != self._live:
            self._live = []  # until all that follows is done
            names = set(live)
            if self._columns.hold(self._lists[name] for name in names):
                self._places.clear()
            for name in names - self._places.keys():
                self._places[name] = self._columns.of(self._lists[name])
            self._align(live)
            self._live = live
        return self._columns.count

    def _align(self, live: list[int]) -> None:
        """Put the rows' lists side by side; what a shorter one lacks lies where there is never a logit."""
        shape = len(live), max(len(self._lists[name]) for name in live)
        self._own_tokens, self._own_places = np.zeros(shape, np.int64), np.full(shape, self._columns.count - 1)
        for row, name in enumerate(live):
            length = len(self._lists[name])
            self._own_tokens[row, :length], self._own_places[row, :length] = self._lists[name], self._places[name]
        self._own_places += np.arange(len(live))[:, None] * self._columns.count

    def buffers(self, rows: int) -> tuple[Arrays, Arrays]:
        """The candidates' part of the projection, and where the logits go."""
        logits = self._logits[: rows * self._columns.count].reshape(rows, self._columns.count)
        return self._columns.inputs, {"logits": logits}

    def argmax(self, best: IntArray) -> list[int]:
        """Best token of each row's own list."""
        best[:] = self._own_tokens[np.arange(len(best)), self._own_logits().argmax(axis=1)]
        found: list[int] = best.tolist()
        return found

    def top_k(self, rows: int, k: int) -> Candidates:
        """The ``k`` best tokens of each row's own list, with log-probs over that list."""
        own, row = self._own_logits(), np.arange(rows)
        best = own.max(axis=1, keepdims=True)
        # Counted in whole units, so that the sum is the same in whatever order and parts it is computed.
        total = np.rint(np.exp(own - best) * _UNITS).astype(np.int64).sum(axis=1, keepdims=True)
        log_total = np.log(total / _UNITS)
        ids, logits = np.empty((rows, k), np.int64), np.empty((rows, k), np.float32)
        for rank in range(k):  # a pass for each is several times faster than sorting
            place = own.argmax(axis=1)
            ids[:, rank], logits[:, rank] = self._own_tokens[row, place], own[row, place]
            own[row, place] = -np.inf
        return Candidates(ids, ((logits - best) - log_total).astype(np.float32))

    def logits(self, rows: int) -> FloatArray:
        """Logits of each row's own list, -inf for all other tokens; a new array."""
        logits: FloatArray = np.full((rows, self._target_vocab), -np.inf, np.float32)
        own = self._own_logits()
        there = own != -np.inf
        logits[np.nonzero(there)[0], self._own_tokens[there]] = own[there]
        return logits

    def _own_logits(self) -> FloatArray:
        """Each row's logits in the order of its list, -inf beyond its end: float32 [rows, longest], a new array."""
        return self._logits.take(self._own_places)


def read_projection(path: Path, dims: ModelDimensions, *, precision: str) -> Arrays:
    """The last projection of a bundle by name, of every target token.

    Raises:
        BundleError: the file cannot be read, or does not fit the model.
    """
    return read_arrays(path, contract.output_arrays(dims, contract.cache_dtype(precision)))


class _Columns:
    """The candidates with their part of the projection, one column of the logits for each.

    A token that joins takes the next column, and no column moves until all are laid out anew. The last one is never
    taken: with a bias of -inf, like all that are free, it has no logit.

    Attributes:
        count: columns, free ones too.
        most: largest ``count`` there may be.
    """

    def __init__(self, projection: Arrays, dims: ModelDimensions) -> None:
        self.most = _rounded_up(dims.target_vocab + 1)
        self.count = self._taken = 0
        self._projection = projection
        self._column_of: IntArray = np.full(dims.target_vocab, -1)
        weight = projection["output_weight"]
        self._by_token = weight.dtype == np.float32
        self._weight = np.zeros(self.most * dims.d_model, weight.dtype)
        self._vectors = {name: np.zeros(self.most, np.float32) for name in projection if name != "output_weight"}

    @property
    def inputs(self) -> Arrays:
        """What the step takes, by name; equal counts have equal buffers."""
        width = len(self._weight) // self.most
        shape = (self.count, width) if self._by_token else (width, self.count)
        weight = self._weight[: self.count * width].reshape(shape)
        return {"output_weight": weight} | {name: vector[: self.count] for name, vector in self._vectors.items()}

    def of(self, tokens: IntArray) -> IntArray:
        """The columns of tokens, all of which are held."""
        return self._column_of[tokens]

    def hold(self, lists: Iterable[IntArray]) -> bool:
        """Hold all tokens of some lists; returns whether tokens that are held have moved."""
        wanted = np.zeros(len(self._column_of), np.bool_)
        for tokens in lists:
            wanted[tokens] = True
        needed = self._count_for(int(wanted.sum()))
        missing = np.flatnonzero(wanted & (self._column_of < 0))
        if self._taken + len(missing) < self.count <= _TOO_MANY * needed:
            self._append(missing)
            return False
        self.count, self._taken = needed, 0
        self._column_of.fill(-1)
        self._vectors["output_bias"].fill(-np.inf)
        self._append(np.flatnonzero(wanted))
        return True

    def _append(self, tokens: NDArray[np.intp]) -> None:
        columns = slice(self._taken, self._taken + len(tokens))
        self._taken = columns.stop
        self._column_of[tokens] = np.arange(columns.start, columns.stop)
        weight = self.inputs["output_weight"]
        if self._by_token:
            weight[columns] = self._projection["output_weight"][tokens]
        else:
            weight[:, columns] = self._projection["output_weight"][tokens].T
        for name, vector in self._vectors.items():
            vector[columns] = self._projection[name][tokens]

    def _count_for(self, tokens: int) -> int:
        """Columns for so many tokens, with some to spare; each possible number is a third or a half above the last."""
        count = _FEWEST_COLUMNS
        while count <= tokens * _SPARE:
            count += count // 2 if count & (count - 1) == 0 else count // 3
        return min(count, self.most)


def _rounded_up(columns: int) -> int:
    return -(-columns // _COLUMNS_MULTIPLE) * _COLUMNS_MULTIPLE
