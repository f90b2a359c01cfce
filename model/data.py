"""Parallel text and batches of about equal token count.

The order of batches depends on (seed, epoch) alone, so that a resumed training continues exactly where it stood.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.tokenizer import Tokenizer


class DataError(ValueError):
    """A data file is missing, unreadable or does not match its other side."""


@dataclass(frozen=True)
class ParallelText:
    """Aligned sentences of two languages."""

    source: list[str]
    target: list[str]


@dataclass(frozen=True)
class Batch:
    """One padded batch.

    Attributes:
        source: int64 [batch, src_len], end token included.
        source_mask: bool [batch, src_len], True on real tokens.
        target_in: int64 [batch, tgt_len], begins with the start token.
        target_out: int64 [batch, tgt_len], ends with eos_id, padded with pad_id.
    """

    source: Tensor
    source_mask: Tensor
    target_in: Tensor
    target_out: Tensor


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file, gzip'd where its name ends in ``.gz``; split on the line feed alone.

    Raises:
        DataError: the file is missing or does not decode.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: {error}") from error


def read_parallel(directory: Path, *, split: str, source_language: str, target_language: str) -> ParallelText:
    """Read ``<split>.<language>`` or ``<split>.<language>.gz`` of both sides from ``directory``.

    Raises:
        DataError: a side is missing or the sides differ in length.
    """
    sides = []
    for language in (source_language, target_language):
        plain = directory / f"{split}.{language}"
        zipped = directory / f"{split}.{language}.gz"
        sides.append(read_lines(plain if plain.exists() else zipped))
    if len(sides[0]) != len(sides[1]):
        raise DataError(f"{directory}/{split}: got {len(sides[0])} and {len(sides[1])} lines, wanted equally many")
    return ParallelText(sides[0], sides[1])


def pad(rows: Sequence[Sequence[int]], *, pad_id: int) -> Tensor:
    """Ragged ids as int64 [batch, longest], padded on the right."""
    table = np.full((len(rows), max(map(len, rows))), pad_id, dtype=np.int64)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return torch.from_numpy(table)


class TokenisedCorpus:
    """A parallel corpus as token ids, cut into batches of at most ``batch_tokens`` padded tokens a side."""

    def __init__(self, text: ParallelText, tokenizer: Tokenizer, *, batch_tokens: int, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._batch_tokens = batch_tokens
        pairs = [
            (tokenizer.encode(source), tokenizer.encode(target))
            for source, target in zip(text.source, text.target, strict=True)
        ]
        self.pairs = [pair for pair in pairs if max(map(len, pair)) <= max_length]
        self.dropped = len(pairs) - len(self.pairs)
        if not self.pairs:
            raise DataError(f"got no sentence pair of at most {max_length} tokens a side, wanted at least one")

    def epoch(self, *, seed: int, epoch: int) -> list[list[int]]:
        """Indices of each batch, in an order that (seed, epoch) decides."""
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(len(self.pairs))
        lengths = np.array([max(len(source), len(target)) for source, target in self.pairs])
        order = order[np.argsort(lengths[order], kind="stable")]
        batches: list[list[int]] = [[]]
        for index in order:
            # sorted ascending: the newest sentence is the longest, so it alone decides the padded width
            if batches[-1] and (len(batches[-1]) + 1) * lengths[index] > self._batch_tokens:
                batches.append([])
            batches[-1].append(int(index))
        return [batches[place] for place in random.permutation(len(batches))]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Pad the sentences of one batch."""
        pad_id, bos_id = self._tokenizer.pad_id, self._tokenizer.bos_id
        source = pad([self.pairs[index][0] for index in indices], pad_id=pad_id)
        return Batch(
            source=source,
            source_mask=source != pad_id,
            target_in=pad([[bos_id, *self.pairs[index][1][:-1]] for index in indices], pad_id=pad_id),
            target_out=pad([self.pairs[index][1] for index in indices], pad_id=pad_id),
        )

    def batches(self, *, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number ``start`` on."""
        for indices in self.epoch(seed=seed, epoch=epoch)[start:]:
            yield self.batch(indices)
