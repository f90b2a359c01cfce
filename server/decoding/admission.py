"""Why the decode loop may refuse work, and the estimate behind it.

Refused
├── QueueFull
├── LoopClosed
└── DeadlineUnmeetable
"""

from __future__ import annotations

from collections.abc import Sequence as Items

from export.runners.protocol import RunnerLimits
from server.decoding.sequence import SearchOptions, Sequence
from server.decoding.waiting import WaitingQueue

DEFAULT_RETRY_AFTER_S = 1.0
"""What a refused caller is told to wait while nothing better is known."""


class Refused(Exception):  # noqa: N818 - no error, an answer
    """The decode loop does not take this work now.

    Attributes:
        retry_after_s: when it may be worth another try, in seconds from now.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        """Say why and for how long."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Refused):
    """More sequences would wait than the queue holds."""


class LoopClosed(Refused):
    """The loop finishes what it has and takes nothing new."""


class DeadlineUnmeetable(Refused):
    """A deadline would pass before the sequence got its turn."""


class ThroughputEstimate:
    """How fast rows become free, as an average over the last rounds; knows nothing until all rows were used once."""

    _KEPT_PER_ROUND = 0.99  # about the last hundred rounds count

    def __init__(self, *, max_rows: int) -> None:
        """Begin knowing nothing; ``max_rows`` are those of all workers together."""
        self._max_rows = max_rows
        self._freed_ever = 0
        self._freed = 0.0
        self._seconds = 0.0

    def round_ended(self, *, freed_rows: int, seconds: float) -> None:
        """Count a round whose finished sequences had reserved ``freed_rows``.

        Args:
            freed_rows: of one worker.
            seconds: that the round took, divided by the workers that were at work beside each other.
        """
        self._freed_ever += freed_rows
        self._freed = self._KEPT_PER_ROUND * self._freed + freed_rows
        self._seconds = self._KEPT_PER_ROUND * self._seconds + seconds

    def seconds_until_free(self, rows: int) -> float | None:
        """Time until ``rows`` more rows have become free; None while it cannot be told."""
        if rows <= 0:
            return 0.0
        if self._freed_ever < self._max_rows or self._freed <= 0.0:
            return None
        return rows * self._seconds / self._freed


class Admission:
    """Decides whether new sequences may join the queue."""

    def __init__(self, throughput: ThroughputEstimate, *, max_queue: int) -> None:
        """``max_queue`` as ``DecodeLoop`` takes it."""
        self._throughput = throughput
        self._max_queue = max_queue

    def check(self, sequences: Items[Sequence], *, queue: WaitingQueue, free_rows: int, now: float) -> None:
        """Refuse ``sequences`` where they do not all fit, or one would not get its turn in time.

        Raises:
            QueueFull: see there.
            DeadlineUnmeetable: see there.
        """
        excess = len(queue) + len(sequences) - self._max_queue
        if excess > 0:
            raise QueueFull(
                f"queue: got {len(sequences)} sequences beside {len(queue)}, wanted at most {self._max_queue}",
                retry_after_s=self._throughput.seconds_until_free(excess) or DEFAULT_RETRY_AFTER_S,
            )
        if all(sequence.deadline is None for sequence in sequences):
            return
        for sequence, rows_ahead in zip(sequences, queue.rows_ahead(sequences), strict=False):
            if sequence.deadline is None or now >= sequence.deadline:
                continue  # it has none; or it is over already, and the next round says so
            wait_s = self._throughput.seconds_until_free(rows_ahead + sequence.options.beam_size - free_rows)
            if wait_s is not None and now + wait_s > sequence.deadline:
                raise DeadlineUnmeetable(
                    f"deadline: got {sequence.deadline - now:.3f} s, wanted at least {wait_s:.3f} s",
                    retry_after_s=now + wait_s - sequence.deadline,
                )


def check_fit(sequences: Items[Sequence], limits: RunnerLimits) -> None:
    """Refuse what the runner could never decode.

    Raises:
        ValueError: a size is out of the runner's bounds; the message names got and wanted.
    """
    checked: SearchOptions | None = None
    for sequence in sequences:
        _check_bounds("source tokens", len(sequence.source), limits.max_source_tokens)
        if sequence.options is not checked:  # a call's texts share them
            checked = sequence.options
            _check_options(checked, limits)


def _check_options(options: SearchOptions, limits: RunnerLimits) -> None:
    _check_bounds("beam_size", options.beam_size, min(limits.max_rows, limits.max_candidates - 1))
    _check_bounds("num_hypotheses", options.num_hypotheses, options.beam_size)
    # At least one token that is chosen; where the end is forced, it may be the end token.
    least = len(options.forced_tokens) + 1
    _check_bounds("max_output_tokens", options.max_output_tokens, limits.max_output_tokens, least=least)
    _check_bounds("min_output_tokens", options.min_output_tokens, options.longest_output, least=0)


def _check_bounds(name: str, got: int, most: int, *, least: int = 1) -> None:
    if not least <= got <= most:
        raise ValueError(f"{name}: got {got}, wanted {least} to {most}")
