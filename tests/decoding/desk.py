"""What a service would be: makes sequences, hears their callbacks, and turns the loop by hand."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

from export.runners.protocol import Runner
from server.decoding.loop import DecodeLoop
from server.decoding.observer import SilentObserver, Stage
from server.decoding.sequence import Outcome, Result, SearchOptions, Sequence
from tests.decoding.fake_runner import END, PAD, START, FakeRunner


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Job:
    """One submitted sequence and everything that was heard of it."""

    sequence: Sequence = field(init=False)
    results: list[Result] = field(default_factory=list)
    streamed: list[int] = field(default_factory=list)

    @property
    def result(self) -> Result:
        """The one result."""
        assert len(self.results) == 1, f"ended {len(self.results)} times"
        return self.results[0]

    @property
    def outcome(self) -> Outcome:
        return self.result.outcome

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.result.hypotheses[0].tokens


def make_job(source: Items[int], *, deadline: float | None = None, **options: Any) -> Job:
    """A job for ``source``, to which the end token is added."""
    job = Job()

    def on_tokens(tokens: Items[int]) -> None:
        assert not job.results, "tokens after the end"
        job.streamed.extend(tokens)

    job.sequence = Sequence(
        (*source, END),
        SearchOptions(**{"max_output_tokens": 12, **options}),
        on_finished=job.results.append,
        on_tokens=on_tokens,
        deadline=deadline,
    )
    return job


class Recorder(SilentObserver):
    """Remembers the events that tests ask about."""

    def __init__(self) -> None:
        self.depths: list[int] = []
        self.active: list[int] = []
        self.waits: list[float] = []
        self.padding: list[float] = []
        self.first: list[float] = []
        self.between: list[tuple[float, int]] = []
        self.stages: list[Stage] = []

    def queue_changed(self, depth: int) -> None:
        self.depths.append(depth)

    def active_changed(self, sequences: int) -> None:
        self.active.append(sequences)

    def admitted(self, wait_s: float) -> None:
        self.waits.append(wait_s)

    def encoded(self, padding_ratio: float, source_tokens: int) -> None:
        self.padding.append(padding_ratio)

    def first_token(self, seconds: float) -> None:
        self.first.append(seconds)

    def inter_token(self, seconds: float, tokens: int) -> None:
        self.between.append((seconds, tokens))

    def cancelled(self, stage: Stage) -> None:
        self.stages.append(stage)


@dataclass
class Desk:
    """A loop over a fake runner, with its clock and observer."""

    runner: FakeRunner
    max_queue: int = 1000
    encode_tokens_per_round: int = 512
    clock: FakeClock = field(default_factory=FakeClock)
    observer: Recorder = field(default_factory=Recorder)
    loop: DecodeLoop = field(init=False)

    def __post_init__(self) -> None:
        self.loop = DecodeLoop(
            self.runner,
            start_id=START,
            eos_id=END,
            pad_id=PAD,
            max_queue=self.max_queue,
            observer=self.observer,
            clock=self.clock,
            encode_tokens_per_round=self.encode_tokens_per_round,
        )

    def submit(self, *jobs: Job) -> None:
        self.loop.submit([job.sequence for job in jobs])

    def turn(self, rounds: int = 1, *, seconds: float = 0.0) -> None:
        """Run rounds, after each of which ``seconds`` pass."""
        for _ in range(rounds):
            self.loop.run_round()
            self.clock.now += seconds

    def turn_until_idle(self, *, before_each: Callable[[], None] = lambda: None) -> None:
        for _ in range(10_000):
            if not (self.loop.queue_depth or self.loop.active_sequences):
                return
            before_each()
            self.loop.run_round()
        raise AssertionError("the loop never came to rest")


def decode_one_by_one(runner: Runner, jobs: list[Job], *, rounds_between: int, encode_tokens_per_round: int) -> None:
    """Submit the jobs one by one with a few rounds in between, then finish them all."""
    loop = DecodeLoop(
        runner,
        start_id=START,
        eos_id=END,
        pad_id=PAD,
        max_queue=len(jobs),
        encode_tokens_per_round=encode_tokens_per_round,
    )
    for job in jobs:
        loop.submit([job.sequence])
        for _ in range(rounds_between):
            loop.run_round()
    while loop.queue_depth or loop.active_sequences:
        loop.run_round()
