"""The workers of all models of a process: how many are at work, and how many a load is worth."""

from __future__ import annotations

import threading
from collections.abc import Sequence as Items

ROWS_WORTH_A_WORKER = 16
"""Rows from which on a further worker on one core brings more than a step on all cores."""


class Crew:
    """Counts the workers that are at work. Thread-safe."""

    def __init__(self) -> None:
        """Begin with none."""
        self._at_work = 0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """A worker has got its first sequence."""
        with self._lock:
            self._at_work += 1

    def end(self) -> None:
        """A worker has finished its last sequence."""
        with self._lock:
            self._at_work -= 1

    @property
    def alone(self) -> bool:
        """Whether at most one worker is at work: its steps may use all cores."""
        return self._at_work <= 1


def share(worker: int, *, used_rows: Items[int], waiting_rows: int, max_rows: int) -> int:
    """How many rows a worker should come to have in use, so that none has too few to be worth its core.

    Args:
        worker: its number, from 0.
        used_rows: of each worker.
        waiting_rows: that the queue will need.
        max_rows: most rows of one worker.
    """
    rows = sum(used_rows) + waiting_rows
    workers = min(len(used_rows), max(1, -(-rows // min(ROWS_WORTH_A_WORKER, max_rows))))
    return -(-rows // workers) if worker < workers else 0
