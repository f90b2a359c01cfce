"""What is measured, in order of importance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.models.preparation import EngineJob, Key
from benchmarks.gpu.specs import BEAM_ROWS, BEAM_SIZE, GREEDY_ROWS, MAX_ROWS, MODELS, Precision
from benchmarks.gpu.systems.protocol import OURS

EXAM_ROWS = 32
SOURCES_PER_ROW = 2
"""A decode loop is given twice as many hypotheses as it has rows."""

DECODE_ROUNDS = 5
DECODE_SECONDS = 6.0
STEP_SECONDS = 0.5
KERNEL_ROWS = 64
LEAST_S = 12.0
"""Below this a system hardly loads."""

_LATE_SYSTEMS = ("torch-compiled", "hf-static")
_UNPROFILED_SYSTEMS = ("hf",)
_COMPILED_ROWS = (1, 64)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One system on one model: a process of its own.

    Attributes:
        name: of the task, and of its log.
        system: one of ``systems.SYSTEMS``.
        model: by name.
        precision: of the bundle.
        max_rows: most rows of a step.
        parts: as ``worker`` takes them, in order of importance.
        wanted_s: seconds it takes where time is plenty.
        needs: what has to be made before.
        variables: of its environment.
    """

    name: str
    system: str
    model: str
    precision: Precision
    max_rows: int
    parts: tuple[dict[str, Any], ...]
    wanted_s: float
    needs: tuple[Key, ...]
    variables: dict[str, str] = field(default_factory=dict)


def step_parts(
    *,
    max_rows: int,
    greedy: Sequence[int] = GREEDY_ROWS,
    beam: Sequence[int] = BEAM_ROWS,
) -> tuple[dict[str, Any], ...]:
    """Steps and decode loops, greedy first, and with a beam."""
    parts: list[dict[str, Any]] = []
    for beam_size, counts in ((1, greedy), (BEAM_SIZE, beam)):
        parts += [
            {"part": "step", "rows": rows, "beam_size": beam_size, "seconds": STEP_SECONDS}
            for rows in counts
            if rows <= max_rows
        ]
        asked = max(1, SOURCES_PER_ROW * max_rows // beam_size)
        rounds = {"rounds": DECODE_ROUNDS, "seconds": DECODE_SECONDS}
        parts.append({"part": "decode", "beam_size": beam_size, "sources": asked, **rounds})
    return tuple(parts)


def plan_tasks(
    *, models: Sequence[str], systems: Sequence[str], max_rows: int, quick: bool, precision: Precision = "fp16"
) -> list[Task]:
    """All tasks, the most important first.

    Exams of the trained model, steps and throughput of every random model, kernels, exams of the random ones, and last
    what takes long to compile.

    Args:
        models: by name, the most important first.
        systems: likewise.
        max_rows: of every step.
        quick: leave out what is only there to complete the picture.
        precision: in which steps are timed; exams are sat in fp32 too.
    """
    makers = _Makers(max_rows=max_rows, precision=precision)
    ours = [system for system in systems if system in OURS]
    early = [system for system in systems if system not in _LATE_SYSTEMS]
    trained = [model for model in models if not MODELS[model].random]
    random = [model for model in models if MODELS[model].random]
    tasks = [makers.exam(system, model, precision) for model in trained for system in ours]
    tasks += [makers.steps(system, model) for model in random[:1] for system in early]
    tasks += [makers.exam(system, model, "fp32") for model in trained for system in ours]
    tasks += [makers.steps(system, model) for model in random[1:] for system in early]
    if not quick:
        tasks += [
            makers.kernels(system, model)
            for model in random[:1]
            for system in early
            if system not in _UNPROFILED_SYSTEMS
        ]
        tasks += [makers.exam(system, model, precision) for model in random for system in ours]
        tasks += [makers.exam(system, model, "fp32") for model in random[:1] for system in ours]
        late = [system for system in systems if system in _LATE_SYSTEMS]
        tasks += [makers.late(system, model) for model in random[:1] for system in late]
        tasks += [makers.steps(system, model) for model in trained for system in early]
    return list({task.name: task for task in reversed(tasks)}.values())[::-1]


@dataclass(frozen=True)
class _Makers:
    max_rows: int
    precision: Precision

    def exam(self, system: str, model: str, precision: Precision) -> Task:
        random = MODELS[model].random
        parts = ({"part": "exam", "trained": not random},)
        rows = (
            self.max_rows if random and precision == self.precision else EXAM_ROWS
        )  # of random models other tasks need more
        return self._task("exam", system, model, precision, parts, wanted_s=15.0, max_rows=min(rows, self.max_rows))

    def steps(self, system: str, model: str) -> Task:
        big = MODELS[model].d_model > MODELS["base"].d_model
        rows = self.max_rows if MODELS[model].random else min(EXAM_ROWS, self.max_rows)
        parts = step_parts(max_rows=rows)
        if not MODELS[model].random:  # its outputs end by themselves, and each precision ends some elsewhere
            parts = tuple(part for part in parts if part["part"] == "step")
        return self._task("steps", system, model, self.precision, parts, wanted_s=60.0 if big else 45.0, max_rows=rows)

    def kernels(self, system: str, model: str) -> Task:
        parts = ({"part": "kernels", "rows": min(KERNEL_ROWS, self.max_rows)},)
        variables = {"ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO": "1"}
        return self._task("kernels", system, model, self.precision, parts, wanted_s=20.0, variables=variables)

    def late(self, system: str, model: str) -> Task:
        rows = [rows for rows in _COMPILED_ROWS if rows <= self.max_rows]
        parts = tuple(part for part in step_parts(max_rows=self.max_rows, greedy=rows) if part["part"] == "step")
        greedy = tuple(part for part in parts if part["beam_size"] == 1)
        return self._task("steps", system, model, self.precision, greedy, wanted_s=60.0, max_rows=max(rows))

    def _task(
        self,
        kind: str,
        system: str,
        model: str,
        precision: Precision,
        parts: tuple[dict[str, Any], ...],
        *,
        wanted_s: float,
        max_rows: int | None = None,
        variables: dict[str, str] | None = None,
    ) -> Task:
        makes = ("bundle", "engines") if system == "tensorrt" else ("bundle",)
        return Task(
            name=f"{kind} {model} {precision} {system}",
            system=system,
            model=model,
            precision=precision,
            max_rows=max_rows or self.max_rows,
            parts=parts,
            wanted_s=wanted_s,
            needs=tuple((made, model, precision) for made in makes),
            variables=variables or {},
        )


def bundles_of(tasks: Iterable[Task]) -> list[tuple[str, Precision]]:
    """Model and precision of every bundle that the tasks need, in the order of the tasks."""
    return list(dict.fromkeys((task.model, task.precision) for task in tasks))


def engines_of(tasks: Iterable[Task]) -> list[EngineJob]:
    """The engines that the tasks need, in the order of the tasks, each for the most rows that any asks for."""
    rows: dict[tuple[str, Precision], int] = {}
    for task in tasks:
        if task.system == "tensorrt":
            key = (task.model, task.precision)
            rows[key] = max(rows.get(key, 0), task.max_rows)
    return [EngineJob(model, precision, most) for (model, precision), most in rows.items()]


assert max(GREEDY_ROWS) == MAX_ROWS
