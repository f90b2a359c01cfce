"""Several workers of one decode loop: by hand in any order, and on their threads, where gates decide what happens."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.decoding.crew import ROWS_WORTH_A_WORKER, Crew
from server.decoding.loop import DecodeLoop, LoopClosed, QueueFull
from server.decoding.observer import SilentObserver
from server.decoding.sequence import Outcome, Result, Sequence
from server.decoding.waiting import Order
from tests.decoding.desk import Desk, FakeClock, Job, Recorder, make_job
from tests.decoding.fake_runner import END, PAD, START, FakeRunner, Rule, copying_rule, random_rule

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


# By hand.


@repeatable
@given(st.data())
def test_whichever_worker_turns_when_each_text_ends_as_if_alone(data: st.DataObject) -> None:
    rule = random_rule(data.draw(st.integers(0, 1000)), levels=2)
    max_rows = data.draw(st.sampled_from([4, 8]))
    runners = [FakeRunner(rule, max_rows=max_rows) for _ in range(data.draw(st.integers(2, 3)))]
    clock = FakeClock()
    loop = make_loop(*runners, order=data.draw(st.sampled_from(list(Order))), clock=clock, encode_tokens_per_round=32)
    workers = loop._shared.workers
    jobs: list[Job] = []
    for party in data.draw(st.lists(st.lists(job_kinds, max_size=6), min_size=1, max_size=6)):
        joining = [make_job(**kind) for kind in party]
        jobs += joining
        loop.submit([job.sequence for job in joining])
        for number in data.draw(st.sets(st.integers(0, 40), max_size=2)):
            for job in jobs[number : number + 1]:
                job.sequence.cancel()
        for number in data.draw(st.lists(st.integers(0, len(workers) - 1), max_size=12)):
            workers[number].run_round()
            clock.now += 1.0
    for _ in range(500):
        loop.run_round()
    assert (loop.queue_depth, loop.active_sequences) == (0, 0)
    check_ended_as_if_alone(rule, jobs, or_else=(Outcome.CANCELLED,))
    # All rows of all workers are free again: as many as there are join at once.
    loop.submit([make_job([5]).sequence for _ in range(max_rows * len(runners))])
    loop.run_round()
    assert (loop.queue_depth, loop.active_sequences) == (0, max_rows * len(runners))


def test_few_rows_stay_with_one_worker_and_many_are_spread_evenly() -> None:
    worth = ROWS_WORTH_A_WORKER
    max_rows = 2 * worth
    runners = [FakeRunner(copying_rule(), max_rows=max_rows) for _ in range(3)]
    loop = make_loop(*runners, encode_tokens_per_round=10_000)

    def rows_after(joining: int) -> list[int]:
        loop.submit([make_job([5] * 9).sequence for _ in range(joining)])
        loop.run_round()
        return [sum(runner.calls.stepped_rows[-1:]) for runner in runners]

    assert rows_after(worth) == [worth, 0, 0]
    assert rows_after(2 * worth) == [worth, worth, worth]
    assert rows_after(9) == [worth + 3, worth + 3, worth + 3]
    assert rows_after(10 * worth) == [max_rows, max_rows, max_rows]
    assert loop.queue_depth == 9 + 7 * worth


def test_a_beam_wider_than_a_share_still_runs() -> None:
    runners = [FakeRunner(copying_rule(), max_rows=4) for _ in range(2)]
    loop = make_loop(*runners)
    wide, narrow = make_job([5], beam_size=4), make_job([6])
    loop.submit([wide.sequence, narrow.sequence])  # a share is 3 rows
    loop.run_round()
    assert [runner.calls.encoded for runner in runners] == [[(1, 2)], [(1, 2)]]
    for _ in range(5):
        loop.run_round()
    assert (wide.tokens, narrow.tokens) == ((5,), (6,))


def test_a_beam_of_all_rows_is_served_between_workers_that_are_never_empty() -> None:
    runners = [FakeRunner(copying_rule(), max_rows=4) for _ in range(2)]
    loop = make_loop(*runners)
    others = [make_job([5] * (3 + number % 5)) for number in range(200)]
    wide = make_job([6], beam_size=4)
    loop.submit([job.sequence for job in others[:20]])
    loop.submit([wide.sequence])
    for job in others[20:]:
        loop.submit([job.sequence])
        loop.run_round()
    assert wide.tokens == (6,)


def test_two_workers_free_rows_twice_as_fast_as_one() -> None:
    """What a refused caller is told: each of two rows becomes free every 10 s."""
    clock = FakeClock()
    runners = [FakeRunner(copying_rule(), max_rows=1) for _ in range(2)]
    loop = make_loop(*runners, clock=clock, max_queue=20)
    for runner in runners:
        runner.before_step = lambda: setattr(clock, "now", clock.now + 1.0)
    loop.submit([make_job([5] * 9).sequence for _ in range(20)])
    for _ in range(81):
        loop.run_round()
    with pytest.raises(QueueFull) as refusal:
        loop.submit([make_job([5]).sequence for _ in range(24 - loop.queue_depth)])
    assert refusal.value.retry_after_s == pytest.approx(20.0, rel=0.2)


def test_nothing_is_known_before_as_many_rows_were_freed_as_all_workers_have() -> None:
    """One step takes 100 s; but that is guessed from one row, where there are two."""
    clock = FakeClock()
    runners = [FakeRunner(copying_rule(), max_rows=1) for _ in range(2)]
    loop = make_loop(*runners, clock=clock)
    runners[0].before_step = lambda: setattr(clock, "now", clock.now + 100.0)
    loop.submit([make_job([5]).sequence])
    for _ in range(2):
        loop.run_round()
    loop.submit([make_job([5]).sequence for _ in range(9)])
    loop.submit([make_job([5], deadline=clock.now + 1.0).sequence])
    assert loop.queue_depth == 10


def test_gauges_are_told_of_one_change_after_the_other() -> None:
    """Under the loop's lock: else a worker could tell an older figure after another one's newer figure, for good."""
    told: list[tuple[str, bool]] = []

    class Listener(SilentObserver):
        def queue_changed(self, depth: int) -> None:
            told.append(("queue", is_locked()))

        def active_changed(self, sequences: int) -> None:
            told.append(("active", is_locked()))

    def is_locked() -> bool:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(cannot_take, loop._shared.changed).result(LONG_S)

    def cannot_take(lock: threading.Condition) -> bool:
        taken = lock.acquire(blocking=False)
        if taken:
            lock.release()
        return not taken

    loop = make_loop(FakeRunner(copying_rule(), failing_steps={4}), observer=Listener())
    finished, failed = make_job([5]), make_job([6] * 9)
    loop.submit([finished.sequence, failed.sequence])
    for _ in range(5):
        loop.run_round()
    assert (finished.outcome, failed.outcome) == (Outcome.FINISHED, Outcome.FAILED)
    assert {locked for _, locked in told} == {True}, told


def test_a_schedule_that_fails_loses_nobody_who_has_just_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop(FakeRunner(copying_rule()))
    cancelled, waiting = make_job([5]), make_job([6])
    loop.submit([cancelled.sequence, waiting.sequence])
    cancelled.sequence.cancel()

    def fail(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("scripted")

    monkeypatch.setattr("server.decoding.scheduler.Scheduler.admit", fail)
    for _ in range(4):
        loop.run_round()
    assert len(cancelled.results) == len(waiting.results) == 1


def test_a_loop_that_serves_again_has_not_failed_although_a_worker_that_did_rests() -> None:
    runners = [FakeRunner(copying_rule(), max_rows=1), FakeRunner(copying_rule(), max_rows=1, failing_steps={1, 2, 3})]
    loop = make_loop(*runners)
    many = [make_job([5] * 9), *(make_job([6]) for _ in range(3))]
    loop.submit([job.sequence for job in many])
    for _ in range(10):
        loop.run_round()
    assert [job.outcome.name for job in many] == ["FINISHED", "FAILED", "FAILED", "FAILED"]
    for _ in range(20):  # few enough for the first worker
        few = make_job([7])
        loop.submit([few.sequence])
        for _ in range(2):
            loop.run_round()
        assert few.outcome is Outcome.FINISHED
    assert not loop.failed


# On threads.


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


@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize("workers", [2, 3])
def test_many_texts_from_several_threads_end_once_and_as_if_alone(workers: int, order: Order) -> None:
    rule = random_rule(11)
    runners = [FakeRunner(rule, max_rows=4) for _ in range(workers)]
    # Nobody takes a step before all have something to step: they are at work at once.
    all_at_work = threading.Barrier(workers)
    for runner in runners:
        meet_before_the_first_step(runner, all_at_work)
    loop = make_loop(*runners, order=order)
    loop.start()
    jobs = mixed_jobs(120)

    def submit(part: list[Job]) -> None:
        for first, second in itertools.pairwise([*range(0, len(part), 3), len(part)]):
            loop.submit([job.sequence for job in part[first:second]])

    run_threads(*(functools.partial(submit, jobs[start::3]) for start in range(3)))
    assert loop.close(timeout_s=LONG_S)
    check_ended_as_if_alone(rule, jobs)
    assert all(runner.calls.stepped_rows for runner in runners)
    assert (loop.active_sequences, loop.queue_depth, loop.failed) == (0, 0, False)


@pytest.mark.parametrize("workers", [2, 3])
def test_amid_failures_and_cancellations_each_text_still_ends_once(workers: int) -> None:
    rule = random_rule(12)
    failing_steps = ({5, 20}, {1, 2, 9}, set(range(3, 60, 7)))
    runners = [FakeRunner(rule, max_rows=4, failing_steps=steps) for steps in failing_steps[:workers]]
    loop = make_loop(*runners)
    loop.start()
    jobs = mixed_jobs(120)
    submitted = threading.Semaphore(0)

    def submit() -> None:
        for job in jobs:
            loop.submit([job.sequence])
            submitted.release()

    def cancel() -> None:
        for job in jobs[:-20]:
            assert submitted.acquire(timeout=LONG_S)
            if job.sequence.options.beam_size == 2:
                job.sequence.cancel()

    run_threads(submit, cancel)
    assert loop.close(timeout_s=LONG_S)
    check_ended_as_if_alone(rule, jobs, or_else=(Outcome.CANCELLED, Outcome.FAILED))
    assert not any(job.outcome is Outcome.CANCELLED for job in jobs if not job.sequence.cancelled)
    assert (loop.active_sequences, loop.queue_depth) == (0, 0)


def test_a_close_amid_submissions_ends_all_that_was_accepted_and_nothing_else() -> None:
    runners = [FakeRunner(random_rule(13), max_rows=4) for _ in range(2)]
    loop = make_loop(*runners)
    jobs, accepted, under_way = mixed_jobs(300), [False] * 300, threading.Semaphore(0)

    def submit(numbers: range) -> None:
        for number in numbers:
            with contextlib.suppress(LoopClosed):
                loop.submit([jobs[number].sequence])
                accepted[number] = True
            under_way.release()

    def close() -> None:
        for _ in range(40):
            assert under_way.acquire(timeout=LONG_S)
        loop.close(timeout_s=0.0)

    loop.start()
    run_threads(lambda: submit(range(0, 300, 2)), lambda: submit(range(1, 300, 2)), close)
    assert [len(job.results) for job in jobs] == [int(was) for was in accepted]
    assert {job.outcome for job in jobs if job.results} <= {Outcome.FINISHED, Outcome.CANCELLED}
    assert (loop.active_sequences, loop.queue_depth) == (0, 0)


def test_callbacks_of_several_workers_may_submit_the_next_text() -> None:
    loop = make_loop(*(FakeRunner(copying_rule(), max_rows=2) for _ in range(3)))
    chains = [[make_job([4 + number % 8] * (number % 4)) for number in range(25)] for _ in range(8)]
    ended = [watched(chain[-1]) for chain in chains]
    for job, following in itertools.chain.from_iterable(map(itertools.pairwise, chains)):

        def go_on(result: Result, job: Job = job, following: Job = following) -> None:
            job.results.append(result)
            loop.submit([following.sequence])

        job.sequence.on_finished = go_on
    loop.start()
    for chain in chains:
        loop.submit([chain[0].sequence])
    assert all(end.wait(LONG_S) for end in ended)
    assert loop.close(timeout_s=LONG_S)
    assert all(job.tokens == job.sequence.source[:-1] for chain in chains for job in chain)


def test_a_worker_with_nobody_beside_it_is_told_that_it_is_alone() -> None:
    with open_works(*one_row_each(3)) as works:
        job = works.put_to_work(0, make_job([5, 6]))
        works.open_gates()
        works.wait_for(job)
    assert works.runners[0].calls.stepped_alone == [True] * 3
    assert not any(runner.calls.encoded or runner.calls.stepped_rows for runner in works.runners[1:])


def test_two_busy_workers_are_not_alone_until_one_of_them_rests() -> None:
    with open_works(*one_row_each()) as works:
        first, second = (runner.calls for runner in works.runners)
        works.put_to_work(0, make_job([5] * 9))
        works.put_to_work(1, make_job([6, 7]))
        works.gates[0].next_step()
        works.gates[1].next_step()
        assert first.stepped_alone == [True, False]
        assert second.stepped_alone == [False, False]
        works.gates[1].open()
        works.crew.wait_until_one_rests()
        works.gates[0].next_step()
        works.gates[0].next_step()
        assert first.stepped_alone == [True, False, True, True]
        # The second one again: it does not know from before that it was not alone.
        works.gates[0].open()
        works.crew.wait_until_one_rests()
        works.submit(make_job([8]))
        works.crew.wait_until_one_rests()
    assert first.stepped_alone[4:] == [True] * 8


def test_two_loops_of_one_crew_see_each_other() -> None:
    crew = WatchedCrew()
    with open_works(*one_row_each(1), crew=crew) as one, open_works(*one_row_each(1), crew=crew) as two:
        one.put_to_work(0, make_job([5] * 9))
        two.put_to_work(0, make_job([6]))
        one.gates[0].next_step()
        assert one.runners[0].calls.stepped_alone == [True, False]
        assert two.runners[0].calls.stepped_alone == [False]
        two.gates[0].open()
        crew.wait_until_one_rests()
        one.gates[0].next_step()
        assert one.runners[0].calls.stepped_alone == [True, False, True]


def test_two_loops_without_a_common_crew_do_not() -> None:
    with open_works(*one_row_each(1)) as one, open_works(*one_row_each(1)) as two:
        for works in (one, two):
            works.put_to_work(0, make_job([5]))
            works.gates[0].next_step()
            assert works.runners[0].calls.stepped_alone == [True, True]


def test_a_worker_whose_step_fails_loses_only_what_it_had(caplog: pytest.LogCaptureFixture) -> None:
    runners = [FakeRunner(copying_rule(), max_rows=1), FakeRunner(copying_rule(), max_rows=1, failing_steps={2})]
    with open_works(*runners) as works:
        others = works.put_to_work(0, make_job([5] * 5))
        lost = works.put_to_work(1, make_job([6] * 5))
        waiting = [make_job([7]), make_job([8, 9])]
        works.submit(*waiting)
        works.gates[1].open()
        works.wait_for(lost, *waiting)
        works.gates[0].open()
        works.wait_for(others)
    assert lost.result == Result(Outcome.FAILED)
    assert lost.streamed == [6]
    assert [job.tokens for job in (others, *waiting)] == [(5,) * 5, (7,), (8, 9)]
    assert caplog.text.count("a decoding round failed") == 1
    assert works.observer.active[-1] == works.observer.depths[-1] == 0


def test_a_worker_whose_encoder_fails_loses_only_whom_it_took() -> None:
    runners = [FakeRunner(copying_rule(), max_rows=1), FakeRunner(copying_rule(), max_rows=1, failing_encodes={1})]
    with open_works(*runners) as works:
        others = works.put_to_work(0, make_job([5]))
        lost, waiting = make_job([6]), make_job([7])
        works.submit(lost, waiting)
        works.gates[1].open()
        works.wait_for(lost, waiting)
        assert not others.results
        works.gates[0].open()
        works.wait_for(others)
    assert [job.outcome.name for job in (others, lost, waiting)] == ["FINISHED", "FAILED", "FINISHED"]


def test_a_loop_has_failed_while_one_worker_at_work_keeps_failing() -> None:
    runners = [FakeRunner(copying_rule(), max_rows=1), FakeRunner(copying_rule(), max_rows=1, failing_steps={1, 2, 3})]
    with open_works(*runners) as works:
        works.put_to_work(0, make_job([5] * 12))
        jobs = [make_job([6]) for _ in range(4)]
        works.submit(*jobs)
        works.gates[1].wait()
        states = []
        for _ in range(4):
            works.gates[0].next_step()  # what another worker brings about changes nothing
            states.append(works.loop.failed)
            works.gates[1].next_step()
        assert states == [False, False, False, True]
        assert not works.loop.failed, "a step of it has succeeded"
        works.gates[1].open()
        works.wait_for(*jobs)
    assert [job.outcome.name for job in jobs] == ["FAILED", "FAILED", "FAILED", "FINISHED"]


@pytest.mark.parametrize("stuck", [0, 1])
def test_a_stuck_worker_stops_neither_the_other_nor_the_end(stuck: int) -> None:
    runners = one_row_each()
    with open_works(*runners) as works:
        jobs = [works.put_to_work(worker, make_job([5 + worker])) for worker in range(2)]
        more = [make_job([6] * length) for length in range(5)]
        works.submit(*more)
        works.gates[1 - stuck].open()
        works.wait_for(jobs[1 - stuck], *more)
        closed: list[bool] = []
        closer = threading.Thread(target=lambda: closed.append(works.loop.close(timeout_s=0.0)))
        closer.start()
        works.wait_for(jobs[stuck])
        works.threads[1 - stuck].join(LONG_S)
        assert [thread.is_alive() for thread in works.threads] == [stuck == 0, stuck == 1]
        works.gates[stuck].open()
        closer.join(LONG_S)
        assert closed == [False]
    assert jobs[stuck].result == Result(Outcome.CANCELLED)
    assert jobs[stuck].streamed == [], "nothing after the end"
    assert [job.tokens for job in (jobs[1 - stuck], *more)] == [(6 - stuck,), *((6,) * length for length in range(5))]
    assert (works.loop.active_sequences, works.loop.queue_depth) == (0, 0)
    with pytest.raises(LoopClosed):
        works.submit(make_job([5]))


def test_draining_finishes_what_all_workers_have_and_what_waits() -> None:
    with open_works(*one_row_each()) as works:
        jobs = [works.put_to_work(worker, make_job([5] * 3)) for worker in range(2)]
        jobs += [make_job([6]) for _ in range(3)]
        works.submit(*jobs[2:])
        works.loop.drain()
        with pytest.raises(LoopClosed):
            works.submit(make_job([7]))
        closed: list[bool] = []
        closer = threading.Thread(target=lambda: closed.append(works.loop.close(timeout_s=1e6)), daemon=True)
        closer.start()
        works.open_gates()
        works.wait_for(*jobs)
        closer.join(LONG_S)
        assert closed == [True], "it is told of the last end, whichever worker brings it"
    assert [job.tokens for job in jobs] == [(5,) * 3] * 2 + [(6,)] * 3


def test_the_end_of_idle_workers_is_the_end_of_their_threads() -> None:
    with open_works(*one_row_each(3)) as works:
        assert len(works.threads) == 3
        assert works.loop.close(timeout_s=0.0)
        assert not any(thread.is_alive() for thread in works.threads)


@pytest.mark.parametrize("stuck", [0, 1])
def test_the_last_sign_of_life_is_that_of_the_worker_that_is_stuck(stuck: int) -> None:
    with open_works(*one_row_each()) as works:
        other, clock, loop = 1 - stuck, works.clock, works.loop
        started_at = clock.now
        works.put_to_work(0, make_job([5] * 9))
        clock.now += 1.0
        works.put_to_work(1, make_job([5] * 9))
        stuck_at = started_at + stuck
        clock.now += 50.0
        works.gates[other].next_step()
        assert loop.last_round_at == stuck_at, "its own submission, although the other one turns"
        works.submit(make_job([6]))
        assert loop.last_round_at == stuck_at, "new work does not hide it"
        works.gates[other].open()
        works.crew.wait_until_one_rests()
        assert loop.last_round_at == stuck_at
        clock.now += 1.0
        works.gates[stuck].next_step()
        assert loop.last_round_at == clock.now, "it turns again, and the other one has nothing to do"
        works.gates[stuck].open()
        works.crew.wait_until_one_rests()
        clock.now += 1000.0
        assert loop.last_round_at == clock.now, "idle is alive"
        works.gates = [Gate(), Gate()]
        works.runners[0].before_step = works.gates[0]
        works.put_to_work(0, make_job([7]))
        assert loop.last_round_at == clock.now, "who was idle for long is not late at once"


@pytest.mark.parametrize("stuck", [0, 1])
def test_whichever_worker_turns_sees_who_has_given_up_waiting(stuck: int) -> None:
    with open_works(*one_row_each()) as works:
        jobs = [works.put_to_work(worker, make_job([5] * 9)) for worker in range(2)]
        cancelled, late, patient = (
            make_job([6]),
            make_job([7], deadline=works.clock.now + 1.0),
            make_job([8], deadline=works.clock.now + 100.0),
        )
        works.submit(cancelled, late)
        works.submit(patient)
        cancelled.sequence.cancel()
        works.clock.now += 2.0
        works.gates[1 - stuck].next_step()
        assert (cancelled.outcome, late.outcome) == (Outcome.CANCELLED, Outcome.DEADLINE_EXCEEDED)
        assert not patient.results
        assert works.observer.stages == ["queued", "queued"]
        assert works.observer.depths[-1] == works.loop.queue_depth == 1
        # And whoever is decoded by the one that turns, while the other is stuck.
        jobs[1 - stuck].sequence.cancel()
        works.gates[1 - stuck].next_step()
        assert jobs[1 - stuck].outcome is Outcome.CANCELLED
        assert works.loop.queue_depth == 0, "its row is the next one's at once"
        works.open_gates()
        works.wait_for(*jobs, patient)
    assert (jobs[stuck].tokens, patient.tokens) == ((5,) * 9, (8,))


def test_gauges_come_back_to_nothing() -> None:
    with open_works(*one_row_each()) as works:
        jobs = [works.put_to_work(worker, make_job([5] * 3)) for worker in range(2)]
        jobs.append(make_job([6]))
        works.submit(jobs[-1])
        assert (works.loop.active_sequences, works.loop.queue_depth) == (2, 1)
        assert (works.observer.active[-1], works.observer.depths[-1]) == (2, 1)
        works.gates[1].open()
        works.crew.wait_until_one_rests()
        assert (works.observer.active[-1], works.observer.depths[-1]) == (1, 0)
        works.gates[0].open()
        works.crew.wait_until_one_rests()
        assert (works.loop.active_sequences, works.loop.queue_depth) == (0, 0)
        assert works.observer.active[-1] == 0
        works.wait_for(*jobs)
    assert len(works.observer.waits) == len(works.observer.first) == 3
