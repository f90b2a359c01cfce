"""Log-probs of given outputs: the runner is fed the reference's tokens instead of its own."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.runners.protocol import FloatArray, Runner
from server.decoding.scheduler import pad_sources


@dataclass(frozen=True)
class GivenOutput:
    """An output to be scored.

    Attributes:
        source: token ids, end token included.
        chosen: every token of the output, its end token included where it has one.
    """

    source: Items[int]
    chosen: Items[int]


class ForcedStep(NamedTuple):
    """What the runner says after a given prefix.

    Attributes:
        output: index of the output.
        position: index of the chosen token that comes next.
        log_probs: float64 [target_vocab].
    """

    output: int
    position: int
    log_probs: NDArray[np.float64]


def teacher_forced(runner: Runner, outputs: Items[GivenOutput], *, start_id: int, pad_id: int) -> Iterator[ForcedStep]:
    """Feed ``outputs`` to the runner, as many at a time as it has rows.

    Args:
        runner: nobody else uses it meanwhile.
        outputs: what to feed.
        start_id: token that a decoder starts with.
        pad_id: token that fills short sources.

    Yields:
        Every step of every output, in no particular order.
    """
    # Longest first: the live rows stay a prefix as outputs end, and no row ever moves.
    order = sorted(range(len(outputs)), key=lambda index: -len(outputs[index].chosen))
    rows = runner.limits.max_rows
    for batch in (order[start : start + rows] for start in range(0, len(order), rows)):
        sources, lengths = pad_sources([outputs[index].source for index in batch], pad_id=pad_id)
        runner.encode(sources=sources, lengths=lengths, rows=np.arange(len(batch), dtype=np.int64))
        for position in range(len(outputs[batch[0]].chosen)):
            live = [index for index in batch if position < len(outputs[index].chosen)]
            tokens = [outputs[index].chosen[position - 1] if position else start_id for index in live]
            positions = np.full(len(live), position, dtype=np.int64)
            runner.step(tokens=np.array(tokens, dtype=np.int64), positions=positions)
            for index, log_probs in zip(live, _log_softmax(runner.logits()), strict=True):
                yield ForcedStep(index, position, log_probs)


def _log_softmax(logits: FloatArray) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    log_probs: NDArray[np.float64] = values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return log_probs
