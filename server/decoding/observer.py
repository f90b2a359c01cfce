"""What the decode loop tells about itself; the metrics listen."""

from __future__ import annotations

from typing import Literal, Protocol

Stage = Literal["queued", "decoding"]


class Observer(Protocol):
    """Hears of every event on the thread where it happens; must be quick, thread-safe, and must not raise.

    ``queue_changed`` and ``active_changed`` come one at a time: the loop's lock is held.
    """

    def queue_changed(self, depth: int) -> None:
        """``depth`` sequences wait now."""

    def active_changed(self, sequences: int) -> None:
        """``sequences`` are being decoded now."""

    def admitted(self, wait_s: float) -> None:
        """A sequence left the queue for the rows, ``wait_s`` after it was submitted."""

    def encoded(self, padding_ratio: float, source_tokens: int) -> None:
        """One encoder batch ran.

        Args:
            padding_ratio: share of the batch that was padding, 0 to 1.
            source_tokens: tokens of its sources, padding not counted.
        """

    def stepped(self, rows: int, seconds: float, steps: int) -> None:
        """So many decoder steps, heads included, ran for ``rows`` live rows, each in ``seconds``."""

    def first_token(self, seconds: float) -> None:
        """A sequence finished its first step, ``seconds`` after it was submitted."""

    def inter_token(self, seconds: float, tokens: int) -> None:
        """So many times a sequence advanced by a further step, ``seconds`` after its last one."""

    def cancelled(self, stage: Stage) -> None:
        """A sequence was given up, by its owner or because its deadline passed."""


class SilentObserver:
    """Listens to nothing."""

    def queue_changed(self, depth: int) -> None:
        """Ignore it."""

    def active_changed(self, sequences: int) -> None:
        """Ignore it."""

    def admitted(self, wait_s: float) -> None:
        """Ignore it."""

    def encoded(self, padding_ratio: float, source_tokens: int) -> None:
        """Ignore it."""

    def stepped(self, rows: int, seconds: float, steps: int) -> None:
        """Ignore it."""

    def first_token(self, seconds: float) -> None:
        """Ignore it."""

    def inter_token(self, seconds: float, tokens: int) -> None:
        """Ignore it."""

    def cancelled(self, stage: Stage) -> None:
        """Ignore it."""
