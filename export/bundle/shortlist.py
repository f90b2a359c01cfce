"""``shortlist.npz``: the target tokens that a source may be translated with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.bundle.arrays import read_arrays, write_arrays
from export.bundle.fields import BundleError
from export.contract import TensorSpec

SHORTLIST_FILE = "shortlist.npz"


@dataclass(frozen=True, eq=False, kw_only=True)
class Shortlist:
    """A lexical shortlist: for each source token the target tokens that may come of it.

    Attributes:
        always: int64 [n], tokens that are in every source's list, rising; the end token among them.
        starts: int64 [source_vocab + 1], where each source token's own begin in ``tokens``; the last is their end.
        tokens: int32 [entries], target tokens, rising within each source token's own.
    """

    always: NDArray[np.int64]
    starts: NDArray[np.int64]
    tokens: NDArray[np.int32]

    def of_source(self, source: NDArray[np.int64]) -> NDArray[np.int64]:
        """The list of a source, given its token ids: int64 [tokens], rising, none twice."""
        starts, tokens = self.starts, self.tokens
        own = [tokens[starts[token] : starts[token + 1]] for token in set(source.tolist())]
        listed: NDArray[np.int64] = np.sort(np.concatenate([self.always, *own]))
        once: NDArray[np.int64] = listed[np.append(True, listed[1:] != listed[:-1])]  # np.unique takes thrice as long
        return once

    def save(self, path: Path) -> None:
        """Write the file; the same shortlist always gives the same bytes."""
        write_arrays(path, {"always": self.always, "starts": self.starts, "tokens": self.tokens})

    @classmethod
    def load(
        cls, path: Path, *, source_vocab: int, target_vocab: int, eos_id: int, suppressed_ids: tuple[int, ...]
    ) -> Shortlist:
        """Read and check what ``save`` wrote for a model of these vocabularies.

        Raises:
            BundleError: the file cannot be read, an array is missing or of another dtype or shape, or tokens are out of
                range, out of order or never to be selected.
        """
        specs = (
            TensorSpec("always", np.dtype(np.int64), ("entries",)),
            TensorSpec("starts", np.dtype(np.int64), (source_vocab + 1,)),
            TensorSpec("tokens", np.dtype(np.int32), ("entries",)),
        )
        found = cls(**read_arrays(path, specs))
        starts, tokens = found.starts, found.tokens
        if starts[0] != 0 or starts[-1] != len(tokens) or (np.diff(starts) < 0).any():
            raise BundleError(f"{path}: starts: got {starts[0]} to {starts[-1]}, wanted 0 to {len(tokens)}, rising")
        suppressed = np.array(suppressed_ids, np.int64)
        for name, values in (("always", found.always), ("tokens", tokens)):
            if len(values) and not 0 <= values.min() <= values.max() < target_vocab:
                raise BundleError(
                    f"{path}: {name}: got {values.min()} to {values.max()}, wanted 0 to {target_vocab - 1}"
                )
            barred = values[np.isin(values, suppressed)]
            if len(barred):
                raise BundleError(f"{path}: {name}: got the suppressed token {barred[0]}, wanted none")
        # One list ends and the next one begins wherever ``starts`` says; everywhere else tokens rise.
        within = np.ones(max(len(tokens) - 1, 0), np.bool_)
        ends = starts[(starts > 0) & (starts < len(tokens))]
        within[ends - 1] = False
        if (np.diff(found.always) <= 0).any() or (np.diff(tokens)[within] <= 0).any():
            raise BundleError(f"{path}: got tokens out of order, wanted them rising within each list")
        if eos_id not in found.always:
            raise BundleError(f"{path}: always: got no end token, wanted {eos_id} among them")
        return found
