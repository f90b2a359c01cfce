"""The decode loop: schedule, step, collect, on a thread of its own.

Every round admits what fits, runs one decoder step over all live rows, and lets each search choose how to go on. The
thread sleeps only while both queues are empty: as long as there is a sequence, rounds follow each other, and each of
them looks at cancellations and deadlines first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Items

import numpy as np

from export.runners.protocol import FloatArray, IntArray, Runner
from server.decoding.admission import (
    DEFAULT_RETRY_AFTER_S,
    Admission,
    DeadlineUnmeetable,
    LoopClosed,
    QueueFull,
    check_fits,
)
from server.decoding.delivery import Delivery
from server.decoding.observer import Observer, SilentObserver
from server.decoding.scheduler import Placement, Running, Scheduler, encoder_batches, pad_sources
from server.decoding.sequence import Outcome, Result, Sequence

__all__ = ["DeadlineUnmeetable", "DecodeLoop", "LoopClosed", "QueueFull"]

_log = logging.getLogger(__name__)
_FAILED_AFTER_ROUNDS = 3
_JOIN_TIMEOUT_S = 5.0


class DecodeLoop:
    """Decodes sequences on one runner, continuously batched. All public methods are thread-safe."""

    def __init__(
        self,
        runner: Runner,
        *,
        start_id: int,
        eos_id: int,
        pad_id: int,
        max_queue: int,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        encode_tokens_per_round: int = 512,
    ) -> None:
        """Make a loop that stands still until ``start``.

        Args:
            runner: what executes the graphs; the loop is its only user and does not close it.
            start_id: token that a decoder starts with.
            eos_id: end token.
            pad_id: token that fills short sources of an encoder batch.
            max_queue: most sequences that may wait.
            observer: hears what happens; None: nobody.
            clock: seconds, monotonic; deadlines are moments on it.
            encode_tokens_per_round: most source tokens, padding included, that join in one round, so that newcomers
                do not stall live rows. A longer source joins alone.
        """
        limits = runner.limits
        self._runner = runner
        self._pad_id = pad_id
        self._observer: Observer = observer or SilentObserver()
        self._clock = clock
        self._scheduler = Scheduler(
            max_rows=limits.max_rows,
            encode_tokens_per_round=encode_tokens_per_round,
            start_id=start_id,
            end_id=eos_id,
        )
        self._admission = Admission(max_queue=max_queue, max_rows=limits.max_rows)
        self._delivery = Delivery()
        # Guards the waiting queue and the two flags; told of new work, of the end of all work and of the stop.
        self._changed = threading.Condition()
        self._draining = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._failed_rounds = 0
        self._last_round_at = self._last_step_at = clock()

    def start(self) -> None:
        """Start the loop's thread."""
        assert self._thread is None, "started twice"
        self._thread = threading.Thread(target=self._turn, name="decode-loop", daemon=True)
        self._thread.start()

    def submit(self, sequences: Items[Sequence]) -> None:
        """Queue all of ``sequences``, or none.

        Raises:
            LoopClosed: the loop is draining.
            QueueFull: not all of them fit into the queue.
            DeadlineUnmeetable: by recent throughput, one of them would not get its turn before its deadline.
            ValueError: the runner could never decode one of them.
        """
        for sequence in sequences:
            check_fits(sequence, self._runner.limits)
        with self._changed:
            now = self._clock()
            if self._draining:
                raise LoopClosed("the loop is draining", retry_after_s=DEFAULT_RETRY_AFTER_S)
            self._admission.check(
                sequences, waiting=self._scheduler.waiting, free_rows=self._scheduler.free_rows, now=now
            )
            if not self._has_work:
                self._last_round_at = now
            for sequence in sequences:
                sequence.submitted_at = now
            self._delivery.open(sequences)
            self._scheduler.waiting.extend(sequences)
            self._observer.queue_changed(self.queue_depth)
            self._changed.notify_all()

    def drain(self) -> None:
        """Refuse new work from now on; what was accepted is finished."""
        with self._changed:
            self._draining = True

    def close(self, *, timeout_s: float) -> bool:
        """Drain, wait, give up what is left after ``timeout_s`` with ``Outcome.CANCELLED``, and end the thread.

        Returns:
            True where every accepted sequence was finished in time.
        """
        self.drain()
        with self._changed:
            if self._thread is not None:
                self._changed.wait_for(lambda: self._delivery.all_ended, timeout_s)
            self._stopping = True
            self._changed.notify_all()
        # From here, not from the loop's thread: that one may be stuck in a device that never answers.
        given_up = self._delivery.finish_all(Outcome.CANCELLED)
        if self._thread is not None:
            self._thread.join(_JOIN_TIMEOUT_S)
        self._scheduler.waiting.clear()
        self._scheduler.running = []
        return given_up == 0

    @property
    def queue_depth(self) -> int:
        """Sequences that wait."""
        return len(self._scheduler.waiting)

    @property
    def active_sequences(self) -> int:
        """Sequences that are being decoded."""
        return len(self._scheduler.running)

    @property
    def last_round_at(self) -> float:
        """The loop's last sign of life, a moment on its clock: now, while it has nothing to do."""
        return self._last_round_at if self._has_work else self._clock()

    @property
    def failed(self) -> bool:
        """Whether the last rounds all failed; False again once a round succeeds."""
        return self._failed_rounds >= _FAILED_AFTER_ROUNDS

    def _turn(self) -> None:
        while self._wait_for_work():
            self.run_round()

    def run_round(self) -> None:
        """Schedule, step, collect, once; the loop's thread calls nothing else, and it never raises."""
        started_at = self._clock()
        freed_rows = 0
        try:
            placement = self._schedule(started_at)
            if placement is not None:
                ids, log_probs = self._step(placement)
                freed_rows = self._collect(placement, ids, log_probs)
                self._failed_rounds = 0
        except Exception:
            _log.exception("a decoding round failed")
            self._fail()
        self._last_round_at = self._clock()
        self._admission.throughput.round_ended(freed_rows=freed_rows, seconds=self._last_round_at - started_at)

    def _schedule(self, now: float) -> Placement | None:
        """Drop what was given up, admit and encode what fits; None where nothing is left to decode."""
        scheduler = self._scheduler
        with self._changed:
            given_up = scheduler.give_up(now)
            admitted = scheduler.admit()
            if given_up or admitted:
                self._observer.queue_changed(self.queue_depth)
                self._observer.active_changed(self.active_sequences)
        for gone in given_up:
            self._observer.cancelled(gone.stage)
            self._delivery.finish(gone.sequence, Result(gone.outcome))
        if not scheduler.running:
            return None
        placement = scheduler.place()
        for running in admitted:
            self._observer.admitted(now - running.sequence.submitted_at)
        # Before the step: rows that the encoder writes are no row's parent, see ``assign_rows``.
        for batch in encoder_batches(admitted):
            self._encode(batch)
        return placement

    def _encode(self, batch: list[Running]) -> None:
        sources, lengths = pad_sources([running.sequence.source for running in batch], pad_id=self._pad_id)
        rows = np.array([running.rows[0] for running in batch], dtype=np.int64)
        self._runner.encode(sources=sources, lengths=lengths, rows=rows)
        source_tokens = int(lengths.sum())
        self._observer.encoded(1.0 - source_tokens / sources.size, source_tokens)

    def _step(self, placement: Placement) -> tuple[IntArray, FloatArray | None]:
        """Run the step and the cheapest head that serves every live row: ids and log-probs, [rows, k]."""
        started_at = self._clock()
        self._runner.step(tokens=placement.tokens, positions=placement.positions, parents=placement.parents)
        k = max(running.search.candidates_needed for running in self._scheduler.running)
        ids: IntArray
        log_probs: FloatArray | None
        if k == 0:
            ids, log_probs = self._runner.argmax()[:, None], None
        else:
            ids, log_probs = self._runner.top_k(k)
        self._observer.stepped(len(placement.order), self._clock() - started_at)
        return ids, log_probs

    def _collect(self, placement: Placement, ids: IntArray, log_probs: FloatArray | None) -> int:
        """Let every search choose; what has finished leaves. Returns the rows that became free."""
        self._observe_tokens()
        # From rows to hypotheses: those of one search lie together.
        ids = ids[placement.order]
        log_probs = None if log_probs is None else log_probs[placement.order]
        staying: list[Running] = []
        leaving: list[tuple[Running, Result]] = []
        start = 0
        for running in self._scheduler.running:
            end = start + len(running.rows)
            try:
                chosen = running.search.advance(ids[start:end], None if log_probs is None else log_probs[start:end])
            except Exception:
                _log.exception("a search failed")
                leaving.append((running, Result(Outcome.FAILED)))
            else:
                self._delivery.tokens(running.sequence, chosen.final)
                if chosen.tokens:
                    running.go_on(chosen)
                    staying.append(running)
                else:
                    leaving.append((running, Result(Outcome.FINISHED, running.search.hypotheses())))
            start = end
        # Rows and gauges first, so that whoever gets a result finds its rows free.
        if leaving:
            self._scheduler.running = staying
            self._observer.active_changed(len(staying))
        for running, result in leaving:
            self._delivery.finish(running.sequence, result)
        return sum(running.search.rows for running, _ in leaving)

    def _observe_tokens(self) -> None:
        now = self._clock()
        continued = 0
        for running in self._scheduler.running:
            if running.position:
                continued += 1
            else:
                self._observer.first_token(now - running.sequence.submitted_at)
        if continued:
            self._observer.inter_token(now - self._last_step_at, continued)
        self._last_step_at = now

    def _fail(self) -> None:
        """End what was in flight when a round failed; the rest goes on. With nothing in flight, the queue goes."""
        self._failed_rounds += 1
        with self._changed:
            # Not what runs, but all that no longer waits: the round may have failed between queue and delivery.
            lost = self._delivery.open_besides(self._scheduler.waiting)
            self._scheduler.running = []
            if not lost:
                lost = list(self._scheduler.waiting)
                self._scheduler.waiting.clear()
        for sequence in lost:
            self._delivery.finish(sequence, Result(Outcome.FAILED))
        self._observer.queue_changed(self.queue_depth)
        self._observer.active_changed(self.active_sequences)

    @property
    def _has_work(self) -> bool:
        return bool(self._scheduler.waiting or self._scheduler.running)

    def _wait_for_work(self) -> bool:
        """Sleep until there is work; False where the loop is to end."""
        with self._changed:
            self._changed.notify_all()  # close() waits for the last sequence
            self._changed.wait_for(lambda: self._has_work or self._stopping)
            return not self._stopping
