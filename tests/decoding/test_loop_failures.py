"""The decode loop when something fails: runner, search, callback or a round of its own."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from server.decoding.sequence import Outcome
from tests.decoding.desk import Desk, make_job
from tests.decoding.fake_runner import FakeRunner, copying_rule


def copying_desk() -> Desk:
    return Desk(FakeRunner(copying_rule()))


@pytest.mark.parametrize("failure", [{"failing_encodes": {2}}, {"failing_steps": {3}}])
def test_a_failing_runner_fails_what_is_in_flight_and_the_rest_goes_on(
    failure: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk(FakeRunner(copying_rule(), max_rows=2, **failure))
    jobs = [make_job([5]), make_job([5, 6, 7, 8]), make_job([6]), make_job([7], beam_size=2)]
    desk.submit(*jobs)
    with caplog.at_level(logging.ERROR):
        desk.turn_until_idle()
    assert [job.outcome.name for job in jobs] == ["FINISHED", "FAILED", "FAILED", "FINISHED"]
    assert "a decoding round failed" in caplog.text
    assert not desk.loop.failed


def test_repeated_failure_marks_the_loop_failed_until_a_round_succeeds() -> None:
    desk = Desk(FakeRunner(copying_rule(), failing_steps={1, 2, 3}))
    states = []
    for _ in range(4):
        job = make_job([5])
        desk.submit(job)
        desk.turn_until_idle()
        states.append((job.outcome.name, desk.loop.failed))
    assert states == [("FAILED", False), ("FAILED", False), ("FAILED", True), ("FINISHED", False)]


def test_a_schedule_that_fails_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = copying_desk()
    jobs = [make_job([5]), make_job([6])]
    desk.submit(*jobs)

    def fail(*_: object) -> None:
        raise RuntimeError("scripted")

    monkeypatch.setattr("server.decoding.scheduler.Scheduler.admit", fail)
    desk.turn()
    assert [job.outcome for job in jobs] == [Outcome.FAILED] * 2


def test_a_round_that_fails_between_queue_and_delivery_loses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(FakeRunner(copying_rule(), max_rows=2))
    finishing, going_on, cancelled, waiting = (make_job([5] * length) for length in (1, 4, 4, 4))
    desk.submit(finishing, going_on, cancelled, waiting)
    desk.turn()
    cancelled.sequence.cancel()

    def fail(*_: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("scripted")

    monkeypatch.setattr(desk.observer, "cancelled", fail)
    desk.turn()
    ended = [job.outcome for job in (finishing, going_on, cancelled)]
    assert ended == [Outcome.FAILED] * 3
    desk.turn_until_idle()
    assert waiting.outcome is Outcome.FINISHED


def test_a_search_that_fails_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = copying_desk()
    bad, good = make_job([5, 6], beam_size=2), make_job([7, 8])
    desk.submit(bad, good)

    def fail(*_: object) -> None:
        raise RuntimeError("scripted")

    monkeypatch.setattr("server.decoding.beam.BeamSearch.advance", fail)
    desk.turn_until_idle()
    assert (bad.outcome, good.outcome) == (Outcome.FAILED, Outcome.FINISHED)


def test_callbacks_that_raise_harm_nobody(caplog: pytest.LogCaptureFixture) -> None:
    desk = copying_desk()
    bad, good = make_job([5, 6]), make_job([7, 8])
    heard: list[str] = []

    def fail(what: object) -> None:
        heard.append(type(what).__name__)
        raise RuntimeError("scripted")

    bad.sequence.on_tokens = bad.sequence.on_finished = fail
    desk.submit(bad, good)
    with caplog.at_level(logging.ERROR):
        desk.turn_until_idle()
    assert heard == ["tuple", "tuple", "Result"]
    assert good.tokens == (7, 8)
    assert "on_tokens of a sequence raised" in caplog.text
