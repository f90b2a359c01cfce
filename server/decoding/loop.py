"""The decode loop: a queue, and workers that each schedule, step and collect on a thread of their own.

Every round of a worker admits what fits, runs one decoder step over all its live rows, and lets each search choose how
to go on. A worker sleeps only while it has nothing to do: as long as there is a sequence, rounds follow each other,
and each of them looks at cancellations and deadlines first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Items

from export.runners.protocol import Runner
from server.decoding.admission import (
    DEFAULT_RETRY_AFTER_S,
    Admission,
    DeadlineUnmeetable,
    LoopClosed,
    QueueFull,
    ThroughputEstimate,
    check_fit,
)
from server.decoding.crew import Crew
from server.decoding.delivery import Delivery
from server.decoding.observer import Observer, SilentObserver
from server.decoding.scheduler import Scheduler
from server.decoding.sequence import Outcome, Sequence
from server.decoding.waiting import Order, waiting_queue
from server.decoding.worker import Shared, Worker

__all__ = ["DeadlineUnmeetable", "DecodeLoop", "LoopClosed", "QueueFull"]

_JOIN_TIMEOUT_S = 5.0


class DecodeLoop:
    """Decodes sequences on the runners of one bundle, continuously batched. All public methods are thread-safe."""

    def __init__(  # noqa: PLR0913 - settings, and all but the first have a name
        self,
        *runners: Runner,
        start_id: int,
        eos_id: int,
        pad_id: int,
        max_queue: int,
        order: Order = Order.FAIR,
        crew: Crew | None = None,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        encode_tokens_per_round: int | None = None,
    ) -> None:
        """Make a loop that stands still until ``start``.

        Args:
            runners: at least one, all of the same limits; each gets a worker, which is its only user and does not
                close it.
            start_id: token that a decoder starts with.
            eos_id: end token.
            pad_id: token that fills short sources of an encoder batch.
            max_queue: most sequences that may wait.
            order: in which those that wait are admitted.
            crew: the workers of all loops of the process; None: there is no other loop.
            observer: hears what happens; None: nobody.
            clock: seconds, monotonic; deadlines are moments on it.
            encode_tokens_per_round: most source tokens that join a worker in one round, so that newcomers do not stall
                live rows; None: as the runners say. A longer source joins alone.
        """
        self._limits = runners[0].limits
        lock = threading.RLock()
        self._shared = Shared(
            queue=waiting_queue(order),
            lock=lock,
            rested=threading.Condition(lock),
            delivery=Delivery(),
            throughput=ThroughputEstimate(max_rows=len(runners) * self._limits.max_rows),
            observer=observer or SilentObserver(),
            clock=clock,
            crew=crew or Crew(),
        )
        for runner in runners:
            scheduler = Scheduler(
                self._shared.queue,
                max_rows=self._limits.max_rows,
                encode_tokens_per_round=encode_tokens_per_round or self._limits.encode_tokens,
                start_id=start_id,
                end_id=eos_id,
            )
            Worker(runner, self._shared, scheduler, pad_id=pad_id)
        self._admission = Admission(self._shared.throughput, max_queue=max_queue)
        self._threads: list[threading.Thread] = []
        self._draining = False
        self._stopping = False

    def start(self) -> None:
        """Start a thread for each worker."""
        assert not self._threads, "started twice"
        for number, worker in enumerate(self._shared.workers):
            thread = threading.Thread(
                target=worker.turn, args=(lambda: self._stopping,), name=f"decode-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def submit(self, sequences: Items[Sequence]) -> None:
        """Queue all of ``sequences``, which are one party, or none.

        Raises:
            LoopClosed: the loop is draining.
            QueueFull: not all of them fit into the queue.
            DeadlineUnmeetable: by recent throughput, one of them would not get its turn before its deadline.
            ValueError: the runners could never decode one of them.
        """
        check_fit(sequences, self._limits)
        shared = self._shared
        with shared.lock:
            now = shared.clock()
            if self._draining:
                raise LoopClosed("the loop is draining", retry_after_s=DEFAULT_RETRY_AFTER_S)
            free_rows = sum(self._limits.max_rows - worker.used_rows for worker in shared.workers)
            self._admission.check(sequences, queue=shared.queue, free_rows=free_rows, now=now)
            resting = [worker for worker in shared.workers if not worker.has_work]
            for sequence in sequences:
                sequence.submitted_at = now
            shared.delivery.open(sequences)
            shared.queue.add(sequences)
            shared.observer.queue_changed(self.queue_depth)
            for worker in resting:
                worker.last_round_at = now
                if worker.has_work:
                    worker.wake()

    def drain(self) -> None:
        """Refuse new work from now on; what was accepted is finished."""
        with self._shared.lock:
            self._draining = True

    def close(self, *, timeout_s: float | None) -> bool:
        """Drain, wait, give up what is left after ``timeout_s`` with ``Outcome.CANCELLED``, and end the threads.

        Args:
            timeout_s: None: as long as it takes, or until it is closed from another thread too.

        Returns:
            True where every accepted sequence was finished in time.
        """
        self.drain()
        shared = self._shared
        with shared.lock:
            if self._threads:
                shared.rested.wait_for(lambda: shared.delivery.all_ended, timeout_s)
            self._stopping = True
            for worker in shared.workers:
                worker.wake()
        # From here, not from a worker's thread: that one may be stuck in a device that never answers.
        given_up = shared.delivery.finish_all(Outcome.CANCELLED)
        end = time.monotonic() + _JOIN_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with shared.lock:
            shared.queue.remove(lambda _: True)
            for worker in shared.workers:
                worker.clear()
            shared.observer.queue_changed(0)
            shared.observer.active_changed(0)
            shared.rested.notify_all()
        return given_up == 0

    @property
    def queue_depth(self) -> int:
        """Sequences that wait."""
        return len(self._shared.queue)

    @property
    def active_sequences(self) -> int:
        """Sequences that are being decoded."""
        return self._shared.active_sequences

    @property
    def last_round_at(self) -> float:
        """The last sign of life of the worker that has been silent for longest, a moment on the loop's clock.

        A worker that has nothing to do is no concern: now, where none has.
        """
        now = self._shared.clock()
        return min(worker.last_round_at if worker.has_work else now for worker in self._shared.workers)

    @property
    def failed(self) -> bool:
        """Whether the last rounds of a worker that has work all failed, or those of every worker.

        False again once a round of it succeeds. One that rests is no concern while another one serves.
        """
        workers = self._shared.workers
        return any(worker.failed and worker.has_work for worker in workers) or all(worker.failed for worker in workers)

    def run_round(self) -> None:
        """One round of every worker in turn, for whoever drives the loop by hand; it never raises."""
        for worker in self._shared.workers:
            worker.run_round()
