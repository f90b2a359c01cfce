"""Which kernels the steps of a system run: by PyTorch's profiler, which sees all that its process puts onto the GPU."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.probe import TENSORRT_MODULES
from benchmarks.gpu.systems.protocol import Setting, System

ATTENTION = re.compile(r"attention|attn|mha|fmha|flash|sdpa|softmax", re.IGNORECASE)
_MOST_KERNELS = 12
_MOST_LAYERS = 8


def kernels_of_steps(system: System, setting: Setting, *, rows: int) -> dict[str, Any]:
    """Profile a few decodings of so many rows.

    Returns:
        ``kernels`` that took the most time, ``attention`` those whose names speak of attention or of a softmax, each
        with its count and microseconds; for TensorRT also the ``layers`` of its engines that do.
    """

    def decode_once() -> None:
        system.step_seconds(rows=rows, beam_size=1, enough=lambda steps: steps > 0)

    decode_once()  # what happens only once is not asked for
    activity = ProfilerActivity.CUDA if setting.device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        decode_once()
        if setting.device == "cuda":
            torch.cuda.synchronize()
    seen = [_record(event) for event in profiler.key_averages()]
    seen.sort(key=lambda record: -record["microseconds"])
    attention = [record for record in seen if ATTENTION.search(record["kernel"])]
    found: dict[str, Any] = {"rows": rows, "kernels": seen[:_MOST_KERNELS], "attention": attention[:_MOST_KERNELS]}
    return found | ({"layers": engine_layers(setting.engines)} if setting.system == "tensorrt" else {})


def _record(event: Any) -> dict[str, Any]:
    on_device = getattr(event, "self_device_time_total", 0.0)
    taken = on_device or event.self_cpu_time_total
    return {"kernel": event.key, "count": event.count, "microseconds": round(float(taken), 1)}


def engine_layers(engines: Path) -> dict[str, Any]:
    """For each step engine how many layers it has, and the names of those that speak of attention."""
    found: dict[str, Any] = {}
    for module in TENSORRT_MODULES.values():
        try:
            library = importlib.import_module(module)
        except ImportError:
            continue
        runtime = library.Runtime(library.Logger(library.Logger.ERROR))
        for plan in sorted(engines.rglob("step*.plan")):
            engine = runtime.deserialize_cuda_engine(plan.read_bytes())
            if engine is not None:
                text = engine.create_engine_inspector().get_engine_information(library.LayerInformationFormat.JSON)
                found[plan.name] = layers_of(text)
        break
    return found


def layers_of(information: str) -> dict[str, Any]:
    """What an engine inspector's JSON says of layers; names stand alone or in records, by how much an engine keeps."""
    layers = json.loads(information).get("Layers", [])
    names = [layer["Name"] if isinstance(layer, dict) else str(layer) for layer in layers]
    kinds = Counter(layer.get("LayerType", "unknown") for layer in layers if isinstance(layer, dict))
    attention = [name for name in names if ATTENTION.search(name)]
    return {"layers": len(names), "types": dict(kinds), "attention": attention[:_MOST_LAYERS]}
