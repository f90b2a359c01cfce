"""Models that serve at once and come to TensorRT engines while they do: nothing is lost, and whatever fails is said."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from export.bundle import Bundle, Exam
from server.config import Target
from server.decoding.sequence import Outcome, Sequence
from server.exam.entrance import sit_whole_exam
from server.gauges import EngineState
from tests.served import ENVIRONMENT, ROOT
from tests.server.commands import ANYWHERE, wait_for
from tests.server.loaded import Load
from tests.server.running import PATIENCE_S
from tests.server.stand_in_gpu import Hold, StandInGpu, WrongRunner, assert_closed, copy_for_gpu, events, is_running
from tests.server.waiting import TEXT, Change, Waiting

THREADS, BEFORE, DURING, AFTER = 6, 25, 5, 20


def test_it_serves_at_once_and_then_on_its_engines(
    load_gpu: Load, cache: Path, gate: Path, log: pytest.LogCaptureFixture
) -> None:
    waiting = Waiting(load_gpu, StandInGpu(gate), cache)
    loaded, model = waiting.loaded, waiting.model
    assert loaded.registry.ready
    # CUDA would have been the better choice, but the bundle is certified on the CPU alone.
    assert (model.runner.name, loaded.served_by) == ("onnxruntime-cpu", ["onnxruntime-cpu"])
    (passed_over,) = events(log, "a target is passed over")
    assert "not certified for onnxruntime-cuda fp16" in passed_over["reason"]
    assert "`dragoman verify --target cuda`" in passed_over["reason"]
    assert loaded.engine_states == {"building": 1}
    assert model.detail == "its TensorRT engines are being built"
    assert waiting.answers.ask(TEXT) == [Outcome.FINISHED]
    waiting.finish()
    assert (model.runner.name, loaded.served_by) == ("tensorrt", ["tensorrt"])
    assert loaded.engine_states == {"serving": 1}
    assert (model.detail, model.retiring, model.healthy) == ("", None, True)
    exam = model.backend.exam
    assert exam is not None
    assert (exam.runner, exam.precision, exam.device, exam.sentences) == ("tensorrt", "fp16", "a stand-in GPU", 6)
    assert exam.thresholds == {"max_bleu_loss": 0.2}
    assert waiting.answers.ask(TEXT, TEXT) == [Outcome.FINISHED] * 2
    assert len({result.hypotheses for result in waiting.answers.results.values()}) == 1
    assert_closed(waiting.before.runner)
    assert [entry["line"] for entry in events(log, "engine build")][-1] == f"built into {next(cache.iterdir())}"
    (serve,) = events(log, "engines serve")
    assert (serve["model"], serve["runner"]) == ("good", "tensorrt fp16")


def test_texts_that_come_while_it_changes_are_all_answered_right(
    load_gpu: Load, gpu_models: Path, cache: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Waiting(load_gpu, StandInGpu(gate), cache)
    model, answers = waiting.model, waiting.answers
    texts = [sentence.source for sentence in Bundle.open(gpu_models / "good").golden()]
    for beam_size in (1, 3):
        answers.wait(answers.submit(*texts, beam_size=beam_size))
    wanted = {(one.source, one.options.beam_size): result for one, result in answers.results.items()}
    held = Hold(waiting.before.runners)
    about_to, in_full_swing = threading.Event(), threading.Barrier(THREADS + 1)
    change = Change(model, monkeypatch)
    change.before += [lambda _: about_to.set(), lambda _: in_full_swing.wait(PATIENCE_S)]

    def keep_asking(number: int) -> list[Sequence]:
        asked: list[Sequence] = []

        def ask(times: int) -> None:
            for index in range(len(asked), len(asked) + times):
                asked.extend(answers.submit(texts[(number + index) % len(texts)], beam_size=1 + 2 * (index % 2)))

        ask(BEFORE)
        assert about_to.wait(PATIENCE_S)
        ask(DURING)
        in_full_swing.wait(PATIENCE_S)
        while not change.over.is_set():
            ask(1)
        ask(AFTER)
        return asked

    with ThreadPoolExecutor(THREADS + 1) as pool:
        askers = [pool.submit(keep_asking, number) for number in range(THREADS)]
        finish = pool.submit(waiting.finish)
        change.wait()
        last = [asker.result(PATIENCE_S)[-1] for asker in askers]
        answers.wait(last)  # by the engines: what executed the model before is held
        assert model.retiring is waiting.before
        assert len(answers.results) < answers.submitted
        held.release()
        finish.result(PATIENCE_S)
    asked = [one for asker in askers for one in asker.result()]
    assert len(asked) >= THREADS * (BEFORE + DURING + AFTER)
    for sequence, result in zip(asked, answers.wait(asked), strict=True):
        assert result == wanted[sequence.source, sequence.options.beam_size]
    assert model.runner.name == "tensorrt"
    assert model.backends == (model.backend,)
    count = waiting.loaded.sample("dragoman_queue_wait_seconds_count", model="good")
    assert count == len(answers.results)


def test_what_waits_and_is_decoded_adds_up_while_it_changes(
    load_gpu: Load, cache: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Waiting(load_gpu, StandInGpu(gate), cache, workers=1)
    gauges = [f"dragoman_{name}" for name in ("active_sequences", "queue_depth")]

    def read() -> list[float | None]:
        return [waiting.loaded.sample(gauge, model="good") for gauge in gauges]

    held = [Hold(waiting.before.runners)]
    asked = waiting.answers.submit(*[TEXT] * 12)
    assert held[0].reached.wait(PATIENCE_S)
    assert read() == [8, 4]
    change = Change(waiting.model, monkeypatch)
    change.before.append(lambda backend: held.append(Hold(backend.runners)))
    with ThreadPoolExecutor(1) as pool:
        finish = pool.submit(waiting.finish)
        change.wait()
        asked += waiting.answers.submit(*[TEXT] * 10)
        assert held[1].reached.wait(PATIENCE_S)
        assert read() == [8 + 8, 4 + 2]
        for hold in held:
            hold.release()
        finish.result(PATIENCE_S)
    assert {result.outcome for result in waiting.answers.wait(asked)} == {Outcome.FINISHED}
    assert waiting.model.decode_loop.close(timeout_s=PATIENCE_S)
    assert read() == [0, 0]


def test_a_server_that_leaves_gives_up_what_is_left_on_both_sides_of_the_change(
    load_gpu: Load, cache: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Waiting(load_gpu, StandInGpu(gate), cache, workers=1)
    held = Hold(waiting.before.runners)
    asked = waiting.answers.submit(*[TEXT] * 12)
    assert held.reached.wait(PATIENCE_S)
    change = Change(waiting.model, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        finish = pool.submit(waiting.finish)
        change.wait()
        assert waiting.model.backends == (waiting.model.backend, waiting.before)
        monkeypatch.setattr("server.decoding.loop._JOIN_TIMEOUT_S", 0.0)  # its thread is held
        assert not waiting.before.decode_loop.close(timeout_s=0.0)
        held.release()
        finish.result(PATIENCE_S)
    assert {result.outcome for result in waiting.answers.wait(asked)} == {Outcome.CANCELLED}


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ("fail", "step.onnx: got Attention with lengths, wanted a mask"),
        ("lie", "engines: got none that fit from the build, wanted them in "),
        ("crash", "the build ended: killed by SIGABRT"),
    ],
)
def test_a_build_that_fails_leaves_it_serving(
    load_gpu: Load, cache: Path, gate: Path, log: pytest.LogCaptureFixture, order: str, reason: str
) -> None:
    waiting = Waiting(load_gpu, StandInGpu(gate, runs=[Target.TENSORRT]), cache)
    waiting.finish(order)
    (failed,) = events(log, "engines failed")
    assert failed["model"] == "good"
    assert reason in failed["reason"]
    waiting.check_serves_as_before()


def test_a_build_that_cannot_even_start_leaves_it_serving(
    load_gpu: Load, cache: Path, gate: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = StandInGpu(gate, runs=[Target.TENSORRT])
    monkeypatch.setattr(gpu, "build_command", lambda *_, **__: ["/no/such/program"])
    waiting = Waiting(load_gpu, gpu, cache)
    waiting.loaded.engine_work.start()
    waiting.loaded.engine_work.join()
    assert events(log, "engines failed")[0]["reason"] == "/no/such/program: No such file or directory"
    waiting.check_serves_as_before()


def test_engines_that_fail_the_exam_leave_it_serving(
    load_gpu: Load, cache: Path, gate: Path, log: pytest.LogCaptureFixture
) -> None:
    waiting = Waiting(load_gpu, StandInGpu(gate, runs=[Target.TENSORRT], kind=WrongRunner), cache)
    waiting.finish()
    (failed,) = events(log, "engines failed")
    assert "exam on tensorrt fp16 failed: BLEU loss of greedy" in failed["reason"]
    waiting.check_serves_as_before()


def test_engines_for_less_than_was_promised_leave_it_serving(
    load_gpu: Load, cache: Path, gate: Path, log: pytest.LogCaptureFixture
) -> None:
    gpu = StandInGpu(gate, runs=[Target.TENSORRT])
    gpu.max_rows_of_engines = 4
    waiting = Waiting(load_gpu, gpu, cache)
    waiting.finish()
    assert "engines: max_beam_size: got 4, wanted at least 8" in events(log, "engines failed")[0]["reason"]
    waiting.check_serves_as_before()


def test_one_models_failure_leaves_the_next_its_engines(
    load_gpu: Load, gpu_models: Path, cache: Path, gate: Path
) -> None:
    copy_for_gpu(gpu_models, "other")
    gpu = StandInGpu(gate, runs=[Target.TENSORRT])
    loaded = load_gpu(gpu=gpu, engine_cache=cache)
    gpu.orders = {"good": "fail", "other": "build"}
    loaded.engine_work.start()
    loaded.engine_work.join()
    assert {model.name: model.engines for model in loaded.registry.all()} == {
        "good": EngineState.FAILED,
        "other": EngineState.SERVING,
    }


def test_a_build_ends_when_the_server_leaves(
    load_gpu: Load, cache: Path, gate: Path, log: pytest.LogCaptureFixture
) -> None:
    waiting = Waiting(load_gpu, StandInGpu(gate), cache)
    waiting.loaded.engine_work.start()
    with gate.open("w"):  # it listens now
        waiting.loaded.engine_work.stop()
        waiting.loaded.engine_work.join()
    ((line,),) = (re.findall(r"building, process (\d+)", entry["line"]) for entry in events(log, "engine build"))
    assert not is_running(int(line))
    assert not events(log, "engines failed")
    assert waiting.model.backend is waiting.before
    assert waiting.model.healthy


def test_nothing_changes_once_the_server_leaves(
    load_gpu: Load, cache: Path, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Waiting(load_gpu, StandInGpu(gate, runs=[Target.TENSORRT]), cache)

    def leave_meanwhile(*arguments: Any) -> Exam:
        waiting.loaded.engine_work.stop()
        return sit_whole_exam(*arguments)

    monkeypatch.setattr("server.engines.sit_whole_exam", leave_meanwhile)
    waiting.finish()
    assert waiting.model.backend is waiting.before
    (runner,) = waiting.gpu.opened
    assert_closed(runner)


def test_sigterm_during_a_build(gpu_models: Path, cache: Path, gate: Path) -> None:
    flags = ("--models", str(gpu_models), "--target", "tensorrt", "--engine-cache", str(cache), "--lame-duck", "0")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.stand_in_gpu", "serve", *ANYWHERE, *flags],
        cwd=ROOT,
        env={**ENVIRONMENT, "STAND_IN_GATE": str(gate), "STAND_IN_RUNS": "cuda tensorrt"},
        stderr=subprocess.PIPE,
    )
    try:
        (described,) = wait_for(process, "started")["models"]
        assert (described["runner"], described["engines"]) == ("onnxruntime-cpu", "building")
        build = int(wait_for(process, "engine build")["line"].split()[-1])
        assert is_running(build)
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
        assert not is_running(build)
        assert b"Traceback" not in rest
        assert b"engines failed" not in rest
    finally:
        process.kill()
        process.communicate()
