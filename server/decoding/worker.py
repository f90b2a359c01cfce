"""One worker of the decode loop: schedule, step, collect, on one runner and a thread of its own."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import numpy as np

from export.runners.protocol import Candidates, Runner
from server.decoding.admission import ThroughputEstimate
from server.decoding.crew import Crew, share
from server.decoding.delivery import Delivery
from server.decoding.observer import Observer, Stage
from server.decoding.running import Found, Placement, Running
from server.decoding.scheduler import Scheduler, encoder_batches, pad_sources
from server.decoding.sequence import Outcome, Result, Sequence
from server.decoding.waiting import WaitingQueue

_log = logging.getLogger(__name__)
_FAILED_AFTER_ROUNDS = 3
_STEPS_OF_A_ROUND = 16  # few enough that a stop is heard soon
_UNHEARD_S = 0.002


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all workers of a loop have in common.

    Attributes:
        queue: sequences that wait.
        lock: guards the queue, and what workers are told.
        rested: whoever waits for the end of all work is told that a worker has no more.
        workers: all of them.
        delivery: knows which sequences still owe their owner an end.
        throughput: how fast rows become free.
        observer: hears what happens.
        clock: seconds, monotonic.
        crew: all workers of the process.
    """

    queue: WaitingQueue
    lock: threading.RLock
    rested: threading.Condition
    delivery: Delivery
    throughput: ThroughputEstimate
    observer: Observer
    clock: Callable[[], float]
    crew: Crew
    workers: list[Worker] = field(default_factory=list)

    @property
    def active_sequences(self) -> int:
        """Sequences that are being decoded."""
        return sum(worker.active_sequences for worker in self.workers)


class Worker:
    """Decodes what it takes from the queue. Only one thread calls ``turn`` or ``run_round``."""

    def __init__(self, runner: Runner, shared: Shared, scheduler: Scheduler, *, pad_id: int) -> None:
        """Join the workers, idle; this one is the runner's only user."""
        self.last_round_at = shared.clock()
        self._number = len(shared.workers)
        self._woken = threading.Condition(shared.lock)
        shared.workers.append(self)
        self._runner = runner
        self._shared = shared
        self._scheduler = scheduler
        self._pad_id = pad_id
        self._failed_rounds = 0
        self._last_step_at = shared.clock()
        self._step_s, self._stepped_rows = math.inf, 1  # that the last step took, and its rows
        # All that it took from the queue and that may not have ended: more than what runs, while a round has begun.
        self._taken: list[Sequence] = []
        self._begun: list[Running] = []  # what has not been through a step yet

    @property
    def active_sequences(self) -> int:
        """Sequences that it decodes."""
        return len(self._scheduler.running)

    @property
    def used_rows(self) -> int:
        """Rows that those have reserved."""
        return self._scheduler.used_rows

    @property
    def failed(self) -> bool:
        """Whether its last rounds all failed; False again once a round succeeds."""
        return self._failed_rounds >= _FAILED_AFTER_ROUNDS

    @property
    def has_work(self) -> bool:
        """Whether it decodes, or something waits that it is to take."""
        return bool(self._scheduler.running or (self._shared.queue.rows and self._share()))

    def clear(self) -> None:
        """Forget what runs; its owners have been told."""
        self._scheduler.leave(self._scheduler.running)

    def wake(self) -> None:
        """End its sleep; it looks for itself whether there is work. Its caller holds the lock."""
        self._woken.notify()

    def turn(self, stopping: Callable[[], bool]) -> None:
        """Run rounds while there is work, sleep while there is none, until ``stopping``."""
        shared, crew = self._shared, self._shared.crew
        while True:
            with shared.lock:
                shared.rested.notify_all()
                self._woken.wait_for(lambda: self.has_work or stopping())
            if stopping():
                return
            crew.begin()
            try:
                has_work = True
                while has_work and not stopping():
                    self.run_round(most_steps=_STEPS_OF_A_ROUND)
                    has_work = self.has_work
            finally:
                crew.end()

    def run_round(self, *, most_steps: int = 1) -> None:
        """Schedule, step, collect; never raises.

        Args:
            most_steps: steps at most. A further one follows at once where there is nothing to schedule: nobody waits,
                and nobody is to be given up.
        """
        shared = self._shared
        started_at = shared.clock()
        steps = freed_rows = 0
        try:
            placement = self._schedule(started_at)
            while placement is not None:
                found = self._step(placement, most_steps=most_steps - steps)
                leaving = self._collect(found)
                self._failed_rounds = 0
                steps += len(found.best)
                # Whoever waits for a result finds its rows free.
                for running, result in leaving.items():
                    freed_rows += running.search.rows
                    shared.delivery.finish(running.sequence, result)
                goes_on = steps < most_steps and self._scheduler.running and self._nothing_new()
                placement = self._scheduler.place() if goes_on else None
        except Exception:
            _log.exception("a decoding round failed")
            self._fail()
        self.last_round_at = shared.clock()
        with shared.lock:
            at_work = sum(bool(worker.active_sequences) for worker in shared.workers if worker is not self) + 1
            seconds = (self.last_round_at - started_at) / at_work
            shared.throughput.round_ended(freed_rows=freed_rows, seconds=seconds)

    def _share(self) -> int:
        """Rows in use up to which it is to admit."""
        shared = self._shared
        return share(
            self._number,
            used_rows=[worker.used_rows for worker in shared.workers],
            waiting_rows=shared.queue.rows,
            max_rows=self._runner.limits.max_rows,
        )

    def _schedule(self, now: float) -> Placement | None:
        """Drop what was given up, admit and encode what fits; None where nothing is left to decode."""
        shared, scheduler = self._shared, self._scheduler
        with shared.lock:
            given_up = self._give_up(now)
            self._taken = [*(running.sequence for running in scheduler.running), *(gone[0] for gone in given_up)]
            admitted = scheduler.admit(now, share=self._share()) if shared.queue.rows else []
            self._taken += admitted
            self._begun = scheduler.begin(admitted) if admitted else []
            if given_up or admitted:
                shared.observer.queue_changed(len(shared.queue))
                shared.observer.active_changed(shared.active_sequences)
        for sequence, outcome, stage in given_up:
            shared.observer.cancelled(stage)
            shared.delivery.finish(sequence, Result(outcome))
        if not scheduler.running:
            return None
        placement = scheduler.place()
        for running in self._begun:
            shared.observer.admitted(now - running.sequence.submitted_at)
        # Before the step: rows that the encoder writes are no row's parent, see ``assign_rows``.
        for batch in encoder_batches(self._begun):
            self._encode(batch)
        return placement

    def _nothing_new(self) -> bool:
        """Whether nobody waits or is to be given up."""
        now = self.last_round_at = self._shared.clock()
        if self._shared.queue.rows:
            return False
        return not any(running.sequence.given_up(now) for running in self._scheduler.running)

    def _give_up(self, now: float) -> list[tuple[Sequence, Outcome, Stage]]:
        """Take out of the queue and of what runs whatever was cancelled or has passed its deadline."""
        queue, scheduler = self._shared.queue, self._scheduler
        gone: list[tuple[Sequence, Outcome, Stage]] = []
        if queue.rows:
            gone = [(sequence, outcome, "queued") for sequence in queue if (outcome := sequence.given_up(now))]
        if gone:
            leaving = {sequence for sequence, _, _ in gone}
            queue.remove(leaving.__contains__)
        left = {running: outcome for running in scheduler.running if (outcome := running.sequence.given_up(now))}
        if left:
            gone += [(running.sequence, outcome, "decoding") for running, outcome in left.items()]
            scheduler.leave(left)
        return gone

    def _encode(self, batch: list[Running]) -> None:
        sources, lengths = pad_sources([running.sequence.source for running in batch], pad_id=self._pad_id)
        rows = np.array([running.rows[0] for running in batch], dtype=np.int64)
        self._runner.encode(sources=sources, lengths=lengths, rows=rows)
        source_tokens = sum([len(running.sequence.source) for running in batch])
        self._shared.observer.encoded(1.0 - source_tokens / sources.size, source_tokens)

    def _step(self, placed: Placement, *, most_steps: int) -> Found:
        """Run what was placed, and the cheapest head that serves every live row.

        Nobody is heard between steps that follow each other by themselves: only as many do as take no longer than
        ``_UNHEARD_S`` together.
        """
        runner, clock, alone = self._runner, self._shared.clock, self._shared.crew.alone
        tokens, positions, parents, steps = placed
        if self._begun and self._shared.queue.rows:
            steps = 1  # more are to begin, and rows that step together are cheaper
        top: Candidates | None = None
        started_at = clock()
        if k := self._scheduler.candidates_needed:
            runner.step(tokens=tokens, positions=positions, parents=parents, alone=alone)
            top = runner.top_k(k)
            best = [top.ids[:, 0].tolist()]
        else:
            # With more rows a step takes longer, though never as many times longer.
            longest_s = self._step_s * max(1.0, placed.rows / self._stepped_rows)
            best = runner.greedy_steps(
                max(1, min(steps, most_steps, int(_UNHEARD_S / longest_s))),
                tokens=tokens,
                positions=positions,
                parents=parents,
                end_id=self._scheduler.end_id,
                alone=alone,
            )
        seconds = (clock() - started_at) / len(best)
        self._step_s, self._stepped_rows = seconds or math.inf, placed.rows  # a clock that stands still tells nothing
        self._shared.observer.stepped(placed.rows, seconds, len(best))
        return Found(best, top, seconds)

    def _collect(self, found: Found) -> dict[Running, Result]:
        """Let the searches choose; what has ended leaves, and is returned: nobody has been told yet."""
        shared, best, top = self._shared, found.best, found.top
        self._observe_tokens(found)
        deciding = self._scheduler.take(best)
        if not deciding:
            return {}
        # Plain lists, for a search reads a few numbers at a time.
        ids_of = [[token] for token in best[-1]] if top is None else top.ids.tolist()
        log_probs_of = None if top is None else top.log_probs.tolist()
        leaving: dict[Running, Result] = {}
        for running in deciding:
            rows = running.rows
            scores = None if log_probs_of is None else [log_probs_of[row] for row in rows]
            try:
                chosen = running.search.advance([ids_of[row] for row in rows], scores)
            except Exception:
                _log.exception("a search failed")
                leaving[running] = Result(Outcome.FAILED)
                continue
            shared.delivery.tokens(running.sequence, chosen.final)
            if chosen.tokens:
                running.go_on(chosen)
            else:
                leaving[running] = Result(Outcome.FINISHED, running.search.hypotheses())
        if leaving:
            with shared.lock:
                self._scheduler.leave(leaving)
                shared.observer.active_changed(shared.active_sequences)
        return leaving

    def _observe_tokens(self, found: Found) -> None:
        observer, now = self._shared.observer, self._shared.clock()
        further_steps = len(found.best) - 1
        first_step_at = now - further_steps * found.seconds
        for running in self._begun:
            observer.first_token(first_step_at - running.sequence.submitted_at)
        live = len(self._scheduler.running)
        if others := live - len(self._begun):
            observer.inter_token(first_step_at - self._last_step_at, others)
        if further_steps:
            observer.inter_token(found.seconds, live * further_steps)
        self._begun = []
        self._last_step_at = now

    def _fail(self) -> None:
        """End what was in flight when a round failed; the rest goes on. With nothing in flight, the queue goes."""
        shared = self._shared
        self._failed_rounds += 1
        with shared.lock:
            lost: Items[Sequence] = shared.delivery.open_among(self._taken)
            self.clear()
            if not lost:
                lost = list(shared.queue)
                shared.queue.remove(lambda _: True)
            shared.observer.queue_changed(len(shared.queue))
            shared.observer.active_changed(shared.active_sequences)
        for sequence in lost:
            shared.delivery.finish(sequence, Result(Outcome.FAILED))
