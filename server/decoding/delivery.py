"""Callbacks of sequences: the end exactly once, nothing after it, and no exception gets out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from collections.abc import Sequence as Items

from server.decoding.sequence import Outcome, Result, Sequence

_log = logging.getLogger(__name__)


class Delivery:
    """Knows which sequences still owe their owner an end. Thread-safe."""

    def __init__(self) -> None:
        """Begin with none."""
        self._open: set[Sequence] = set()
        self._open_lock = threading.Lock()
        # Held while a callback runs, so that a sequence gets no tokens after an end that another thread delivers.
        # Reentrant and apart from the other lock, because a callback may submit the next sequence.
        self._calling = threading.RLock()

    def open(self, sequences: Iterable[Sequence]) -> None:
        """Owe each of ``sequences`` an end."""
        with self._open_lock:
            self._open.update(sequences)

    @property
    def all_ended(self) -> bool:
        """Whether no sequence is owed its end."""
        return not self._open

    def open_among(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Those of ``sequences`` that are owed their end."""
        with self._open_lock:
            return [sequence for sequence in sequences if sequence in self._open]

    def tokens(self, sequence: Sequence, final: Items[int]) -> None:
        """Hand over output tokens that have become final, if anybody listens."""
        if sequence.on_tokens is None or not final:
            return
        with self._calling:
            if sequence not in self._open:
                return
            try:
                sequence.on_tokens(final)
            except Exception:
                _log.exception("on_tokens of a sequence raised")

    def finish(self, sequence: Sequence, result: Result) -> None:
        """End ``sequence``; does nothing where it has ended before."""
        with self._calling:
            with self._open_lock:
                if sequence not in self._open:
                    return
                self._open.remove(sequence)
            try:
                sequence.on_finished(result)
            except Exception:
                _log.exception("on_finished of a sequence raised")

    def finish_all(self, outcome: Outcome) -> int:
        """End every sequence that is still owed it, first come first; returns how many those were."""
        with self._open_lock:
            left = sorted(self._open, key=lambda sequence: sequence.submitted_at)
        for sequence in left:
            self.finish(sequence, Result(outcome))
        return len(left)
