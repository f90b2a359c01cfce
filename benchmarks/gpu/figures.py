"""What follows from the measured figures: bytes per second of steps, tokens per second, outputs that are equal."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.specs import MODELS
from benchmarks.gpu.step_bytes import step_bytes

_REFERENCE_SYSTEM = "torch"
Outputs = dict[str, list[list[int]]]


def add_figures(results: dict[str, Any], outputs: Outputs) -> None:
    """Add to each measured part what follows from it.

    A step gets ``bytes``, ``bytes_per_second`` and ``of_copy``, its share of the copy's speed; a decode loop gets
    ``tokens_per_second`` and ``outputs_equal_to_torch``, how many outputs are those of the PyTorch baseline.
    """
    copy = results.get("copy", {}).get("bytes_per_second")
    for task in results.get("tasks", []):
        for part in task.get("parts", []):
            result = part.get("result")
            if result and part["part"] == "step":
                size = step_bytes(MODELS[task["model"]], task["precision"], rows=part["rows"])
                speed = size / result["median_s"]
                result |= {"bytes": size, "bytes_per_second": speed, "of_copy": speed / copy if copy else None}
            if result and part["part"] == "decode":
                result["tokens_per_second"] = result["output_tokens"] / result["median_s"]
                result["outputs_equal_to_torch"] = _equal_outputs(task, part["beam_size"], outputs)


def _equal_outputs(task: dict[str, Any], beam_size: int, outputs: Outputs) -> int | None:
    """None: there is nothing to compare with."""
    name = f"{task['task']}: decode loop, beam {beam_size}: outputs"
    system = task["system"]
    own, reference = outputs.get(name), outputs.get(name.replace(f" {system}:", f" {_REFERENCE_SYSTEM}:"))
    if own is None or reference is None or system.startswith("hf"):  # hf has weights of its own
        return None
    return sum(mine == theirs for mine, theirs in zip(own, reference, strict=True))
