"""One run of the whole command: what is ready is measured, within what is left of the time."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.budget import Budget
from benchmarks.gpu.child import Ended, run_child
from benchmarks.gpu.machine import ROOT
from benchmarks.gpu.models.preparation import PreparationError, Preparations, Run
from benchmarks.gpu.plan import LEAST_S, Task, bundles_of, engines_of
from benchmarks.gpu.probe import PROBES

PROBE_TIMEOUT_S = 60.0
_BANDWIDTH_TIMEOUT_S = 30.0
_BUNDLE_TIMEOUT_S = 120.0
_GRACE_S = 5.0  # a worker ends by itself when its time is over; this much later it is ended
_POLL_S = 0.2
_ERROR_MARK = "[E]"
_NO_TIME = "no time was left"
OF_PART = ": "
"""Between a task and a part of it, in the names of what was left out."""

TOKENS = {"greedy", "beam", "outputs"}
"""What is kept apart from the figures."""


@dataclass
class Session:
    """Runs the children and keeps what they say.

    Attributes:
        out: folder for results and logs.
        device: ``cuda`` or ``cpu``.
        budget: of the whole run.
        preparations: bundles and engines.
        run: runs a child.
        results: everything, as the JSON has it.
        outputs: tokens of every exam and decode loop, by task, part and search.
    """

    out: Path
    device: str
    budget: Budget
    preparations: Preparations
    run: Run = run_child
    results: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, list[list[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._exclusive = threading.Lock()

    def probe(self) -> None:
        """Ask all probes at once; each that failed brings one line of evidence, and its log stays."""
        with ThreadPoolExecutor(len(PROBES)) as pool:
            answers = pool.map(self._probe, PROBES)
            self.results["probes"] = dict(zip(PROBES, answers, strict=True))
        self.save()

    def _probe(self, name: str) -> dict[str, Any]:
        log = self._log(f"probe-{name}")
        said: list[dict[str, Any]] = []
        timeout = min(PROBE_TIMEOUT_S, self.budget.left)
        ended = self.run("benchmarks.gpu.probe", [name], log=log, timeout_s=timeout, on_message=said.append)
        answer = said[-1] if said else {"failed": ended.fault or "it said nothing"}
        if "failed" in answer and (evidence := first_error(log)):
            answer["evidence"] = evidence
        return answer | {"seconds": round(ended.seconds, 1)}

    def measure_bandwidth(self) -> None:
        """How fast the device copies within its memory."""
        said: list[dict[str, Any]] = []
        timeout = min(_BANDWIDTH_TIMEOUT_S, self.budget.left)
        ended = self.run(
            "benchmarks.gpu.bandwidth",
            [self.device],
            log=self._log("bandwidth"),
            timeout_s=timeout,
            on_message=said.append,
        )
        self.results["copy"] = said[-1] if said else {"failed": ended.fault or "it said nothing"}
        self.save()

    def prepare_bundles(self, tasks: list[Task]) -> None:
        """Begin to write the bundles that the tasks need."""
        for model, precision in bundles_of(tasks):
            self.preparations.start_bundle(model, precision, timeout_s=_BUNDLE_TIMEOUT_S)

    def prepare_engines(self, tasks: list[Task]) -> None:
        """Begin to build the engines that the tasks need; not beside a measurement, where building uses the GPU."""
        if "failed" not in self.results["probes"]["tensorrt"]:
            self.preparations.exclusive = self._exclusive
        for job in engines_of(tasks):
            self.preparations.start_engines(job, timeout_s=self.budget.seconds)

    def measure(self, tasks: list[Task]) -> None:
        """Do the tasks, given in order of importance: always the most important one of those that are ready."""
        waiting = list(tasks)
        self.results["tasks"] = []
        while waiting and (task := self._next(waiting)):
            waiting.remove(task)
            with self.preparations.exclusive:
                wanted_later = sum(one.wanted_s for one in waiting)
                share = self.budget.share(wanted=task.wanted_s, least=LEAST_S, wanted_later=wanted_later)
                if share is None:
                    self.budget.leave_out(task.name, _NO_TIME)
                else:
                    self.results["tasks"].append(self._do(task, seconds=share))
            self.save()
        for task in waiting:
            ready = self.preparations.ready(task.needs)
            self.budget.leave_out(task.name, _NO_TIME if ready else "what it needs was not ready in time")

    def _next(self, waiting: list[Task]) -> Task | None:
        """The first task that is ready; None: the time is over before any is."""
        while self.budget.left >= LEAST_S:
            for task in waiting:
                if self.preparations.ready(task.needs):
                    return task
            time.sleep(_POLL_S)
        return None

    def _do(self, task: Task, *, seconds: float) -> dict[str, Any]:
        record: dict[str, Any] = {
            "task": task.name,
            "system": task.system,
            "model": task.model,
            "precision": task.precision,
            "max_rows": task.max_rows,
            "while_preparing": self.preparations.busy,
        }
        try:
            self.preparations.wait(task.needs, timeout_s=0.0)
        except PreparationError as error:
            return record | {"failed": str(error)}
        said: list[dict[str, Any]] = []
        log = self._log(task.name.replace(" ", "-"))
        ended = self.run(
            "benchmarks.gpu.worker",
            [json.dumps(self._spec(task, seconds=seconds - _GRACE_S))],
            log=log,
            timeout_s=seconds,
            on_message=said.append,
            variables=task.variables,
        )
        record |= _facts(said)
        if "facts" not in record:
            return record | {"failed": record.get("failed") or _end_of(ended), "seconds": round(ended.seconds, 1)}
        record["parts"] = self._parts(task, said, fault=_end_of(ended))
        if ended.fault and "failed" not in record and not ended.timed_out:
            record["failed"] = ended.fault
        if "kernels" in task.name:
            record["log"] = [line for line in log.read_text(errors="replace").splitlines() if "SdpaKernel=" in line][:4]
        return record | {"seconds": round(ended.seconds, 1)}

    def _spec(self, task: Task, *, seconds: float) -> dict[str, Any]:
        return {
            "system": task.system,
            "bundle": str(self.preparations.bundle_path(task.model, task.precision)),
            "device": self.device,
            "max_rows": task.max_rows,
            "engines": str(self.preparations.engines_path(task.model, task.precision)),
            "seconds": seconds,
            "parts": list(task.parts),
        }

    def _parts(self, task: Task, said: list[dict[str, Any]], *, fault: str) -> list[dict[str, Any]]:
        """Every part with its answer; what has none was cut off."""
        answers = {message["number"]: message for message in said if "number" in message}
        parts = []
        for number, part in enumerate(task.parts):
            answer = answers.get(number, {"left_out": fault})
            parts.append(part | {name: value for name, value in answer.items() if name != "number"})
            for name in TOKENS.intersection(answer.get("result", {})):
                self.outputs[f"{task.name}: {describe_part(part)}: {name}"] = answer["result"].pop(name)
            if "left_out" in answer:
                self.budget.leave_out(f"{task.name}{OF_PART}{describe_part(part)}", answer["left_out"])
        return parts

    def save(self) -> None:
        """Write what is known so far, so that nothing is lost should the run be cut off."""
        results = {
            **self.results,
            "prepared": self.preparations.records,
            "left_out": self.budget.left_out,
            "seconds": round(self.budget.used, 1),
        }
        self.out.mkdir(parents=True, exist_ok=True)
        texts = {"gpu.json": json.dumps(results, indent=1), "outputs.json": json.dumps(self.outputs)}
        for name, text in texts.items():
            part = self.out / f".{name}.part"
            part.write_text(self._without_paths(text) + "\n", encoding="utf-8")
            part.rename(self.out / name)

    def _without_paths(self, text: str) -> str:
        """Without the folders of this machine."""
        for path, name in (
            (self.preparations.folder, "WORK"),
            (self.preparations.logs.resolve(), "LOGS"),
            (self.out.resolve(), "OUT"),
            (ROOT, "CHECKOUT"),
        ):
            text = text.replace(str(path), name)
        return text

    def _log(self, name: str) -> Path:
        return self.preparations.logs / f"{name}.log"


def _end_of(ended: Ended) -> str:
    """Why a part has no answer."""
    return "its time was over" if ended.timed_out else ended.fault or "the process ended before"


def _facts(said: list[dict[str, Any]]) -> dict[str, Any]:
    """What a worker says of its system, the last word on each: ``facts``, ``opened_s``, or why it ``failed``."""
    found: dict[str, Any] = {}
    for message in said:
        if "opened" in message:
            found |= {"facts": message["opened"], "opened_s": message["seconds"]}
        elif "number" not in message:
            found |= message
    return found


def describe_part(part: dict[str, Any]) -> str:
    """A part in words."""
    match part["part"]:
        case "step":
            return f"step of {part['rows']} rows, beam {part['beam_size']}"
        case "decode":
            return f"decode loop, beam {part['beam_size']}"
    return str(part["part"])


def first_error(log: Path) -> str:
    """The first line of a log that a library marks as an error; empty: there is none."""
    if not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip()[:300] for line in lines if _ERROR_MARK in line), "")
