"""Loops of several workers, and the gates and barriers that decide what happens on their threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from server.decoding.crew import Crew
from server.decoding.loop import DecodeLoop
from server.decoding.sequence import Outcome, Result, Sequence
from tests.decoding.desk import Desk, FakeClock, Job, Recorder, make_job
from tests.decoding.fake_runner import END, PAD, START, FakeRunner, Rule, copying_rule

LONG_S = 60.0


repeatable = settings(derandomize=True, deadline=None, max_examples=60)
job_kinds: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "source": st.lists(st.integers(4, 11), min_size=0, max_size=12),
        "beam_size": st.sampled_from([1, 1, 1, 2, 4]),
        "return_scores": st.booleans(),
        "forced_tokens": st.sampled_from([(), (), (7,)]),
    }
)


def make_loop(*runners: FakeRunner, **settings: Any) -> DecodeLoop:
    return DecodeLoop(*runners, start_id=START, eos_id=END, pad_id=PAD, **{"max_queue": 1000, **settings})


def alone(rule: Rule, job: Job) -> Job:
    """The same job, decoded by a loop that has nothing else to do."""
    copy = make_job(job.sequence.source[:-1], **vars(job.sequence.options))
    desk = Desk(FakeRunner(rule))
    desk.submit(copy)
    desk.turn_until_idle()
    return copy


def check_ended_as_if_alone(rule: Rule, jobs: list[Job], *, or_else: tuple[Outcome, ...] = ()) -> None:
    """Each ended once, as it would have alone, or with an outcome of ``or_else`` and a part of what that streams."""
    for job in jobs:
        wanted = alone(rule, job)
        if job.outcome in or_else:
            assert job.result == Result(job.outcome)
            assert job.streamed == wanted.streamed[: len(job.streamed)]
        else:
            assert job.result == wanted.result
            assert job.streamed == wanted.streamed


class Gate:
    """Stops a worker before each of its steps."""

    def __init__(self) -> None:
        self._arrivals = threading.Semaphore(0)
        self._passes = threading.Semaphore(0)
        self._open = False

    def __call__(self) -> None:
        self._arrivals.release()
        if not self._open:
            assert self._passes.acquire(timeout=LONG_S)

    def wait(self) -> None:
        """Until the worker stands at the gate."""
        assert self._arrivals.acquire(timeout=LONG_S), "nobody came"

    def next_step(self) -> None:
        """Let the worker, which stands here, do its step, and wait until it stands here again."""
        self._passes.release()
        self.wait()

    def open(self) -> None:
        """Let all pass from now on."""
        self._open = True
        self._passes.release()


class WatchedCrew(Crew):
    """Says when a worker has done all its work."""

    def __init__(self) -> None:
        super().__init__()
        self._ends = threading.Semaphore(0)

    def end(self) -> None:
        super().end()
        self._ends.release()

    def wait_until_one_rests(self) -> None:
        assert self._ends.acquire(timeout=LONG_S), "no worker came to rest"


class Works:
    """A started loop whose workers stop at gates, until these are opened.

    With one row each, as here by default, the first worker gets the first job, and the second one, while the first
    is at work, the next.
    """

    def __init__(self, *runners: FakeRunner, crew: WatchedCrew | None = None) -> None:
        self.runners = runners
        self.gates = [Gate() for _ in runners]
        for runner, gate in zip(runners, self.gates, strict=True):
            runner.before_step = gate
        self.crew = crew or WatchedCrew()
        self.clock = FakeClock()
        self.observer = Recorder()
        self.loop = make_loop(*runners, crew=self.crew, clock=self.clock, observer=self.observer)
        before = set(threading.enumerate())
        self.loop.start()
        self.threads = [thread for thread in threading.enumerate() if thread not in before]
        self.threads.sort(key=lambda thread: thread.name)
        self._ends: dict[Sequence, threading.Event] = {}

    def submit(self, *jobs: Job) -> None:
        """As one party."""
        for job in jobs:
            self._ends[job.sequence] = watched(job)
        self.loop.submit([job.sequence for job in jobs])

    def put_to_work(self, worker: int, job: Job) -> Job:
        """Submit a job and wait until ``worker`` stands at its gate with it."""
        self.submit(job)
        self.gates[worker].wait()
        return job

    def wait_for(self, *jobs: Job) -> None:
        for job in jobs:
            assert self._ends[job.sequence].wait(LONG_S), "a job never ended"

    def open_gates(self) -> None:
        for gate in self.gates:
            gate.open()


def watched(job: Job) -> threading.Event:
    """Set once ``job`` has ended."""
    ended = threading.Event()

    def on_finished(result: Result) -> None:
        job.results.append(result)
        ended.set()

    job.sequence.on_finished = on_finished
    return ended


@contextlib.contextmanager
def open_works(*runners: FakeRunner, crew: WatchedCrew | None = None) -> Iterator[Works]:
    """Works that are closed in the end, whatever happens."""
    works = Works(*runners, crew=crew)
    try:
        yield works
    finally:
        works.open_gates()
        works.loop.close(timeout_s=LONG_S)
    assert not any(thread.is_alive() for thread in works.threads)


def one_row_each(count: int = 2) -> list[FakeRunner]:
    return [FakeRunner(copying_rule(), max_rows=1) for _ in range(count)]


def run_threads(*targets: Callable[[], None]) -> None:
    """All at once; what one raises, is raised here."""
    with ThreadPoolExecutor(len(targets)) as pool:
        for future in [pool.submit(target) for target in targets]:
            future.result(LONG_S)


def meet_before_the_first_step(runner: FakeRunner, barrier: threading.Barrier) -> None:
    def before_step() -> None:
        if not runner.calls.stepped_rows:
            barrier.wait(LONG_S)

    runner.before_step = before_step


def mixed_jobs(count: int) -> list[Job]:
    return [
        make_job([4 + number % 8] * (number % 7), beam_size=1 + number % 3, return_scores=number % 5 == 0)
        for number in range(count)
    ]
