"""What was measured, as tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.session import OF_PART, describe_part
from benchmarks.gpu.specs import BEAM_SIZE, CACHED_TOKENS, MODELS, Precision
from benchmarks.gpu.step_bytes import step_bytes
from benchmarks.gpu.systems.protocol import OURS, SYSTEMS

Results = dict[str, Any]
_NOT_MEASURED = "-"
_PEERS = ("torch", "hf")
_WIDTH = 15


def report(results: Results) -> str:
    """All tables, the steps last but for what was left out."""
    parts = [
        *_circumstances(results),
        "",
        *_probes(results),
        "",
        *_exams(results),
        *_kernels(results),
        *(line for model in _models(results) for line in _steps_and_loops(results, model)),
        *_failures(results),
        *_left_out(results),
    ]
    return "\n".join(parts)


def _circumstances(results: Results) -> Iterator[str]:
    gpu = results.get("gpu", {})
    yield f"GPU: {gpu.get('error') or ', '.join(f'{name} {value}' for name, value in gpu.items())}"
    yield "versions: " + ", ".join(f"{name} {version}" for name, version in results.get("versions", {}).items())
    speed = results.get("copy", {}).get("bytes_per_second")
    yield f"copy within the device: {speed / 1e9:.0f} GB/s, read plus written" if speed else "copy: not measured"
    yield f"command: {results.get('command', '')} ({results.get('seconds', 0):.0f} s)"


def _probes(results: Results) -> Iterator[str]:
    for name, answer in results.get("probes", {}).items():
        if "failed" in answer:
            evidence = f" [{answer['evidence']}]" if "evidence" in answer else ""
            yield f"{name:<14} does not work: {answer['failed']}{evidence}"
        else:
            facts = ", ".join(f"{key} {value}" for key, value in answer.items() if key in ("version", "cuda", "name"))
            yield f"{name:<14} works: {facts}"


def _exams(results: Results) -> Iterator[str]:
    sat = [(task, part["result"]) for task, part in _parts(results, "exam") if "result" in part]
    if not sat:
        return
    columns = "{:<6} {:<5} {:<18} {:>9} {:>7} {:>10}  {}"
    yield columns.format("model", "", "golden exam of", "sentences", "exact", "log-prob", "").rstrip()
    for task, exam in sat:
        verdict = "passed" if exam["passed"] else f"FAILED: {'; '.join(exam['missed'])}"
        yield columns.format(
            task["model"],
            exam["precision"],
            exam["runner"],
            exam["sentences"],
            f"{exam['token_exact_rate']:.1%}",
            f"{exam['max_log_prob_difference']:.1e}",
            verdict,
        )


def _kernels(results: Results) -> Iterator[str]:
    for task, part in _parts(results, "kernels"):
        names = [kernel["kernel"][:90] for kernel in part.get("result", {}).get("attention", [])[:3]]
        said = "; ".join(names) or part.get("failed", "none named so")
        yield f"attention of {task['system']}, {task['model']}: {said}"
        yield from (f"  {line.strip()[:140]}" for line in task.get("log", [])[:1])


def _steps_and_loops(results: Results, model: str) -> Iterator[str]:
    systems = [system for system in SYSTEMS if _medians(results, model, system)]
    if not systems:
        return
    ours = next((system for system in systems if system in OURS), None)
    precision: Precision = _precision(results, model)
    for beam_size in (1, BEAM_SIZE):
        search = "greedy" if beam_size == 1 else f"beam {beam_size}"
        yield ""
        speed = f"; speed of {ours} over the peers" if ours else ""
        yield f"{model} {precision}, {search}: ms of a step at {CACHED_TOKENS} tokens{speed}"
        over = [f"over {peer}" for peer in _PEERS if ours and peer in systems]
        yield _line("rows", *systems, *over, "of copy speed")
        yield from _step_lines(results, model, precision, beam_size=beam_size, systems=systems, ours=ours)
        yield from _loop_lines(results, model, beam_size=beam_size, systems=systems, ours=ours)


def _step_lines(
    results: Results, model: str, precision: Precision, *, beam_size: int, systems: list[str], ours: str | None
) -> Iterator[str]:
    medians = {system: _medians(results, model, system) for system in systems}
    for rows in sorted({rows for found in medians.values() for rows, beam in found if beam == beam_size}):
        taken = {system: found.get((rows, beam_size)) for system, found in medians.items()}
        cells = [f"{seconds * 1e3:.3f}" if seconds else _NOT_MEASURED for seconds in taken.values()]
        mine = taken.get(ours or "")
        cells += [_ratio(taken[peer], mine) for peer in _PEERS if ours and peer in systems]
        yield _line(rows, *cells, _share(results, model, precision, rows=rows, seconds=mine))


def _loop_lines(results: Results, model: str, *, beam_size: int, systems: list[str], ours: str | None) -> Iterator[str]:
    speeds: dict[str, float] = {}
    for task, part in _parts(results, "decode"):
        if task["model"] == model and part["beam_size"] == beam_size and "result" in part:
            speeds[task["system"]] = part["result"]["output_tokens"] / part["result"]["median_s"]
    if not speeds:
        return
    cells = [f"{speeds[system]:.0f}" if system in speeds else _NOT_MEASURED for system in systems]
    mine = speeds.get(ours or "")
    cells += [_ratio(mine, speeds.get(peer)) for peer in _PEERS if ours and peer in systems]
    yield _line("tok/s", *cells)


def _line(*cells: str | int) -> str:
    return f"{cells[0]:>6}" + "".join(f"{cell:>{_WIDTH}}" for cell in cells[1:])


def _share(results: Results, model: str, precision: Precision, *, rows: int, seconds: float | None) -> str:
    speed = results.get("copy", {}).get("bytes_per_second")
    if not speed or not seconds:
        return _NOT_MEASURED
    return f"{step_bytes(MODELS[model], precision, rows=rows) / seconds / speed:.1%}"


def _ratio(above: float | None, below: float | None) -> str:
    return f"{above / below:.2f}" if above and below else _NOT_MEASURED


def _failures(results: Results) -> Iterator[str]:
    reasons = [(task["task"], "", task["failed"]) for task in results.get("tasks", []) if "failed" in task]
    reasons += [
        (task["task"], describe_part(part), part["failed"])
        for task in results.get("tasks", [])
        for part in task.get("parts", [])
        if "failed" in part
    ]
    yield from _grouped("failed:", reasons)


def _left_out(results: Results) -> Iterator[str]:
    names = [(*name.partition(OF_PART)[::2], reason) for name, reason in results.get("left_out", {}).items()]
    yield from _grouped("left out:", names)


def _grouped(title: str, reasons: list[tuple[str, str, str]]) -> Iterator[str]:
    """(task, part, reason), the parts of one task that share a reason on one line."""
    parts: dict[tuple[str, str], list[str]] = {}
    for task, part, reason in reasons:
        parts.setdefault((task, reason), []).extend([part] if part else [])
    if parts:
        yield f"\n{title}"
    for (task, reason), names in parts.items():
        yield f"  {task}: {reason}" + (f" ({'; '.join(names)})" if names else "")


def _models(results: Results) -> list[str]:
    return list(dict.fromkeys(task["model"] for task in results.get("tasks", [])))


def _precision(results: Results, model: str) -> Precision:
    """In which the model's steps were timed."""
    for task, _ in _parts(results, "step"):
        if task["model"] == model:
            precision: Precision = task["precision"]
            return precision
    return "fp16"


def _medians(results: Results, model: str, system: str) -> dict[tuple[int, int], float]:
    """Seconds of a step by (rows, beam size)."""
    return {
        (part["rows"], part["beam_size"]): part["result"]["median_s"]
        for task, part in _parts(results, "step")
        if task["model"] == model and task["system"] == system and "result" in part
    }


def _parts(results: Results, kind: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every part of one kind with its task."""
    for task in results.get("tasks", []):
        for part in task.get("parts", []):
            if part["part"] == kind:
                yield task, part
