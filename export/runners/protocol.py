"""What the decode loop asks of a device.

Row i of a step is row i of the caches. Live rows are always the prefix 0..rows-1; the loop moves a row by naming,
in ``parents``, the row whose cache it continues.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


class ShapeError(ValueError):
    """An array does not have the shape or dtype that the contract wants; the message names got and wanted."""


class RunnerError(RuntimeError):
    """The device failed; what was live in this runner is lost."""


@dataclass(frozen=True, kw_only=True)
class RunnerLimits:
    """Sizes a runner was built for.

    Attributes:
        max_rows: most live rows of a step.
        max_source_tokens: most tokens of one source, end token counted.
        max_output_tokens: most tokens of one output, end token not counted.
        max_candidates: largest ``k`` of ``top_k``.
        cache_bytes: address space of the caches; pages are used only as rows are written.
        encode_tokens: source tokens that may well join between two steps, without stalling live rows for long.
    """

    max_rows: int
    max_source_tokens: int
    max_output_tokens: int
    max_candidates: int
    cache_bytes: int
    encode_tokens: int


class Candidates(NamedTuple):
    """The best tokens of each live row, best first.

    Attributes:
        ids: int64 [rows, k].
        log_probs: float32 [rows, k], natural logarithms over the whole vocabulary, or with a shortlist over the row's
            own list.
    """

    ids: IntArray
    log_probs: FloatArray


class Runner(Protocol):
    """Executes the encoder, the decoder step and the heads of one bundle on rows of its own; not thread-safe.

    Several runners of one bundle may be at work at once, each on a thread of its own.

    A round is: ``encode`` for the rows that join, ``step`` for all live rows, then one of the heads, which read the
    logits of that step where they lie. Heads never select a suppressed token (padding, unknown, start).
    ``greedy_steps`` is ``step`` and ``argmax``, several times, where nothing else is to be decided.
    """

    @property
    def name(self) -> str:
        """As Model.runner of the wire contract, for example ``onnxruntime-cpu``."""

    @property
    def shortlisted(self) -> bool:
        """Whether each row chooses only from the tokens that its own source may become: all others are not there."""

    @property
    def precision(self) -> str:
        """Precision of the matrix products as they really run: ``fp32``, ``fp16``, ``bf16`` or ``int8``."""

    @property
    def device_description(self) -> str:
        """What it runs on, in words: the processor, or the GPU and its driver."""

    @property
    def limits(self) -> RunnerLimits:
        """Sizes this runner was built for."""

    def encode(self, *, sources: IntArray, lengths: IntArray, rows: IntArray) -> None:
        """Encode a batch of sources and write their cross-attention keys and values into ``rows``.

        Rows that no later step names as a parent may be overwritten.

        Args:
            sources: int64 [batch, src_len], end token included, padded on the right with pad_id.
            lengths: int64 [batch], tokens of each source, 1 to src_len.
            rows: int64 [batch], the row of each source.

        Raises:
            ShapeError: a shape does not fit, or exceeds ``limits``.
            RunnerError: the device failed.
        """

    def step(
        self, *, tokens: IntArray, positions: IntArray, parents: IntArray | None = None, alone: bool = True
    ) -> None:
        """Run one decoder step for the live rows 0..rows-1; the logits stay in the runner's buffer.

        What further rows held is lost.

        Args:
            tokens: int64 [rows], last token of each row; the start token in a row's first step.
            positions: int64 [rows], tokens already in the row's cache; 0 in its first step.
            parents: int64 [rows], row whose caches each row continues, self-attention and source alike;
                None: its own. Any mapping of rows that were live is allowed. A row that ``encode`` has just written is
                its own parent.
            alone: no other runner of the process is at work: the step may take the whole device. It changes no result,
                to the bit.

        Raises:
            ShapeError: a shape does not fit, or exceeds ``limits``.
            RunnerError: the device failed.
        """

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
            RunnerError: the device failed.
        """

    def argmax(self) -> IntArray:
        """Best token of each row of the last step: int64 [rows]; the lowest id where several are equal."""

    def top_k(self, k: int) -> Candidates:
        """The ``k`` best tokens of each row of the last step, with log-probs."""

    def logits(self) -> FloatArray:
        """Raw logits of the last step: float32 [rows, target_vocab_size], nothing suppressed; -inf: not in its list."""

    def close(self) -> None:
        """Free what the runner holds; calling it again does nothing."""
