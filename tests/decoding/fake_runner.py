"""A runner without weights: a rule scripts every distribution, and every row remembers what it was fed.

A row is handled wrongly where it continues a row that was not live, sits at a position other than the tokens in its
cache, or starts with anything but the start token: all of that raises.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from export.bundle import DecodingDefaults, Manifest
from export.contract import ModelDimensions
from export.runners.protocol import Candidates, FloatArray, IntArray, RunnerError, RunnerLimits, ShapeError

PAD, UNK, START, END = 0, 1, 2, 3
SUPPRESSED = (PAD, UNK, START)

Source = tuple[int, ...]
Prefix = tuple[int, ...]
Rule = Callable[[Source, Prefix], FloatArray]
"""Logits float32 [vocab] of the token that follows ``Prefix`` (start token excluded) in a translation of ``Source``."""


def random_rule(seed: int, *, vocab: int = 12, levels: int = 0) -> Rule:
    """Logits drawn anew, but always the same, for every source and prefix; ``levels`` > 0 rounds them, for ties."""

    def rule(source: Source, prefix: Prefix) -> FloatArray:
        logits = np.random.default_rng([seed, len(source), *source, *prefix]).normal(size=vocab) * 2.0
        # The end token becomes likelier as the output grows, so that lengths differ.
        logits[END] += len(prefix) - 3.0
        return (np.round(logits * levels) / levels if levels else logits).astype(np.float32)

    return rule


def copying_rule(*, vocab: int = 12) -> Rule:
    """The translation is the source."""

    def rule(source: Source, prefix: Prefix) -> FloatArray:
        logits = np.zeros(vocab, dtype=np.float32)
        logits[source[min(len(prefix), len(source) - 1)]] = 10.0
        return logits

    return rule


def log_softmax(logits: FloatArray) -> FloatArray:
    """Log-probs of the last dimension, in float32."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normal: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normal


@dataclass(frozen=True)
class _Row:
    source: Source
    fed: tuple[int, ...] = ()
    fresh: bool = True


@dataclass
class Calls:
    """What a runner was asked for, in order."""

    encoded: list[tuple[int, int]] = field(default_factory=list)  # shape of each encoder batch
    stepped_rows: list[int] = field(default_factory=list)
    heads: list[int] = field(default_factory=list)  # k of each head; 0: argmax
    greedy_steps: list[int] = field(default_factory=list)  # that each call made
    stepped_alone: list[bool] = field(default_factory=list)  # what each step was told, the one under way too


class FakeRunner:
    """Implements Runner over ``rule``; ``failing_encodes`` and ``failing_steps`` name calls, from 1, that raise."""

    name = "fake"
    shortlisted = False
    precision = "fp32"
    device_description = "no device"

    def __init__(
        self,
        rule: Rule,
        *,
        max_rows: int = 8,
        max_source_tokens: int = 600,
        failing_encodes: Collection[int] = (),
        failing_steps: Collection[int] = (),
    ) -> None:
        self.limits = RunnerLimits(
            max_rows=max_rows,
            max_source_tokens=max_source_tokens,
            max_output_tokens=64,
            max_candidates=32,
            cache_bytes=0,
            encode_tokens=320,
        )
        self.calls = Calls()
        self.before_step: Callable[[], None] = lambda: None
        self._rule = rule
        self._failing_encodes = failing_encodes
        self._failing_steps = failing_steps
        self._rows: list[_Row | None] = [None] * max_rows
        self._logits: FloatArray | None = None

    def encode(self, *, sources: IntArray, lengths: IntArray, rows: IntArray) -> None:
        self.calls.encoded.append(sources.shape)
        if len(self.calls.encoded) in self._failing_encodes:
            self._fail("encode")
        if not sources.dtype == lengths.dtype == rows.dtype == np.int64:
            raise ShapeError("wanted int64")
        if len({len(sources), len(lengths), len(rows), len(set(rows.tolist()))}) != 1:
            raise ShapeError("wanted one length and one row per source")
        for source, length, row in zip(sources.tolist(), lengths.tolist(), rows.tolist(), strict=True):
            if any(source[length:]) or source[length - 1] != END:
                raise ShapeError(f"got {source} of length {length}, wanted the end token, then padding")
            self._rows[row] = _Row(tuple(source[:length]))

    def step(
        self, *, tokens: IntArray, positions: IntArray, parents: IntArray | None = None, alone: bool = True
    ) -> None:
        self.calls.stepped_alone.append(alone)
        self.before_step()
        self.calls.stepped_rows.append(len(tokens))
        if len(self.calls.stepped_rows) in self._failing_steps:
            self._fail("step")
        count = len(tokens)
        parents = np.arange(count) if parents is None else parents
        for array in (tokens, positions, parents):
            if array.dtype != np.int64 or array.shape != (count,):
                raise ShapeError(f"got {array.dtype} {array.shape}, wanted int64 ({count},)")
        if not 1 <= count <= self.limits.max_rows:
            raise ShapeError(f"got {count} rows, wanted 1 to {self.limits.max_rows}")
        lines = zip(tokens.tolist(), positions.tolist(), parents.tolist(), strict=True)
        fed = [self._feed(row, *line) for row, line in enumerate(lines)]
        lost = [row for row in self._rows if row and row.fresh and not any(new.source == row.source for new in fed)]
        assert not lost, f"encoded, but not decoded: {lost}"
        self._rows = [*fed, *[None] * (self.limits.max_rows - count)]
        self._logits = np.stack([self._rule(row.source, row.fed[1:]) for row in fed])

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
        best: list[list[int]] = []
        while len(best) < steps and not (best and end_id in best[-1]):
            self.step(tokens=tokens, positions=positions, parents=parents, alone=alone)
            tokens, positions, parents = self.argmax(), positions + 1, None
            best.append(tokens.tolist())
        self.calls.greedy_steps.append(len(best))
        return best

    def _fail(self, call: str) -> NoReturn:
        self._rows = [row if row and not row.fresh else None for row in self._rows]  # nobody will decode them
        raise RunnerError(f"scripted failure of {call}")

    def _feed(self, row: int, token: int, position: int, parent: int) -> _Row:
        before = self._rows[parent]
        assert before is not None, f"row {row} continues row {parent}, which was not live"
        assert position == len(before.fed), f"row {row}: got position {position}, its cache holds {before.fed}"
        assert (token == START) == (position == 0), f"row {row}: got token {token} at position {position}"
        assert not before.fresh or parent == row, f"row {row} continues row {parent}, which was only encoded"
        return _Row(before.source, (*before.fed, token), fresh=False)

    def argmax(self) -> IntArray:
        self.calls.heads.append(0)
        best: IntArray = self._selectable(self.logits()).argmax(axis=-1)
        return best

    def top_k(self, k: int) -> Candidates:
        if not 1 <= k <= self.limits.max_candidates:
            raise ShapeError(f"got k {k}")
        self.calls.heads.append(k)
        log_probs = self._selectable(log_softmax(self.logits()))
        ids = np.argsort(-log_probs, axis=-1, kind="stable")[:, :k]
        return Candidates(ids, np.take_along_axis(log_probs, ids, axis=-1))

    def _selectable(self, values: FloatArray) -> FloatArray:
        values = values.copy()
        values[:, SUPPRESSED] = -np.inf
        return values

    def logits(self) -> FloatArray:
        assert self._logits is not None, "no step yet"
        return self._logits

    def close(self) -> None:
        self._rows = []


def fake_manifest(*, vocab: int, **fields: Any) -> Manifest:
    """What a bundle of a model without weights says of itself; ``fields`` are Manifest's, the rest is made up."""
    made_up: dict[str, Any] = {
        "name": "fake",
        "source_languages": ("en",),
        "target_languages": ("de",),
        "architecture": "fake-1x8",
        "dims": ModelDimensions(
            encoder_layers=1,
            decoder_layers=1,
            heads=1,
            head_dim=8,
            d_model=8,
            source_vocab=vocab,
            target_vocab=vocab,
            max_positions=64,
        ),
        "pad_id": PAD,
        "unk_id": UNK,
        "start_id": START,
        "eos_id": END,
        "suppressed_ids": SUPPRESSED,
        "decoding": DecodingDefaults(max_output_tokens=50),
        "max_source_tokens": 60,
        "max_output_tokens": 60,
        "parameter_count": 123,
        "graphs": {},
        "files": {},
        "tool_versions": {},
    }
    return Manifest(**made_up | fields)
